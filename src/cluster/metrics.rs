//! What Prometheus is told of Clusters. It is looked up in the cache when Prometheus asks, so series go with their object,
//! and every replica shows them: no gap when another one leads.
//!
//! All of it is to fit into 2 MB at 10,000 Clusters, which is little more than two lines for each. So a Cluster that is at
//! rest has two series, the first of which carries phase and version; conditions are counted over all Clusters, and of single
//! Clusters those are shown that are not as they should be. These, and when certificates are renewed and end, are shown as far
//! as there is room: of up to 3,000 Clusters all, and then what should be looked at first.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt as _, runtime::reflector::Store};
use prometheus::{
    IntGauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::{
    api::{Cluster, ClusterStatus, Condition, ConditionType, Reason, Status},
    pki::rotation::Stage,
    runtime::telemetry::metric::{Declared, Kind, Metric},
};

const NAMESPACE: (&str, &str) = ("namespace", "of the Cluster");
const NAME: (&str, &str) = ("name", "of the Cluster");
const CONDITION: (&str, &str) = ("condition", "a type of docs/api.md");
const STATUS: (&str, &str) = ("status", "True, False, Unknown");
const REASON: (&str, &str) = ("reason", "a reason of docs/api.md");

/// Up to how many conditions that are not as they should be are shown, how many renewals of certificates, and how many ends.
fn room(clusters: usize) -> usize {
    5400_usize.saturating_sub(clusters * 4 / 5).max(200)
}

/// Up to how many rotations of authorities are shown.
const ROTATIONS: usize = 200;

const CLUSTERS: Metric = Metric {
    name: "giantnetes_clusters",
    kind: Kind::Gauge,
    labels: &[CONDITION, STATUS, REASON],
    help: "Clusters by condition, its status and its reason; those with Ready are all Clusters",
};
const NODES_WANTED: Metric = Metric {
    name: "giantnetes_cluster_nodes",
    kind: Kind::Gauge,
    labels: &[
        NAMESPACE,
        NAME,
        ("phase", "Pending, Provisioning, Ready, Updating, Degraded, Paused, Deleting"),
        ("version", "what the control plane runs; empty: nothing yet"),
    ],
    help: "Nodes that a Cluster asks for, the control plane's among them, with its phase and version",
};
const NODES_READY: Metric = Metric {
    name: "giantnetes_cluster_nodes_ready",
    kind: Kind::Gauge,
    labels: &[NAMESPACE, NAME],
    help: "Nodes of a guest that are Ready, as its own API said last",
};
const NOT_AT_REST: Metric = Metric {
    name: "giantnetes_cluster_condition",
    kind: Kind::Gauge,
    labels: &[NAMESPACE, NAME, CONDITION, STATUS, REASON],
    help: "1 for each condition of a Cluster that is not as it should be; of many Clusters, degraded ones first",
};
const RENEWAL: Metric = Metric {
    name: "giantnetes_cluster_certificate_renewal_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &[NAMESPACE, NAME],
    help: "When the next certificate of a Cluster is renewed, a third of its life before it ends, in seconds since 1970; \
           of many Clusters, those that are next",
};

const EXPIRY: Metric = Metric {
    name: "giantnetes_cluster_certificate_expiry_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &[NAMESPACE, NAME],
    help: "When the first certificate of a Cluster ends, if it is not renewed before, in seconds since 1970; of many \
           Clusters, those that are next",
};

const ROTATION: Metric = Metric {
    name: "giantnetes_cluster_rotation_stands_since_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &[NAMESPACE, NAME, ("stage", "Trust, Reissue, Overlap, Serve, Drop")],
    help: "Since when a rotation of a Cluster's authorities stands at its stage, with Overlap until when users have time, in \
           seconds since 1970; of many Clusters, those that stand longest",
};

/// Statuses that are not written yet.
pub static HELD_BACK: Declared<IntGauge> = Declared::gauge(Metric {
    name: "giantnetes_cluster_statuses_held_back",
    kind: Kind::Gauge,
    labels: &[],
    help: "Clusters whose status is to say something else, in details that are written within seconds; of the leader",
});

/// The metrics of Clusters.
pub fn metrics() -> Vec<&'static Metric> {
    of_fleet().into_iter().chain([&HELD_BACK.metric]).collect()
}

/// Those that are looked up in the cache.
fn of_fleet() -> Vec<&'static Metric> {
    static ALL: [Metric; 7] = [CLUSTERS, NODES_WANTED, NODES_READY, NOT_AT_REST, RENEWAL, EXPIRY, ROTATION];
    ALL.iter().collect()
}

