//! Trees of Clusters in the states that people ask about.

use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{draw::draw, observe::Observed, tree::tree};
use crate::{api::names, testing};

fn all<T: DeserializeOwned>(objects: Vec<Value>) -> Result<Vec<T>, String> {
    Ok(objects.into_iter().map(|object| serde_json::from_value(object).unwrap()).collect())
}

fn host(name: &str, zone: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {names::ZONE_LABEL: zone}}})
}

/// The VM pod of a node on a host, if it has one.
fn pod(name: &str, host: Option<&str>, status: Value) -> Value {
    let mut labels = json!({names::NODE_LABEL: name, names::ROLE_LABEL: "control-plane"});
    if let Some((pool, _)) = name.rsplit_once('-').filter(|(pool, _)| *pool != "master") {
        labels[names::ROLE_LABEL] = json!("worker");
        labels[names::POOL_LABEL] = json!(pool);
    }
    let containers = json!([{"name": "vm", "image": "giantnetes/vm:v1.36.3"}]);
    json!({
        "metadata": {"name": name, "labels": labels}, "spec": {"nodeName": host, "containers": containers}, "status": status,
    })
}

fn ready() -> Value {
    let yes = |type_| json!({"type": type_, "status": "True"});
    json!({"phase": "Running", "conditions": [yes("PodScheduled"), yes("Ready")]})
}

fn unschedulable(message: &str) -> Value {
    json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": message}]})
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-11-22T10:00:00Z", "observedGeneration": 1,
    })
}

fn volume(phase: &str) -> Value {
    json!({"metadata": {"name": "master-0-etcd"}, "status": {"phase": phase, "capacity": {"storage": "8Gi"}}})
}

fn claim(name: &str, released: Option<&str>) -> Value {
    let cluster = json!({"namespace": "team-a", "name": "demo", "uid": "u"});
    let spec = json!({"kind": "VNI", "value": 1234, "clusterRef": cluster, "releasedAt": released});
    json!({"metadata": {"name": name}, "spec": spec})
}

fn event(at: &str, count: u32, type_: &str, reason: &str, note: &str) -> Value {
    let series = (count > 1).then(|| json!({"count": count, "lastObservedTime": at}));
    json!({
        "metadata": {"name": reason}, "eventTime": at, "type": type_, "reason": reason, "note": note, "series": series,
        "reportingController": "giantnetes",
    })
}

fn observed(spec: Value, status: Value) -> Observed {
    let mut cluster = testing::cluster(spec);
    let whole = json!({
        "observedGeneration": 1, "id": "yvjqyjs7", "version": "v1.36.3", "image": "giantnetes/vm:v1.36.3", "vni": 1234,
        "conditions": [],
    });
    let mut whole = serde_json::from_value::<serde_json::Map<_, _>>(whole).unwrap();
    whole.extend(serde_json::from_value::<serde_json::Map<_, _>>(status).unwrap());
    cluster.status = serde_json::from_value(whole.into()).unwrap();
    Observed {
        cluster,
        pods: Ok(Vec::new()),
        volumes: all(vec![volume("Bound")]),
        claims: all(vec![claim("vni-1234", None)]),
        hosts: all(vec![host("host1", "front"), host("host2", "data")]),
        events: Ok(Vec::new()),
        outdated: None,
    }
}

fn drawn(observed: &Observed) -> String {
    draw(&tree(observed, "2026-11-22T12:00:00Z".parse::<Timestamp>().unwrap()))
}

#[test]
fn a_healthy_cluster() {
    let spec = json!({"nodePools": [{"name": "front", "replicas": 2, "zones": ["front"]}]});
    let well = ["Available", "GuestReady", "NetworkReady", "PKIReady", "Ready"];
    let mut conditions: Vec<_> = well.iter().map(|type_| condition(type_, "True", "AsExpected", "")).collect();
    conditions.push(condition("Degraded", "False", "AsExpected", ""));
    conditions.push(condition("Progressing", "False", "AsExpected", ""));
    let status = json!({
        "phase": "Ready", "controlPlane": "1/1", "nodes": "3/3", "endpoint": "https://demo.guests.example.com:443",
        "certificatesRenewAt": "2027-01-21T10:00:00Z", "certificatesEndAt": "2027-02-20T10:00:00Z", "conditions": conditions,
    });
    let pods = vec![
        pod("master-0", Some("host2"), ready()),
        pod("front-0", Some("host1"), ready()),
        pod("front-1", Some("host1"), ready()),
    ];
    let ready = event("2026-11-22T10:02:00Z", 1, "Normal", "Ready", "the guest cluster is ready");
    let events = all(vec![ready]);
    let mut observed = Observed { pods: all(pods), events, ..observed(spec, status) };
    insta::assert_snapshot!(drawn(&observed));
    observed.outdated = Some(Ok(["front-1".to_owned()].into()));
    assert!(drawn(&observed).contains("front-1: ready, on host1 (zone front), outdated\n"));
    assert_eq!(drawn(&observed).matches("outdated").count(), 1);
}

