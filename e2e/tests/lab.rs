//! The lab itself: it comes up whatever happened before, and goes without leaving anything.
//!
//! These tests set up and remove the machine's one lab again and again, so none may be running. `LAB_CRASHES=all` crashes
//! `lab up` after each of its steps, `LAB_CRASHES=1/4` after those of them that leave 1 when divided by 4; without it three
//! of them stand for all.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::command::Run;
use lab::snapshot::listeners;
use lab::{Lab, Snapshot, cgroup, snapshot, topology, wait_for};

const BINARY: &str = env!("CARGO_BIN_EXE_lab");
const STATE: &str = "/var/lib/giantnetes-lab";
const MINUTE: Duration = Duration::from_secs(60);

/// The machine, for one test at a time; whatever the test leaves is removed at its end.
struct Machine {
    before: Snapshot,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    fn take() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        // A test that failed has cleaned up, too.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            !Path::new(STATE).exists(),
            "a lab (or what a crash left of one) is on this machine, and these tests need it for themselves: \
             run `lab down` first"
        );
        Self { before: snapshot().expect("the machine can be looked at"), _alone: alone }
    }

    /// Takes what is there by now for what was there before the lab.
    fn look_again(&mut self) {
        self.before = snapshot().expect("the machine can be looked at");
    }

    fn up(&self) -> Lab {
        lab(&["up"]).expect("lab up");
        Lab::running().expect("the lab runs after lab up")
    }

    /// `lab down`, after which nothing may be left.
    #[track_caller]
    fn down(&self) {
        lab(&["down"]).expect("lab down");
        // The kernel frees network namespaces and their devices some time after they were given up.
        let nothing_left = wait_for(Duration::from_secs(5), "the machine being as before", || {
            let left = self.before.differences(&snapshot()?);
            if left.is_empty() { Ok(()) } else { bail!("\n{}", left.join("\n")) }
        });
        nothing_left.unwrap();
        assert!(!Path::new(STATE).exists());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = lab(&["down"]);
    }
}

fn lab(args: &[&str]) -> Result<String> {
    Run::new(BINARY).args(args.iter().copied()).timeout(5 * MINUTE).output()
}

fn crash_after(step: usize) {
    let variable = format!("GIANTNETES_LAB_CRASH_AFTER={step}");
    let error = Run::new("env").args([&variable, BINARY, "up"]).timeout(5 * MINUTE).output().unwrap_err().to_string();
    assert!(error.contains("ended with a signal"), "it was to crash after step {step}: {error}");
}

fn assert_ready(lab: &Lab) {
    let nodes = lab.kubectl(&["get", "nodes", "--no-headers"]).unwrap();
    assert_eq!(nodes.lines().count(), topology::HOSTS.len(), "{nodes}");
    assert!(nodes.lines().all(|node| node.split_whitespace().nth(1) == Some("Ready")), "{nodes}");
}

/// Processes of a person who happens to run something that is called like a server of the lab.
struct Foreign(Child, PathBuf);

impl Foreign {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("giantnetes-foreign-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy("/usr/bin/sleep", folder.join("kube-apiserver")).unwrap();
        let process = Command::new(folder.join("kube-apiserver")).arg("3600").spawn().unwrap();
        // A process that has just been started may still be called like who started it, and have no arguments.
        wait_for(MINUTE, "the foreign process having its name", || {
            let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", process.id()))?;
            if arguments.replace('\0', " ").ends_with("kube-apiserver 3600 ") {
                Ok(())
            } else {
                bail!("it is called {arguments:?}")
            }
        })
        .unwrap();
        Self(process, folder)
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_dir_all(&self.1);
    }
}

