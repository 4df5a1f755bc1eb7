//! What is not ours is left alone, and what cannot be read spoils nothing else.

use std::collections::BTreeMap;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    steady::home,
    world::{SECOND, World, eventually},
};

/// Creates a Secret of somebody else's in namespace `a`.
async fn stranger(world: &World, name: &str, labels: Value) -> Secret {
    let stranger = json!({
        "metadata": {"name": name, "namespace": "a", "labels": labels}, "stringData": {"value": "precious"},
    });
    let stranger = serde_json::from_value(stranger).unwrap();
    world.secrets("a").create(&PostParams::default(), &stranger).await.unwrap()
}

async fn is_untouched(world: &World, stranger: &Secret) {
    let after = world.secrets("a").get(&stranger.name_any()).await.unwrap();
    assert_eq!(after.metadata.resource_version, stranger.metadata.resource_version, "it was touched");
}

#[test]
fn strangers_are_left_alone_and_malformed_objects_do_not_spread() {
    on_servers("strangers", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        // Secrets of the name that the kubeconfig will have: with a label like ours, which the cache sees, and without.
        for (name, labels) in [("one", json!({"giantnetes.io/cluster": "mine"})), ("two", json!({}))] {
            let kubeconfig = format!("{name}-kubeconfig");
            let stranger = stranger(&world, &kubeconfig, labels).await;
            world.create("a", name, json!({})).await.unwrap();
            let foreign = ("PKIReady", "False", "ForeignObject");
            let (message, took) = world.condition(SECOND * 30, ("a", name), foreign).await.unwrap();
            assert!(message.contains(&kubeconfig), "{message}");
            println!("    told after {took:.1?}: {message}");
            is_untouched(&world, &stranger).await;
            // Out of the way: work goes on.
            world.secrets("a").delete(&kubeconfig, &DeleteParams::default()).await.unwrap();
            world.converged(SECOND * 90, "a", name).await.unwrap();
        }

        // Clusters as a newer version might store them: rules off for the moment of writing.
        manager.settled().await;
        let (before, roots) = (world.inventory().await.unwrap(), world.roots().await.unwrap());
        malformed(&world).await;
        let outdated = ("Ready", "False", "InvalidSpec");
        let (message, _) = world.condition(SECOND * 30, ("a", "two"), outdated).await.unwrap();
        assert!(message.contains("spec.kubernetes.podCIDR"), "{message}");
        manager.settled().await;
        assert_eq!(
            world.inventory().await.unwrap(),
            before,
            "what a live Cluster has, it keeps when it cannot be read"
        );
        assert_eq!(world.roots().await.unwrap(), roots);
        world.create("a", "after", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "after").await.unwrap();
        eventually(SECOND * 10, "the malformed object to be told", || async {
            ensure!(manager.log_text().contains("cannot be read"), "it is not");
            Ok(())
        })
        .await
        .unwrap();
        // And after a fresh list, too.
        let mut manager = manager;
        manager.restart();
        world.create("a", "later", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "later").await.unwrap();
        // Repaired, they go on as what they were.
        without_rules(&world, async || {
            spec(&world, "one", json!({"kubernetes": null})).await?;
            spec(&world, "two", json!({"kubernetes": null})).await
        })
        .await;
        for name in ["one", "two"] {
            world.converged(SECOND * 30, "a", name).await.unwrap();
        }
        let now = world.roots().await.unwrap();
        assert!(roots.iter().all(|(name, root)| now.get(name) == Some(root)), "a root was made anew");
        assert!(!manager.log_text().contains("panicked"));
    });
}

/// The Clusters of `a`, of whatever shape.
fn untyped(world: &World) -> Api<DynamicObject> {
    let resource = kube::core::ApiResource::erase::<giantnetes::api::Cluster>(&());
    Api::namespaced_with(world.client.clone(), "a", &resource)
}

/// Merges this into the spec of a Cluster in `a`.
async fn spec(world: &World, name: &str, spec: Value) -> anyhow::Result<()> {
    let clusters = untyped(world);
    clusters.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
    Ok(())
}

/// Stores a Cluster whose spec is not of the shape that the manager knows, makes `one` such a one, and lets `two` break a
/// rule that it knows.
async fn malformed(world: &World) {
    let clusters = untyped(world);
    let bad: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster",
        "metadata": {"name": "malformed", "namespace": "a"}, "spec": {"kubernetes": "none"},
    }))
    .unwrap();
    without_rules(world, async || {
        if clusters.get_opt("malformed").await?.is_none() {
            clusters.create(&PostParams::default(), &bad).await?;
        }
        spec(world, "one", json!({"kubernetes": "none"})).await?;
        spec(world, "two", json!({"kubernetes": {"podCIDR": "nonsense"}})).await
    })
    .await;
}

/// Does something while the API server takes every Cluster.
async fn without_rules(world: &World, deed: impl AsyncFn() -> anyhow::Result<()>) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    let crds = Api::<CustomResourceDefinition>::all(world.client.clone());
    let name = "clusters.giantnetes.io";
    let real = crds.get(name).await.unwrap();
    let mut open = real.clone();
    for version in &mut open.spec.versions {
        let schema = version.schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
        *schema =
            serde_json::from_value(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})).unwrap();
    }
    open.metadata.managed_fields = None;
    crds.replace(name, &PostParams::default(), &open).await.unwrap();
    // It takes note of it within moments.
    eventually(SECOND * 30, "the rules to be off", || deed()).await.unwrap();
    let mut back = real;
    back.metadata.managed_fields = None;
    back.metadata.resource_version = crds.get(name).await.unwrap().metadata.resource_version;
    crds.replace(name, &PostParams::default(), &back).await.unwrap();
}

/// Everything in a Cluster's namespace that has a UID, and its kubeconfig.
async fn belongings(world: &World, name: &str) -> BTreeMap<String, String> {
    let home = home(world, name).await;
    let mut secrets = world.secrets(&home).list(&ListParams::default()).await.unwrap().items;
    secrets.push(world.secrets("a").get(&format!("{name}-kubeconfig")).await.unwrap());
    let version = |secret: &Secret| format!("{:?} {:?}", secret.uid(), secret.resource_version());
    secrets.iter().map(|secret| (secret.name_any(), version(secret))).collect()
}

#[test]
fn a_deletion_takes_nothing_of_namesakes_or_strangers() {
    on_servers("twins", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        let names = ["x", "cp-a", "cp-aa"];
        for name in names {
            world.create("a", name, json!({})).await.unwrap();
        }
        world.all_converged(SECOND * 60, names.len()).await.unwrap();
        manager.settled().await;
        let (twin, other) = (belongings(&world, "cp-aa").await, belongings(&world, "x").await);
        assert!(twin.len() >= 3, "{twin:?}");
        // With the label that the guest's objects have, and another owner, or none.
        let id = world.clusters("a").get("cp-a").await.unwrap().status.unwrap().id.unwrap();
        let labelled = stranger(&world, "labelled", json!({"giantnetes.io/cluster": id})).await;
        world.delete("a", "cp-a").await.unwrap();
        let took = world.gone(SECOND * 30, "a", "cp-a").await.unwrap();
        println!("    cp-a gone after {took:.1?}");
        manager.settled().await;
        is_untouched(&world, &labelled).await;
        assert_eq!(belongings(&world, "cp-aa").await, twin);
        assert_eq!(belongings(&world, "x").await, other);
        world.all_converged(SECOND * 5, names.len() - 1).await.unwrap();
    });
}
