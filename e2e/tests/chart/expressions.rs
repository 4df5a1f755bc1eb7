//! What dashboards and alerts ask Prometheus for, and whether docs/metrics.md has it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support;

/// An expression, and where it stands.
#[derive(Clone)]
pub struct Expression {
    pub place: String,
    pub text: String,
}

pub struct Alert {
    pub name: String,
    pub expr: String,
    rule: Value,
}

impl Alert {
    pub fn annotation(&self, name: &str) -> String {
        self.rule["annotations"][name].as_str().unwrap_or_default().to_owned()
    }

    pub fn severity(&self) -> &str {
        self.rule["labels"]["severity"].as_str().unwrap_or_default()
    }

    pub fn expression(&self) -> Expression {
        Expression { place: self.name.clone(), text: self.expr.clone() }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The alerts of the chart.
pub fn alerts() -> Vec<Alert> {
    let file = support::root().join("charts/giantnetes/files/alerts.yaml");
    let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap().clone());
    rules.map(|rule| Alert { name: text(&rule["alert"]), expr: text(&rule["expr"]), rule }).collect()
}

/// The expressions of each dashboard of the chart, those of its variables too.
pub fn dashboards() -> Vec<Vec<Expression>> {
    let folder = support::root().join("charts/giantnetes/files/dashboards");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|file| {
            let board: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
            let place = |what: &str| format!("{}: {what}", file.file_stem().unwrap().display());
            let mut found = Vec::new();
            for panel in board["panels"].as_array().unwrap() {
                for target in panel["targets"].as_array().unwrap() {
                    found.push(Expression { place: place(&text(&panel["title"])), text: text(&target["expr"]) });
                }
            }
            for variable in board["templating"]["list"].as_array().unwrap() {
                // label_values(SERIES, LABEL) is Grafana's.
                let query = text(&variable["query"]);
                if let Some((series, label)) =
                    query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(','))
                {
                    let expression = format!("group by ({}) ({series})", label.trim().trim_end_matches(')'));
                    found.push(Expression { place: place(&text(&variable["name"])), text: expression });
                }
            }
            assert!(found.len() > 5, "{} has {} expressions", file.display(), found.len());
            found
        })
        .collect()
}

/// A metric of the table: its type, its labels, and the text that tells their values.
struct Row {
    kind: String,
    labels: BTreeSet<String>,
    values: String,
}

/// docs/metrics.md
pub struct Table {
    rows: BTreeMap<String, Row>,
    /// Words between backticks of docs/api.md, which has types and reasons of conditions.
    api: BTreeSet<String>,
}

/// Labels that Prometheus gives every target.
const OF_TARGETS: [&str; 2] = ["job", "instance"];
/// Jobs that the chart's ServiceMonitors name themselves; others' names follow from the release's.
const JOBS: [&str; 1] = ["giantnetes-flannel-etcd"];
/// Labels that the chart's PodMonitors give VM pods, with the values that are not names.
const OF_VM_PODS: [(&str, &[&str]); 4] = [
    ("cluster_namespace", &[]),
    ("cluster_name", &[]),
    ("node", &[]),
    ("guest_part", &["apiserver", "etcd", "kubelet", "containers", "supervisor"]),
];

fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

impl Table {
    pub fn read() -> Self {
        let docs = |name: &str| std::fs::read_to_string(support::root().join("docs").join(name)).unwrap();
        let mut rows = BTreeMap::new();
        // Prometheus' own.
        rows.insert("up".to_owned(), Row { kind: "gauge".into(), labels: BTreeSet::new(), values: String::new() });
        for line in docs("metrics.md").lines() {
            if let [_, name, kind, labels, _, _] = line.split('|').map(str::trim).collect::<Vec<_>>()[..]
                && let Some(name) = name.strip_prefix('`')
            {
                let row = Row { kind: kind.into(), labels: quoted(labels), values: labels.into() };
                rows.insert(name.trim_end_matches('`').to_owned(), row);
            }
        }
        assert!(rows.len() > 20, "{} metrics", rows.len());
        Self { rows, api: quoted(&docs("api.md")) }
    }

    pub fn has(&self, name: &str) -> bool {
        self.rows.contains_key(name)
    }

    /// The row of a series; a histogram has three of them.
    fn row(&self, series: &str) -> Option<(&Row, bool)> {
        let plain = self
            .rows
            .get(series)
            .filter(|row| !["histogram", "summary"].contains(&row.kind.as_str()))
            .map(|row| (row, false));
        plain.or_else(|| {
            let (base, bucket) = ["_bucket", "_sum", "_count"]
                .into_iter()
                .find_map(|end| Some((series.strip_suffix(end)?, end == "_bucket")))?;
            let has = |row: &&Row| row.kind == "histogram" || row.kind == "summary" && !bucket;
            self.rows.get(base).filter(has).map(|row| (row, bucket))
        })
    }

