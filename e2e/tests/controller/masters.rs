//! Control planes of several nodes, and etcd that is formed once. No VM runs: the test plays the kubelets.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Service};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    rollout::Guest,
    world::{SECOND, World, eventually},
};

const JOINS: &str = "giantnetes.io/etcd-joins";
/// What a node is told that may form a cluster of etcd.
const FORMS: &str = "begin \"$name=$peer\" new";

fn options() -> Options {
    Options { kvm: true, ..Options::default() }
}

fn volumes(world: &World, guest: &Guest) -> Api<PersistentVolumeClaim> {
    Api::namespaced(world.client.clone(), &guest.namespace)
}

/// Loses a node's VM pod and etcd's volume. The management cluster frees the volume when no pod on a host uses it.
async fn lose(world: &World, guest: &Guest<'_>, node: &str) {
    let (volumes, name) = (volumes(world, guest), format!("{node}-etcd"));
    let lost = volumes.get(&name).await.unwrap().uid();
    volumes.delete(&name, &DeleteParams::default()).await.unwrap();
    guest.pods.delete(node, &DeleteParams::default().grace_period(0)).await.unwrap();
    let look = async || {
        let found = volumes.get_opt(&name).await?;
        ensure!(found.and_then(|volume| volume.uid()) != lost, "it is still there");
        Ok(())
    };
    eventually(SECOND * 20, &format!("the volume {name} to go"), look).await.unwrap();
}

/// The volume in the place of a lost one. Its VM pod may come first: of the two losses the manager hears one after the other.
async fn made_anew(world: &World, guest: &Guest<'_>, node: &str) -> PersistentVolumeClaim {
    let look = async || Ok(volumes(world, guest).get(&format!("{node}-etcd")).await?);
    eventually(SECOND * 20, "the volume to be made again", look).await.unwrap().0
}

/// Sets what must be seen to before a VM pod goes.
async fn hold(guest: &Guest<'_>, node: &str, finalizers: Value) {
    let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    guest.pods.patch(node, &PatchParams::default(), &patch).await.unwrap();
}

async fn is_formed(world: &World) {
    let look = async || {
        let status = world.clusters("a").get("demo").await?.status.context("no status")?;
        ensure!(status.etcd_formed == Some(true), "it is not recorded");
        Ok(())
    };
    eventually(SECOND * 20, "etcd to be recorded as formed", look).await.unwrap();
}

/// Waits until a node's volume counts as one that has the guest's objects.
async fn counts(world: &World, guest: &Guest<'_>, node: &str) {
    let look = async || {
        let claim = volumes(world, guest).get(&format!("{node}-etcd")).await?;
        ensure!(!claim.annotations().contains_key(JOINS), "it does not count");
        Ok(())
    };
    eventually(SECOND * 20, "a volume to count", look).await.unwrap();
}

/// Whether the configuration of a node lets it form a cluster of etcd.
async fn forms(world: &World, guest: &Guest<'_>, node: &str) -> bool {
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), &guest.namespace);
    let config = maps.get(&format!("{node}-config")).await.unwrap();
    config.data.unwrap()["user-data"].contains(FORMS)
}

#[test]
fn three_are_made_at_once_and_the_first_one_alone_may_form_etcd_and_only_once() {
    on_servers("masters", async |servers, world| {
        let _manager = Manager::start(servers, "one", options()).await;
        let all = ["master-0", "master-1", "master-2"];
        let guest = Guest::of(&world, json!({"controlPlane": {"replicas": 3}}), &all).await;
        let claims = volumes(&world, &guest).list(&ListParams::default()).await.unwrap();
        let claims: Vec<_> = claims.iter().map(ResourceExt::name_any).collect();
        assert_eq!(claims, ["master-0-etcd", "master-1-etcd", "master-2-etcd"]);
        let services = Api::<Service>::namespaced(world.client.clone(), &guest.namespace);
        let service = services.get("master").await.unwrap().spec.unwrap();
        assert_ne!(service.publish_not_ready_addresses, Some(true), "who is not ready has others to stand in");
        services.get("nodes").await.unwrap();
        let mut may = Vec::new();
        for node in all {
            may.push(forms(&world, &guest, node).await);
        }
        assert_eq!(may, [true, false, false]);
        let before = guest.uids().await.unwrap();
        guest.ready("master-0").await;
        is_formed(&world).await;
        guest.says("ControlPlaneReady", "master-1").await;
        // At once, and without another VM: its host may die before anybody touches it again.
        let closed = async || {
            ensure!(!forms(&world, &guest, "master-0").await, "it may form another one");
            Ok(())
        };
        eventually(SECOND * 15, "the first one's configuration to be closed", closed).await.unwrap();
        assert_eq!(guest.uids().await.unwrap(), before);
        guest.ready("master-1").await;
        counts(&world, &guest, "master-1").await;

        let before = guest.uids().await.unwrap();
        lose(&world, &guest, "master-0").await;
        guest.comes("master-0", &before["master-0"]).await;
        let blank = made_anew(&world, &guest, "master-0").await;
        assert!(blank.annotations().contains_key(JOINS), "it passes for one that has data");

        // Of those that are outdated one goes, and the next waits until it is back.
        for node in all {
            guest.ready(node).await;
        }
        let before = guest.uids().await.unwrap();
        guest.change(json!({"controlPlane": {"machine": {"cpus": 3}}})).await;
        guest.comes("master-0", &before["master-0"]).await;
        guest.nobody_else_moves(&before, &["master-0"]).await;
        // Meanwhile somebody loses another one's volume: it is made again, and waited for as well.
        lose(&world, &guest, "master-2").await;
        guest.comes("master-2", &before["master-2"]).await;
        guest.ready("master-0").await;
        guest.nobody_else_moves(&before, &["master-0", "master-2"]).await;
        guest.ready("master-2").await;
        guest.comes("master-1", &before["master-1"]).await;
    });
}

