//! A guest of the released version while the chart is upgraded to the one of now, rolled back, upgraded again and uninstalled:
//! its machines run on, its certificates stay, and whoever asks its pods or its API is answered.
//!
//! `e2e/test.sh` builds the released images and loads them into the lab.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, wait_for};
use support::{
    Guest, Release, SYSTEM, helm_in, image_ref, in_steps, install, list, root,
    traces::fingerprints,
    workload::{asked_from, counts},
};

const MINUTE: Duration = Duration::from_secs(60);
const NODES: [&str; 2] = ["master-0", "default-0"];
/// Longer than the pause between two looks at a guest that is well, of everybody who looks.
const LOOKS: Duration = Duration::from_secs(45);
/// Small machines: a host of the lab has room for one of the default size.
const SPEC: &str = "{controlPlane: {machine: {memory: 3Gi}}, exposure: {type: Ingress},
  nodePools: [{name: default, replicas: 1, machine: {memory: 2Gi}}]}";

#[test]
fn no_guest_notices_that_its_manager_is_another_version_or_goes() {
    let release = Release::build().unwrap();
    let lab = Lab::running().expect("no lab is running: `make lab-up` raises one");
    // What other tests left on a lab that is kept.
    uninstall(&lab).unwrap();
    let image = release.image("vm").unwrap();
    let values = format!(",settings.kubernetes.images.v1\\.36\\.3={image}");
    install(&lab, &release.tree(), &release.image("controller").unwrap(), &values).unwrap();
    let guest = Guest::create(&lab, "e2e-release", "kept", SPEC);
    let kept = Kept { lab: &lab, guest, release, before: Mutex::default(), api: Api::default() };
    let steps: [(&str, Step); 6] = [
        ("a guest of the released version, whose pods and API are asked all the time", |kept| kept.comes_up()),
        ("`helm upgrade` to the chart and the images of now changes nothing", |kept| kept.is_upgraded()),
        ("`helm rollback` changes nothing", |kept| kept.is_rolled_back()),
        ("and the next upgrade neither", |kept| kept.is_upgraded()),
        ("`helm uninstall` leaves it running", |kept| kept.is_left()),
        ("a chart that is installed anew goes on with it", |kept| kept.is_taken_up()),
    ];
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| kept.api.ask(&kept.guest));
        // Whatever fails: the one who asks ends, or the test never would.
        let _ends = Ends(&kept.api.stop);
        in_steps(&steps, |step| step(&kept));
        kept.api.stop.store(true, Ordering::Relaxed);
        asks.join().expect("who asks does not panic");
    });
}

type Step = fn(&Kept) -> Result<()>;

/// Sets a flag when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn uninstall(lab: &Lab) -> Result<()> {
    helm_in(lab)
        .args(["uninstall", "giantnetes", "-n", SYSTEM, "--ignore-not-found", "--wait", "--timeout", "3m"])
        .output()?;
    Ok(())
}

