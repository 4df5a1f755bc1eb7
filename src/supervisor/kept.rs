//! Which of the metrics of a guest's components are passed on, and as what. Pure.
//!
//! Whoever is root in a guest counts as he likes. So names are ours (`guest_…`, never those of the management cluster's own
//! components), every label has a closed list of values, and what differs in others is summed up: however long a guest
//! lives and whatever it says, it has the same few series.

use std::collections::BTreeMap;

use super::scrape::Component;
use crate::runtime::telemetry::metric::{Kind, Metric};

/// Longest line that is read, in bytes: those of samples that are kept are shorter.
const LINE: usize = 4096;
const PREFIX: &str = "guest_";
const OTHER: &str = "other";

/// The value of a label as it is passed on, from the labels of a sample.
type Value = fn(&Labels) -> &'static str;
/// The labels of a sample.
type Labels = [(String, String)];

/// A metric that is kept.
pub(super) struct Rule {
    /// As it is passed on.
    pub metric: Metric,
    /// What becomes of the values of its labels, in their order.
    values: &'static [Value],
    /// Which samples count.
    counts: fn(&Labels, f64) -> bool,
}

const fn kept(
    name: &'static str,
    kind: Kind,
    labels: &'static [(&'static str, &'static str)],
    values: &'static [Value],
    counts: fn(&Labels, f64) -> bool,
    help: &'static str,
) -> Rule {
    Rule { metric: Metric { name, kind, labels, help }, values, counts }
}

/// One that has no labels, and of which every sample counts.
const fn plain(name: &'static str, kind: Kind, help: &'static str) -> Rule {
    kept(name, kind, &[], &[], always, help)
}

const VERBS: [&str; 8] = ["GET", "LIST", "POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"];
/// What ends when its client has enough says nothing about the server.
const LONG_VERBS: [&str; 2] = ["WATCH", "CONNECT"];
const LONG_SUBRESOURCES: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const KINDS: [&str; 2] = ["mutating", "readOnly"];
/// Kubernetes' own, each with its group: a namesake in another group is another.
const RESOURCES: [(&str, &str); 12] = [
    ("configmaps", ""),
    ("daemonsets", "apps"),
    ("deployments", "apps"),
    ("endpointslices", "discovery.k8s.io"),
    ("events", ""),
    ("leases", "coordination.k8s.io"),
    ("namespaces", ""),
    ("nodes", ""),
    ("pods", ""),
    ("replicasets", "apps"),
    ("secrets", ""),
    ("services", ""),
];

fn value<'a>(labels: &'a Labels, name: &str) -> &'a str {
    labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
}

fn one_of(all: &[&'static str], value: &str) -> &'static str {
    all.iter().find(|known| **known == value).copied().unwrap_or(OTHER)
}

fn any_verb(labels: &Labels) -> &'static str {
    match one_of(&LONG_VERBS, value(labels, "verb")) {
        OTHER => verb(labels),
        long => long,
    }
}

fn verb(labels: &Labels) -> &'static str {
    one_of(&VERBS, value(labels, "verb"))
}

fn class(labels: &Labels) -> &'static str {
    let code = value(labels, "code");
    let first = code.as_bytes().first().filter(|_| code.len() == 3);
    first.and_then(|first| CLASSES.iter().find(|class| class.as_bytes()[0] == *first)).copied().unwrap_or(OTHER)
}

fn request_kind(labels: &Labels) -> &'static str {
    one_of(&KINDS, value(labels, "request_kind"))
}

fn resource(labels: &Labels) -> &'static str {
    let asked = (value(labels, "resource"), value(labels, "group"));
    RESOURCES.iter().find(|known| **known == asked).map_or(OTHER, |(name, _)| name)
}

fn always(_: &Labels, _: f64) -> bool {
    true
}

/// An API server that cannot count says -1.
fn is_counted(_: &Labels, value: f64) -> bool {
    value >= 0.0
}

fn is_short(labels: &Labels, _: f64) -> bool {
    !LONG_VERBS.contains(&value(labels, "verb")) && !LONG_SUBRESOURCES.contains(&value(labels, "subresource"))
}

fn is_whole_node(labels: &Labels, _: f64) -> bool {
    value(labels, "id") == "/"
}

