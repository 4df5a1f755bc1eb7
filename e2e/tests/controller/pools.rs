//! Node pools on a real API server: workers come and go, and their places are never shared. No VM runs: nobody schedules.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    servers::Servers,
    world::{SECOND, World, condition, eventually},
};

/// Everything of the guest's nodes: pods with their place, ConfigMaps with theirs, names of Secrets with their keys.
struct Nodes {
    pods: BTreeMap<String, String>,
    places: BTreeMap<String, String>,
    secrets: BTreeMap<String, BTreeSet<String>>,
}

async fn nodes(world: &World, namespace: &str) -> Result<Nodes> {
    let all = ListParams::default();
    let place =
        |annotations: &BTreeMap<String, String>| annotations.get("giantnetes.io/place").cloned().unwrap_or_default();
    let pods = Api::<Pod>::namespaced(world.client.clone(), namespace).list(&all).await?;
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), namespace).list(&all).await?;
    let secrets = world.secrets(namespace).list(&all).await?;
    let maps = maps.items.iter().filter_map(|map| {
        let node = map.name_any().strip_suffix("-config")?.to_owned();
        Some((node, place(map.annotations())))
    });
    let secrets = secrets.items.iter().filter_map(|secret| {
        let node = secret.name_any().strip_suffix("-pki")?.to_owned();
        Some((node, secret.data.iter().flatten().map(|(key, _)| key.clone()).collect()))
    });
    Ok(Nodes {
        pods: pods.items.iter().map(|pod| (pod.name_any(), place(pod.annotations()))).collect(),
        places: maps.collect(),
        secrets: secrets.collect(),
    })
}

/// Waits until exactly these nodes are there, with all that belongs to them, each at a place of its own.
async fn settled(world: &World, namespace: &str, wanted: &[&str]) -> Nodes {
    let look = async || {
        let nodes = nodes(world, namespace).await?;
        let wanted: BTreeSet<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
        for (what, names) in [
            ("pods", nodes.pods.keys().cloned().collect::<BTreeSet<_>>()),
            ("configurations", nodes.places.keys().cloned().collect()),
            ("secrets", nodes.secrets.keys().cloned().collect()),
        ] {
            ensure!(names == wanted, "{what} are of {names:?}");
        }
        Ok(nodes)
    };
    let (nodes, took) = eventually(SECOND * 60, "the nodes to settle", look).await.unwrap();
    println!("    {wanted:?} after {took:.1?}");
    assert_eq!(nodes.pods, nodes.places, "a pod was made with another place than the one that is written down");
    let distinct: BTreeSet<_> = nodes.places.values().collect();
    assert_eq!(distinct.len(), nodes.places.len(), "a place is shared: {:?}", nodes.places);
    nodes
}

/// The plan of a change knows what rolls, and what goes.
fn changes_are_foreseen(servers: &Servers, manager: &Manager, namespace: &str) {
    let planned = |pools: Value| manager.live_plan(servers, "demo", &json!({"nodePools": pools}));
    let same = planned(json!([{"name": "x", "replicas": 3}]));
    assert!(same.contains("\nno node rolls\ndisruption: none\n") && !same.contains("\n- "), "{same}");
    let larger = planned(json!([{"name": "x", "replicas": 3, "machine": {"cpus": 3}}]));
    assert!(larger.contains("\nnodes that roll: x-0, x-1, x-2\ndisruption: workers go one at a time"), "{larger}");
    let fewer = planned(json!([{"name": "x", "replicas": 1}]));
    let gone: Vec<_> = fewer.lines().filter_map(|line| line.strip_prefix("- ")?.split_whitespace().nth(2)).collect();
    let names = ["x-1", "x-2", "x-1-config", "x-2-config", "x-1-pki", "x-2-pki"];
    assert_eq!(gone, names.map(|name| format!("{namespace}/{name}")), "{fewer}");
    assert!(fewer.contains("\nno node rolls\ndisruption: workers go one at a time"), "{fewer}");
}

#[test]
fn workers_come_and_go_and_keep_their_places() {
    on_servers("pools", async |servers, world| {
        let manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        let pools = |pools: Value| json!({"spec": {"nodePools": pools}});
        let spec = pools(json!([{"name": "x", "replicas": 3}]))["spec"].clone();
        let cluster = world.create("a", "demo", spec).await.unwrap();
        let clusters = world.clusters("a");
        let get = async || clusters.get(&cluster.name_any()).await;
        let id = async || {
            let found = get().await?.status.and_then(|status| status.id);
            found.ok_or_else(|| anyhow::anyhow!("no id yet"))
        };
        let namespace = format!("g8s-{}", eventually(SECOND * 30, "an id", id).await.unwrap().0);

        let first = settled(&world, &namespace, &["master-0", "x-0", "x-1", "x-2"]).await;
        let keys = [
            "ca.crt",
            "kube-proxy.crt",
            "kube-proxy.key",
            "kubelet-server.crt",
            "kubelet-server.key",
            "kubelet.crt",
            "kubelet.key",
            "metrics.crt",
            "metrics.key",
        ];
        assert_eq!(first.secrets["x-0"], keys.map(str::to_owned).into(), "a worker knows no more than it needs");
        let said = async || {
            let found = condition(&get().await?, "NodePoolsReady");
            ensure!(
                found.as_ref().is_some_and(|(status, _, message)| status == "False" && message.contains("0/3")),
                "{found:?}"
            );
            Ok(())
        };
        eventually(SECOND * 20, "the pools' condition", said).await.unwrap();
        let writes: Vec<_> = manager.proxy.writes().iter().map(|write| format!("{write:?}")).collect();
        let statuses = writes.iter().filter(|write| write.contains("/status")).count();
        println!("    {} writes for 1 + 3 nodes, {statuses} of them of the status", writes.len());
        // On a busy machine a status may be written once more; nothing else is written twice.
        assert_eq!(writes.len() - statuses, 23, "{writes:#?}");
        let earliest = |part: &str| writes.iter().position(|write| write.contains(part)).unwrap();
        assert!(earliest("/networkpolicies") < earliest("/pods"), "a VM comes before what holds it back: {writes:?}");
        changes_are_foreseen(servers, &manager, &namespace);

        // Fewer of one and some of another at once: what goes must not hand its place on while it is there.
        let change = pools(json!([{"name": "x", "replicas": 1}, {"name": "b", "replicas": 3}]));
        let patch = PatchParams::default();
        world.clusters("a").patch("demo", &patch, &Patch::Merge(change)).await.unwrap();
        let second = settled(&world, &namespace, &["b-0", "b-1", "b-2", "master-0", "x-0"]).await;
        assert_eq!(second.places["x-0"], first.places["x-0"]);

        let none = pools(Value::Null);
        world.clusters("a").patch("demo", &patch, &Patch::Merge(none)).await.unwrap();
        let third = settled(&world, &namespace, &["master-0"]).await;
        assert_eq!(third.pods["master-0"], "");
        let said = async || {
            let found = condition(&get().await?, "NodePoolsReady");
            ensure!(found == Some(("True".into(), "AsExpected".into(), "no node pools".into())), "{found:?}");
            Ok(())
        };
        eventually(SECOND * 20, "the pools' condition", said).await.unwrap();
        assert!(!manager.log_text().contains("panicked"));
    });
}