#[test]
fn a_life_leaves_nothing_behind_and_touches_nobody_else() {
    let mut machine = Machine::take();
    let mut foreign = Foreign::start();
    machine.look_again();
    let listening = listeners();
    let lab = machine.up();
    assert_ready(&lab);

    // Ports below the ephemeral range: clients elsewhere on the machine come and go.
    let low = |listener: &&String| listener.rsplit(':').next().is_some_and(|port| port < "8000");
    let now = listeners();
    let new: Vec<_> = now.difference(&listening).filter(low).collect();
    assert!(new.is_empty(), "something listens in the machine's own network namespace: {new:?}");
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let ours = cgroup::processes(topology::CGROUP).unwrap();
    assert!(ours.len() >= 7, "the lab's servers are in its cgroup: {ours:?}");
    for pid in ours {
        let namespace = std::fs::read_link(format!("/proc/{pid}/ns/net"));
        assert!(namespace.is_ok_and(|theirs| theirs != own), "{pid} is in the machine's own network namespace");
    }

    machine.down();
    assert!(foreign.runs(), "lab down ended a process that only looked like one of the lab's");
    machine.down();
}

#[test]
fn ports_that_are_taken_on_the_machine_are_not_in_the_way() {
    let machine = Machine::take();
    let ports = [2379, 2380, 6443, 10248, 10249, 10250, 10256, 10257, 10259];
    let _taken: Vec<_> = ports.iter().filter_map(|port| TcpListener::bind(("0.0.0.0", *port)).ok()).collect();
    assert_ready(&machine.up());
}

#[test]
fn after_a_crash_at_any_step_up_goes_on_and_down_cleans_up() {
    let machine = Machine::take();
    machine.up();
    let steps = std::fs::read_to_string(Path::new(STATE).join("steps")).unwrap().lines().count();
    machine.down();
    let chosen = match std::env::var("LAB_CRASHES").as_deref() {
        Err(_) => vec![steps / 4, steps * 5 / 9, steps * 6 / 7],
        Ok("all") => (1..=steps).collect(),
        Ok(part) => {
            let (rest, parts) = part.split_once('/').expect("LAB_CRASHES is `all` or like `1/4`");
            let (rest, parts): (usize, usize) = (rest.parse().unwrap(), parts.parse().unwrap());
            (1..=steps).filter(|step| step % parts == rest).collect()
        }
    };
    assert!(!chosen.is_empty());
    for step in chosen {
        eprintln!("crash after step {step} of {steps}, then down");
        crash_after(step);
        machine.down();
        eprintln!("crash after step {step} of {steps}, then up");
        crash_after(step);
        assert_ready(&machine.up());
        machine.down();
    }
}

#[test]
fn after_a_kill_at_any_time_down_cleans_up() {
    let machine = Machine::take();
    for milliseconds in [30, 120, 180, 240, 300, 360, 420, 480, 540, 600, 700, 900, 2000] {
        // --foreground: only the lab is hit, not what it has just started.
        let seconds = format!("{:.3}", f64::from(milliseconds) / 1000.0);
        let killed =
            Run::new("timeout").args(["--foreground", "--signal=KILL", &seconds, BINARY, "up"]).timeout(MINUTE);
        assert!(!killed.succeeds());
        machine.down();
    }
}

#[test]
fn up_starts_what_has_ended_and_leaves_the_rest_alone() {
    let machine = Machine::take();
    let lab = machine.up();
    let pid = |name: &str| -> Result<i32> {
        let record = std::fs::read_to_string(lab.state().join("processes").join(format!("{name}.json")))?;
        let record: lab::process::Record = serde_json::from_str(&record)?;
        Ok(record.pid)
    };
    let all = ["etcd", "kube-apiserver", "kube-scheduler", "host1-containerd", "host1-kubelet", "host1-kube-proxy"];
    let pids = || all.map(|name| pid(name).unwrap());
    let first = pids();
    machine.up();
    assert_eq!(pids(), first, "what runs is left alone");

    let (kubelet, apiserver) = (pid("host1-kubelet").unwrap(), pid("kube-apiserver").unwrap());
    Run::new("kill").args(["-KILL".to_owned(), kubelet.to_string(), apiserver.to_string()]).output().unwrap();
    assert!(lab_status_fails(), "lab status tells that servers have ended");
    assert_ready(&machine.up());
    assert_ne!(pid("host1-kubelet").unwrap(), kubelet);
    assert_eq!(pid("etcd").unwrap(), first[0]);
    machine.down();
}

fn lab_status_fails() -> bool {
    !Run::new(BINARY).arg("status").timeout(MINUTE).succeeds()
}

