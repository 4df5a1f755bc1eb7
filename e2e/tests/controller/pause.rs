//! `pausedUntil`: nothing but renewing certificates is done, deletion included.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    manager::{Manager, Options},
    on_servers,
    world::{SECOND, World, eventually},
};

async fn pause_until(world: &World, time: &str) {
    let patch = json!({"spec": {"pausedUntil": time}});
    world.clusters("a").patch("one", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

#[test]
fn in_a_pause_nothing_is_done_and_after_it_everything() {
    on_servers("pause", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "one", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        manager.settled().await;
        let id = world.clusters("a").get("one").await.unwrap().status.unwrap().id.unwrap();
        pause_until(&world, "2100-01-01T00:00:00Z").await;
        world.condition(SECOND * 10, ("a", "one"), ("Paused", "True", "Paused")).await.unwrap();
        let services = Api::<Service>::namespaced(world.client.clone(), &format!("g8s-{id}"));
        services.delete("master", &DeleteParams::default()).await.unwrap();
        world.delete("a", "one").await.unwrap();
        manager.proxy.forget();
        // Another Cluster's whole life: time enough for this one's to have gone on.
        world.create("a", "other", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "other").await.unwrap();
        world.delete("a", "other").await.unwrap();
        world.gone(SECOND * 30, "a", "other").await.unwrap();
        assert!(services.get_opt("master").await.unwrap().is_none(), "the Service was made in a pause");
        assert!(world.clusters("a").get_opt("one").await.unwrap().is_some(), "the Cluster went in a pause");
        assert!(!world.roots().await.unwrap().is_empty(), "roots went in a pause");
        pause_until(&world, "2000-01-01T00:00:00Z").await;
        world.gone(SECOND * 30, "a", "one").await.unwrap();
        eventually(SECOND * 20, "everything to be gone", || async {
            let left = world.inventory().await?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
        .unwrap();
    });
}
