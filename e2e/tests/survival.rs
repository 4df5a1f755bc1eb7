//! A guest outlives what happens to its manager and to the hosts under it: one boot, one blow after the other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::command::Run;
use lab::{Lab, wait_every, wait_for};
use support::traces::{fingerprints, nothing_is_left};
use support::workload::web_servers;
use support::{Guest, SYSTEM, in_steps, installed_with, lab_command, list, machines, patience, processes};

const MINUTE: Duration = Duration::from_secs(60);
/// How long the manager is kept away while the guest comes up.
const ABSENCE: Duration = Duration::from_secs(120);
/// Budget of a graceful move of one node, times three: a drain and an emulated boot.
const MOVE: Duration = Duration::from_secs(900);

/// Its worker keeps off host1, the machine's way to all Services of the lab: without it the test would reach nothing.
const SPEC: &str = "{controlPlane: {machine: {memory: 3Gi}},
  nodePools: [{name: default, replicas: 1, zones: [front, data], machine: {memory: 2Gi}}]}";
const KEPT: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}, data: {a: b}}";
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
    let steps: [(&str, Step); 8] = [
        ("its manager is killed half-way and stays away", comes_up_without_its_manager),
        ("a workload runs on the worker", workload_runs),
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

/// Gives the hosts power and work again, whatever happened.
struct Hosts<'a>(&'a Lab);

impl Drop for Hosts<'_> {
    fn drop(&mut self) {
        for host in ["host1", "host2", "host3"] {
            let _ = lab_command(&format!("host start {host}"));
            let _ = self.0.kubectl(&["uncordon", host]);
            let _ = self.0.kubectl(&["taint", "node", host, "e2e-going-"]);
        }
    }
}

fn comes_up_without_its_manager(lab: &Lab, guest: &Guest) -> Result<()> {
    guest.await_condition(MINUTE, "PKIReady", "True")?;
    let home = guest.home()?;
    for pod in ["master-0", "default-0"] {
        wait_for(MINUTE, "both VM pods", || lab.kubectl(&["-n", &home, "get", "pod", pod]))?;
    }
    let roots = fingerprints(guest)?;
    let scale = |replicas: &str| lab.kubectl(&["-n", SYSTEM, "scale", "deployment", "giantnetes", replicas]);
    for process in processes("giantnetes\0run\0")? {
        Run::new("kill").args(["-9", &process.to_string()]).output()?;
    }
    scale("--replicas=0")?;
    let away = Instant::now();
    wait_every(Duration::from_secs(2), patience(), "two minutes, and an API that is ready without a manager", || {
        let ready = vm_pod(lab, guest, "master-0", "{.status.conditions[?(@.type=='Ready')].status}")?;
        ensure!(ready == "True" && away.elapsed() >= ABSENCE, "Ready is {ready} after {:.0?}", away.elapsed());
        Ok(())
    })?;
    ensure!(processes("giantnetes\0run\0")?.is_empty(), "a manager ran");
    println!("    away for {:.1?}", away.elapsed());
    scale("--replicas=1")?;
    guest.await_ready()?;
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    Ok(())
}

