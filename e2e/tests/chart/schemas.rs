//! kubeconform, with schemas made of what an API server says of its kinds: those that its project publishes are made so, too.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use lab::{command::Run, wait_for};
use serde_json::{Map, Value, json};

use crate::support::{apiserver::ApiServer, tool};

/// Schemas of every kind that an API server serves, a file each.
pub struct Schemas(PathBuf);

impl Schemas {
    /// Asks for them and writes them beside what the server writes.
    pub fn of(server: &ApiServer) -> Self {
        let folder = server.folder().join("schemas");
        std::fs::create_dir(&folder).unwrap();
        // Kinds that were just installed come into it a moment later.
        let crds = server.kubectl(&["get", "crd", "-o", "jsonpath={.items[*].spec.names.kind}"]).output().unwrap();
        let mut document = wait_for(Duration::from_secs(30), "the API's document to have all kinds", || {
            let text = server.kubectl(&["get", "--raw", "/openapi/v2"]).output()?;
            for kind in crds.split_whitespace() {
                ensure!(text.contains(&format!("\"kind\":\"{kind}\"")), "it lacks {kind}");
            }
            Ok(serde_json::from_str::<Value>(&text)?)
        })
        .unwrap();
        let Value::Object(mut definitions) = document["definitions"].take() else { panic!("no definitions") };
        definitions.values_mut().for_each(as_json_schema);
        for (name, definition) in &definitions {
            for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                let word = |field: &str| kind[field].as_str().unwrap();
                // As kubeconform calls the group of what has none.
                let group = if word("group").is_empty() { word("version") } else { word("group") };
                let file = format!("{group}-{}-{}.json", word("kind").to_lowercase(), word("version"));
                std::fs::write(folder.join(file), whole(name, &definitions).to_string()).unwrap();
            }
        }
        Self(folder)
    }

    /// How many of these objects there are, if all are as their schemas say.
    ///
    /// # Errors
    /// With what is wrong of which object. One whose kind has no schema is wrong.
    pub fn judge(&self, objects: &[Value]) -> Result<u64> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.run(|run| run.input(list.to_string()))
    }

    /// The same of files.
    pub fn judge_files(&self, files: &[&Path]) -> Result<u64> {
        self.run(|run| run.args(files.iter().map(|file| file.display().to_string())))
    }

    fn run(&self, with: impl FnOnce(Run) -> Run) -> Result<u64> {
        let location =
            format!("{}/{{{{.Group}}}}-{{{{.ResourceKind}}}}-{{{{.ResourceAPIVersion}}}}.json", self.0.display());
        let words = ["-strict", "-summary", "-output=json", "-schema-location", &location];
        let run = Run::new(tool("kubeconform").join("kubeconform")).args(words).timeout(Duration::from_secs(60));
        let said: Value = serde_json::from_str(&with(run).output()?)?;
        ensure!(said["summary"]["skipped"] == 0, "{said}");
        Ok(said["summary"]["valid"].as_u64().unwrap())
    }
}

/// Swagger's dialect as JSON Schema, in which what is not named is refused.
fn as_json_schema(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    let is = |fields: &Map<String, Value>, name: &str, value: Value| fields.get(name) == Some(&value);
    if is(fields, "format", json!("int-or-string")) || is(fields, "x-kubernetes-int-or-string", json!(true)) {
        fields.remove("format");
        fields.insert("type".into(), json!(["integer", "string"]));
    }
    let is_open = is(fields, "x-kubernetes-preserve-unknown-fields", json!(true));
    if fields.contains_key("properties") && !fields.contains_key("additionalProperties") && !is_open {
        fields.insert("additionalProperties".into(), json!(false));
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(as_json_schema);
    }
    for part in ["items", "additionalProperties"] {
        fields.get_mut(part).into_iter().for_each(as_json_schema);
    }
}

/// A definition with all that it refers to.
fn whole(name: &str, definitions: &Map<String, Value>) -> Value {
    let (mut wanted, mut left) = (BTreeSet::new(), vec![name.to_owned()]);
    while let Some(name) = left.pop() {
        if wanted.insert(name.clone()) {
            referred(&definitions[&name], &mut left);
        }
    }
    let needed: Map<_, _> = wanted.into_iter().map(|name| (name.clone(), definitions[&name].clone())).collect();
    json!({"$ref": format!("#/definitions/{name}"), "definitions": needed})
}

fn referred(schema: &Value, names: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str);
            names.extend(name.and_then(|name| name.strip_prefix("#/definitions/")).map(str::to_owned));
            fields.values().for_each(|field| referred(field, names));
        }
        Value::Array(items) => items.iter().for_each(|item| referred(item, names)),
        _ => {}
    }
}