    /// What of an expression the table does not have.
    pub fn problems(&self, expression: &Expression) -> Vec<String> {
        let Expression { place, text } = expression;
        let (mut problems, mut known) = (Vec::new(), BTreeSet::from(OF_TARGETS.map(str::to_owned)));
        let parsed = Parsed::of(text);
        if parsed.selectors.is_empty() {
            problems.push(format!("{place}: no metric in {text}"));
        }
        for (name, matchers) in &parsed.selectors {
            let Some((row, bucket)) = self.row(name) else {
                problems.push(format!("{place}: no series {name}"));
                continue;
            };
            known.extend(row.labels.iter().cloned());
            let of_vm_pod = name == "up" || name.starts_with("guest_") || name.starts_with("giantnetes_vm_");
            let of_target = |label: &str| OF_VM_PODS.iter().find(|(known, _)| of_vm_pod && *known == label);
            if of_vm_pod {
                known.extend(OF_VM_PODS.map(|(label, _)| label.to_owned()));
            }
            if bucket {
                known.insert("le".into());
            }
            for (label, value) in matchers {
                if label == "job" {
                    let strange = value.split('|').find(|job| !JOBS.contains(job));
                    problems.extend(strange.map(|job| format!("{place}: no job {job}")));
                    continue;
                }
                if let Some((_, values)) = of_target(label) {
                    let strange = value.split('|').find(|value| !values.is_empty() && !values.contains(value));
                    problems.extend(strange.map(|value| format!("{place}: no {label} {value}")));
                    continue;
                }
                if !row.labels.contains(label) {
                    problems.push(format!("{place}: {name} has no label {label}"));
                }
                let words = row.values.split(|char: char| !char.is_alphanumeric()).collect::<BTreeSet<_>>();
                for value in value.split('|').filter(|value| !value.starts_with('$')) {
                    if !words.contains(value) && !self.api.contains(value) {
                        problems.push(format!("{place}: {name} has no {label} {value}"));
                    }
                }
            }
        }
        for label in parsed.grouping.difference(&known) {
            problems.push(format!("{place}: no label {label} in {text}"));
        }
        problems
    }
}

/// What of PromQL tells names apart: selectors with their matchers, and labels that series are grouped by.
#[derive(Default)]
struct Parsed {
    selectors: Vec<(String, Vec<(String, String)>)>,
    grouping: BTreeSet<String>,
}

impl Parsed {
    fn of(text: &str) -> Self {
        let (mut parsed, mut rest) = (Self::default(), text);
        while let Some(first) = rest.chars().next() {
            let length = match first {
                '"' => rest[1..].find('"').unwrap() + 2,
                '[' => rest.find(']').unwrap() + 1,
                '{' => {
                    let end = rest.find('}').unwrap();
                    parsed.selectors.last_mut().unwrap().1 = matchers(&rest[1..end]);
                    end + 1
                }
                '0'..='9' => rest.find(|char: char| !char.is_alphanumeric() && char != '.').unwrap_or(rest.len()),
                _ if first.is_alphabetic() || first == '_' => parsed.word(rest),
                _ => first.len_utf8(),
            };
            rest = &rest[length..];
        }
        parsed
    }

    /// Takes a word in, and answers how much of the text it was.
    fn word(&mut self, rest: &str) -> usize {
        let end = rest.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(rest.len());
        let (word, after) = (&rest[..end], rest[end..].trim_start());
        let groups = ["by", "without", "on", "ignoring", "group_left", "group_right"].contains(&word);
        if groups && after.starts_with('(') {
            let close = rest[end..].find(')').unwrap();
            let labels = rest[end..end + close].trim_start().trim_start_matches('(').split(',').map(str::trim);
            self.grouping.extend(labels.filter(|label| !label.is_empty()).map(str::to_owned));
            return end + close + 1;
        }
        let follows = |next: &str| after.strip_prefix(next).is_some_and(|rest| rest.trim_start().starts_with('('));
        let is_function = after.starts_with('(') || follows("by") || follows("without");
        if !is_function && !["and", "or", "unless", "bool", "offset"].contains(&word) {
            self.selectors.push((word.to_owned(), Vec::new()));
        }
        // `and (…)` looks like a function, and is none; neither names a series.
        end
    }
}

fn matchers(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    pairs
        .map(|pair| {
            let (label, rest) = pair.split_at(pair.find(['=', '!']).unwrap());
            (label.trim().to_owned(), rest.trim_start_matches(['=', '!', '~']).trim_matches('"').to_owned())
        })
        .collect()
}
