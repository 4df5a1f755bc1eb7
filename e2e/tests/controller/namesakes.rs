//! Objects of other people that have the names of a guest's are told of and left alone.

use std::collections::BTreeMap;

use anyhow::ensure;
use giantnetes::pki::roots;
use kube::{
    ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    children::Child,
    manager::{Manager, Options},
    on_servers,
    world::{SECOND, World, condition, eventually},
};

/// Creates somebody else's object. Answers it.
async fn namesake(world: &World, child: &Child, body: Value) -> DynamicObject {
    let api = child.api(world);
    let mut object = json!({
        "apiVersion": child.resource().api_version, "kind": child.kind,
        "metadata": {"name": child.name, "namespace": child.namespace},
    });
    object.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    let object = serde_json::from_value(object).unwrap();
    let made = eventually(SECOND * 10, "the name to be free", || async {
        Ok(api.create(&PostParams::default(), &object).await?)
    });
    made.await.unwrap().0
}

/// Deletes an object, with what holds it: nobody is here who would see that no pod uses a volume.
async fn remove(world: &World, child: &Child) {
    let api = child.api(world);
    api.delete(&child.name, &DeleteParams::default().grace_period(0)).await.unwrap();
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    match api.patch(&child.name, &PatchParams::default(), &free).await {
        Err(kube::Error::Api(status)) if status.code != 404 => panic!("free {} {}: {status}", child.kind, child.name),
        _ => {}
    }
}

/// While the manager is away, somebody else's object takes the place of the guest's.
async fn usurp(world: &World, manager: &mut Manager, child: &Child, body: Value) -> DynamicObject {
    manager.signal("TERM");
    tokio::task::block_in_place(|| manager.ended(SECOND * 12)).unwrap();
    remove(world, child).await;
    let stranger = namesake(world, child, body).await;
    manager.restart();
    stranger
}

/// The manager tells of a stranger, touches nothing of it, and makes its own when it is out of the way.
async fn is_told_and_left_alone(world: &World, child: &Child, stranger: &DynamicObject, type_: &str) {
    let foreign = (type_, "False", "ForeignObject");
    let (message, took) = world.condition(SECOND * 60, ("a", "life"), foreign).await.unwrap();
    println!("    told after {took:.1?}: {message}");
    assert!(message.contains(&child.name), "{message}");
    let after = child.api(world).get(&child.name).await.unwrap();
    assert_eq!(after.metadata.resource_version, stranger.metadata.resource_version, "{} was touched", child.name);
    remove(world, child).await;
    let back = eventually(SECOND * 90, "the guest's own to be back", || async {
        let found = child.api(world).get(&child.name).await?;
        ensure!(found.annotations().contains_key("giantnetes.io/cluster-uid"), "it is not the guest's");
        let said = condition(&world.clusters("a").get("life").await?, type_);
        ensure!(said.as_ref().is_some_and(|(_, reason, _)| reason != "ForeignObject"), "{said:?}");
        Ok(())
    });
    back.await.unwrap();
}

#[test]
fn namesakes_of_every_kind_are_told_and_left_alone() {
    on_servers("namesakes", async |servers, world| {
        world.namespace("a").await.unwrap();
        let spec = json!({"exposure": {"type": "Ingress", "host": "life.example.com"}});
        let cluster = world.create("a", "life", spec).await.unwrap();
        // The namespace is the first thing that the manager makes: its name follows from the Cluster's UID.
        let home = giantnetes::cluster::Identity::of(&cluster).namespace;
        let namespace = Child { kind: "Namespace", namespace: None, name: home.clone() };
        let stranger = namesake(&world, &namespace, json!({})).await;
        let mut manager = Manager::start(servers, "one", Options::default()).await;
        is_told_and_left_alone(&world, &namespace, &stranger, "Ready").await;
        world.converged(SECOND * 90, "a", "life").await.unwrap();

        for (kind, name, type_, body) in [
            ("Service", "master", "NetworkReady", json!({"spec": {"ports": [{"port": 80}]}})),
            ("NetworkPolicy", "guest", "NetworkReady", json!({"spec": {"podSelector": {}}})),
            (
                "Ingress",
                "master",
                "NetworkReady",
                json!({"spec": {"defaultBackend": {"service": {"name": "x", "port": {"number": 80}}}}}),
            ),
            ("Secret", "master-0-pki", "PKIReady", json!({"stringData": {"value": "precious"}})),
        ] {
            let child = Child { kind, namespace: Some(home.clone()), name: name.to_owned() };
            let stranger = usurp(&world, &mut manager, &child, body).await;
            is_told_and_left_alone(&world, &child, &stranger, type_).await;
            world.converged(SECOND * 90, "a", "life").await.unwrap();
        }
        assert!(!manager.log_text().contains("panicked"));
    });
}

