//! The lab itself: it comes up whatever happened before, and goes without leaving anything.
//!
//! These tests set up and remove the machine's one lab again and again, so none may be running. `LAB_CRASHES=all` crashes
//! `lab up` after each of its steps, `LAB_CRASHES=1/4` after every fourth of them from the second on; without it a few of
//! them stand for all.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::command::Run;
use lab::paths::Paths;
use lab::snapshot::listeners;
use lab::{Lab, Snapshot, cgroup, snapshot, topology, vault, wait_for};
use serde_json::{Value, json};
use support::{STATE, assert_unchanged, in_time};

const BINARY: &str = env!("CARGO_BIN_EXE_lab");
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
        let said = lab(&["up"]).expect("lab up");
        let lab = Lab::running().expect("the lab runs after lab up");
        what_it_says_holds(&lab, &said);
        lab
    }

    /// `lab down`, after which nothing may be left.
    #[track_caller]
    fn down(&self) {
        lab(&["down"]).expect("lab down");
        assert_unchanged(&self.before);
    }

    /// Fails if a `lab up` that was to refuse has changed anything.
    #[track_caller]
    fn untouched(&self) {
        assert_unchanged(&self.before);
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

/// `lab up` prints where the kubeconfig is and two commands: one to use it, one to remove the lab.
fn what_it_says_holds(lab: &Lab, said: &str) {
    let lines: Vec<_> = said.lines().collect();
    let [kubeconfig, ask, down] = lines[..] else { panic!("it says {} lines: {said}", lines.len()) };
    assert!(Path::new(kubeconfig).is_file(), "there is no {kubeconfig}");
    let cache = format!("KUBECACHEDIR={}", lab.state().join("kubectl-cache").display());
    let pods = Run::new("env").args([&cache, "sh", "-c", ask]).timeout(MINUTE).output().unwrap();
    assert!(pods.contains("calico"), "{ask} says {pods}");
    let command = down.trim().strip_suffix(" down").unwrap_or_default();
    assert!(Path::new(command).is_file(), "there is no command in {down}");
}

/// Whether `lab up`, told to crash after a step, did; if not, it has fewer steps and the lab is up.
fn crashes_after(step: usize) -> bool {
    let variable = format!("GIANTNETES_LAB_CRASH_AFTER={step}");
    match Run::new("env").args([&variable, BINARY, "up"]).timeout(5 * MINUTE).output() {
        Ok(_) => false,
        Err(error) if error.to_string().contains("ended with a signal") => true,
        Err(error) => panic!("it was to crash after step {step}: {error:#}"),
    }
}

/// The controller manager's ServiceAccount opens it, but not while it is sealed or gone; what it stores outlives both.
fn vault_serves_and_forgets_nothing(lab: &Lab) {
    let (namespace, name) = vault::SERVICE_ACCOUNT;
    lab.kubectl(&["create", "namespace", namespace]).unwrap();
    lab.kubectl(&["create", "serviceaccount", name, "--namespace", namespace]).unwrap();
    let vault = lab.vault();
    let log_in = || -> Result<String> {
        let token = lab.kubectl(&["create", "token", name, "--namespace", namespace])?;
        let body = json!({"role": vault::MANAGER, "jwt": token.trim()});
        let answer = vault.ask(None, "POST", &format!("auth/{}/login", vault::LOGIN), &body)?;
        Ok(answer["auth"]["client_token"].as_str().context("it gives no token")?.to_owned())
    };
    let manager = log_in().expect("Vault lets the controller manager in");
    let authority = "sys/mounts/giantnetes/2wxy7/etcd";
    vault.ask(Some(&manager), "POST", authority, &json!({"type": "pki"})).unwrap();
    let there = || vault.request(Some(&manager), "GET", authority, &Value::Null).map(|answer| answer.status);

    faults(&["vault seal"]);
    assert!(vault.seal_status().unwrap().sealed && there().unwrap() == 503, "it is not sealed");
    let status = Run::new(BINARY).arg("status").timeout(MINUTE).output().unwrap_err().to_string();
    assert!(status.contains("runs, and is sealed"), "{status}");
    faults(&["vault unseal"]);
    assert_eq!(there().unwrap(), 200);

    faults(&["vault stop"]);
    assert!(there().is_err(), "it answers although it was ended");
    faults(&["vault start"]);
    assert_eq!(there().unwrap(), 200);
    log_in().expect("Vault lets the controller manager in again");
}

/// What the nodes say of their condition Ready.
const NOT_READY: &str =
    "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=='Ready')]}{'\\n'}{end}";

fn assert_ready(lab: &Lab) {
    let nodes = lab.kubectl(&["get", "nodes", "--no-headers"]).unwrap();
    assert_eq!(nodes.lines().count(), topology::HOSTS.len(), "{nodes}");
    let why = || lab.kubectl(&["get", "nodes", "-o", NOT_READY]).unwrap();
    assert!(nodes.lines().all(|node| node.split_whitespace().nth(1) == Some("Ready")), "{nodes}{}", why());
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
    // What a person's own Kubernetes would listen at.
    let ports = [2379, 2380, 6443, 10248, 10249, 10250, 10256, 10257, 10259];
    let _taken: Vec<_> = ports.iter().filter_map(|port| TcpListener::bind(("0.0.0.0", *port)).ok()).collect();
    let listening = listeners();
    let lab = machine.up();
    assert_ready(&lab);
    only_the_ingress_listens(&listening);
    servers_have_namespaces_of_their_own();
    starts_what_has_ended_and_leaves_the_rest_alone(&machine, &lab);
    vault_serves_and_forgets_nothing(&lab);
    faults(&["host isolate host2", "host stop host3", "apiserver freeze", "vault stop"]);
    assert_ready(&machine.up());
    assert!(!lab.vault().seal_status().unwrap().sealed, "lab up leaves Vault sealed");
    let toolbox = lab::tools::Image::build("toolbox").unwrap();
    lab.load(&toolbox.archive).unwrap();
    assert!(!lab.load(&toolbox.archive).unwrap(), "an image that is there is not loaded again");
    what_all_hosts_have_is_on_disk_once();
    is_at_work(&lab, &toolbox.reference);
    in_time("lab down", 15, || machine.down());
    assert!(foreign.runs(), "lab down ended a process that only looked like one of the lab's");
    machine.down();

    // The image stores survived, their containers did not.
    let lab = in_time("lab up with warm caches", 60, || machine.up());
    assert_ready(&lab);
    assert!(!lab.load(&toolbox.archive).unwrap(), "images survive lab down");
    only_new_containers_run(&lab);
    faults(&["host stop host3", "apiserver freeze", "vault seal"]);
    machine.down();
}

/// A pod with a volume and a file of its host runs when the lab is removed.
fn is_at_work(lab: &Lab, image: &str) {
    let manifest = WORK.replace("IMAGE", image);
    // A new cluster gives its namespaces their service accounts within moments.
    wait_for(MINUTE, "the work to be accepted", || lab.apply(&manifest)).unwrap();
    let wait = ["rollout", "status", "deployment/work", "--timeout=100s"];
    lab.kubectl_within(2 * MINUTE, &wait).unwrap();
}

const WORK: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: work, namespace: default}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: work, namespace: default}
spec:
  selector: {matchLabels: {app: work}}
  template:
    metadata: {labels: {app: work}}
    spec:
      containers:
      - name: work
        image: IMAGE
        imagePullPolicy: Never
        command: [sh, -c, 'echo kept >/data/file; exec sleep 86400']
        volumeMounts: [{name: data, mountPath: /data}, {name: host, mountPath: /host}]
      volumes:
      - {name: data, persistentVolumeClaim: {claimName: work}}
      - {name: host, hostPath: {path: /var/log}}