static OF_API_SERVER: [Rule; 4] = [
    kept(
        "guest_apiserver_request_total",
        Kind::Counter,
        &[
            ("verb", "GET, LIST, POST, PUT, PATCH, APPLY, DELETE, DELETECOLLECTION, WATCH, CONNECT, other"),
            ("code", "1xx, 2xx, 3xx, 4xx, 5xx, other"),
        ],
        &[any_verb, class],
        always,
        "Requests",
    ),
    kept(
        "guest_apiserver_request_duration_seconds",
        Kind::Summary,
        &[("verb", "GET, LIST, POST, PUT, PATCH, APPLY, DELETE, DELETECOLLECTION, other")],
        &[verb],
        is_short,
        "How long they took, but for watches, logs, exec and the like",
    ),
    kept(
        "guest_apiserver_current_inflight_requests",
        Kind::Gauge,
        &[("request_kind", "mutating, readOnly, other")],
        &[request_kind],
        always,
        "Requests under way",
    ),
    kept(
        "guest_apiserver_resource_objects",
        Kind::Gauge,
        &[(
            "resource",
            "configmaps, daemonsets, deployments, endpointslices, events, leases, namespaces, nodes, pods, replicasets, \
             secrets, services, other",
        )],
        &[resource],
        is_counted,
        "Stored objects",
    ),
];
static OF_ETCD: [Rule; 7] = [
    plain("guest_etcd_server_has_leader", Kind::Gauge, "1 if this member knows a leader"),
    plain("guest_etcd_server_leader_changes_seen_total", Kind::Counter, "Changes of the leader that this member saw"),
    plain("guest_etcd_server_proposals_failed_total", Kind::Counter, "Proposals that failed"),
    plain("guest_etcd_server_quota_backend_bytes", Kind::Gauge, "How large its database may become"),
    plain("guest_etcd_mvcc_db_total_size_in_bytes", Kind::Gauge, "How large its database is"),
    plain("guest_etcd_disk_wal_fsync_duration_seconds", Kind::Summary, "How long its log takes to be on disk"),
    plain("guest_etcd_disk_backend_commit_duration_seconds", Kind::Summary, "How long a commit takes"),
];
static OF_KUBELET: [Rule; 2] = [
    plain("guest_kubelet_running_pods", Kind::Gauge, "Pods that have a running sandbox"),
    plain(
        "guest_kubelet_runtime_operations_errors_total",
        Kind::Counter,
        "Operations of the container runtime that failed",
    ),
];
static OF_CONTAINERS: [Rule; 4] = [
    kept("guest_container_cpu_usage_seconds_total", Kind::Counter, &[], &[], is_whole_node, "CPU time of the node"),
    kept(
        "guest_container_memory_working_set_bytes",
        Kind::Gauge,
        &[],
        &[],
        is_whole_node,
        "Memory of the node that cannot be taken back",
    ),
    plain("guest_machine_cpu_cores", Kind::Gauge, "CPUs of the node"),
    plain("guest_machine_memory_bytes", Kind::Gauge, "Memory of the node"),
];
static OF_PROCESSES: [Rule; 2] = [
    plain("guest_process_cpu_seconds_total", Kind::Counter, "CPU time of API server, etcd or kubelet"),
    plain("guest_process_resident_memory_bytes", Kind::Gauge, "Resident memory of the same"),
];

/// Everything that is kept, in the order in which it is listed.
pub(super) fn all() -> impl Iterator<Item = &'static Rule> {
    OF_API_SERVER.iter().chain(&OF_ETCD).chain(&OF_KUBELET).chain(&OF_CONTAINERS).chain(&OF_PROCESSES)
}

fn rules(component: Component) -> Vec<&'static Rule> {
    match component {
        Component::ApiServer => OF_API_SERVER.iter().chain(&OF_PROCESSES).collect(),
        Component::Etcd => OF_ETCD.iter().chain(&OF_PROCESSES).collect(),
        Component::Kubelet => OF_KUBELET.iter().chain(&OF_PROCESSES).collect(),
        Component::Containers => OF_CONTAINERS.iter().collect(),
    }
}

/// What of an answer is kept, while it is read.
pub(super) struct Kept {
    rules: Vec<&'static Rule>,
    /// By rule, the end of the name (`_sum` and `_count` of a summary) and the values of labels.
    sums: BTreeMap<(usize, &'static str, Vec<&'static str>), f64>,
    /// The line that is not at its end yet. None: it is too long, and left out.
    line: Option<Vec<u8>>,
}

impl Kept {
    pub(super) fn of(component: Component) -> Self {
        Self { rules: rules(component), sums: BTreeMap::new(), line: Some(Vec::new()) }
    }