/// A Pod of somebody else's, and a claim on a volume.
fn somebodys_pod() -> Value {
    json!({"spec": {"containers": [{"name": "x", "image": "x"}]}})
}

fn somebodys_volume() -> Value {
    json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
}

#[test]
fn namesakes_of_what_nodes_are_made_of_are_told_and_left_alone() {
    on_servers("node-namesakes", async |servers, world| {
        world.namespace("a").await.unwrap();
        let spec = json!({"nodePools": [{"name": "x", "replicas": 1}]});
        let cluster = world.create("a", "life", spec).await.unwrap();
        let home = giantnetes::cluster::Identity::of(&cluster).namespace;
        let child = |kind, name: &str| Child { kind, namespace: Some(home.clone()), name: name.to_owned() };
        let mut manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        let made = async || {
            for node in ["master-0", "x-0"] {
                child("Pod", node).api(&world).get(node).await?;
            }
            Ok(())
        };
        eventually(SECOND * 30, "the VM pods to be made", made).await.unwrap();
        manager.settled().await;
        let roots = world.roots().await.unwrap();

        for (kind, name, type_, body) in [
            ("Service", "nodes", "NetworkReady", json!({"spec": {"ports": [{"port": 80}]}})),
            ("PodDisruptionBudget", "nodes", "ControlPlaneReady", json!({"spec": {"minAvailable": 1, "selector": {}}})),
            ("ConfigMap", "master-0-config", "ControlPlaneReady", json!({"data": {"value": "precious"}})),
            ("ConfigMap", "x-0-config", "NodePoolsReady", json!({"data": {"value": "precious"}})),
            ("Pod", "master-0", "ControlPlaneReady", somebodys_pod()),
            ("Pod", "x-0", "NodePoolsReady", somebodys_pod()),
            ("Secret", "x-0-pki", "PKIReady", json!({"stringData": {"value": "precious"}})),
        ] {
            let child = child(kind, name);
            let stranger = usurp(&world, &mut manager, &child, body).await;
            is_told_and_left_alone(&world, &child, &stranger, type_).await;
            eventually(SECOND * 30, "the VM pods to be there", made).await.unwrap();
        }

        // No node is put on somebody else's volume.
        let (volume, pod) = (child("PersistentVolumeClaim", "master-0-etcd"), child("Pod", "master-0"));
        let stranger = usurp(&world, &mut manager, &volume, somebodys_volume()).await;
        let foreign = ("ControlPlaneReady", "False", "ForeignObject");
        remove(&world, &pod).await;
        world.condition(SECOND * 60, ("a", "life"), foreign).await.unwrap();
        manager.settled().await;
        assert!(pod.api(&world).get_opt("master-0").await.unwrap().is_none(), "a VM was made on somebody's volume");
        is_told_and_left_alone(&world, &volume, &stranger, "ControlPlaneReady").await;
        eventually(SECOND * 30, "the VM pods to be there", made).await.unwrap();

        // The roots' Secret is not made anew, before the stranger is out of the way and after.
        let kept = child("Secret", roots::SECRET);
        let mut backup = kept.api(&world).get(roots::SECRET).await.unwrap();
        let stranger = usurp(&world, &mut manager, &kept, json!({"stringData": {"value": "precious"}})).await;
        let lost = ("PKIReady", "False", "CALost");
        world.condition(SECOND * 60, ("a", "life"), lost).await.unwrap();
        let after = kept.api(&world).get(roots::SECRET).await.unwrap();
        assert_eq!(after.metadata.resource_version, stranger.metadata.resource_version, "it was touched");
        remove(&world, &kept).await;
        manager.settled().await;
        assert!(kept.api(&world).get_opt(roots::SECRET).await.unwrap().is_none(), "it was made anew");
        (backup.metadata.uid, backup.metadata.resource_version) = (None, None);
        kept.api(&world).create(&PostParams::default(), &backup).await.unwrap();
        let ready = ("PKIReady", "True", "AsExpected");
        world.condition(SECOND * 90, ("a", "life"), ready).await.unwrap();
        let fingerprints = |roots: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            let first = |text: &String| text.split(' ').next().unwrap_or_default().to_owned();
            roots.iter().map(|(name, root)| (name.clone(), first(root))).collect()
        };
        assert_eq!(fingerprints(&world.roots().await.unwrap()), fingerprints(&roots));
        assert!(!manager.log_text().contains("panicked"));
    });
}
