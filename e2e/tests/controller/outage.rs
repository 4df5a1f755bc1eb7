//! The API server refuses, falls silent, forgets and fails, and work goes on when it is back.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::ensure;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::json;

use crate::{
    asked_for,
    manager::{Manager, Options},
    on_servers,
    proxy::{Failures, Mode},
    servers::Servers,
    told::no_key_is_told,
    world::{SECOND, World, eventually},
};

/// Every watch of the manager, by the resource that it lists.
const WATCHES: [&str; 14] = [
    "clusteraccesses",
    "clusters",
    "configmaps",
    "ingressclasses",
    "ingresses",
    "namespaces",
    "networkclaims",
    "networkpolicies",
    "nodes",
    "persistentvolumeclaims",
    "poddisruptionbudgets",
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
    let back = Instant::now();
    manager.proxy.set(Mode::Open);
    let (lists, _) = eventually(SECOND * 30, "every watch to list", || async {
        let lists = manager.proxy.lists_since(back);
        for watch in WATCHES {
            ensure!(lists.contains_key(watch), "{watch} is missing among {lists:?}");
        }
        Ok(lists)
    })
    .await
    .unwrap();
    world.converged(SECOND * 45, "a", name).await.unwrap();
    let planned = back.elapsed();
    let slowest = lists.values().max().unwrap();
    println!(
        "    {mode:?} for {length:?}: slowest first list {slowest:.1?}, new Cluster converged {planned:.1?} after the return"
    );
    assert!(planned <= SECOND * 45, "the new Cluster converged {planned:.1?} after the return");
}

/// Starts a manager and sees that it watches what [`WATCHES`] says and nothing else: what is missing there is in no test.
async fn started(servers: &Servers, world: &World, name: &str) -> Manager {
    let began = Instant::now();
    let manager = Manager::start(servers, name, Options::default()).await;
    world.namespace("a").await.unwrap();
    world.create("a", "before", json!({})).await.unwrap();
    world.converged(SECOND * 30, "a", "before").await.unwrap();
    let mut listed: BTreeSet<_> = manager.proxy.lists_since(began).into_keys().collect();
    // The elector looks at its lease.
    listed.remove("leases");
    assert_eq!(listed, WATCHES.map(str::to_owned).into());
    manager
}

#[test]
fn every_watch_comes_back_after_an_outage() {
    let part = if asked_for("long") { 1 } else { 10 };
    on_servers("outage", async |servers, world| {
        let manager = started(servers, &world, "one").await;
        survives(&manager, &world, Mode::Refused, SECOND * 90 / part, "refused").await;
        survives(&manager, &world, Mode::Silent, SECOND * 200 / part, "silent").await;
    });
}

#[test]
fn a_silent_server_keeps_nobody_from_living_and_from_ending() {
    on_servers("silence", async |servers, world| {
        let mut manager = started(servers, &world, "one").await;
        manager.proxy.set(Mode::Silent);
        manager.signal("TERM");
        let began = Instant::now();
        let status = tokio::task::block_in_place(|| manager.ended(SECOND * 10)).unwrap();
        assert!(status.success(), "{status}");
        println!("    a leader ended {:.1?} after SIGTERM", began.elapsed());
        manager.restart();
        eventually(SECOND * 10, "the manager to live", || async { manager.get("/livez").await }).await.unwrap();
        let answer = manager.get("/readyz").await.unwrap_err().to_string();
        assert!(answer.contains(" 503 "), "{answer}");
        for watch in WATCHES {
            assert!(answer.contains(&format!("first list of {watch}")), "{watch}: {answer}");
        }
        manager.proxy.set(Mode::Open);
        let back = eventually(SECOND * 30, "the manager to be ready", || async { manager.get("/readyz").await }).await;
        println!("    ready {:.1?} after the return", back.unwrap().1);
        world.create("a", "after", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "after").await.unwrap();
    });
}

