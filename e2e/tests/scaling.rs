//! Workers come and go while a workload runs: from one to three and back, and in pools that are kept to their zones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Lab, wait_every};
use support::workload::{SPREAD, web_servers};
use support::{Guest, in_steps, installed_with, list};

const MINUTE: Duration = Duration::from_secs(60);
/// How many of the workload's three pods may be missing at most: one.
const AVAILABLE: i64 = 2;

/// Of three pods one on each worker if there is room, and never less than two.
const BUDGET: &str = "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web},
  spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}}";

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn workers_come_and_go_under_a_workload() {
    // Control planes of Clusters that name no zones of their own are kept to these.
    let lab = installed_with(",settings.kvm.controlPlaneZones={control}");
    let guest = Guest::create(&lab, "e2e-scaling", "elastic", &spec(&[("default", 1, "")]));
    let steps: [(&str, Step); 5] = [
        ("one worker", |_, guest| guest.await_ready()),
        ("a pool in a zone without hosts waits, with the reason, and nothing else changes", nowhere),
        ("three workers", three_workers),
        ("one worker again, and the workload's budget is kept", one_worker),
        ("pools land in their zones alone", zones_are_kept),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
}

/// A spec with these pools: name, replicas and zone, empty for any.
fn spec(pools: &[(&str, u32, &str)]) -> String {
    let pools: Vec<_> = pools
        .iter()
        .map(|(name, replicas, zone)| {
            let zones = if zone.is_empty() { String::new() } else { format!(", \"zones\": [\"{zone}\"]") };
            format!("{{\"name\": \"{name}\", \"replicas\": {replicas}, \"machine\": {{\"memory\": \"2Gi\"}}{zones}}}")
        })
        .collect();
    // Small machines: a host of the lab has room for one of the default size.
    let control_plane = "{\"machine\": {\"memory\": \"3Gi\"}}";
    format!("{{\"controlPlane\": {control_plane}, \"nodePools\": [{}]}}", pools.join(", "))
}

fn set_pools(guest: &Guest, pools: &[(&str, u32, &str)]) -> Result<()> {
    let patch = format!("{{\"spec\": {}}}", spec(pools));
    guest.change(&patch)?;
    Ok(())
}

/// VM pods with their UIDs and hosts, in the order of their names.
fn vm_pods(lab: &Lab, guest: &Guest) -> Result<Vec<[String; 3]>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list(lab, &["-n", &guest.home()?, "pods"])?;
    Ok(pods
        .iter()
        .map(|pod| [text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"]), text(&pod["spec"]["nodeName"])])
        .collect())
}

fn names(pods: &[[String; 3]]) -> Vec<&str> {
    pods.iter().map(|[name, ..]| name.as_str()).collect()
}

fn nowhere(lab: &Lab, guest: &Guest) -> Result<()> {
    let before = vm_pods(lab, guest)?;
    set_pools(guest, &[("default", 1, ""), ("nowhere", 1, "nowhere")])?;
    let started = Instant::now();
    guest.await_condition(MINUTE, "NodePoolsReady", "False")?;
    let condition = wait_every(Duration::from_secs(1), MINUTE + Duration::from_secs(30), "the reason", || {
        let object = guest.object()?;
        let conditions = object["status"]["conditions"].as_array().context("no conditions")?.clone();
        let found = conditions.into_iter().find(|condition| condition["type"] == "NodePoolsReady");
        let found = found.context("no such condition")?;
        ensure!(found["reason"] == "Unschedulable", "{found}");
        Ok(found)
    })?;
    println!("    after {:.1?}: {}", started.elapsed(), condition["message"]);
    ensure!(condition["message"].as_str().unwrap_or_default().contains("nowhere"), "{condition}");
    let now = vm_pods(lab, guest)?;
    ensure!(names(&now) == ["default-0", "master-0", "nowhere-0"] && now[2][2].is_empty(), "{now:?}");
    ensure!(now[..2] == before[..], "other nodes changed: {before:?}, {now:?}");
    set_pools(guest, &[("default", 1, "")])?;
    guest.await_condition(MINUTE, "Ready", "True")?;
    ensure!(vm_pods(lab, guest)? == before, "something is left of the pool");
    Ok(())
}

fn three_workers(lab: &Lab, guest: &Guest) -> Result<()> {
    let before = vm_pods(lab, guest)?;
    let (started, writes) = (Instant::now(), support::manager_writes(lab)?);
    set_pools(guest, &[("default", 3, "")])?;
    guest.await_condition(MINUTE, "Ready", "False")?;
    guest.await_ready()?;
    println!("    Ready after {:.1?}, {} writes", started.elapsed(), support::manager_writes(lab)? - writes);
    let now = vm_pods(lab, guest)?;
    ensure!(names(&now) == ["default-0", "default-1", "default-2", "master-0"], "{now:?}");
    ensure!(before.iter().all(|pod| now.contains(pod)), "a node was made anew: {before:?}, {now:?}");
    let pods = format!("terminationGracePeriodSeconds: 0\n{SPREAD}");
    guest.kubectl_input(&["apply", "-f", "-"], &format!("{BUDGET}\n{}", web_servers(3, &pods, "")))?;
    wait_every(Duration::from_secs(2), MINUTE * 10, "three pods, one on each worker", || {
        let on = guest.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
        let mut nodes: Vec<_> = on.split_whitespace().collect();
        nodes.sort_unstable();
        ensure!(nodes == ["default-0", "default-1", "default-2"], "they are on {nodes:?}");
        ensure!(available(guest)? == 3, "not all are available");
        Ok(())
    })
}

/// How many pods of the workload are available.
fn available(guest: &Guest) -> Result<i64> {
    let said = guest.kubectl(&["get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"])?;
    // An absent number is none.
    Ok(said.trim().parse().unwrap_or(0))
}

fn one_worker(lab: &Lab, guest: &Guest) -> Result<()> {
    let before = vm_pods(lab, guest)?;
    let (stop, started) = (AtomicBool::new(false), Instant::now());
    let (asked, least) = std::thread::scope(|scope| -> Result<(u32, i64)> {
        let watch = scope.spawn(|| {
            let (mut asked, mut least) = (0, i64::MAX);
            while !stop.load(Ordering::Relaxed) {
                if let Ok(now) = available(guest) {
                    (asked, least) = (asked + 1, least.min(now));
                }
            }
            (asked, least)
        });
        let gone = set_pools(guest, &[("default", 1, "")]).and_then(|()| {
            wait_every(Duration::from_secs(2), MINUTE * 10, "two workers to go", || {
                let now = vm_pods(lab, guest)?;
                ensure!(names(&now) == ["default-0", "master-0"], "{now:?}");
                let nodes = guest.kubectl(&["get", "nodes", "-o", "name"])?;
                ensure!(nodes.lines().count() == 2, "the guest's nodes are {nodes}");
                ensure!(available(guest)? == 3, "not all pods found another node yet");
                Ok(())
            })
        });
        stop.store(true, Ordering::Relaxed);
        gone?;
        Ok(watch.join().expect("the watcher does not panic"))
    })?;
    println!("    gone after {:.1?}; at least {least} of 3 pods available, asked {asked} times", started.elapsed());
    ensure!(asked > 10, "the workload was asked only {asked} times");
    ensure!(least >= AVAILABLE, "{least} pods were available, the budget demands {AVAILABLE}");
    let now = vm_pods(lab, guest)?;
    ensure!(now.iter().all(|pod| before.contains(pod)), "a node was made anew: {before:?}, {now:?}");
    guest.await_condition(MINUTE * 3, "Ready", "True")
}

fn zones_are_kept(lab: &Lab, guest: &Guest) -> Result<()> {
    set_pools(guest, &[("default", 1, ""), ("front", 1, "front"), ("data", 1, "data")])?;
    guest.await_condition(MINUTE, "Ready", "False")?;
    guest.await_ready()?;
    let zone =
        |host: &str| lab.kubectl(&["get", "node", host, "-o", "jsonpath={.metadata.labels.giantnetes\\.io/zone}"]);
    let now = vm_pods(lab, guest)?;
    ensure!(names(&now) == ["data-0", "default-0", "front-0", "master-0"], "{now:?}");
    let [.., host] = now.iter().find(|pod| pod[0] == "master-0").context("no VM pod")?;
    ensure!(zone(host)? == "control", "the control plane is on {host}, in zone {}", zone(host)?);
    for pool in ["front", "data"] {
        let [.., host] = now.iter().find(|pod| pod[0] == format!("{pool}-0")).context("no VM pod")?;
        let zone = zone(host)?;
        ensure!(zone == pool, "{pool}-0 is on {host}, in zone {zone}");
        let label = guest.kubectl(&["get", "node", &format!("{pool}-0"), "-o", "jsonpath={.metadata.labels}"])?;
        println!("    {pool}-0 is on {host}; its Node is labelled {label}");
    }
    Ok(())
}