";

fn faults(commands: &[&str]) {
    for words in commands {
        lab(&words.split(' ').collect::<Vec<_>>()).unwrap();
    }
}

fn only_the_ingress_listens(before: &BTreeSet<String>) {
    let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let ephemeral: u16 = ephemeral.split_whitespace().next().unwrap().parse().unwrap();
    let port = |listener: &str| u16::from_str_radix(listener.rsplit(':').next().unwrap(), 16).unwrap();
    let now = listeners();
    // Clients elsewhere on the machine come and go, above.
    let new: Vec<_> = now.difference(before).filter(|listener| port(listener) < ephemeral).collect();
    // 127.0.0.1, in the kernel's spelling.
    let ours = topology::INGRESS_PORTS.iter().map(|(port, _)| format!("tcp 0100007F:{port:04X}"));
    assert_eq!(new.into_iter().cloned().collect::<BTreeSet<_>>(), ours.collect(), "in the machine's own namespace");
}

fn servers_have_namespaces_of_their_own() {
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let ours = cgroup::processes(topology::CGROUP).unwrap();
    assert!(ours.len() >= 13, "the lab's servers are in its cgroup: {ours:?}");
    let entries = cgroup::processes(&topology::MACHINE.cgroup()).unwrap();
    for pid in ours.difference(&entries) {
        // What ended meanwhile (a pod's probe) is in nobody's way.
        let Ok(namespace) = std::fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
        assert!(namespace != own, "{pid} is in the machine's own network namespace");
    }
}