/// How often the lease `core` was taken.
async fn transitions(world: &World) -> usize {
    let leases = Api::<Lease>::namespaced(world.client.clone(), "default");
    let lease = leases.get("core").await.unwrap().spec.unwrap();
    usize::try_from(lease.lease_transitions.unwrap()).unwrap()
}

#[test]
fn watches_that_expired_and_calls_that_fail_do_not_stop_it() {
    on_servers("faults", async |servers, world| {
        let one = started(servers, &world, "replica-one").await;
        let before = world.roots().await.unwrap();

        one.proxy.expire_watches();
        // Watches end by themselves within a minute: an outage ends them now.
        survives(&one, &world, Mode::Refused, SECOND * 4, "expired").await;
        eventually(SECOND * 30, "every watch to be told that it expired, in both forms", || async {
            let told = one.proxy.expired();
            let missing: Vec<_> = WATCHES.iter().filter(|watch| told.get(**watch) != Some(&2)).collect();
            ensure!(missing.is_empty(), "{missing:?} among {told:?}");
            Ok(())
        })
        .await
        .unwrap();

        // Leadership may go to and fro now, but two never write by turns.
        let two = Manager::start(servers, "replica-two", Options::default()).await;
        eventually(SECOND * 20, "the other replica to be ready", || async { two.get("/readyz").await }).await.unwrap();
        for replica in [&one, &two] {
            replica.proxy.fail(30);
            replica.proxy.conflict(20);
        }
        for number in 0..30 {
            world.create("a", &format!("failing{number}"), json!({})).await.unwrap();
        }
        // What makes conflicts in earnest: every Cluster is changed by somebody else all the time.
        let spoil = async {
            for round in 0_u64.. {
                let name = format!("failing{}", round % 30);
                let _ = world.annotate(&world.clusters("a"), &name, "round", &round.to_string()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let took = tokio::select! {
            () = spoil => unreachable!("it never ends"),
            took = world.all_converged(SECOND * 180, 32) => took.unwrap(),
        };
        let conflicts = one.proxy.conflicts() + two.proxy.conflicts();
        let rate = conflicts as f64 / took.as_secs_f64();
        println!("    30 Clusters with 30 % of all requests failing and {rate:.0} conflicts/s: {took:.1?}");
        let failures = [&one, &two].map(|replica| replica.proxy.failures());
        for Failures { seen, failed } in &failures {
            println!("    of {seen} requests failed {failed:?}");
        }
        let seen: usize = failures.iter().map(|all| all.seen).sum();
        let of = |status| failures.iter().filter_map(|all| all.failed.get(&status)).sum::<usize>();
        let [busy, broken, late] = [429, 500, 504].map(of);
        let share = (busy + broken + late) * 100 / seen;
        assert!(seen >= 200 && (20..=40).contains(&share), "{share} % of {seen} requests failed");
        assert!(busy.min(broken).min(late) > 0, "429: {busy}, 500: {broken}, 504: {late}");
        assert!(conflicts >= 20, "only {conflicts} writes were refused as conflicts");
        for replica in [&one, &two] {
            replica.proxy.fail(0);
            replica.proxy.conflict(0);
        }
        let writers: Vec<_> = servers.writes_of("replica-").into_iter().map(|write| write.user_agent).collect();
        let changes = writers.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let transitions = transitions(&world).await;
        println!("    the lease was taken {transitions} times, and another replica wrote {changes} times");
        // The first time is a transition, too.
        assert!(changes < transitions, "{changes} changes of the writer, {transitions} of the lease");
        let after = world.roots().await.unwrap();
        assert!(before.iter().all(|(name, root)| after.get(name) == Some(root)), "a root was made anew");
        for replica in [&one, &two] {
            assert!(!replica.log_text().contains("panicked"), "see {}", replica.log.display());
        }
        no_key_is_told(&world, &[&one, &two]).await;
    });
}
