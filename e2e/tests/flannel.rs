//! A guest of three nodes on three hosts whose overlay is Flannel's: real flanneld beside each VM, and an etcd of the
//! management side that comes with the chart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::command::Run;
use lab::tools::Image;
use lab::{Lab, wait_every, wait_for};
use support::apart::{self, Overlay};
use support::pods::{self, SERVICE, address, fetch, web_server};
use support::traces::nothing_is_left;
use support::workload::ROOT_ON_EVERY_NODE;
use support::{Guest, SYSTEM, in_steps, installed, installed_with, processes};

/// What the design has for a guest of 1 + 1 nodes to become Ready, in seconds; one more worker comes beside the first.
const READY_AIM: u64 = 180;
const MINUTE: Duration = Duration::from_secs(60);
const NODES: [&str; 3] = ["master-0", "default-0", "default-1"];
const WEB: [&str; 3] = ["web-0", "web-1", "web-2"];
/// Small machines: a host of the lab has room for one of the default size.
const SPEC: &str = r#"{"controlPlane": {"machine": {"memory": "3Gi"}},
  "nodePools": [{"name": "default", "replicas": 2, "machine": {"memory": "2Gi"}}],
  "network": {"overlay": {"backend": "Flannel"}}}"#;
/// Another guest, for which there is room beside.
const OTHER: &str =
    r#"{"controlPlane": {"machine": {"memory": "2Gi"}}, "network": {"overlay": {"backend": "Flannel"}}}"#;
/// Flannel's etcd, and its members.
const ETCD: &str = "giantnetes-flannel-etcd";
const MEMBERS: usize = 3;
/// Pieces of a file that make a gibibyte.
const PIECES: u32 = 8;
const PIECE_MIB: u32 = 128;

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn flannel_carries_a_guest() {
    let image = Image::build("etcd").unwrap();
    Lab::running().expect("no lab is running: `make lab-up` raises one").load(&image.archive).unwrap();
    let (repository, tag) = image.reference.rsplit_once(':').unwrap();
    let lab = installed_with(&format!(
        ",flannel.enabled=true,flannel.etcd.replicas={MEMBERS},flannel.etcd.image.repository={repository},flannel.etcd.image.tag={tag},flannel.etcd.runAsUser=0"
    ));
    // Of the two the guest goes first.
    let etcd = FlannelEtcd(&lab);
    let guest = Guest::create(&lab, "e2e-flannel", "woollen", SPEC);
    let steps: [(&str, Step); 10] = [
        ("three nodes on three hosts become Ready", become_ready),
        ("a workload runs on every node", workload_runs),
        ("BGP is established between all nodes", |_, guest| pods::bgp_is_established(guest, &NODES)),
        ("pods reach each other and Services, on and across nodes", pods_reach_each_other),
        ("a NetworkPolicy blocks what it says", |_, guest| pods::policies_hold(guest, &WEB, "default-0")),
        ("the guest reaches neither the pod's loopback nor its addresses, nor Flannel's etcd", |lab, guest| {
            apart::is_held_in_place(lab, guest, Overlay::Flannel)
        }),
        ("root in a VM reaches no other guest and nothing of the management cluster", |lab, guest| {
            apart::is_apart(lab, guest, Overlay::Flannel, OTHER)
        }),
        ("a gibibyte comes over whole, while flannelds and members of Flannel's etcd start anew", gibibyte_is_copied),
        (
            "a worker's VM pod comes back while a member is away, with its subnet and its pods",
            worker_returns_without_a_member,
        ),
        ("deleting it leaves nothing", goes),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
    drop(guest);
    drop(etcd);
}

/// Flannel's etcd, which is switched off when this is dropped, and whose volume goes then: other tests have none.
struct FlannelEtcd<'a>(&'a Lab);

impl Drop for FlannelEtcd<'_> {
    fn drop(&mut self) {
        if let Err(error) = switch_off(self.0) {
            eprintln!("Flannel's etcd is left: {error:#}");
        }
    }
}

