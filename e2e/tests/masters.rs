//! A control plane of three nodes on three hosts: it outlives one of the hosts and one of etcd's volumes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use giantnetes::node_config::paths::{ETCD_CA, certificate, in_pki, key};
use lab::{Lab, wait_every, wait_for};
use serde_json::Value;
use support::hosts::{Hosts, spare_the_management_cluster};
use support::traces::{KEPT, etcd_content, fingerprints, nothing_is_left};
use support::workload::{ROOT_ON_EVERY_NODE, in_node};
use support::{Guest, in_steps, installed, lab_command, patience};

const MINUTE: Duration = Duration::from_secs(60);
const MASTERS: [&str; 3] = ["master-0", "master-1", "master-2"];
/// The machine's way to all Services of the lab: without it the test would reach nothing.
const WAY_IN: &str = "host1";
/// Small machines: a host of the lab has room for one of the default size.
const SPEC: &str = "{controlPlane: {replicas: 3, machine: {memory: 3Gi}}}";

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn a_control_plane_of_three_outlives_a_host_and_a_volume() {
    let lab = installed();
    let hosts = Hosts(&lab);
    let guest = Guest::create(&lab, "e2e-masters", "trio", SPEC);
    let steps: [(&str, Step); 5] = [
        ("three nodes become Ready, on a host each", become_ready),
        ("a host dies, and the API goes on", host_dies),
        ("the host is back, and its node is a member as before", host_returns),
        ("a member whose volume is lost is filled again by the others", volume_is_lost),
        ("deleting it leaves nothing", leaves_nothing),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
    drop(hosts);
}

/// Three boots share the CPUs that one has elsewhere, and the second and third wait for the first.
fn await_ready(guest: &Guest) -> Result<()> {
    guest.await_condition(patience() * 3, "Ready", "True")
}

fn host_of(guest: &Guest, node: &str) -> Result<String> {
    guest.vm_pod(node, "{.spec.nodeName}")
}

/// Ids of etcd's members by name, all of which have a vote.
fn voters(guest: &Guest, asked: &str) -> Result<Vec<(String, u64)>> {
    let [ca, certificate, key] = [in_pki(ETCD_CA), in_pki(certificate("etcd-peer")), in_pki(key("etcd-peer"))];
    let etcdctl = format!(
        "/usr/local/bin/etcdctl --endpoints=https://127.0.0.1:2379 --cacert={ca} --cert={certificate} --key={key}"
    );
    let said: Value = serde_json::from_str(&in_node(guest, asked, &format!("{etcdctl} member list -w json"))?)?;
    let members = said["members"].as_array().context("a list of members")?;
    let learners = members.iter().filter(|member| member["isLearner"] == true).count();
    ensure!(learners == 0, "{learners} members only learn: {said}");
    let mut found = Vec::new();
    for member in members {
        found.push((member["name"].as_str().context("a name")?.to_owned(), member["ID"].as_u64().context("an id")?));
    }
    found.sort();
    ensure!(found.iter().map(|(name, _)| name.as_str()).eq(MASTERS), "the members are {found:?}");
    Ok(found)
}

fn become_ready(_: &Lab, guest: &Guest) -> Result<()> {
    let started = Instant::now();
    await_ready(guest)?;
    println!("    Ready after {:.1?}", started.elapsed());
    let object = guest.object()?;
    ensure!(object["status"]["nodes"] == "3/3" && object["status"]["etcdFormed"] == true, "{}", object["status"]);
    let mut hosts = BTreeSet::new();
    for node in MASTERS {
        hosts.insert(host_of(guest, node)?);
    }
    ensure!(hosts.len() == 3, "the nodes share hosts: {hosts:?}");
    guest.kubectl_input(&["apply", "-f", "-"], &format!("{KEPT}\n{ROOT_ON_EVERY_NODE}"))?;
    guest.kubectl(&["rollout", "status", "daemonset/root", "--timeout=180s"])?;
    println!("    {:?}", voters(guest, "master-0")?);
    Ok(())
}

/// A node that is not on the machine's way in.
fn apart(guest: &Guest) -> Result<(&'static str, String)> {
    for node in MASTERS {
        let host = host_of(guest, node)?;
        if host != WAY_IN {
            return Ok((node, host));
        }
    }
    anyhow::bail!("all nodes are on {WAY_IN}")
}

fn host_dies(lab: &Lab, guest: &Guest) -> Result<()> {
    let (node, host) = apart(guest)?;
    spare_the_management_cluster(lab, &host)?;
    let (roots, before) = (fingerprints(guest)?, etcd_content(guest)?);
    lab_command(&format!("host stop {host}"))?;
    let (stopped, mut successes) = (Instant::now(), 0);
    // Until the management cluster misses the host, its Service leads a third of the connections there.
    wait_every(Duration::from_secs(1), MINUTE * 5, "ten answers of the API in a row", || {
        let answer = guest.kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"]);
        successes = if answer.is_ok() { successes + 1 } else { 0 };
        ensure!(successes >= 10, "{successes} so far; {answer:?}");
        Ok(())
    })?;
    println!("    without {node} on {host}, the API answers every time after {:.1?}", stopped.elapsed());
    ensure!(etcd_content(guest)? == before, "etcd's content is another");
    // Whoever led is replaced: a new namespace gets its ServiceAccount from the controller manager.
    guest.kubectl(&["create", "namespace", "without"])?;
    wait_every(Duration::from_secs(1), MINUTE * 3, "the guest's controllers to work", || {
        guest.kubectl(&["-n", "without", "get", "serviceaccount", "default"])
    })?;
    guest.await_condition(MINUTE * 5, "Ready", "False")?;
    guest.await_condition(MINUTE, "Available", "True")?;
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    Ok(())
}

fn host_returns(lab: &Lab, guest: &Guest) -> Result<()> {
    let (node, host) = apart(guest)?;
    lab_command(&format!("host start {host}"))?;
    lab.kubectl(&["taint", "node", &host, "e2e-going-"])?;
    await_ready(guest)?;
    let there = guest.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"])?;
    ensure!(there == "b", "etcd's data is lost");
    wait_for(MINUTE * 5, &format!("{node} to answer as a member"), || voters(guest, node))?;
    Ok(())
}

fn volume_is_lost(lab: &Lab, guest: &Guest) -> Result<()> {
    let (node, _) = apart(guest)?;
    let asked = MASTERS.into_iter().find(|other| *other != node).context("another member")?;
    let (home, before) = (guest.home()?, voters(guest, asked)?);
    lab.kubectl(&["-n", &home, "delete", "persistentvolumeclaim", &format!("{node}-etcd"), "--wait=false"])?;
    lab.kubectl_within(MINUTE * 3, &["-n", &home, "delete", "pod", node])?;
    let started = Instant::now();
    guest.await_condition(MINUTE, "Ready", "False")?;
    await_ready(guest)?;
    println!("    Ready again after {:.1?}", started.elapsed());
    let after = voters(guest, asked)?;
    let id = |members: &[(String, u64)]| members.iter().find(|(name, _)| name == node).map(|(_, id)| *id);
    ensure!(id(&after) != id(&before), "{node} is the member that it was, with another volume: {after:?}");
    let others =
        |members: Vec<(String, u64)>| -> Vec<_> { members.into_iter().filter(|(name, _)| name != node).collect() };
    ensure!(others(after) == others(before), "other members are new");
    Ok(())
}

fn leaves_nothing(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    println!("    gone after {:.1?}", guest.delete(MINUTE * 5)?);
    nothing_is_left(lab, guest, &home)
}
