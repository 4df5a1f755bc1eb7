//! Two replicas, one leader: frozen, thawed, terminated, killed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::json;

use crate::{
    asked_for,
    manager::{Manager, Options},
    on_servers,
    servers::{Audited, Servers},
    world::{SECOND, World, eventually},
};

async fn leads(manager: &Manager) -> bool {
    manager.get("/metrics").await.is_ok_and(|text| text.lines().any(|line| line == "giantnetes_leading 1"))
}

/// Edits and deletes what the managers keep right, all the time, so that there is always something to write.
async fn load(world: World, stop: Arc<AtomicBool>) {
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        let name = format!("c{}", round % 10);
        let ours = kube::api::ListParams::default().labels("giantnetes.io/cluster");
        let services = kube::Api::<k8s_openapi::api::core::v1::Service>::all(world.client.clone());
        if let Ok(found) = services.list(&ours).await
            && let Some(service) = found.items.get(round % found.items.len().max(1))
        {
            let namespace = service.metadata.namespace.clone().unwrap_or_default();
            let api = kube::Api::<k8s_openapi::api::core::v1::Service>::namespaced(world.client.clone(), &namespace);
            let _ = api.delete("master", &kube::api::DeleteParams::default()).await;
        }
        let _ = world.annotate(&world.clusters("a"), &name, "round", &round.to_string()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What replicas wrote, but for leases and events, in the order in which the server received it.
fn writes(servers: &Servers) -> Vec<Audited> {
    let of_replica = |write: &Audited| write.user_agent.starts_with("replica-");
    let counts = |write: &Audited| !write.uri.contains("/leases") && !write.uri.contains("/events");
    let mut found: Vec<_> = servers.audit().into_iter().filter(|write| of_replica(write) && counts(write)).collect();
    found.sort_by(|a, b| a.request_received_timestamp.cmp(&b.request_received_timestamp));
    found
}

#[test]
fn a_frozen_leader_does_not_write_after_its_successor() {
    on_servers("frozen", async |servers, world| {
        let one = Manager::start(servers, "replica-one", Options::default()).await;
        let two = Manager::start(servers, "replica-two", Options::default()).await;
        world.namespace("a").await.unwrap();
        for number in 0..10 {
            world.create("a", &format!("c{number}"), json!({})).await.unwrap();
        }
        world.all_converged(SECOND * 60, 10).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let load = tokio::spawn(load(world.clone(), stop.clone()));
        let rounds = if asked_for("all") { 20 } else { 4 };
        let mut late = 0;
        for round in 0..rounds {
            let (leader, other) = if leads(&one).await { (&one, &two) } else { (&two, &one) };
            assert!(leads(leader).await, "nobody leads");
            // Anywhere between two renewals.
            tokio::time::sleep(Duration::from_millis(137 * (round * 7 % 11))).await;
            leader.signal("STOP");
            let frozen = Instant::now();
            let taken = eventually(SECOND * 15, "the other replica to lead", || async {
                ensure!(leads(other).await, "it does not");
                Ok(())
            })
            .await;
            // Something of the new epoch must be on record before the old leader wakes up.
            tokio::time::sleep(Duration::from_millis(500)).await;
            leader.signal("CONT");
            let (_, took) = taken.unwrap();
            tokio::time::sleep(SECOND).await;
            let (old, new) = (&leader.proxy, &other.proxy);
            let first_of_new = new.writes().iter().map(|write| write.at).find(|at| *at > frozen);
            let after: Vec<_> =
                old.writes().into_iter().filter(|write| first_of_new.is_some_and(|first| write.at > first)).collect();
            println!(
                "    round {round}: {} took over after {took:.1?}, {} late writes",
                name(other, &one),
                after.len()
            );
            assert!(first_of_new.is_some(), "the new leader wrote nothing: the test shows nothing");
            assert!(after.len() <= 1, "the old leader went on: {after:?}");
            late += after.len();
        }
        stop.store(true, Ordering::SeqCst);
        load.await.unwrap();
        println!(
            "    {rounds} rounds, {late} writes that were on the wire, {} writes on record",
            writes(servers).len()
        );
    });
}

fn name(manager: &Manager, one: &Manager) -> &'static str {
    if std::ptr::eq(manager, one) { "one" } else { "two" }
}

#[test]
fn a_terminated_leader_hands_over_within_a_second() {
    on_servers("handover", async |servers, world| {
        // Long enough that a lease which is not released would be noticed.
        let options = || Options { lease_duration: "15s", ..Options::default() };
        let mut one = Manager::start(servers, "replica-one", options()).await;
        let mut two = Manager::start(servers, "replica-two", options()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "c", json!({})).await.unwrap();
        world.converged(SECOND * 60, "a", "c").await.unwrap();
        let mut took = Vec::new();
        for _ in 0..5 {
            let (leader, other) = if leads(&one).await { (&mut one, &two) } else { (&mut two, &one) };
            // What would stop a replica from being ready would stop the handover.
            eventually(SECOND * 15, "the other replica to be ready", || async { other.get("/readyz").await })
                .await
                .unwrap();
            leader.signal("TERM");
            let began = Instant::now();
            eventually(SECOND * 3, "the other replica to lead", || async {
                ensure!(leads(other).await, "it does not");
                Ok(())
            })
            .await
            .unwrap();
            took.push(began.elapsed());
            let status = tokio::task::block_in_place(|| leader.ended(SECOND * 10)).unwrap();
            assert!(status.success(), "{status}");
            leader.restart();
        }
        took.sort();
        println!("    handover after SIGTERM: median {:.2?}, longest {:.2?}", took[2], took[4]);
        // The new leader's work shows that it works.
        world.create("a", "d", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "d").await.unwrap();
    });
}