    /// Reads the next piece of an answer in Prometheus' text format.
    pub(super) fn read(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.line = self.line.take().filter(|line| line.len() + part.len() <= LINE).map(|mut line| {
                line.extend_from_slice(part);
                line
            });
            if part.ends_with(b"\n") {
                let line = self.line.replace(Vec::new()).unwrap_or_default();
                self.take(&line);
            }
        }
    }

    fn take(&mut self, line: &[u8]) {
        let Some((name, rest)) = std::str::from_utf8(line).ok().and_then(split_name) else { return };
        let Some((number, end)) = self.rules.iter().enumerate().find_map(|(n, rule)| Some((n, end(rule, name)?)))
        else {
            return;
        };
        let rule = self.rules[number];
        let Some((labels, value)) = sample(rest).filter(|(labels, value)| (rule.counts)(labels, *value)) else {
            return;
        };
        let values = rule.values.iter().map(|value| value(&labels)).collect();
        *self.sums.entry((number, end, values)).or_default() += value;
    }

    /// What is passed on, in Prometheus' text format.
    pub(super) fn text(&self) -> String {
        let (mut text, mut last) = (String::new(), None);
        for ((number, end, values), sum) in &self.sums {
            let Metric { name, kind, labels, .. } = self.rules[*number].metric;
            if last.replace(number) != Some(number) {
                text.push_str(&format!("# TYPE {name} {}\n", kind.name()));
            }
            let pairs: Vec<_> =
                labels.iter().zip(values).map(|((name, _), value)| format!("{name}=\"{value}\"")).collect();
            let labels = if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) };
            text.push_str(&format!("{name}{end}{labels} {sum}\n"));
        }
        text
    }
}

/// With which end a sample's name is that of a rule.
fn end(rule: &Rule, name: &str) -> Option<&'static str> {
    let rest = name.strip_prefix(rule.metric.name.strip_prefix(PREFIX)?)?;
    let ends: &[_] = if rule.metric.kind == Kind::Summary { &["_sum", "_count"] } else { &[""] };
    ends.iter().find(|end| **end == rest).copied()
}

/// The name of a sample, and the rest of its line. None of a comment.
fn split_name(line: &str) -> Option<(&str, &str)> {
    let length = line.find(|char: char| !char.is_ascii_alphanumeric() && char != '_' && char != ':')?;
    (length > 0).then(|| line.split_at(length))
}

