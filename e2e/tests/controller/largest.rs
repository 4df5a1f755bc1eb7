//! The largest and the smallest that the API server lets in are made, and go without a trace.

use anyhow::ensure;
use giantnetes::{api::Cluster, cluster::Identity};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    world::{SECOND, World, condition, eventually},
};

/// As many as a Cluster may have.
const POOLS: usize = 20;
/// Of each of them labels, taints and names in certificates.
const EACH: usize = 16;
/// What an object's annotations may have, in bytes, less what kubectl may add.
const ANNOTATED: usize = 250_000;

/// A label's key of 242 characters.
fn key(number: usize) -> String {
    format!("{}.{}.{}/{number:0>63}", "p".repeat(63), "q".repeat(63), "r".repeat(50))
}

/// A host name of 253 characters.
fn host(number: usize) -> String {
    let label = "h".repeat(63);
    format!("{label}.{label}.{label}.{number:0>61}")
}

fn largest() -> Value {
    let value = "v".repeat(63);
    let labels: serde_json::Map<_, _> = (0..EACH).map(|number| (key(number), json!(value))).collect();
    let taints: Vec<_> =
        (0..EACH).map(|number| json!({"key": key(number), "value": value, "effect": "NoSchedule"})).collect();
    let pool =
        |number: usize| json!({"name": format!("{number:a>20}"), "replicas": 1, "labels": labels, "taints": taints});
    json!({
        "exposure": {"type": "Ingress", "host": host(EACH)},
        "pki": {"apiServer": {"altNames": (0..EACH).map(host).collect::<Vec<_>>()}},
        "nodePools": (0..POOLS).map(pool).collect::<Vec<_>>(),
    })
}

/// Waits until a Cluster has its keys and so many VM pods, which nobody runs here.
async fn made(world: &World, cluster: &Cluster, nodes: usize) {
    let (name, home) = (cluster.metadata.name.as_deref().unwrap(), Identity::of(cluster).namespace);
    let pods = Api::<Pod>::namespaced(world.client.clone(), &home);
    let look = async || {
        let cluster = world.clusters("a").get(name).await?;
        for type_ in ["NetworkReady", "PKIReady"] {
            let found = condition(&cluster, type_);
            ensure!(found.as_ref().is_some_and(|(status, ..)| status == "True"), "{type_} is {found:?}");
        }
        let there = pods.list_metadata(&ListParams::default()).await?.items.len();
        ensure!(there == nodes, "{there} VM pods of {nodes}");
        Ok(())
    };
    let (_, took) = eventually(SECOND * 60, name, look).await.unwrap();
    println!("    a name of {} characters, {nodes} nodes: made after {took:.1?}", name.len());
}

#[test]
fn the_largest_and_the_smallest_that_are_admitted_are_made_and_go() {
    on_servers("largest", async |servers, world| {
        world.namespace("a").await.unwrap();
        let (long, short) = ("l".repeat(52), "s");
        let large = world.create("a", &long, largest()).await.unwrap();
        let small = world.create("a", short, json!({})).await.unwrap();
        // Of two bytes each, so that who cuts a text must know of characters.
        let annotations = json!({"metadata": {"annotations": {"note": "ü".repeat(ANNOTATED / 2)}}});
        let patch = Patch::Merge(annotations);
        world.clusters("a").patch(&long, &PatchParams::default(), &patch).await.unwrap();
        let manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        made(&world, &large, 1 + POOLS).await;
        made(&world, &small, 1).await;
        manager.settled().await;
        let kept = world.clusters("a").get(&long).await.unwrap().metadata.annotations.unwrap();
        assert_eq!(kept["note"].len(), ANNOTATED, "what others wrote was changed");
        for name in [&long, short] {
            world.delete("a", name).await.unwrap();
            world.gone(SECOND * 60, "a", name).await.unwrap();
        }
        let left = world.inventory().await.unwrap();
        assert!(left.iter().all(|object| object.starts_with("NetworkClaim")), "{left:?}");
        assert!(!manager.log_text().contains("panicked"));
    });
}
