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
use support::pods::{SERVICE, await_pods, fetch, web_server};
use support::traces::{KEPT, nothing_is_left};
use support::{Guest, giantnetes, in_steps, installed, patience};

const MINUTE: Duration = Duration::from_secs(60);
/// What a lone API server may be away: a minute, three times.
const AWAY: Duration = Duration::from_secs(3 * 60);
/// A user with a ClusterAccess.
const ALICE: [&str; 6] = ["--user", "alice", "--cluster-role", "view", "--in", "default"];
const ROTATION: &str = "giantnetes.io/rotation";

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn a_guest_of_two_nodes_gets_other_authorities() {
    let lab = installed();
    let spec = "{pki: {ca: {overlap: 10m}}, nodePools: [{name: default, replicas: 1}]}";
    let guest = Guest::create(&lab, "e2e-rotation", "pair", spec);
    let steps: [(&str, Step); 8] = [
        ("two nodes become Ready, and pods run", become_ready),
        ("everybody learns of the others, and the API is away once, for a minute at most", |lab, guest| {
            begins(lab, guest, AWAY)
        }),
        ("when users have had their time, the former ones are dropped, and no request fails", is_over),
        ("who started before it works, and so does who comes", all_is_well),
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
    let steps: [(&str, Step); 8] = [
        ("three nodes become Ready, and pods run", become_ready),
        ("everybody learns of the others, and no request fails", |lab, guest| begins(lab, guest, Duration::ZERO)),
        ("when users have had their time, the former ones are dropped, and no request fails", is_over),
        ("who started before it works, and so does who comes", all_is_well),
        ("a pod asks with its token", keys::prepare),
        ("the service-account key is rotated, and no pod refused", keys::service_account_key),
        ("the encryption key is rotated, and no Secret lost", keys::encryption_key),
        ("deleting it leaves nothing", leaves_nothing),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
}

fn become_ready(_: &Lab, guest: &Guest) -> Result<()> {
    guest.await_condition(patience() * 3, "Ready", "True")?;
    guest.kubectl_input(&["apply", "-f", "-"], &format!("{KEPT}\n{SERVICE}{}", web_server("web", "master-0")))?;
    await_pods(guest, &["web"])
}

/// Asks the guest's API again and again, and keeps for how long it did not answer.
struct Watch {
    stop: Arc<AtomicBool>,
    asks: JoinHandle<(usize, usize, Duration)>,
}

impl Watch {
    fn start(guest: &Guest, user: &str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let ask = ["get", "--raw", "/api/v1/namespaces/default"];
        let (until, mut command) = (stop.clone(), guest.command_as(user, &ask)?);
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

    /// Fails if a request did, or if the API may be `away`, if it was for longer.
    fn end(self, away: Duration) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let (asked, failed, longest) = self.asks.join().unwrap();
        println!("    of {asked} requests {failed} failed; the longest time between two answers was {longest:.1?}");
        ensure!(asked > 0, "nobody asked");
        if away.is_zero() {
            ensure!(failed == 0, "{failed} requests failed");
        } else {
            ensure!(longest <= away, "the API was away for {longest:.1?}");
        }
        Ok(())
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

/// Asks for one more rotation.
fn rotate(lab: &Lab, guest: &Guest, what: &str) -> Result<()> {
    let kubeconfig = format!("KUBECONFIG={}", lab.kubeconfig().display());
    let arguments = ["rotate", what, guest.name, "-n", guest.namespace];
    Run::new("env").arg(kubeconfig).arg(giantnetes()).args(arguments).output().map(drop)
}

/// Lets the overlap pass: what is noted of it is set back.
fn pass_the_overlap(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    let path = format!("jsonpath={{.metadata.annotations.{}}}", ROTATION.replace('.', "\\."));
    let noted = lab.kubectl(&["get", "namespace", &home, "-o", &path])?;
    let mut words: Vec<_> = noted.split(' ').collect();
    // Generation, stage, since when, and in which manner.
    *words.get_mut(2).with_context(|| format!("no time in {noted}"))? = "2026-01-01T00:00:00Z";
    let note = format!("{ROTATION}={}", words.join(" "));
    lab.kubectl(&["annotate", "--overwrite", "namespace", &home, &note]).map(drop)
}

fn begins(lab: &Lab, guest: &Guest, away: Duration) -> Result<()> {
    // As users keep them.
    guest.kubeconfig("former", &[])?;
    guest.kubeconfig("former-alice", &ALICE)?;
    let watch = Watch::start(guest, "former")?;
    rotate(lab, guest, "ca")?;
    await_stage(guest, Some("Overlap"))?;
    watch.end(away)?;
    let kept = ["get", "configmap", "kept"];
    for user in ["former", "former-alice"] {
        guest.kubectl_as(user, &kept).context("who held a kubeconfig is cut off")?;
    }
    for (user, words) in [("renewed", &[][..]), ("renewed-alice", &ALICE)] {
        guest.kubeconfig(user, words)?;
        guest.kubectl_as(user, &kept).context("who fetched theirs anew is not let in")?;
    }
    Ok(())
}

fn is_over(lab: &Lab, guest: &Guest) -> Result<()> {
    let watch = Watch::start(guest, "renewed")?;
    pass_the_overlap(lab, guest)?;
    await_stage(guest, None)?;
    // No API server is started anew without another one that serves.
    watch.end(Duration::ZERO)?;
    for user in ["former", "former-alice"] {
        let refused = guest.kubectl_as(user, &["get", "--raw", "/version"]);
        ensure!(refused.is_err(), "the former authority opens the guest to {user}");
    }
    for user in ["renewed", "renewed-alice"] {
        guest.kubectl_as(user, &["get", "configmap", "kept"]).context("who fetched theirs in time is cut off")?;
    }
    // By the kubeconfig that was issued since.
    std::fs::remove_file(guest.kubeconfig("administrator", &[])?)?;
    wait_for(MINUTE, "the administrator to be let in", || guest.kubectl(&["get", "configmap", "kept"]))?;
    guest.await_condition(patience(), "Ready", "True")?;
    await_pods(guest, &["web"])?;
    let left = lab.kubectl(&["-n", &guest.home()?, "get", "secrets", "-o", "name"])?;
    ensure!(left.contains("secret/roots-2") && !left.contains("secret/roots-1\n"), "{left}");
    Ok(())
}

/// What depends on authorities inside the guest, by whoever started before they were rotated.
fn all_is_well(_: &Lab, guest: &Guest) -> Result<()> {
    let restarts =
        guest.kubectl(&["get", "pod", "web", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"])?;
    ensure!(restarts.trim() == "0", "the workload was started anew {restarts} times");
    // API servers reach kubelets.
    ensure!(guest.kubectl(&["logs", "web"])?.trim() == "serving", "no logs");
    ensure!(guest.kubectl(&["exec", "web", "--", "hostname"])?.trim() == "web", "no exec");
    trusts_the_api(guest, "web")?;
    // CoreDNS and kube-proxy hear of what is made now, by whom they know; and a pod that comes gets an address of Calico.
    let nodes = guest.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
    let last = nodes.split_whitespace().last().context("no nodes")?;
    guest.kubectl_input(&["apply", "-f", "-"], &web_server("later", last))?;
    await_pods(guest, &["web", "later"])?;
    guest.kubectl(&["expose", "pod", "later", "--name=later", "--port=80", "--target-port=8080"])?;
    wait_for(MINUTE * 2, "the new Service's name to lead to its pod", || {
        let said = fetch(guest, "web", "http://later.default.svc.cluster.local/")?;
        ensure!(said.trim() == "later", "{said}");
        Ok(())
    })?;
    let answer = guest.kubectl(&["exec", "web", "--", "nslookup", "kubernetes.default.svc.cluster.local"])?;
    ensure!(answer.contains("10.96.0.1"), "{answer}");
    // One who is let in only now.
    guest.kubeconfig("bob", &["--user", "bob", "--cluster-role", "view", "--in", "default"])?;
    // What is bound is known to the API server a moment later.
    wait_for(MINUTE, "a ClusterAccess to let in", || guest.kubectl_as("bob", &["get", "configmap", "kept"])).map(drop)
}

/// A pod's service account opens the API to whoever trusts what that pod trusts, which is one authority.
fn trusts_the_api(guest: &Guest, pod: &str) -> Result<()> {
    let held = |file: &str| {
        let path = format!("/var/run/secrets/kubernetes.io/serviceaccount/{file}");
        guest.kubectl(&["exec", pod, "--", "cat", &path])
    };
    let administrator = guest.kubeconfig("administrator", &[])?;
    let text = std::fs::read_to_string(&administrator)?;
    let server = text.lines().find(|line| line.contains("server: https://")).context("no server")?.trim();
    // Kubelet brings what is published within a minute or two.
    wait_for(MINUTE * 3, "the pod to trust the new authority alone", || {
        let trusted = held("ca.crt")?;
        ensure!(trusted.matches("BEGIN CERTIFICATE").count() == 1, "{trusted}");
        let (file, token) = (administrator.with_file_name("pod-ca.crt"), held("token")?);
        std::fs::write(&file, trusted)?;
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: pod\n\
             clusters:\n- name: pod\n  cluster:\n    {server}\n    tls-server-name: kubernetes.default.svc\n    certificate-authority: {}\n\
             users:\n- {{name: pod, user: {{token: {}}}}}\n\
             contexts:\n- {{name: pod, context: {{cluster: pod, user: pod}}}}\n",
            file.display(),
            token.trim(),
        );
        std::fs::write(administrator.with_file_name("pod"), kubeconfig)?;
        let who = guest.kubectl_as("pod", &["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])?;
        ensure!(who.trim() == "system:serviceaccount:default:default", "{who}");
        Ok(())
    })
}

fn leaves_nothing(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    println!("    gone after {:.1?}", guest.delete(MINUTE * 5)?);
    nothing_is_left(lab, guest, &home)
}
