//! Many users at once.

use std::time::Instant;

use anyhow::ensure;
use futures::{StreamExt as _, stream};
use giantnetes::api::ClusterAccess;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};
use serde_json::json;

use crate::{
    manager::{Manager, Options},
    on_servers,
    world::{SECOND, World, eventually},
};

const USERS: usize = 1000;

/// Asks for so many users of a Cluster, as fast as the API server takes them.
async fn ask(world: &World) {
    let accesses = Api::<ClusterAccess>::namespaced(world.client.clone(), "a");
    let create = |number: usize| {
        let access = serde_json::from_value(json!({
            "apiVersion": "giantnetes.io/v1alpha1", "kind": "ClusterAccess", "metadata": {"name": format!("user-{number}")},
            "spec": {"clusterRef": {"name": "one"}, "user": format!("user-{number}"), "groups": ["dev", "ops"]},
        }))
        .unwrap();
        let accesses = accesses.clone();
        async move { accesses.create(&PostParams::default(), &access).await.map(drop).unwrap() }
    };
    stream::iter(0..USERS).map(create).buffer_unordered(16).collect::<Vec<_>>().await;
}

#[test]
fn a_thousand_users_at_once_delay_no_control_plane() {
    on_servers("crowd", async |servers, world| {
        let _manager = Manager::start(servers, "one", Options { log: "info", ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        world.namespace("b").await.unwrap();
        world.create("a", "one", json!({})).await.unwrap();
        let alone = world.converged(SECOND * 30, "a", "one").await.unwrap();

        let began = Instant::now();
        ask(&world).await;
        println!("    asked for {USERS} users within {:.1?}", began.elapsed());
        // In the same namespace and in another: each gets all of its certificates while most users still wait.
        let ready = async || {
            let secrets = world.secrets("a").list_metadata(&ListParams::default()).await?;
            Ok::<_, anyhow::Error>(secrets.iter().filter(|secret| secret.name_any().ends_with("-access")).count())
        };
        for namespace in ["a", "b"] {
            world.create(namespace, "late", json!({})).await.unwrap();
            let took = world.converged(SECOND * 30, namespace, "late").await.unwrap();
            println!(
                "    {namespace}/late converged in {took:.1?}, {} users let in; alone it takes {alone:.1?}",
                ready().await.unwrap()
            );
        }
        let all = async || {
            let count = ready().await?;
            ensure!(count == USERS, "{count} of {USERS}");
            Ok(())
        };
        eventually(SECOND * 300, "all users to be let in", all).await.unwrap();
        println!("    all let in after {:.1?}", began.elapsed());
    });
}