fn starts_what_has_ended_and_leaves_the_rest_alone(machine: &Machine, lab: &Lab) {
    let pid = |name: &str| -> Result<i32> {
        let record = std::fs::read_to_string(lab.state().join("processes").join(format!("{name}.json")))?;
        let record: lab::process::Record = serde_json::from_str(&record)?;
        Ok(record.pid)
    };
    let all = ["etcd", "kube-apiserver", "kube-scheduler", "host1-containerd", "host3-kubelet", "host2-kube-proxy"];
    let pids = || all.map(|name| pid(name).unwrap());
    let first = pids();
    machine.up();
    assert_eq!(pids(), first, "what runs is left alone");

    Run::new(BINARY).arg("status").timeout(MINUTE).output().expect("lab status is content");
    let (kubelet, apiserver) = (pid("host1-kubelet").unwrap(), pid("kube-apiserver").unwrap());
    Run::new("kill").args(["-KILL".to_owned(), kubelet.to_string(), apiserver.to_string()]).output().unwrap();
    assert!(!Run::new(BINARY).arg("status").timeout(MINUTE).succeeds(), "lab status tells that servers have ended");
    assert_ready(&machine.up());
    assert_ne!(pid("host1-kubelet").unwrap(), kubelet);
    assert_eq!(pid("etcd").unwrap(), first[0]);
}

/// A blob that is in every host's image store is one file of several names.
fn what_all_hosts_have_is_on_disk_once() {
    let paths = Paths::of_machine().unwrap();
    let mut inodes: BTreeMap<OsString, Vec<u64>> = BTreeMap::new();
    for host in topology::HOSTS {
        let folder = paths.image_store(host).join("io.containerd.content.v1.content/blobs/sha256");
        for blob in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            // containerd removes what no image needs any more.
            let Ok(metadata) = blob.metadata() else { continue };
            inodes.entry(blob.file_name()).or_default().push(metadata.ino());
        }
    }
    inodes.retain(|_, hosts| hosts.len() == topology::HOSTS.len());
    assert!(!inodes.is_empty(), "the hosts have nothing in common");
    for (blob, hosts) in inodes {
        assert!(hosts.iter().all(|inode| *inode == hosts[0]), "{} is on disk more than once", blob.display());
    }
}

/// Every container that a host's containerd knows belongs to a pod that the API server knows.
fn only_new_containers_run(lab: &Lab) {
    let pods = lab.kubectl(&["get", "pods", "--all-namespaces", "--output=jsonpath={.items[*].metadata.uid}"]).unwrap();
    for host in topology::HOSTS {
        let socket = lab.state().join(host.name()).join("run/containerd/containerd.sock");
        let ctr = || Run::line("ctr --namespace k8s.io --address").arg(&socket);
        let containers = ctr().args(["containers", "list", "-q"]).output().unwrap();
        assert!(!containers.is_empty(), "Calico runs on {}", host.name());
        for container in containers.split_whitespace() {
            let info = ctr().args(["containers", "info", container]).output().unwrap();
            let known = pods.split_whitespace().any(|uid| info.contains(uid));
            assert!(known, "a container of an earlier life on {}: {info}", host.name());
        }
    }
}

/// `lab up` has some more.
const FEWEST_STEPS: usize = 60;