/// Labels and value of a sample, from what follows its name.
fn sample(rest: &str) -> Option<(Vec<(String, String)>, f64)> {
    let mut labels = Vec::new();
    let mut rest = rest.trim_start_matches([' ', '\t']);
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner.trim_start();
        while !rest.starts_with('}') {
            let (name, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((name.trim().to_owned(), value));
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        rest = &rest[1..];
    }
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((labels, value))
}

/// The text up to the closing quotation mark, and what follows that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            _ => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept_of(component: Component, text: &str) -> String {
        let mut kept = Kept::of(component);
        // However it is cut.
        text.as_bytes().chunks(7).for_each(|piece| kept.read(piece));
        kept.text()
    }

    #[test]
    fn what_is_known_is_summed_up_and_the_rest_left_out() {
        let text = concat!(
            "# HELP apiserver_request_total [STABLE] Counter\n",
            "apiserver_request_total{code=\"200\",verb=\"GET\",resource=\"pods\"} 3\n",
            "apiserver_request_total{code=\"201\",verb=\"GET\",resource=\"a\\\"},{\\\\\"} 4 1700000000000\n",
            "apiserver_request_total{code=\"boo\",verb=\"STEAL\"} 1\n",
            "apiserver_request_duration_seconds_sum{verb=\"GET\",subresource=\"\"} 1.5\n",
            "apiserver_request_duration_seconds_sum{verb=\"GET\",subresource=\"log\"} 1000\n",
            "apiserver_request_duration_seconds_sum{verb=\"WATCH\"} 1000\n",
            "apiserver_request_duration_seconds_bucket{verb=\"GET\",le=\"1\"} 9\n",
            "apiserver_request_duration_seconds_count{verb=\"GET\"} 2\n",
            "apiserver_resource_objects{group=\"example.com\",resource=\"mine\"} 5\n",
            "apiserver_resource_objects{group=\"other.example.com\",resource=\"services\"} 6\n",
            "apiserver_resource_objects{group=\"\",resource=\"services\"} 2\n",
            "apiserver_resource_objects{group=\"\",resource=\"pods\"} -1\n",
            "apiserver_request_total_created 1\n",
            "giantnetes_leading 1\n",
            "up 0\n",
            "process_resident_memory_bytes 5e+08\n",
        );
        let expected = concat!(
            "# TYPE guest_apiserver_request_total counter\n",
            "guest_apiserver_request_total{verb=\"GET\",code=\"2xx\"} 7\n",
            "guest_apiserver_request_total{verb=\"other\",code=\"other\"} 1\n",
            "# TYPE guest_apiserver_request_duration_seconds summary\n",
            "guest_apiserver_request_duration_seconds_count{verb=\"GET\"} 2\n",
            "guest_apiserver_request_duration_seconds_sum{verb=\"GET\"} 1.5\n",
            "# TYPE guest_apiserver_resource_objects gauge\n",
            "guest_apiserver_resource_objects{resource=\"other\"} 11\n",
            "guest_apiserver_resource_objects{resource=\"services\"} 2\n",
            "# TYPE guest_process_resident_memory_bytes gauge\n",
            "guest_process_resident_memory_bytes 500000000\n",
        );
        assert_eq!(kept_of(Component::ApiServer, text), expected);
        // etcd may not say what the API server counts.
        let process =
            "# TYPE guest_process_resident_memory_bytes gauge\nguest_process_resident_memory_bytes 500000000\n";
        assert_eq!(kept_of(Component::Etcd, text), process);
        assert_eq!(kept_of(Component::Containers, text), "");
    }

    #[test]
    fn of_containers_the_whole_node_counts() {
        let text = "container_cpu_usage_seconds_total{id=\"/\"} 7\ncontainer_cpu_usage_seconds_total{id=\"/a\"} 5\n\
                    machine_cpu_cores{boot_id=\"x\"} 2\n";
        let expected = "# TYPE guest_container_cpu_usage_seconds_total counter\nguest_container_cpu_usage_seconds_total 7\n\
                        # TYPE guest_machine_cpu_cores gauge\nguest_machine_cpu_cores 2\n";
        assert_eq!(kept_of(Component::Containers, text), expected);
    }

    #[test]
    fn what_is_no_sample_or_too_long_spoils_no_other() {
        let long = format!("etcd_server_has_leader{{x=\"{}\"}} 5\n", "y".repeat(LINE));
        let text = format!(
            "etcd_server_has_leader NaN\netcd_server_has_leader +Inf\netcd_server_has_leader\netcd_server_has_leader{{x=\"1 3\n\
             etcd_server_has_leader{{x}} 3\n\u{fffd}\n{long}etcd_server_has_leader 1\netcd_server_has_leader 4"
        );
        let expected = "# TYPE guest_etcd_server_has_leader gauge\nguest_etcd_server_has_leader 1\n";
        assert_eq!(kept_of(Component::Etcd, &text), expected);
    }

    #[test]
    fn every_label_has_its_values_and_every_name_is_ours() {
        for rule in all() {
            let Metric { name, labels, .. } = rule.metric;
            assert!(name.starts_with(PREFIX), "{name}");
            assert_eq!(labels.len(), rule.values.len(), "{name}");
            for ((label, listed), value) in labels.iter().zip(rule.values) {
                let listed: Vec<_> = listed.split(", ").collect();
                for (said, shown) in listed.iter().map(|word| (*word, *word)).chain([("strange", OTHER), ("", OTHER)]) {
                    let group = RESOURCES.iter().find(|(name, _)| *name == said).map_or("", |(_, group)| group);
                    let labels = [("group", group), (label, &said.replace("xx", "00"))];
                    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
                    assert_eq!(value(&labels), shown, "{name} {label}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_a_guest_says_it_has_few_series(pieces in prop::collection::vec(
            prop_oneof![
                ".{0,40}", "apiserver_request_total\\{verb=\"[A-Z]{0,6}\",code=\"[0-9a-z]{0,4}\"\\} [0-9.e+-]{1,6}\n",
                Just("apiserver_request_total{verb=\"".to_owned()), Just("\"} 1\n".to_owned()),
            ], 0..200)) {
            let text = kept_of(Component::ApiServer, &pieces.concat());
            prop_assert!(text.lines().all(|line| line.trim_start_matches("# TYPE ").starts_with(PREFIX)), "{text}");
            prop_assert!(text.lines().count() < 200);
        }
    }
}
