//! Reads `clusters.yaml`. Shared by the test that asks the API server and the one that asks our own checks.

use serde_json::{Value, json};

/// A Cluster that is tried.
#[derive(Debug)]
pub struct Case {
    /// What it is about.
    pub case: String,
    /// The object before, if it is an update.
    pub old: Option<Value>,
    /// The object.
    pub new: Value,
    /// Why it is refused; `None` if it is accepted.
    pub refused: Option<Refused>,
}

/// A refusal.
#[derive(Debug)]
pub struct Refused {
    /// The field that the message names.
    pub field: String,
    /// What the API server's message says, if it can refuse it.
    pub api: Option<String>,
    /// What ours says, if we can.
    pub valid: Option<String>,
}

impl Refused {
    /// Whether a message names the field and the rule.
    pub fn is_said_by(&self, message: &str, rule: &str) -> bool {
        message.contains(&self.field) && message.contains(rule)
    }
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let cases: Vec<Value> = serde_saphyr::from_str(include_str!("clusters.yaml")).expect("clusters.yaml is YAML");
    cases.into_iter().enumerate().map(|(number, case)| read(number, case)).collect()
}

/// The settings that the cases are judged by.
pub const SETTINGS: &str = "kubernetes: {defaultVersion: v1.36.3, images: {v1.35.4: a, v1.36.3: b, v1.36.4: c, v1.37.1: d, v1.36.3-debug: e}}\nnetwork: {clusterDNS: 10.96.0.10, flannel: {service: giantnetes-flannel-etcd, members: 1}}\nexposure: {hostTemplate: '{name}.{namespace}.guests.example.com'}";

fn read(number: usize, mut case: Value) -> Case {
    expand(&mut case);
    let known = ["case", "name", "metadata", "old", "status", "spec", "refused", "by"];
    for key in case.as_object().expect("a case is a map").keys() {
        assert!(known.contains(&key.as_str()), "{key} in {case}");
    }
    let object = |spec: &Value| {
        let mut object =
            json!({"apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster", "metadata": {}, "spec": spec});
        if let Some(metadata) = case.get("metadata") {
            object["metadata"] = metadata.clone();
        }
        let name = case.get("name").cloned().unwrap_or_else(|| format!("case-{number}").into());
        object["metadata"]["name"] = name;
        object["metadata"]["namespace"] = "admission".into();
        object
    };
    let old = case.get("old").map(|spec| {
        let mut old = object(spec);
        if let Some(status) = case.get("status") {
            old["status"] = status.clone();
        }
        old
    });
    let refused = case.get("refused").map(|refused| {
        let by = case.get("by").and_then(Value::as_str);
        let said = |who: &str| {
            let rule = refused.get(who).or_else(|| refused.get("rule")).and_then(Value::as_str);
            rule.map(str::to_owned).filter(|_| by.is_none_or(|by| by == who))
        };
        let field = refused["field"].as_str().expect("a refusal names a field").to_owned();
        let refused = Refused { field, api: said("api"), valid: said("valid") };
        assert!(refused.api.is_some() || refused.valid.is_some(), "nobody refuses {case}");
        refused
    });
    Case {
        case: case["case"].as_str().expect("a case says what it is").to_owned(),
        old,
        new: object(&case["spec"]),
        refused,
    }
}

/// What would be too long to write down: `REPEAT 3 x` is xxx, `KEYS 3` a map of three, `POOLS 3` three pools.
fn expand(value: &mut Value) {
    match value {
        Value::String(text) => {
            let words: Vec<_> = text.split(' ').collect();
            let count = words.get(1).and_then(|count| count.parse::<usize>().ok());
            *value = match (words.as_slice(), count) {
                (["REPEAT", _, text], Some(count)) => text.repeat(count).into(),
                (["KEYS", _], Some(count)) => (0..count).map(|n| (format!("key-{n}"), json!("x"))).collect(),
                (["POOLS", _], Some(count)) => (0..count).map(|n| json!({"name": format!("pool-{n}")})).collect(),
                _ => return,
            };
        }
        Value::Array(items) => items.iter_mut().for_each(expand),
        Value::Object(fields) => fields.values_mut().for_each(expand),
        _ => {}
    }
}
