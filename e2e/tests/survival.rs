//! A guest outlives what happens to its manager and to the hosts under it: one boot, one blow after the other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::command::Run;
use lab::{Lab, wait_every, wait_for};
use support::hosts::{Hosts, spare_the_management_cluster};
use support::traces::{KEPT, etcd_content, etcd_has, fingerprints, nothing_is_left};
use support::workload::web_servers;
use support::{Guest, SYSTEM, in_steps, installed_with, lab_command, machines, patience, processes};

const MINUTE: Duration = Duration::from_secs(60);
/// How long the manager is kept away while the guest comes up.
const ABSENCE: Duration = Duration::from_secs(120);
/// Budget of a graceful move of one node, times three: a drain and an emulated boot.
const MOVE: Duration = Duration::from_secs(900);

/// Its worker keeps off host1, the machine's way to all Services of the lab: without it the test would reach nothing.
const SPEC: &str = "{controlPlane: {machine: {memory: 3Gi}},
  nodePools: [{name: default, replicas: 1, zones: [front, data], machine: {memory: 2Gi}}]}";
/// The workload's pod leaves a node that is silent after seconds, not after the five minutes of the default.
const LEAVES_SOON: &str = "terminationGracePeriodSeconds: 0
tolerations:
- {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 10}
- {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 10}";

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn a_guest_outlives_what_happens_to_it() {
    let lab = installed_with(",settings.kvm.hostTimeout=45s");
    let hosts = Hosts(&lab);
    let guest = Guest::create(&lab, "e2e-survival", "survivor", SPEC);
    let steps: [(&str, Step); 9] = [
        ("its manager is killed half-way and stays away", comes_up_without_its_manager),
        ("a workload runs on the worker", workload_runs),
        ("nothing changes for it while its manager is away", lives_without_its_manager),
        ("kubectl drain moves the worker off its host", worker_is_moved),
        ("kubectl drain moves the control plane off its host, with etcd's data", control_plane_is_moved),
        ("the worker's host loses its power, and another worker takes its part", host_dies),
        ("the host is back, and the worker that was given up is not", host_returns),
        ("two nodes and etcd's data are there", all_is_well),
        ("deleting it leaves nothing, although its API is dead", goes_with_a_dead_api),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
    drop(hosts);
}

fn comes_up_without_its_manager(lab: &Lab, guest: &Guest) -> Result<()> {
    guest.await_condition(MINUTE, "PKIReady", "True")?;
    let home = guest.home()?;
    for pod in ["master-0", "default-0"] {
        wait_for(MINUTE, "both VM pods", || lab.kubectl(&["-n", &home, "get", "pod", pod]))?;
    }
    let roots = fingerprints(guest)?;
    for process in processes("giantnetes\0run\0")? {
        Run::new("kill").args(["-9", &process.to_string()]).output()?;
    }
    scale_manager(lab, 0)?;
    let away = Instant::now();
    wait_every(Duration::from_secs(2), patience(), "two minutes, and an API that is ready without a manager", || {
        let ready = guest.vm_pod("master-0", "{.status.conditions[?(@.type=='Ready')].status}")?;
        ensure!(ready == "True" && away.elapsed() >= ABSENCE, "Ready is {ready} after {:.0?}", away.elapsed());
        Ok(())
    })?;
    ensure!(processes("giantnetes\0run\0")?.is_empty(), "a manager ran");
    println!("    away for {:.1?}", away.elapsed());
    scale_manager(lab, 1)?;
    guest.await_ready()?;
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    Ok(())
}

fn workload_runs(_: &Lab, guest: &Guest) -> Result<()> {
    guest.kubectl_input(&["apply", "-f", "-"], &format!("{KEPT}\n{}", web_servers(1, LEAVES_SOON, "")))?;
    serves(guest, "default-0")
}

fn lives_without_its_manager(lab: &Lab, guest: &Guest) -> Result<()> {
    let (roots, content) = (fingerprints(guest)?, etcd_content(guest)?);
    scale_manager(lab, 0)?;
    let (away, mut looks) = (Instant::now(), 0);
    wait_every(Duration::from_secs(3), ABSENCE * 2, "the manager's absence to end", || {
        if processes("giantnetes\0run\0")?.is_empty() {
            let said = guest.kubectl(&["get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"]);
            // What fails here is final: not the end of waiting, but what was waited for.
            assert!(said.as_ref().is_ok_and(|said| said == "1"), "the workload is not available: {said:?}");
            looks += 1;
        }
        ensure!(away.elapsed() >= ABSENCE, "{:.0?} so far", away.elapsed());
        Ok(())
    })?;
    println!("    away for {:.1?}, the workload was available at each of {looks} looks", away.elapsed());
    ensure!(looks > 10, "only {looks} looks");
    etcd_has(guest, &content)?;
    scale_manager(lab, 1)?;
    guest.await_ready()?;
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    etcd_has(guest, &content)
}

fn scale_manager(lab: &Lab, replicas: u32) -> Result<String> {
    lab.kubectl(&["-n", SYSTEM, "scale", "deployment", "giantnetes", &format!("--replicas={replicas}")])
}

/// Waits until the workload serves on a worker.
fn serves(guest: &Guest, node: &str) -> Result<()> {
    let started = Instant::now();
    wait_every(Duration::from_secs(2), patience(), &format!("the workload on {node}"), || {
        let on = "jsonpath={range .items[*]}{.spec.nodeName}/{.status.conditions[?(@.type=='Ready')].status} {end}";
        let pods = guest.kubectl(&["get", "pods", "-l", "app=web", "-o", on])?;
        ensure!(pods.split_whitespace().any(|pod| pod == format!("{node}/True")), "its pods are {pods}");
        Ok(())
    })?;
    println!("    it serves on {node} after {:.1?}", started.elapsed());
    Ok(())
}

/// Drains the host of a node as an administrator does, and waits until the node is well elsewhere.
fn move_by_drain(lab: &Lab, guest: &Guest, node: &str) -> Result<()> {
    let uid = guest.vm_pod(node, "{.metadata.uid}")?;
    let host = guest.vm_pod(node, "{.spec.nodeName}")?;
    let started = Instant::now();
    let words = ["drain", &host, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=840s"];
    lab.kubectl_within(MOVE, &words)?;
    println!("    {host} is drained after {:.1?}", started.elapsed());
    guest.await_ready()?;
    println!("    Ready again after {:.1?}", started.elapsed());
    let now = guest.vm_pod(node, "{.spec.nodeName}")?;
    ensure!(now != host && guest.vm_pod(node, "{.metadata.uid}")? != uid, "{node} is still on {host}");
    lab.kubectl(&["uncordon", &host]).map(drop)
}

fn worker_is_moved(lab: &Lab, guest: &Guest) -> Result<()> {
    move_by_drain(lab, guest, "default-0")?;
    serves(guest, "default-0")
}

fn control_plane_is_moved(lab: &Lab, guest: &Guest) -> Result<()> {
    let (roots, before) = (fingerprints(guest)?, etcd_content(guest)?);
    move_by_drain(lab, guest, "master-0")?;
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    etcd_has(guest, &before)?;
    serves(guest, "default-0")
}

fn host_dies(lab: &Lab, guest: &Guest) -> Result<()> {
    let control_plane = guest.vm_pod("master-0", "{.spec.nodeName}")?;
    if guest.vm_pod("default-0", "{.spec.nodeName}")? == control_plane {
        // Nodes of two roles may share a host, and the blow is for the worker alone.
        lab.kubectl(&["taint", "--overwrite", "node", &control_plane, "e2e-going=yes:NoSchedule"])?;
        lab.kubectl_within(MINUTE * 3, &["-n", &guest.home()?, "delete", "pod", "default-0"])?;
        guest.await_condition(MINUTE, "Ready", "False")?;
        guest.await_ready()?;
        lab.kubectl(&["taint", "node", &control_plane, "e2e-going-"])?;
        serves(guest, "default-0")?;
    }
    let host = guest.vm_pod("default-0", "{.spec.nodeName}")?;
    spare_the_management_cluster(lab, &host)?;
    let (roots, content, started) = (fingerprints(guest)?, etcd_content(guest)?, Instant::now());
    lab_command(&format!("host stop {host}"))?;
    wait_for(MINUTE * 5, "another worker's VM pod", || guest.vm_pod("default-1", "{.metadata.uid}"))?;
    println!("    given up after {:.1?}", started.elapsed());
    serves(guest, "default-1")?;
    guest.await_ready()?;
    println!("    Ready again after {:.1?}", started.elapsed());
    ensure!(guest.vm_pod("default-1", "{.spec.nodeName}")? != host, "it is on the dead host");
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    etcd_has(guest, &content)
}

fn host_returns(lab: &Lab, guest: &Guest) -> Result<()> {
    let host = guest.vm_pod("default-0", "{.spec.nodeName}")?;
    lab_command(&format!("host start {host}"))?;
    lab.kubectl(&["taint", "node", &host, "e2e-going-"])?;
    let home = guest.home()?;
    wait_every(Duration::from_secs(2), MINUTE * 5, "the given up worker to go", || {
        let pods = lab.kubectl(&["-n", &home, "get", "pods", "-o", "name"])?;
        ensure!(!pods.contains("default-0"), "{pods}");
        let nodes = guest.kubectl(&["get", "nodes", "-o", "name"])?;
        ensure!(nodes.split_whitespace().eq(["node/default-1", "node/master-0"]), "the guest's nodes are {nodes}");
        Ok(())
    })?;
    guest.await_ready()?;
    serves(guest, "default-1")
}

fn all_is_well(lab: &Lab, guest: &Guest) -> Result<()> {
    // Such a detail may come seconds after the condition.
    wait_for(MINUTE, "two nodes in the status", || {
        let object = guest.object()?;
        ensure!(object["status"]["nodes"] == "2/2", "{}", object["status"]);
        Ok(())
    })?;
    let pods = lab.kubectl(&["-n", &guest.home()?, "get", "pods", "-o", "name"])?;
    ensure!(pods.lines().count() == 2, "{pods}");
    ensure!(guest.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"])? == "b", "etcd's data is lost");
    Ok(())
}

fn goes_with_a_dead_api(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    // Its processor stands still: its API takes connections no more, and no order to power off is heard.
    let machines = machines()?;
    ensure!(machines.len() == 2, "{} machines run", machines.len());
    for machine in machines {
        Run::new("kill").args(["-STOP", &machine.to_string()]).output()?;
    }
    let took = guest.delete(MINUTE * 5).context("delete a Cluster whose VMs stand still")?;
    println!("    gone after {took:.1?}");
    nothing_is_left(lab, guest, &home)
}