#[test]
fn after_a_crash_at_any_step_up_goes_on_and_down_cleans_up() {
    let machine = Machine::take();
    let (first, stride) = match std::env::var("LAB_CRASHES").as_deref() {
        Err(_) => (9, 17),
        Ok("all") => (1, 1),
        Ok(part) => {
            let (rest, parts) = part.split_once('/').expect("LAB_CRASHES is `all` or like `1/4`");
            (rest.parse::<usize>().unwrap() + 1, parts.parse().unwrap())
        }
    };
    // One lab that crashes again and again, each time some steps further on, until it is up.
    let mut steps = Vec::new();
    for step in (first..).step_by(stride) {
        eprintln!("crash after step {step}, then up");
        if !crashes_after(step) {
            break;
        }
        steps.push(step);
    }
    assert!(steps.len() >= FEWEST_STEPS / stride, "it has only the steps {steps:?}");
    assert_ready(&Lab::running().expect("the lab is up after the last crash"));
    machine.down();
    // With every step, one after three of them would cost a quarter of an hour more.
    let also_up = if std::env::var("LAB_CRASHES").is_ok() { 3 } else { usize::MAX };
    for (index, step) in steps.iter().enumerate() {
        eprintln!("crash after step {step} of a new lab, then down");
        assert!(crashes_after(*step));
        if index % also_up == also_up - 1 {
            eprintln!("but first up");
            assert_ready(&machine.up());
        }
        machine.down();
    }
}

#[test]
fn after_a_kill_at_any_time_down_cleans_up() {
    let machine = Machine::take();
    for milliseconds in [30, 120, 240, 360, 480, 600, 900, 2000, 6000, 12000] {
        // --foreground: only the lab is hit, not what it has just started.
        let seconds = format!("{:.3}", f64::from(milliseconds) / 1000.0);
        let killed =
            Run::new("timeout").args(["--foreground", "--signal=KILL", &seconds, BINARY, "up"]).timeout(MINUTE);
        // Neither ended by itself nor refused.
        let error = killed.output().expect_err("it was to be killed").to_string();
        assert!(error.contains("ended with status 137"), "{error}");
        machine.down();
    }
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
    machine.untouched();
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
    machine.untouched();
    machine.down();
}

#[test]
fn a_port_that_is_taken_is_told_before_anything_starts() {
    let machine = Machine::take();
    let (port, _) = topology::INGRESS_PORTS[0];
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = lab(&["up"]).unwrap_err().to_string();
    let told = format!("port {port} of 127.0.0.1");
    assert!(error.contains(&told) && error.contains("nothing was started"), "{error}");
    // Nor is anything built for a lab that could not come up.
    let error = support::make("lab-up").unwrap_err().to_string();
    assert!(error.contains(&told) && !error.contains("tools: "), "{error}");
    drop(taken);
    machine.untouched();
    machine.down();
}

/// What `lab up` says in a mount namespace that a script has changed before.
fn refusal_where(script: &str) -> String {
    let machine = Machine::take();
    let script = format!("{script}; exec \"$0\" up");
    let up = Run::new("unshare").args(["--mount", "sh", "-ec", &script, BINARY]).timeout(5 * MINUTE).output();
    let error = up.unwrap_err().to_string();
    assert!(error.contains("nothing was started"), "{error}");
    machine.untouched();
    machine.down();
    error
}

#[test]
fn too_little_memory_is_told_before_anything_starts() {
    let file = std::env::temp_dir().join(format!("giantnetes-meminfo-{}", std::process::id()));
    let file = file.display();
    let error = refusal_where(&format!(
        "echo 'MemAvailable: 1048576 kB' >{file}; mount -n --bind {file} /proc/meminfo; rm {file}"
    ));
    assert!(error.contains("only 1.0 GiB of memory are available, "), "{error}");
}

#[test]
fn too_little_disk_is_told_before_anything_starts() {
    let error = refusal_where("mount -n -t tmpfs -o size=1G t /var/lib");
    assert!(error.contains(&format!("GiB of disk are free at {STATE}, ")), "{error}");
}

#[test]
fn a_missing_kernel_feature_is_told_before_anything_starts() {
    let error = refusal_where("mount -n --bind /bin/false /usr/sbin/nft");
    assert!(error.contains("nftables do not work here"), "{error}");
}
