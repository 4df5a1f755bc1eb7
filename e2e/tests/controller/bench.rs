//! What a controller manager costs, beside a program that only creates the same objects. `make bench` runs it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, stream};
use giantnetes::api::{ClaimKind, ClusterRef, NetworkClaim, NetworkClaimSpec};
use k8s_openapi::api::{
    core::v1::{Namespace, Secret, Service},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    manager::{Manager, Options},
    on_servers,
    servers::Servers,
    support::keep,
    world::{SECOND, World, eventually},
};

/// Requests that are under way at a time, in the raw creator as in the manager's operators.
const AT_A_TIME: usize = 16;
/// How long nothing is changed, to see what is done nevertheless.
const STEADY: Duration = Duration::from_secs(30);

/// What the manager may have resident before there is a Cluster, and for each, in bytes.
const RESIDENT_OF_NONE: f64 = 25e6;
const RESIDENT_OF_EACH: f64 = 40e3;
/// The least share of the raw creator's speed, in percent.
const SPEED: f64 = 60.0;
/// The most that it may use of a core while nothing happens, with 1000 Clusters, in percent.
const IDLE: f64 = 0.2;
/// How much more CPU one change may cost among 1000 Clusters than among 10 and count as flat.
const FLAT: f64 = 1.5;
/// Changes of which the CPU time of one is told: it is short beside what the process does anyway.
const CHANGES: u32 = 100;

/// CPU time and resident memory of a process.
#[derive(Clone, Copy)]
struct Usage {
    cpu: Duration,
    memory: u64,
    /// Of the memory, what is the process' own and not its program's.
    anonymous: u64,
}

fn usage(process: u32) -> Usage {
    // Nanoseconds on a CPU are the first field; threads that ended meanwhile are missing, and the runtime's do not end.
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let on_cpu = |thread: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    let nanoseconds = threads.filter_map(on_cpu).sum();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let bytes = |field: &str| {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    };
    Usage { cpu: Duration::from_nanos(nanoseconds), memory: bytes("VmRSS:"), anonymous: bytes("RssAnon:") }
}

/// CPU time of etcd and the API server.
fn served(servers: &Servers) -> Duration {
    servers.pids().into_iter().map(|process| usage(process).cpu).sum()
}

/// Reads and writes of the manager by its own count.
async fn requests(manager: &Manager) -> (u64, u64) {
    let text = manager.get("/metrics").await.unwrap();
    let mut counts = (0, 0);
    for line in text.lines().filter(|line| line.starts_with("giantnetes_api_requests_total{")) {
        let count: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        if line.contains("verb=\"get\"") || line.contains("verb=\"watch\"") {
            counts.0 += count;
        } else {
            counts.1 += count;
        }
    }
    counts
}

/// Creates what the manager makes of a Cluster without a provider, and writes to the Cluster as often, and does nothing else.
/// Answers how many writes that were.
async fn raw(world: &World, number: usize) -> Result<u64> {
    let name = format!("raw-{number}");
    let client = || world.client.clone();
    let post = PostParams::default();
    world.namespace(&name).await?;
    let annotated = json!({"metadata": {"annotations": {"a": "b"}}});
    let patch = Patch::Merge(annotated);
    Api::<Namespace>::all(client()).patch(&name, &PatchParams::default(), &patch).await?;
    let policy: NetworkPolicy = serde_json::from_value(json!({
        "metadata": {"name": "guest"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [{"podSelector": {}}]}],
            "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16"]}}]}]},
    }))?;
    Api::<NetworkPolicy>::namespaced(client(), &name).create(&post, &policy).await?;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "master"}, "spec": {"ports": [{"port": 6443}]},
    }))?;
    Api::<Service>::namespaced(client(), &name).create(&post, &service).await?;
    let cluster_ref = ClusterRef { namespace: "crowd".into(), name: name.clone(), uid: name.clone() };
    let value = Some(i32::try_from(number + 1)?);
    let claim = NetworkClaimSpec { kind: ClaimKind::VNI, value, host: None, cluster_ref, released_at: None };
    Api::<NetworkClaim>::all(client()).create(&post, &NetworkClaim::new(&name, claim)).await?;
    let secrets = Api::<Secret>::namespaced(client(), &name);
    let sizes = [("a", 1200), ("b", 1200), ("c", 1200), ("d", 600), ("e", 300), ("node", 16_000), ("config", 4000)];
    for (secret, size) in sizes {
        let value: Secret =
            serde_json::from_value(json!({"metadata": {"name": secret}, "stringData": {"value": "x".repeat(size)}}))?;
        secrets.create(&post, &value).await?;
    }
    // The finalizer and the statuses.
    let of_cluster = 5;
    for round in 0..of_cluster {
        world.annotate(&world.clusters("crowd"), &name, "round", &round.to_string()).await?;
    }
    // Namespace twice, policy, Service, claim.
    Ok(5 + sizes.len() as u64 + of_cluster)
}

