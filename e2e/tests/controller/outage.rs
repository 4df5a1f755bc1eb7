//! The API server refuses, falls silent, forgets and fails, and work goes on when it is back.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::{
    asked_for,
    manager::{Manager, Options},
    on_servers,
    proxy::Mode,
    world::{SECOND, World, eventually},
};

/// Every watch of the manager, by the resource that it lists.
const WATCHES: [&str; 11] = [
    "clusters",
    "configmaps",
    "ingresses",
    "namespaces",
    "networkclaims",
    "networkpolicies",
    "nodes",
    "persistentvolumeclaims",
    "pods",
    "secrets",
    "services",
];

async fn survives(manager: &Manager, world: &World, mode: Mode, length: Duration, name: &str) {
    manager.proxy.set(mode);
    tokio::time::sleep(length).await;
    // Made while nobody looks.
    world.create("a", name, json!({})).await.unwrap();
    manager.proxy.forget();
    manager.proxy.set(Mode::Open);
    let back = Instant::now();
    let (lists, _) = eventually(SECOND * 30, "every watch to list", || async {
        let lists = manager.proxy.lists_since(back);
        for watch in WATCHES {
            ensure!(lists.contains_key(watch), "{watch} is missing among {lists:?}");
        }
        Ok(lists)
    })
    .await
    .unwrap();
    let planned = world.converged(SECOND * 45, "a", name).await.unwrap();
    let slowest = lists.values().max().unwrap();
    println!(
        "    {mode:?} for {length:?}: slowest first list {slowest:.1?}, new Cluster converged {:.1?} after the return",
        back.elapsed()
    );
    assert!(planned < SECOND * 45);
}

#[test]
fn every_watch_comes_back_after_an_outage() {
    let part = if asked_for("long") { 1 } else { 10 };
    on_servers("outage", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "before", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "before").await.unwrap();
        survives(&manager, &world, Mode::Refused, SECOND * 90 / part, "refused").await;
        survives(&manager, &world, Mode::Silent, SECOND * 200 / part, "silent").await;
    });
}

#[test]
fn watches_that_expired_and_calls_that_fail_do_not_stop_it() {
    on_servers("faults", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "before", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "before").await.unwrap();
        let before = world.roots().await.unwrap();

        manager.proxy.expire_watches(WATCHES.len() * 2);
        // Watches end by themselves within a minute: an outage ends them now.
        survives(&manager, &world, Mode::Refused, SECOND * 4, "expired").await;
        assert!(manager.proxy.watches_to_expire() < WATCHES.len() * 2, "no watch was answered with 410");

        manager.proxy.expire_watches(0);
        manager.proxy.fail(30);
        for number in 0..10 {
            world.create("a", &format!("failing{number}"), json!({})).await.unwrap();
        }
        // Conflicts: every Cluster is changed by somebody else twenty times a second.
        let spoil = async {
            for round in 0_u64.. {
                let name = format!("failing{}", round % 10);
                let _ = world.annotate(&world.clusters("a"), &name, "round", &round.to_string()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let took = tokio::select! {
            () = spoil => unreachable!("it never ends"),
            took = world.all_converged(SECOND * 180, 12) => took.unwrap(),
        };
        println!("    10 Clusters with 30 % of all requests failing and 20 conflicts a second: {took:.1?}");
        manager.proxy.fail(0);
        let after = world.roots().await.unwrap();
        assert!(before.iter().all(|(name, root)| after.get(name) == Some(root)), "a root was made anew");
        let log = manager.log_text();
        assert!(!log.contains("panicked"), "see {}", manager.log.display());
    });
}