#[test]
fn a_lone_one_is_replaced_before_others_come() {
    on_servers("grown", async |servers, world| {
        let _manager = Manager::start(servers, "one", options()).await;
        let guest = Guest::of(&world, json!({}), &["master-0"]).await;
        guest.ready("master-0").await;
        is_formed(&world).await;
        // A finalizer of the test holds the old one, so that it is seen what waits for it.
        hold(&guest, "master-0", json!(["example.com/held"])).await;
        let before = guest.uids().await.unwrap();
        guest.change(json!({"controlPlane": {"replicas": 3}})).await;
        guest.leaves("master-0").await;
        tokio::time::sleep(SECOND * 2).await;
        assert_eq!(guest.uids().await.unwrap(), before, "others come while it still elects no leader");
        hold(&guest, "master-0", json!(null)).await;
        guest.comes("master-0", &before["master-0"]).await;
        assert!(!forms(&world, &guest, "master-0").await);
        for node in ["master-1", "master-2"] {
            guest.comes(node, "").await;
        }
        let services = Api::<Service>::namespaced(world.client.clone(), &guest.namespace);
        let service = services.get("master").await.unwrap().spec.unwrap();
        assert_ne!(service.publish_not_ready_addresses, Some(true), "clients are sent to nodes that boot");
    });
}

#[test]
fn what_joins_holds_nothing_yet() {
    on_servers("blank", async |servers, world| {
        let _manager = Manager::start(servers, "one", options()).await;
        let guest =
            Guest::of(&world, json!({"controlPlane": {"replicas": 3}}), &["master-0", "master-1", "master-2"]).await;
        guest.ready("master-0").await;
        is_formed(&world).await;
        // The others have not come in yet: what it knew is known to nobody.
        lose(&world, &guest, "master-0").await;
        guest.says("ControlPlaneReady", "holds the guest's objects any more").await;
    });
}

#[test]
fn a_guest_that_has_lost_etcd_is_not_made_anew() {
    on_servers("etcd-lost", async |servers, world| {
        let mut manager = Manager::start(servers, "one", options()).await;
        let guest = Guest::of(&world, json!({}), &["master-0"]).await;
        // Nothing is lost with a volume that nothing was written to.
        let before = guest.uids().await.unwrap();
        lose(&world, &guest, "master-0").await;
        guest.comes("master-0", &before["master-0"]).await;
        let restored = made_anew(&world, &guest, "master-0").await;
        guest.ready("master-0").await;
        is_formed(&world).await;

        manager.process.0.kill().unwrap();
        lose(&world, &guest, "master-0").await;
        manager.restart();
        println!("    {}", guest.says("ControlPlaneReady", "holds the guest's objects any more").await);
        tokio::time::sleep(SECOND * 2).await;
        assert!(guest.uids().await.unwrap().is_empty(), "a VM was made for it");
        assert!(volumes(&world, &guest).list(&ListParams::default()).await.unwrap().items.is_empty());

        let mut claim = restored;
        claim.metadata.resource_version = None;
        claim.metadata.uid = None;
        volumes(&world, &guest).create(&PostParams::default(), &claim).await.unwrap();
        guest.comes("master-0", "").await;
    });
}