/// Creates `count` Clusters in namespace `crowd`.
async fn created(world: &World, prefix: &str, count: usize) {
    world.namespace("crowd").await.unwrap();
    let names: Vec<_> = (0..count).map(|number| format!("{prefix}{number}")).collect();
    let made = stream::iter(&names).map(|name| world.create("crowd", name, json!({}))).buffer_unordered(AT_A_TIME);
    made.for_each(|made| async { drop(made.unwrap()) }).await;
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

/// Measures it with so many Clusters. Answers the CPU time that one change costs then.
fn costs(count: usize) -> Duration {
    let (mut raw_took, mut raw_served, mut raw_writes) = (Duration::ZERO, Duration::ZERO, 0);
    on_servers("raw", async |servers, world| {
        // Those are there before in both.
        created(&world, "raw-", count).await;
        let (began, before) = (Instant::now(), served(servers));
        let all = stream::iter(0..count).map(|number| raw(&world, number)).buffer_unordered(AT_A_TIME);
        raw_writes = all.map(Result::unwrap).fold(0, async |sum, writes| sum + writes).await;
        raw_took = began.elapsed();
        raw_served = served(servers) - before;
    });
    let mut of_change = Duration::ZERO;
    on_servers("bench", async |servers, world| {
        created(&world, "c", count).await;
        let options = Options { log: "warn", lease_duration: "15s", direct: true, ..Options::default() };
        let (began, before) = (Instant::now(), served(servers));
        let mut manager = Manager::start(servers, "bench", options).await;
        world.all_converged(SECOND * 600, count).await.unwrap();
        let (took, served) = (began.elapsed(), served(servers) - before);
        manager.settled_by_metrics().await.unwrap();
        let (reads, writes) = requests(&manager).await;
        let busy = usage(manager.id());
        let steady = {
            let (before, requests_before) = (usage(manager.id()), requests(&manager).await.1);
            tokio::time::sleep(STEADY).await;
            let (after, requests_after) = (usage(manager.id()), requests(&manager).await.1);
            let share = (after.cpu - before.cpu).as_secs_f64() / STEADY.as_secs_f64();
            // The lease is renewed every three seconds by a client that is not counted.
            (share * 100.0, requests_after - requests_before)
        };
        // One change among so many: a deleted Service returns.
        let status = world.clusters("crowd").get("c0").await.unwrap().status.unwrap();
        let services = Api::<Service>::namespaced(world.client.clone(), &format!("g8s-{}", status.id.unwrap()));
        let mut changes = Vec::new();
        let before = usage(manager.id()).cpu;
        for _ in 0..CHANGES {
            let uid = services.get("master").await.unwrap().metadata.uid;
            services.delete("master", &Default::default()).await.unwrap();
            let (_, took) = eventually(SECOND * 10, "the Service to return", || async {
                let there = services.get_opt("master").await?.context("it is not there")?;
                ensure!(there.metadata.uid != uid, "it is the old one");
                Ok(())
            })
            .await
            .unwrap();
            changes.push(took);
        }
        of_change = (usage(manager.id()).cpu - before) / CHANGES;
        manager.signal("TERM");
        tokio::task::block_in_place(|| manager.ended(SECOND * 12)).unwrap();
        let began = Instant::now();
        manager.restart();
        eventually(SECOND * 30, "the manager to have caught up", || async { manager.get("/readyz").await })
            .await
            .unwrap();
        let caught_up = began.elapsed();
        let per = |value: f64| value / count as f64;
        let speed = 100.0 * raw_took.as_secs_f64() / took.as_secs_f64();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        keep(
            "core",
            json!({
                "clusters": count, "converged_s": took.as_secs_f64(), "raw_s": raw_took.as_secs_f64(),
                "speed_percent": speed, "writes": per(writes as f64), "raw_writes": per(raw_writes as f64),
                "reads": per(reads as f64), "cpu_ms": per(milliseconds(busy.cpu)),
                "servers_ms": per(milliseconds(served)), "raw_servers_ms": per(milliseconds(raw_served)),
                "resident_mb": busy.memory as f64 / 1e6, "own_mb": busy.anonymous as f64 / 1e6,
                "steady_percent": steady.0, "steady_writes": steady.1, "change_cpu_ms": milliseconds(of_change),
                "change_done_ms": changes.iter().copied().map(milliseconds).collect::<Vec<_>>(),
                "caught_up_ms": milliseconds(caught_up),
            }),
        );
        println!(
            "    {count} Clusters: {took:.1?} (raw creator {raw_took:.1?}, {:.0} % of its speed); per Cluster {:.1} writes (raw creator \
             {:.1}), {:.1} reads, {:.1} ms of CPU, {:.1} ms of the servers' (raw creator {:.1} ms), {:.0} kB beyond 25 MB (in all \
             {:.1} MB of its own); steady {:.2} % of a core and {} writes in {STEADY:?}; one change {of_change:.1?} of CPU, done after {:.0?}; caught up {caught_up:.1?} after a start",
            speed,
            per(writes as f64),
            per(raw_writes as f64),
            per(reads as f64),
            per(busy.cpu.as_secs_f64() * 1000.0),
            per(served.as_secs_f64() * 1000.0),
            per(raw_served.as_secs_f64() * 1000.0),
            per((busy.memory as f64 - RESIDENT_OF_NONE) / 1000.0),
            busy.anonymous as f64 / 1e6,
            steady.0,
            steady.1,
            median(changes),
        );
        let (resident, allowed) = (busy.memory as f64, RESIDENT_OF_NONE + RESIDENT_OF_EACH * count as f64);
        for (what, value, aim, met) in [
            ("% of the raw creator's speed", speed, SPEED, speed >= SPEED),
            ("MB resident", resident / 1e6, allowed / 1e6, resident <= allowed),
            ("% of a core while nothing happens", steady.0, IDLE, steady.0 <= IDLE || count < 1000),
        ] {
            println!("    {}: {value:.2} {what}, aim {aim:.2}", if met { "met" } else { "MISSED" });
        }
        assert_eq!(steady.1, 0, "it writes though nothing changes");
    });
    of_change
}

#[test]
#[ignore = "make bench runs it, with an optimised build"]
fn costs_of_many_clusters() {
    let [few, _, many] = [10, 100, 1000].map(costs);
    let ratio = many.as_secs_f64() / few.as_secs_f64();
    keep("change", json!({"times": ratio}));
    let met = if ratio <= FLAT { "met" } else { "MISSED" };
    println!("    {met}: one change costs {ratio:.2} times as much CPU among 1000 Clusters as among 10, aim {FLAT:.2}");
    // That far it comes on a noisy machine; what grows with the number of Clusters would be a hundred times.
    assert!(ratio <= 2.0 * FLAT, "what one change costs grows with the number of Clusters");
}
