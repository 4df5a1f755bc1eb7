//! Rotation of authorities on real VMs: of a guest with one control-plane node and a worker, and of one with three.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "rotation/keys.rs"]
mod keys;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::command::Run;
use lab::{Lab, wait_for};
use serde_json::Value;
use support::pods::{await_pods, web_server};
use support::traces::{KEPT, nothing_is_left};
use support::{Guest, giantnetes, in_steps, installed, patience};

const MINUTE: Duration = Duration::from_secs(60);
/// What a lone API server may be away, by the design.
const AWAY: Duration = Duration::from_secs(60);
const ROTATION: &str = "giantnetes.io/rotation";

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn a_guest_of_two_nodes_gets_other_authorities() {
    let lab = installed();
    let spec = "{pki: {ca: {overlap: 10m}}, nodePools: [{name: default, replicas: 1}]}";
    let guest = Guest::create(&lab, "e2e-rotation", "pair", spec);
    let steps: [(&str, Step); 7] = [
        ("two nodes become Ready, and pods run", become_ready),
        ("everybody learns of the others, and the API is away once, for a minute at most", |lab, guest| {
            begins(lab, guest, AWAY)
        }),
        ("when users have had their time, the former ones are dropped", is_over),
        ("a pod asks with its token", keys::prepare),
        ("the service-account key is rotated, and no pod refused", keys::service_account_key),
        ("the encryption key is rotated, and no Secret lost", keys::encryption_key),
        ("deleting it leaves nothing", leaves_nothing),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
}

#[test]
fn a_control_plane_of_three_gets_other_authorities_and_refuses_nobody() {
    let lab = installed();
    let spec = "{pki: {ca: {overlap: 10m}}, controlPlane: {replicas: 3, machine: {memory: 3Gi}}}";
    let guest = Guest::create(&lab, "e2e-rotation-three", "trio", spec);
    let steps: [(&str, Step); 7] = [
        ("three nodes become Ready, and pods run", become_ready),
        ("everybody learns of the others, and no request fails", |lab, guest| begins(lab, guest, Duration::ZERO)),
        ("when users have had their time, the former ones are dropped", is_over),
        ("a pod asks with its token", keys::prepare),
        ("the service-account key is rotated, and no pod refused", keys::service_account_key),
        ("the encryption key is rotated, and no Secret lost", keys::encryption_key),
        ("deleting it leaves nothing", leaves_nothing),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
}

fn become_ready(_: &Lab, guest: &Guest) -> Result<()> {
    guest.await_condition(patience() * 3, "Ready", "True")?;
    guest.kubectl_input(&["apply", "-f", "-"], &format!("{KEPT}\n{}", web_server("web", "master-0")))?;
    await_pods(guest, &["web"])
}

/// Asks the guest's API again and again, and keeps for how long it did not answer.
struct Watch {
    stop: Arc<AtomicBool>,
    asks: JoinHandle<(usize, usize, Duration)>,
}

impl Watch {
    fn start(guest: &Guest) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (until, mut command) = (stop.clone(), guest.command(&["get", "--raw", "/api/v1/namespaces/default"])?);
        command.arg("--request-timeout=60s").stdout(std::process::Stdio::null());
        let asks = thread::spawn(move || {
            let (mut asked, mut failed, mut longest, mut good) = (0, 0, Duration::ZERO, Instant::now());
            while !until.load(Ordering::Relaxed) {
                asked += 1;
                if command.status().is_ok_and(|status| status.success()) {
                    longest = longest.max(good.elapsed());
                    good = Instant::now();
                } else {
                    failed += 1;
                }
                thread::sleep(Duration::from_millis(250));
            }
            (asked, failed, longest)
        });
        Ok(Self { stop, asks })
    }

    /// Requests, how many of them failed, and the longest time between two that did not.
    fn end(self) -> (usize, usize, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.asks.join().unwrap()
    }
}

fn rotation(guest: &Guest) -> Result<Value> {
    Ok(guest.object()?["status"]["rotation"].clone())
}

fn await_stage(guest: &Guest, stage: Option<&str>) -> Result<()> {
    let started = Instant::now();
    wait_for(patience() * 2, &format!("stage {stage:?}"), || {
        let told = rotation(guest)?;
        ensure!(told["stage"].as_str() == stage && told["carriedOut"] == i32::from(stage.is_none()), "{told}");
        Ok(())
    })?;
    println!("    {} after {:.1?}", stage.unwrap_or("over"), started.elapsed());
    Ok(())
}

fn begins(lab: &Lab, guest: &Guest, away: Duration) -> Result<()> {
    // As a user keeps it.
    guest.kubeconfig("former", &[])?;
    let watch = Watch::start(guest)?;
    let arguments = ["rotate", "ca", guest.name, "-n", guest.namespace];
    let kubeconfig = format!("KUBECONFIG={}", lab.kubeconfig().display());
    Run::new("env").arg(kubeconfig).arg(giantnetes()).args(arguments).output()?;
    await_stage(guest, Some("Overlap"))?;
    let (asked, failed, longest) = watch.end();
    println!("    of {asked} requests {failed} failed; the longest time between two answers was {longest:.1?}");
    if away.is_zero() {
        ensure!(failed == 0, "{failed} requests failed");
    } else {
        ensure!(longest <= away, "the API was away for {longest:.1?}");
    }
    guest.kubectl_as("former", &["get", "configmap", "kept"]).context("who held a kubeconfig is cut off")?;
    guest.kubeconfig("renewed", &[])?;
    guest.kubectl_as("renewed", &["get", "configmap", "kept"]).map(drop)
}

fn is_over(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    let path = format!("jsonpath={{.metadata.annotations.{}}}", ROTATION.replace('.', "\\."));
    let noted = lab.kubectl(&["get", "namespace", &home, "-o", &path])?;
    let mut words = noted.split(' ');
    let (generation, stage) = (words.next().context("a generation")?, words.next().context("a stage")?);
    let note = format!("{ROTATION}={generation} {stage} 2026-01-01T00:00:00Z");
    lab.kubectl(&["annotate", "--overwrite", "namespace", &home, &note])?;
    await_stage(guest, None)?;
    let refused = guest.kubectl_as("former", &["get", "--raw", "/version"]);
    ensure!(refused.is_err(), "the former authority opens the guest");
    guest.kubectl_as("renewed", &["get", "configmap", "kept"]).context("who fetched his in time is cut off")?;
    // By the kubeconfig that was issued since.
    std::fs::remove_file(guest.kubeconfig("administrator", &[])?)?;
    wait_for(MINUTE, "the administrator to be let in", || guest.kubectl(&["get", "configmap", "kept"]))?;
    guest.await_condition(patience(), "Ready", "True")?;
    await_pods(guest, &["web"])?;
    let left = lab.kubectl(&["-n", &home, "get", "secrets", "-o", "name"])?;
    ensure!(left.contains("secret/roots-2") && !left.contains("secret/roots-1\n"), "{left}");
    guest.kubectl(&["logs", "web", "--tail=1"]).map(drop)
}

fn leaves_nothing(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    println!("    gone after {:.1?}", guest.delete(MINUTE * 5)?);
    nothing_is_left(lab, guest, &home)
}