#[test]
fn a_volumes_data_outlives_its_pod_and_a_service_is_reached_from_the_machine() {
    let machine = Machine::take();
    let lab = machine.up();
    let toolbox = lab::tools::Image::build("toolbox").unwrap();
    lab.load(&toolbox.archive).unwrap();
    assert!(!lab.load(&toolbox.archive).unwrap(), "an image that is there is not loaded again");
    let pod = |name: &str, script: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    image: {image}\n    \
             imagePullPolicy: Never\n    command: [sh, -c, '{script}']\n    \
             volumeMounts: [{{name: data, mountPath: /data}}]\n  \
             volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]\n---\n",
            image = toolbox.reference
        )
    };
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], \
                 resources: {requests: {storage: 1Gi}}}\n---\n";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: reader}\nspec: {selector: {app: reader}, \
                   clusterIP: 10.233.9.9, ports: [{port: 80, targetPort: 8080}]}\n";
    lab.apply(&format!("{claim}{}", pod("writer", "echo kept > /data/file; sync; exec sleep 3600"))).unwrap();
    let ready = |name: &str| lab.kubectl_within(MINUTE, &["wait", "--for=condition=Ready", "--timeout=50s", name]);
    ready("pod/writer").unwrap();
    // Ready says that the shell runs, not yet that it has written.
    wait_for(MINUTE, "the file in the volume", || lab.kubectl(&["exec", "writer", "--", "cat", "/data/file"])).unwrap();
    lab.kubectl_within(MINUTE, &["delete", "pod", "writer"]).unwrap();
    lab.apply(&format!("{}{service}", pod("reader", "exec httpd -f -p 8080 -h /data"))).unwrap();
    ready("pod/reader").unwrap();
    let content = wait_for(MINUTE, "an answer of the Service's address", || get("10.233.9.9:80", "/file"));
    assert!(content.unwrap().ends_with("kept\n"));
    machine.down();

    // The image store survived, its containers did not.
    let lab = machine.up();
    assert!(!lab.load(&toolbox.archive).unwrap(), "images survive lab down");
    assert_eq!(lab.kubectl(&["get", "pods", "--all-namespaces", "--no-headers"]).unwrap(), "");
    let socket = lab.state().join("host1/run/containerd/containerd.sock");
    let containers = Run::line("ctr --namespace k8s.io --address").arg(socket).args(["containers", "list", "-q"]);
    assert_eq!(containers.output().unwrap(), "", "containers of an earlier life");
    machine.down();
}

fn get(address: &str, path: &str) -> Result<String> {
    use std::io::{Read, Write};
    let limit = Duration::from_secs(2);
    let mut stream = std::net::TcpStream::connect_timeout(&address.parse()?, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("no answer")?;
    Ok(answer)
}

#[test]
fn who_is_not_root_is_told_so_before_anything_starts() {
    let machine = Machine::take();
    // Somewhere that everybody may read, unlike root's home.
    let folder = std::env::temp_dir().join(format!("giantnetes-nobody-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let binary = folder.join("lab");
    std::fs::copy(BINARY, &binary).unwrap();
    let run = Run::line("setpriv --reuid 65534 --clear-groups").arg(&binary).arg("up").output();
    std::fs::remove_dir_all(&folder).unwrap();
    let error = run.unwrap_err().to_string();
    assert!(error.contains("nothing was started\n  - not root: "), "{error}");
    machine.down();
}

#[test]
fn an_address_range_that_is_taken_is_told_before_anything_starts() {
    struct Device;
    impl Drop for Device {
        fn drop(&mut self) {
            let _ = Run::line("ip link delete g8s-test").output();
        }
    }
    let machine = Machine::take();
    let device = Device;
    Run::line("ip link add g8s-test type veth peer name g8s-test-peer").output().unwrap();
    Run::line("ip address add 10.232.9.1/24 dev g8s-test").output().unwrap();
    let error = lab(&["up"]).unwrap_err().to_string();
    assert!(
        error.contains("10.232.0.0/16, which the lab uses for pods, overlaps 10.232.9.1/24 (the address of g8s-test)"),
        "{error}"
    );
    drop(device);
    machine.down();
}