/// Somebody who asks the guest's API all the time, once it has answered.
#[derive(Default)]
struct Api {
    asks: AtomicBool,
    stop: AtomicBool,
    served: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Api {
    fn ask(&self, guest: &Guest) {
        while !self.stop.load(Ordering::Relaxed) {
            if self.asks.load(Ordering::Relaxed) {
                match guest.kubectl(&["get", "--raw", "/readyz"]) {
                    Ok(answer) if answer.trim() == "ok" => drop(self.served.fetch_add(1, Ordering::Relaxed)),
                    Ok(answer) => self.failures.lock().unwrap().push(answer),
                    Err(error) => self.failures.lock().unwrap().push(format!("{error:#}")),
                }
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// The guest, and how it was.
struct Kept<'a> {
    lab: &'a Lab,
    guest: Guest<'a>,
    release: Release,
    before: Mutex<Option<Seen>>,
    api: Api,
}

/// What must stay.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    /// UID, container and restarts of each VM pod.
    pods: Vec<String>,
    /// What each node's kernel calls its boot.
    boots: String,
    roots: Vec<String>,
    /// UID and version of each Secret: a certificate that is issued anew is another version.
    secrets: Vec<String>,
    /// What clients on the nodes were not served.
    failed: Vec<u64>,
}

impl Kept<'_> {
    fn see(&self) -> Result<Seen> {
        let home = self.guest.home()?;
        let of = |kind: &str, path: &str| -> Result<Vec<String>> {
            let each = format!("jsonpath={{range .items[*]}}{path}{{'\\n'}}{{end}}");
            let said = self.lab.kubectl(&["-n", &home, "get", kind, "-o", &each])?;
            Ok(said.lines().map(str::to_owned).collect())
        };
        let container = "{.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}";
        let boots = "jsonpath={range .items[*]}{.metadata.name} {.status.nodeInfo.bootID}{'\\n'}{end}";
        Ok(Seen {
            pods: of("pods", &format!("{{.metadata.name}} {{.metadata.uid}} {container}"))?,
            boots: self.guest.kubectl(&["get", "nodes", "-o", boots])?,
            roots: fingerprints(&self.guest)?,
            secrets: of("secrets", "{.metadata.name} {.metadata.uid} {.metadata.resourceVersion}")?,
            failed: NODES.iter().map(|node| Ok(counts(&self.guest, node)?.1)).collect::<Result<_>>()?,
        })
    }

    fn comes_up(&self) -> Result<()> {
        self.guest.await_ready()?;
        asked_from(&self.guest, &NODES)?;
        self.api.asks.store(true, Ordering::Relaxed);
        let seen = self.see()?;
        ensure!(seen.pods.len() == NODES.len() && !seen.secrets.is_empty(), "{seen:?}");
        println!("    {seen:?}");
        *self.before.lock().unwrap() = Some(seen);
        Ok(())
    }

    /// All is as it was, after everybody has looked at the guest, and all who asked were answered meanwhile.
    fn is_as_before(&self, served_before: u64) -> Result<()> {
        std::thread::sleep(LOOKS);
        let before = self.before.lock().unwrap().clone().context("nobody has looked before")?;
        let now = self.see()?;
        ensure!(now == before, "it was\n{before:?}\nand is\n{now:?}");
        ensure!(now.failed.iter().all(|failed| *failed == 0), "requests to pods failed: {:?}", now.failed);
        let failures = self.api.failures.lock().unwrap();
        ensure!(failures.is_empty(), "requests to the API failed: {failures:?}");
        let served = self.api.served.load(Ordering::Relaxed) - served_before;
        ensure!(served > 5, "the API was asked {served} times only");
        println!("    the API answered {served} times, and never not");
        Ok(())
    }

    fn served(&self) -> u64 {
        self.api.served.load(Ordering::Relaxed)
    }

    /// Changes the Cluster back and forth, and waits until a controller manager has looked at that.
    fn is_looked_at(&self) -> Result<()> {
        for protected in [true, false] {
            self.guest.change(&format!(r#"{{"spec": {{"deletionProtection": {protected}}}}}"#))?;
            let generation = self.guest.object()?["metadata"]["generation"].clone();
            wait_for(MINUTE, "the controller manager to look at it", || {
                let object = self.guest.object()?;
                ensure!(object["status"]["observedGeneration"] == generation, "{}", object["status"]);
                Ok(())
            })?;
        }
        self.guest.await_ready()
    }

    fn is_upgraded(&self) -> Result<()> {
        let served = self.served();
        // With the VM image of now for the version that the guest has: it stays with its own.
        install(self.lab, &root(), &image_ref("controller"), "")?;
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        let runs = self.lab.kubectl(&["-n", SYSTEM, "get", "deployment", "giantnetes", "-o", image])?;
        ensure!(runs.ends_with(&image_ref("controller")), "{runs} runs");
        self.is_looked_at()?;
        self.is_as_before(served)
    }

    fn is_rolled_back(&self) -> Result<()> {
        let served = self.served();
        helm_in(self.lab).args(["rollback", "giantnetes", "1", "-n", SYSTEM, "--wait", "--timeout", "3m"]).output()?;
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        let runs = self.lab.kubectl(&["-n", SYSTEM, "get", "deployment", "giantnetes", "-o", image])?;
        ensure!(runs.ends_with(&self.release.image("controller")?), "{runs} runs");
        self.is_looked_at()?;
        self.is_as_before(served)
    }

    fn is_left(&self) -> Result<()> {
        let served = self.served();
        uninstall(self.lab)?;
        wait_for(MINUTE * 2, "the chart's pods to go", || {
            let left = list(self.lab, &["-n", SYSTEM, "pods"])?.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })?;
        self.is_as_before(served)
    }

    fn is_taken_up(&self) -> Result<()> {
        let served = self.served();
        install(self.lab, &root(), &image_ref("controller"), "")?;
        self.is_looked_at()?;
        self.is_as_before(served)
    }
}