/// Shows the Clusters of a store.
pub struct Fleet {
    clusters: Store<Cluster>,
    descs: Vec<Desc>,
}

impl Fleet {
    /// Shows these.
    ///
    /// # Errors
    /// If a metric has no valid name: a test shows that all have.
    pub fn new(clusters: Store<Cluster>) -> prometheus::Result<Self> {
        let descs = of_fleet().into_iter().map(Metric::desc).collect::<Result<_, _>>()?;
        Ok(Self { clusters, descs })
    }
}

impl Collector for Fleet {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let clusters = self.clusters.state();
        families(clusters.iter().map(AsRef::as_ref))
    }
}

/// All series of these Clusters. Pure.
pub fn families<'a>(clusters: impl Iterator<Item = &'a Cluster>) -> Vec<MetricFamily> {
    let mut seen = Seen::default();
    clusters.for_each(|cluster| seen.look(cluster));
    let Seen { conditions, wanted, ready, mut unrest, mut renewals, mut ends, mut rotations } = seen;
    let room = room(wanted.len());
    unrest.sort();
    unrest.truncate(room);
    for times in [&mut renewals, &mut ends] {
        times.sort();
        times.truncate(room);
    }
    rotations.sort();
    rotations.truncate(ROTATIONS);
    let words = |words: [&'static str; 3]| words.map(str::to_owned).to_vec();
    vec![
        CLUSTERS.family(conditions.into_iter().map(|(labels, count)| (words(labels), f64::from(count)))),
        NODES_WANTED.family(wanted),
        NODES_READY.family(ready),
        NOT_AT_REST.family(unrest.into_iter().map(|(_, name, what)| ([name.to_vec(), words(what)].concat(), 1.0))),
        RENEWAL.family(renewals.into_iter().map(|(at, name)| (name.to_vec(), at as f64))),
        EXPIRY.family(ends.into_iter().map(|(at, name)| (name.to_vec(), at as f64))),
        ROTATION.family(
            rotations.into_iter().map(|(at, name, stage)| ([name.to_vec(), vec![stage.into()]].concat(), at as f64)),
        ),
    ]
}

/// Namespace and name.
type Name = [String; 2];

#[derive(Default)]
struct Seen {
    /// By type, status and reason.
    conditions: BTreeMap<[&'static str; 3], u32>,
    wanted: Vec<(Vec<String>, f64)>,
    ready: Vec<(Vec<String>, f64)>,
    /// After whether nothing is broken: what is broken comes first.
    unrest: Vec<(bool, Name, [&'static str; 3])>,
    renewals: Vec<(i64, Name)>,
    ends: Vec<(i64, Name)>,
    /// With their stage.
    rotations: Vec<(i64, Name, &'static str)>,
}

impl Seen {
    fn look(&mut self, cluster: &Cluster) {
        let name = [cluster.namespace().unwrap_or_default(), cluster.name_any()];
        let fresh = ClusterStatus::default();
        let status = cluster.status.as_ref().unwrap_or(&fresh);
        let [namespace, own] = name.clone();
        let version = status.version.clone().unwrap_or_default();
        let phase = status.phase.clone().unwrap_or_else(|| "Pending".into());
        self.wanted.push((vec![namespace, own, phase, version], cluster.nodes_or_default() as f64));
        self.ready.push((name.to_vec(), nodes_ready(status)));
        let second = |at: &Option<String>| Some((at.as_deref()?.parse::<Timestamp>().ok()?.as_second(), name.clone()));
        self.renewals.extend(second(&status.certificates_renew_at));
        self.ends.extend(second(&status.certificates_end_at));
        self.rotations.extend(status.rotation.as_ref().and_then(|rotation| {
            let stage = Stage::ALL.into_iter().find(|stage| rotation.stage.as_deref() == Some(stage.name()))?;
            let at = if stage == Stage::Overlap { &rotation.until } else { &rotation.since };
            let (at, name) = second(at)?;
            Some((at, name, stage.name()))
        }));
        let is = |type_: ConditionType, wanted: Status| {
            let of_type = status.conditions.iter().find(|condition| condition.type_ == type_.name());
            of_type.is_some_and(|condition| condition.status == wanted.name())
        };
        let whole = !is(ConditionType::Degraded, Status::True);
        for type_ in ConditionType::ALL {
            let found = status.conditions.iter().find(|condition| condition.type_ == type_.name());
            let labels = match found {
                Some(condition) => words(type_, condition),
                // Every Cluster is counted once by this one.
                None if type_ == ConditionType::Ready => [type_.name(), Status::Unknown.name(), Reason::Waiting.name()],
                None => continue,
            };
            *self.conditions.entry(labels).or_default() += 1;
            if labels[1] != type_.at_rest().name() {
                self.unrest.push((whole, name.clone(), labels));
            }
        }
    }
}

/// Of closed lists: a status may have been written by a newer version, or by somebody else.
fn words(type_: ConditionType, condition: &Condition) -> [&'static str; 3] {
    let status = Status::ALL.into_iter().find(|status| status.name() == condition.status);
    let reason = Reason::ALL.into_iter().find(|reason| reason.name() == condition.reason);
    [type_.name(), status.unwrap_or(Status::Unknown).name(), reason.map_or("other", Reason::name)]
}

/// The first number of `ready/all`.
fn nodes_ready(status: &ClusterStatus) -> f64 {
    let ready = status.nodes.as_deref().and_then(|nodes| nodes.split_once('/'));
    ready.and_then(|(ready, _)| ready.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder as _, TextEncoder};
    use serde_json::json;

    use super::*;

    /// As Prometheus gets it, without lines that explain.
    fn text(clusters: &[Cluster]) -> String {
        let mut text = Vec::new();
        let shown: Vec<_> = families(clusters.iter()).into_iter().filter(|one| !one.get_metric().is_empty()).collect();
        if !shown.is_empty() {
            TextEncoder::new().encode(&shown, &mut text).unwrap();
        }
        let text = String::from_utf8(text).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
    }

    fn condition(type_: &str, status: &str, reason: &str) -> serde_json::Value {
        json!({
            "type": type_, "status": status, "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    }

    fn cluster(namespace: &str, name: &str, status: serde_json::Value) -> Cluster {
        let mut cluster = crate::testing::cluster(json!({"nodePools": [{"name": "a", "replicas": 3}]}));
        (cluster.metadata.namespace, cluster.metadata.name) = (Some(namespace.into()), Some(name.into()));
        cluster.status = serde_json::from_value(status).unwrap();
        cluster
    }

    /// A Cluster that is well, or one of which everything is broken.
    fn typical(number: usize, well: bool) -> Cluster {
        let conditions: Vec<_> = ConditionType::ALL
            .into_iter()
            .filter(|type_| !matches!(type_, ConditionType::Paused | ConditionType::Deleting))
            .map(|type_| {
                let is = if well == (type_.at_rest() == Status::True) { "True" } else { "False" };
                condition(type_.name(), is, if well { "AsExpected" } else { "ImageNotFound" })
            })
            .collect();
        let status = json!({
            "phase": if well { "Ready" } else { "Degraded" }, "version": "v1.36.3", "nodes": "4/4",
            "certificatesRenewAt": "2026-12-24T18:00:00Z", "certificatesEndAt": "2027-01-24T18:00:00Z",
            "conditions": conditions,
            "rotation": if well { json!(null) } else { rotation(number) },
        });
        cluster(&format!("team-{:03}", number % 1000), &format!("cluster-{number:05}"), status)
    }

    #[test]
    fn ten_thousand_clusters_fit_into_two_megabytes_whatever_their_state_is() {
        for count in [2000, 3000, 4000, 5000, 7000, 10_000] {
            for well in [true, false] {
                let clusters: Vec<_> = (0..count).map(|number| typical(number, well)).collect();
                let size = text(&clusters).len();
                println!("{count} Clusters, well: {well}: {size} bytes");
                // The rest of the process has less than 50 kB.
                assert!(size < 1_950_000, "{count} Clusters, well: {well}: {size} bytes");
            }
        }
    }

    #[test]
    fn a_cluster_has_two_series_and_more_only_for_what_is_not_as_it_should_be() {
        let well = text(&[typical(1, true)]);
        for line in [
            r#"giantnetes_clusters{condition="Ready",status="True",reason="AsExpected"} 1"#,
            r#"giantnetes_cluster_nodes{namespace="team-001",name="cluster-00001",phase="Ready",version="v1.36.3"} 4"#,
            r#"giantnetes_cluster_nodes_ready{namespace="team-001",name="cluster-00001"} 4"#,
            r#"giantnetes_cluster_certificate_renewal_timestamp_seconds{namespace="team-001",name="cluster-00001"} 1798135200"#,
            r#"giantnetes_cluster_certificate_expiry_timestamp_seconds{namespace="team-001",name="cluster-00001"} 1800813600"#,
        ] {
            assert!(well.lines().any(|shown| shown == line), "{line}\n{well}");
        }
        assert!(!well.contains("giantnetes_cluster_condition"), "{well}");
        let sick = text(&[typical(1, false)]);
        let line = r#"giantnetes_cluster_condition{namespace="team-001",name="cluster-00001",condition="Degraded",status="True",reason="ImageNotFound"} 1"#;
        assert!(sick.lines().any(|shown| shown == line), "{sick}");
    }

    /// One that stands at `Trust`, the longer the lower the number is.
    fn rotation(number: usize) -> serde_json::Value {
        let since = Timestamp::from_second(1_800_000_000 + i64::try_from(number).unwrap()).unwrap();
        json!({"carriedOut": 0, "generation": 2, "stage": "Trust", "since": since.to_string()})
    }

    #[test]
    fn since_when_a_rotation_stands_is_shown_and_of_many_those_that_stand_longest() {
        let metric = "giantnetes_cluster_rotation_stands_since_timestamp_seconds";
        let of = |rotation: serde_json::Value| text(&[cluster("a", "b", json!({"rotation": rotation}))]);
        let line = |stage: &str, at: i64| format!("{metric}{{namespace=\"a\",name=\"b\",stage=\"{stage}\"}} {at}\n");
        assert!(of(rotation(5)).contains(&line("Trust", 1_800_000_005)), "{}", of(rotation(5)));
        let (since, until) = ("2026-12-24T18:00:00Z", "2027-01-24T18:00:00Z");
        let at =
            |stage: &str| json!({"carriedOut": 1, "generation": 3, "stage": stage, "since": since, "until": until});
        assert!(of(at("Overlap")).contains(&line("Overlap", 1_800_813_600)), "users have time until then");
        assert!(of(at("Drop")).contains(&line("Drop", 1_798_135_200)));
        // Nothing is rotated, or somebody wrote what is none.
        for told in [json!({"carriedOut": 1, "generation": 2}), at("Whatever"), json!(null)] {
            assert!(!of(told.clone()).contains(metric), "{told}");
        }
        let many = text(&(0..1000).map(|number| typical(number, false)).collect::<Vec<_>>());
        let shown: Vec<_> = many.lines().filter(|line| line.starts_with(metric)).collect();
        assert_eq!(shown.len(), ROTATIONS);
        assert!(shown[0].contains("cluster-00000") && shown[199].contains("cluster-00199"), "{shown:?}");
    }

    #[test]
    fn series_go_with_their_cluster() {
        let two = [typical(1, true), typical(2, false)];
        assert!(text(&two).contains("cluster-00001") && text(&two).contains("cluster-00002"));
        assert!(!text(&two[..1]).contains("cluster-00002"));
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn one_without_a_status_is_counted_and_words_of_strangers_make_no_labels() {
        let fresh = text(&[cluster("a", "b", json!(null))]);
        for line in [
            r#"giantnetes_clusters{condition="Ready",status="Unknown",reason="Waiting"} 1"#,
            r#"giantnetes_cluster_nodes{namespace="a",name="b",phase="Pending",version=""} 4"#,
            r#"giantnetes_cluster_nodes_ready{namespace="a",name="b"} 0"#,
        ] {
            assert!(fresh.lines().any(|shown| shown == line), "{line}\n{fresh}");
        }
        let strange = [condition("Ready", "False", "Whatever"), condition("Invented", "True", "AsExpected")];
        let told = text(&[cluster("a", "b", json!({"conditions": strange}))]);
        assert!(told.contains(r#"condition="Ready",status="False",reason="other""#), "{told}");
        assert!(!told.contains("Invented") && !told.contains("Whatever"), "{told}");
    }

    #[test]
    fn what_is_broken_and_what_is_renewed_next_comes_first() {
        let waiting = |number: usize| {
            let conditions = [condition("Ready", "False", "Waiting"), condition("Degraded", "False", "AsExpected")];
            let status = json!({"conditions": conditions, "certificatesRenewAt": "2027-06-01T00:00:00Z"});
            cluster("a", &format!("waiting-{number:03}"), status)
        };
        let mut clusters: Vec<_> = (0..9999).map(waiting).collect();
        clusters.push(typical(9, false));
        let told = text(&clusters);
        let shown = |start: &str| told.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(shown("giantnetes_cluster_condition{"), 200);
        assert!(told.contains(r#"name="cluster-00009",condition="Degraded""#), "{told}");
        assert_eq!(shown("giantnetes_cluster_certificate_renewal_timestamp_seconds{"), 200);
        assert!(told.contains(r#"giantnetes_cluster_certificate_renewal_timestamp_seconds{namespace="team-009""#));
        // None is left out of the sums.
        let line = r#"giantnetes_clusters{condition="Ready",status="False",reason="Waiting"} 9999"#;
        assert!(told.lines().any(|shown| shown == line), "{told}");
    }
}