#[test]
fn authorities_that_are_rotated_are_told_with_the_time_that_users_have() {
    let rotation = json!({
        "carriedOut": 0, "generation": 2, "stage": "Overlap", "until": "2026-11-23T12:00:00Z", "waitsFor": "users",
    });
    let drawn = drawn(&observed(json!({}), json!({"rotation": rotation})));
    let told = "authorities: generation 2: Overlap, users have time until 2026-11-23T12:00:00Z, waits for users\n";
    assert!(drawn.contains(told), "{drawn}");
}

#[test]
fn a_cluster_that_is_being_made() {
    let spec = json!({"nodePools": [{"name": "a", "replicas": 1}]});
    let waits = "waits for VM pod master-0: the guest's API to answer";
    let conditions = [
        condition("Available", "False", "Waiting", ""),
        condition("ControlPlaneReady", "False", "Waiting", waits),
        condition("NetworkReady", "True", "AsExpected", ""),
        condition("Progressing", "True", "Waiting", waits),
        condition("Ready", "False", "Waiting", &format!("ControlPlaneReady: {waits}")),
    ];
    let status = json!({"phase": "Provisioning", "controlPlane": "0/1", "conditions": conditions});
    let running = json!({"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}]});
    let observed = Observed { pods: all(vec![pod("master-0", Some("host2"), running)]), ..observed(spec, status) };
    insta::assert_snapshot!(drawn(&observed));
}

#[test]
fn a_zone_without_hosts() {
    let spec = json!({"nodePools": [{"name": "far", "replicas": 11, "zones": ["moon"]}]});
    let message = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
    let told = format!("0/11 workers are ready; VM pod far-0: {message}");
    let conditions = [
        condition("Degraded", "True", "Unschedulable", &format!("NodePoolsReady: {told}")),
        condition("NodePoolsReady", "False", "Unschedulable", &told),
    ];
    let status = json!({"phase": "Degraded", "controlPlane": "1/1", "nodes": "1/1", "conditions": conditions});
    let pods = vec![pod("far-0", None, unschedulable(message)), pod("master-0", Some("host1"), ready())];
    let events = (0..7).map(|minute| {
        event(
            &format!("2026-11-22T11:5{minute}:00Z"),
            minute + 1,
            "Warning",
            "Unschedulable",
            &format!("number {minute}"),
        )
    });
    let observed = Observed { pods: all(pods), events: all(events.collect()), ..observed(spec, status) };
    insta::assert_snapshot!(drawn(&observed));
}

#[test]
fn a_cluster_that_is_being_deleted() {
    let conditions = [
        condition("Deleting", "True", "Deleting", "still there: VM pods, namespace"),
        condition("Ready", "False", "Deleting", "the Cluster is being deleted"),
    ];
    let status = json!({"phase": "Deleting", "controlPlane": "1/1", "conditions": conditions});
    let mut going = pod("master-0", Some("host1"), ready());
    going["metadata"]["deletionTimestamp"] = json!("2026-11-22T11:59:58Z");
    let mut old = pod("old-0", Some("host2"), ready());
    old["spec"]["containers"][0]["image"] = json!("giantnetes/vm:v1.35.1");
    let claims = all(vec![claim("vni-1234", Some("2026-11-22T11:59:59Z"))]);
    let observed = Observed { pods: all(vec![going, old]), claims, ..observed(json!({}), status) };
    insta::assert_snapshot!(drawn(&observed));
}

#[test]
fn what_may_not_be_read_is_said_and_the_rest_is_drawn() {
    let forbidden = |what: &str| format!("list {what}: {what} is forbidden: User \"ann\" cannot list it (Forbidden)");
    let spec = json!({"nodePools": [{"name": "a", "replicas": 3, "zones": ["moon"]}]});
    let status = json!({"phase": "Ready", "controlPlane": "1/1", "nodes": "4/4"});
    let observed = Observed {
        pods: Err(forbidden("VM pods of g8s-yvjqyjs7")),
        volumes: Err(forbidden("PersistentVolumeClaims of g8s-yvjqyjs7")),
        claims: Err(forbidden("NetworkClaims")),
        hosts: Err(forbidden("hosts")),
        events: Err(forbidden("Events of team-a")),
        ..observed(spec, status)
    };
    insta::assert_snapshot!(drawn(&observed));
}

#[test]
fn a_cluster_that_nobody_has_seen() {
    let mut observed = observed(json!({}), json!({}));
    (observed.cluster.status, observed.claims, observed.volumes) = (None, Ok(Vec::new()), Ok(Vec::new()));
    let shown = drawn(&observed);
    assert!(shown.starts_with("Cluster team-a/demo: not seen by a controller manager yet\n"), "{shown}");
    assert!(shown.contains("the last change of the spec was not looked at yet"));
}
