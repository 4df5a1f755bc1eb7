//! A guest goes to the next patch and the next minor version of Kubernetes while its workload serves.
//!
//! `e2e/test.sh` builds the two other versions, their VM images, and loads them into the lab.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Lab, wait_every};
use support::traces::fingerprints;
use support::workload::{asked_from, counts};
use support::{Guest, in_steps, installed_with};

/// Three emulated boots one after the other, and two drains.
const UPGRADE: Duration = Duration::from_secs(2400);

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn a_guest_is_upgraded_under_a_workload() {
    let images = ["v1.36.1", "v1.37.2"]
        .map(|version| format!(",settings.kubernetes.images.{}=giantnetes/vm:{version}", version.replace('.', "\\.")));
    let lab = installed_with(&images.concat());
    // Small machines: a host of the lab has room for one of the default size.
    let spec = "{kubernetes: {version: v1.36.1}, controlPlane: {machine: {memory: 3Gi}},
      nodePools: [{name: default, replicas: 2, machine: {memory: 2Gi}}]}";
    let guest = Guest::create(&lab, "e2e-upgrade", "elder", spec);
    let steps: [(&str, Step); 4] = [
        ("a guest of an earlier version, with two workers", |_, guest| {
            guest.await_ready()?;
            ensure!(versions(guest)?.iter().all(|(_, version)| version == "v1.36.1"), "{:?}", versions(guest)?);
            Ok(())
        }),
        ("a workload runs, and is asked from every node", |_, guest| {
            asked_from(guest, &["master-0", "default-0", "default-1"])
        }),
        ("it goes to the next patch version", |_, guest| upgrade(guest, "v1.36.3")),
        ("it goes to the next minor version", |_, guest| upgrade(guest, "v1.37.2")),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
}

/// Nodes and the versions of their kubelets.
fn versions(guest: &Guest) -> Result<Vec<(String, String)>> {
    let each = "jsonpath={range .items[*]}{.metadata.name} {.status.nodeInfo.kubeletVersion}{'\\n'}{end}";
    let said = guest.kubectl(&["get", "nodes", "-o", each])?;
    let pairs = said.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.map(|(name, version)| (name.to_owned(), version.to_owned())).collect())
}

/// Moves the guest to `version` and watches nodes, workload and API meanwhile.
fn upgrade(guest: &Guest, version: &str) -> Result<()> {
    let (roots, started) = (fingerprints(guest)?, Instant::now());
    let before = counts(guest, "default-0")?;
    let patch = format!("{{\"spec\": {{\"kubernetes\": {{\"version\": \"{version}\"}}}}}}");
    guest.change(&patch)?;

    // The control plane first. Its API is away while its VM is another one, and the workload must not notice.
    let (mut gone, mut windows) = (None, Vec::new());
    wait_every(Duration::from_secs(1), UPGRADE, "the control plane's new version", || {
        let now = versions(guest);
        if now.is_err() {
            gone = gone.or_else(|| Some(Instant::now()));
        }
        let now = now?;
        windows.extend(gone.take().map(|since| since.elapsed()));
        ensure!(has(&now, "master-0", version), "{now:?}");
        Ok(())
    })?;
    println!("    its API was away for {windows:.1?}");
    println!("    the control plane has it after {:.1?}", started.elapsed());
    let now = counts(guest, "default-0")?;
    println!("    meanwhile a worker's client was served {} times", now.0 - before.0);
    ensure!(now.1 == before.1, "{} requests failed while the control plane was replaced", now.1 - before.1);
    ensure!(now.0 > before.0 + 20, "the client on a worker asked {} times only", now.0 - before.0);

    // Then the workers, one by one: every request to API and workload is served.
    let api = Watch::default();
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| api.run(guest, version));
        let done = wait_every(Duration::from_secs(2), UPGRADE, "all nodes' new version", || {
            let now = versions(guest)?;
            ensure!(now.iter().all(|(_, one)| one == version), "{now:?}");
            Ok(())
        })
        .and_then(|()| guest.await_ready());
        api.stop.store(true, Ordering::Relaxed);
        let seen = watch.join().expect("the watch does not panic");
        done.and(seen)
    })?;
    println!("    all nodes have it after {:.1?}", started.elapsed());
    let (served, failed) = counts(guest, "master-0")?;
    println!("    the control plane's client was served {served} times since, and {failed} times not");
    ensure!(failed == 0, "{failed} requests failed while workers were replaced");
    ensure!(served > 50, "the client on the control plane asked {served} times only");
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    ensure!(guest.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"])? == "b", "etcd's data is lost");
    Ok(())
}

fn has(versions: &[(String, String)], node: &str, version: &str) -> bool {
    versions.iter().any(|(name, one)| name == node && one == version)
}

/// Looks at the guest's nodes all the time.
#[derive(Default)]
struct Watch {
    stop: AtomicBool,
}

impl Watch {
    /// Fails if two workers are away at once, or a worker is ahead of the control plane.
    fn run(&self, guest: &Guest, version: &str) -> Result<()> {
        let each =
            "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=='Ready')].status}{'\\n'}{end}";
        let mut looks = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let nodes = guest.kubectl(&["get", "nodes", "-l", "giantnetes.io/pool", "-o", each])?;
            let away = nodes.lines().filter(|line| !line.ends_with(" True")).count();
            ensure!(away <= 1, "two workers are away at once: {nodes}");
            ensure!(has(&versions(guest)?, "master-0", version), "the control plane went back");
            looks += 1;
        }
        println!("    {looks} looks at the workers, never two of them away");
        ensure!(looks > 20, "only {looks} looks");
        Ok(())
    }
}