fn workload_runs(_: &Lab, guest: &Guest) -> Result<()> {
    guest.kubectl_input(&["apply", "-f", "-"], &format!("{KEPT}\n{}", web_servers(1, LEAVES_SOON, "")))?;
    serves(guest, "default-0")
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

/// One value of a VM pod.
fn vm_pod(lab: &Lab, guest: &Guest, name: &str, path: &str) -> Result<String> {
    lab.kubectl(&["-n", &guest.home()?, "get", "pod", name, "-o", &format!("jsonpath={path}")])
}

/// Drains the host of a node as an administrator does, and waits until the node is well elsewhere.
fn move_by_drain(lab: &Lab, guest: &Guest, node: &str) -> Result<()> {
    let uid = vm_pod(lab, guest, node, "{.metadata.uid}")?;
    let host = vm_pod(lab, guest, node, "{.spec.nodeName}")?;
    let started = Instant::now();
    let words = ["drain", &host, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=840s"];
    lab.kubectl_within(MOVE, &words)?;
    println!("    {host} is drained after {:.1?}", started.elapsed());
    guest.await_ready()?;
    println!("    Ready again after {:.1?}", started.elapsed());
    let now = vm_pod(lab, guest, node, "{.spec.nodeName}")?;
    ensure!(now != host && vm_pod(lab, guest, node, "{.metadata.uid}")? != uid, "{node} is still on {host}");
    lab.kubectl(&["uncordon", &host]).map(drop)
}

fn worker_is_moved(lab: &Lab, guest: &Guest) -> Result<()> {
    move_by_drain(lab, guest, "default-0")?;
    serves(guest, "default-0")
}

fn control_plane_is_moved(lab: &Lab, guest: &Guest) -> Result<()> {
    let (roots, before) = (fingerprints(guest)?, content(guest)?);
    move_by_drain(lab, guest, "master-0")?;
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    let after = content(guest)?;
    ensure!(after == before, "etcd's content was\n{before}\nand is\n{after}");
    serves(guest, "default-0")
}

/// What lies in the guest's etcd and changes only if somebody writes it: UIDs and versions.
fn content(guest: &Guest) -> Result<String> {
    let each =
        "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.resourceVersion}{'\\n'}{end}";
    let said = guest.kubectl(&["get", "configmaps,clusterroles,clusterrolebindings,services", "-A", "-o", each])?;
    ensure!(said.contains("ConfigMap kept "), "the workload's ConfigMap is gone");
    // Written at every turn of whoever holds it, or by the operator for every new VM pod.
    let moves = |line: &&str| !line.contains(" giantnetes-addons ");
    Ok(said.lines().filter(moves).collect::<Vec<_>>().join("\n"))
}

/// Leads the management cluster's own pods off a host that is to die: they would be missed for the five minutes that a
/// Deployment waits, and this test is about guests.
fn spare_the_management_cluster(lab: &Lab, host: &str) -> Result<()> {
    lab.kubectl(&["taint", "--overwrite", "node", host, "e2e-going=yes:NoSchedule"])?;
    for pod in list(lab, &["pods", "-A", &format!("--field-selector=spec.nodeName={host}")])? {
        let metadata = &pod["metadata"];
        if metadata["ownerReferences"][0]["kind"] == "ReplicaSet" {
            let [namespace, name] = ["namespace", "name"].map(|field| metadata[field].as_str().unwrap_or_default());
            lab.kubectl_within(MINUTE, &["-n", namespace, "delete", "pod", name])?;
        }
    }
    for deployment in list(lab, &["deployments", "-A"])? {
        let metadata = &deployment["metadata"];
        let [namespace, name] = ["namespace", "name"].map(|field| metadata[field].as_str().unwrap_or_default());
        let words = ["-n", namespace, "rollout", "status", &format!("deployment/{name}"), "--timeout=110s"];
        lab.kubectl_within(MINUTE * 2, &words)?;
    }
    Ok(())
}

fn host_dies(lab: &Lab, guest: &Guest) -> Result<()> {
    let host = vm_pod(lab, guest, "default-0", "{.spec.nodeName}")?;
    let control_plane = vm_pod(lab, guest, "master-0", "{.spec.nodeName}")?;
    ensure!(host != control_plane, "both nodes are on {host}, although others are free");
    spare_the_management_cluster(lab, &host)?;
    let (roots, started) = (fingerprints(guest)?, Instant::now());
    lab_command(&format!("host stop {host}"))?;
    wait_for(MINUTE * 5, "another worker's VM pod", || vm_pod(lab, guest, "default-1", "{.metadata.uid}"))?;
    println!("    given up after {:.1?}", started.elapsed());
    serves(guest, "default-1")?;
    guest.await_ready()?;
    println!("    Ready again after {:.1?}", started.elapsed());
    ensure!(vm_pod(lab, guest, "default-1", "{.spec.nodeName}")? != host, "it is on the dead host");
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    Ok(())
}

fn host_returns(lab: &Lab, guest: &Guest) -> Result<()> {
    let host = vm_pod(lab, guest, "default-0", "{.spec.nodeName}")?;
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
    let object = guest.object()?;
    ensure!(object["status"]["nodes"] == "2/2", "{}", object["status"]);
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