fn switch_off(lab: &Lab) -> Result<()> {
    installed();
    let labelled = ["-l", "app.kubernetes.io/name=giantnetes-flannel-etcd"];
    lab.kubectl(&[&["-n", SYSTEM, "delete", "persistentvolumeclaims"][..], &labelled].concat()).map(drop)
}

fn become_ready(lab: &Lab, guest: &Guest) -> Result<()> {
    guest.await_first_ready(READY_AIM)?;
    println!("    {} writes of the manager", support::manager_writes(lab)? - guest.writes_before);
    let home = guest.home()?;
    let hosts = lab.kubectl(&["-n", &home, "get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
    let distinct: BTreeSet<_> = hosts.split_whitespace().collect();
    ensure!(distinct.len() == 3, "the VM pods are on {hosts}");
    have_their_addresses(guest)
}

/// Each in a network of its own: places 64 and 65, and the first control-plane node's.
fn have_their_addresses(guest: &Guest) -> Result<()> {
    for (node, expected) in NODES.iter().zip(["172.26.0.42", "172.26.1.2", "172.26.1.6"]) {
        let address = "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}";
        let address = guest.kubectl(&["get", "node", node, "-o", address])?;
        ensure!(address == expected, "{node} has {address}, not {expected}");
    }
    Ok(())
}

fn workload_runs(_: &Lab, guest: &Guest) -> Result<()> {
    let servers: String = WEB.iter().zip(NODES).map(|(name, node)| web_server(name, node)).collect();
    guest.kubectl_input(&["apply", "-f", "-"], &format!("{SERVICE}{ROOT_ON_EVERY_NODE}{servers}"))?;
    pods::await_pods(guest, &WEB)?;
    // They run, or nobody is root in a VM below.
    guest.kubectl(&["rollout", "status", "daemonset/root", "--timeout=180s"]).map(drop)
}

fn pods_reach_each_other(_: &Lab, guest: &Guest) -> Result<()> {
    pods::reach_each_other(guest, &WEB)?;
    pods::reach_by_service(guest, &WEB)
}

/// From a worker's pod to the other worker's, piece by piece: every piece has the sum that it was made with.
fn gibibyte_is_copied(lab: &Lab, guest: &Guest) -> Result<()> {
    let [_, from, to] = WEB;
    let make = format!("dd if=/dev/urandom of=/www/piece bs=1M count={PIECE_MIB} 2>/dev/null; sha256sum < /www/piece");
    let sum = guest.kubectl(&["exec", from, "--", "sh", "-c", &make])?;
    let url = format!("http://{}:8080/piece", address(guest, from)?);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let disturbed = scope.spawn(|| disturb(lab, &over));
        let copied = copy(guest, to, &url, &sum);
        over.store(true, Ordering::Relaxed);
        let disturbed = disturbed.join().expect("no panic");
        copied?;
        let [flannelds, members, etcds] = disturbed?;
        println!(
            "    meanwhile were started anew: flanneld {flannelds} times, a member of its etcd {members}, all three {etcds}"
        );
        ensure!(flannelds > 0 && members > 0 && etcds > 0, "not all of it happened meanwhile");
        Ok(())
    })
}

fn copy(guest: &Guest, to: &str, url: &str, sum: &str) -> Result<()> {
    let started = Instant::now();
    for piece in 0..PIECES {
        let got = guest.kubectl(&["exec", to, "--", "sh", "-c", &format!("wget -q -O - {url} | sha256sum")])?;
        ensure!(got == sum, "piece {piece} came over as {got}, and not {sum}");
    }
    let took = started.elapsed();
    let mib = f64::from(PIECES * PIECE_MIB);
    println!("    {mib} MiB after {took:.1?}, {:.1} MiB/s with the guest's own sums", mib / took.as_secs_f64());
    Ok(())
}

