//! Two replicas, one leader: frozen, thawed, terminated, killed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use hyper::Method;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::{
    asked_for,
    manager::{Manager, Options},
    on_servers,
    proxy::Held,
    servers::Audited,
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

/// A seeded source of moments, so that a run can be repeated: CONTROLLER_SEED.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let given = std::env::var("CONTROLLER_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| Timestamp::now().as_millisecond().unsigned_abs()).max(1);
        println!("    CONTROLLER_SEED={seed}");
        Self(seed)
    }

    /// xorshift.
    fn below(&mut self, limit: Duration) -> Duration {
        for shift in [13, -7, 17] {
            self.0 ^= if shift > 0 { self.0 << shift } else { self.0 >> -shift };
        }
        limit.mul_f64((self.0 % 10_000) as f64 / 10_000.0)
    }
}

async fn busy(world: &World) -> (tokio::task::JoinHandle<()>, Arc<AtomicBool>) {
    world.namespace("a").await.unwrap();
    for number in 0..10 {
        world.create("a", &format!("c{number}"), json!({})).await.unwrap();
    }
    world.all_converged(SECOND * 60, 10).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    (tokio::spawn(load(world.clone(), stop.clone())), stop)
}

/// What of the old leader's the server received after the new one's first write, both since `frozen`.
fn late_writes(writes: &[Audited], old: &str, new: &str, frozen: Timestamp) -> Vec<Audited> {
    let is_after = |write: &&Audited, who: &str, when: Timestamp| write.user_agent == who && write.received > when;
    let first = writes.iter().find(|write| is_after(write, new, frozen));
    let first = first.expect("the new leader wrote nothing: the test shows nothing");
    writes.iter().filter(|write| is_after(write, old, first.received)).cloned().collect()
}

#[test]
fn a_frozen_leader_does_not_write_after_its_successor() {
    on_servers("frozen", async |servers, world| {
        let one = Manager::start(servers, "replica-one", Options::default()).await;
        let two = Manager::start(servers, "replica-two", Options::default()).await;
        let (load, stop) = busy(&world).await;
        let rounds = if asked_for("all") { 20 } else { 4 };
        let (mut late, mut dice) = (0, Dice::new());
        for round in 0..rounds {
            let (leader, other) = if leads(&one).await { (&one, &two) } else { (&two, &one) };
            assert!(leads(leader).await, "nobody leads");
            let [old, new] = if std::ptr::eq(leader, &one) {
                ["replica-one", "replica-two"]
            } else {
                ["replica-two", "replica-one"]
            };
            // Anywhere between several renewals.
            let moment = dice.below(SECOND * 2);
            tokio::time::sleep(moment).await;
            let frozen = Timestamp::now();
            leader.signal("STOP");
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
            // By the server's own record, not by what came through the proxies: answers may be late.
            let after = late_writes(&servers.writes_of("replica-"), old, new, frozen);
            println!(
                "    round {round}: {old} frozen after {moment:.2?}, {new} took over after {took:.1?}, {} late writes",
                after.len()
            );
            assert!(after.len() <= 1, "the old leader went on: {after:?}");
            late += after.len();
        }
        stop.store(true, Ordering::SeqCst);
        load.await.unwrap();
        let writes = servers.writes_of("replica-").len();
        println!("    {rounds} rounds, {late} writes that were on the wire, {writes} writes on record");
    });
}

/// Waits until a replica leads; one that must wait for a lease of 15 s to run out does not.
async fn takes_over(other: &Manager) -> Duration {
    let taken = eventually(SECOND * 3, "the other replica to lead", || async {
        ensure!(leads(other).await, "it does not");
        Ok(())
    });
    taken.await.unwrap().1
}

#[test]
fn a_terminated_leader_hands_over_within_a_second() {
    on_servers("handover", async |servers, world| {
        // Long enough that a lease which is not released would be noticed.
        let options = || Options { lease_duration: "15s", ..Options::default() };
        let mut one = Manager::start(servers, "replica-one", options()).await;
        let mut two = Manager::start(servers, "replica-two", options()).await;
        let (load, stop) = busy(&world).await;
        let mut took = Vec::new();
        for _ in 0..5 {
            let (leader, other) = if leads(&one).await { (&mut one, &two) } else { (&mut two, &one) };
            // What would stop a replica from being ready would stop the handover.
            eventually(SECOND * 15, "the other replica to be ready", || async { other.get("/readyz").await })
                .await
                .unwrap();
            let term = Instant::now();
            leader.signal("TERM");
            took.push(takes_over(other).await);
            // Its cache was warm: it lists nothing now, but its lease.
            let mut listed = other.proxy.lists_since(term);
            listed.remove("leases");
            assert!(listed.is_empty(), "{listed:?}");
            let status = tokio::task::block_in_place(|| leader.ended(SECOND * 10)).unwrap();
            assert!(status.success(), "{status}");
            leader.restart();
        }
        stop.store(true, Ordering::SeqCst);
        load.await.unwrap();
        took.sort();
        println!("    handover under load after SIGTERM: median {:.2?}, longest {:.2?}", took[2], took[4]);
        // The new leader's work shows that it works.
        world.create("a", "d", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "d").await.unwrap();
    });
}

#[test]
fn a_leader_terminated_while_it_waits_for_an_answer_hands_over_within_a_second() {
    on_servers("waiting", async |servers, world| {
        let options = || Options { lease_duration: "15s", call_timeout: "30s", ..Options::default() };
        let mut one = Manager::start(servers, "replica-one", options()).await;
        eventually(SECOND * 20, "the first replica to lead", || async {
            ensure!(leads(&one).await, "it does not");
            Ok(())
        })
        .await
        .unwrap();
        let two = Manager::start(servers, "replica-two", options()).await;
        eventually(SECOND * 20, "the other replica to be ready", || async { two.get("/readyz").await }).await.unwrap();
        world.namespace("a").await.unwrap();
        world.create("a", "c", json!({})).await.unwrap();
        world.converged(SECOND * 60, "a", "c").await.unwrap();
        one.settled().await;
        // A reconciliation waits for what it reads, and the renewal of the lease is done but not answered.
        one.proxy.hold(Some(Held { method: Method::GET, path: "/secrets/c-kubeconfig" }));
        let spoiled = Patch::Merge(json!({"data": {"value": "AAAA"}}));
        world.secrets("a").patch("c-kubeconfig", &PatchParams::default(), &spoiled).await.unwrap();
        let held = async |count: usize| {
            let held = || async {
                ensure!(one.proxy.withheld() >= count, "{} answers", one.proxy.withheld());
                Ok(())
            };
            eventually(SECOND * 20, "an answer to be withheld", held).await.unwrap();
        };
        held(1).await;
        one.proxy.hold(Some(Held { method: Method::PUT, path: "/leases/core" }));
        held(2).await;
        one.proxy.hold(None);
        one.signal("TERM");
        let took = takes_over(&two).await;
        println!("    handover with two answers outstanding: {took:.2?}");
        let status = tokio::task::block_in_place(|| one.ended(SECOND * 10)).unwrap();
        assert!(status.success(), "{status}");
    });
}