/// Kills flanneld, and of Flannel's etcd each member in turn and then all of them, until it is `over`. Answers how often each
/// happened: a flanneld, one member, all.
fn disturb(lab: &Lab, over: &AtomicBool) -> Result<[u32; 3]> {
    let [mut flannelds, mut members, mut etcds] = [0; 3];
    for round in (0..=MEMBERS).cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let all = processes("flanneld\0")?;
        let process = all.first().context("no flanneld runs")?;
        Run::new("kill").args(["-9", &process.to_string()]).output()?;
        flannelds += 1;
        wait_for(MINUTE, "flanneld to be started anew", || {
            let running = processes("flanneld\0")?;
            ensure!(running.len() == NODES.len() && !running.contains(process), "{running:?} run");
            Ok(())
        })?;
        if round < MEMBERS {
            start_anew(lab, round..round + 1)?;
            members += 1;
        } else {
            start_anew(lab, 0..MEMBERS)?;
            etcds += 1;
        }
    }
    Ok([flannelds, members, etcds])
}

/// Deletes these members' pods, and waits until others serve.
fn start_anew(lab: &Lab, members: Range<usize>) -> Result<()> {
    let pods: Vec<_> = members.map(|member| format!("{ETCD}-{member}")).collect();
    let mut words = vec!["-n", SYSTEM, "delete", "pod", "--wait=true"];
    words.extend(pods.iter().map(String::as_str));
    lab.kubectl_within(MINUTE, &words)?;
    await_members(lab)
}

/// Waits until as many members serve as there should be.
fn await_members(lab: &Lab) -> Result<()> {
    let ready = ["-n", SYSTEM, "get", "statefulset", ETCD, "-o", "jsonpath={.status.readyReplicas}/{.spec.replicas}"];
    wait_for(MINUTE * 2, "all members of Flannel's etcd to serve", || {
        let said = lab.kubectl(&ready)?;
        ensure!(said.trim() == format!("{MEMBERS}/{MEMBERS}"), "{said}");
        Ok(())
    })
}

/// How many members there are to be: a member less is one that is lost for as long as that lasts.
fn scale_etcd(lab: &Lab, members: usize) -> Result<()> {
    lab.kubectl(&["-n", SYSTEM, "scale", "statefulset", ETCD, &format!("--replicas={members}")]).map(drop)
}

/// While a member of Flannel's etcd is away.
fn worker_returns_without_a_member(lab: &Lab, guest: &Guest) -> Result<()> {
    // The last one goes.
    let left = MEMBERS - 1;
    scale_etcd(lab, left)?;
    lab.kubectl_within(
        MINUTE,
        &["-n", SYSTEM, "wait", "--for=delete", &format!("pod/{ETCD}-{left}"), "--timeout=50s"],
    )?;
    worker_returns(lab, guest)?;
    scale_etcd(lab, MEMBERS)?;
    await_members(lab)
}

fn worker_returns(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    let of = |what: &str| lab.kubectl(&["-n", &home, "get", "pod", "default-1", "-o", what]);
    let (uid, before) = ("jsonpath={.metadata.uid}", of("jsonpath={.metadata.uid}")?);
    let pod_address = of("jsonpath={.status.podIP}")?;
    lab.kubectl(&["-n", &home, "delete", "pod", "default-1", "--wait=false"])?;
    wait_every(Duration::from_secs(2), MINUTE * 5, "another VM pod", || {
        ensure!(of(uid)? != before, "it is still there");
        Ok(())
    })?;
    guest.await_ready()?;
    ensure!(of("jsonpath={.status.podIP}")? != pod_address, "the VM pod has the address that it had");
    have_their_addresses(guest)?;
    wait_every(Duration::from_secs(2), MINUTE * 5, "its pod to be reached from the others", || {
        let url = format!("http://{}:8080/", address(guest, WEB[2])?);
        for from in &WEB[..2] {
            ensure!(fetch(guest, from, &url)?.trim() == WEB[2], "{from} reaches another");
        }
        Ok(())
    })?;
    pods::reach_each_other(guest, &WEB)
}

fn goes(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    println!("    gone after {:.1?}", guest.delete(MINUTE * 5)?);
    // Its volume is no trace of the guest's.
    switch_off(lab)?;
    nothing_is_left(lab, guest, &home)?;
    ensure!(processes("flanneld\0")?.is_empty(), "flanneld still runs");
    Ok(())
}
