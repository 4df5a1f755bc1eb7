//! `lab up`: from whatever is there to a cluster whose nodes are Ready. Every step looks first and then does what is
//! missing, so a second run after a crash (of the lab, or of a server) goes on where the first one ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::addons::{self, ADDONS, Addon};
use crate::command::hold_in_children;
use crate::faults::LOCK_PATIENCE;
use crate::host::{HostServers, boot_id};
use crate::paths::{Paths, make_folder, write_whole};
use crate::process::Server;
use crate::state::{Journal, Lock};
use crate::tools::{Image, Tools};
use crate::topology::{CONTROL, HOSTS, Host, INGRESS_PORTS, INGRESS_SERVICE, MACHINE, rooms};
use crate::wait::{POLL, wait_for};
use crate::{Lab, Settings, cgroup, http, images, mounts, network, pki, preflight, vault};

/// How long a server that was just started may take to answer (the machine may be busy with builds).
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a server that ran before may take to answer until it counts as hung and is started again.
const PATIENCE_WITH_RUNNING: Duration = Duration::from_secs(15);

/// Sets the lab up, and tells about each step on standard error.
///
/// # Errors
/// If the machine cannot carry a lab (nothing was started then), or a step fails.
pub fn up() -> Result<Lab> {
    let started = Instant::now();
    let paths = Paths::of_machine()?;
    preflight::check(&paths)?;
    let images = Images::build()?;
    let settings = Settings { tools: Tools::locate()?, pause: images.pause.reference.clone() };
    let mut run = Run::begin(Lab { settings, paths })?;
    run.foundations()?;
    run.network()?;
    let vault = run.servers(&images)?;
    run.addons(&images)?;
    run.vault(&vault)?;
    eprintln!("lab: up after {} steps in {:.1} s", run.journal.done(), started.elapsed().as_secs_f32());
    Ok(run.lab)
}

/// Gives a host its power and its network back, and waits until its node is Ready.
///
/// # Errors
/// If a server does not start, or the node does not become Ready.
pub fn start_host(host: &'static Host) -> Result<()> {
    let mut run = Run::begin(Lab::existing()?)?;
    run.journal.step("cable", || network::plug(&host.room, true))?;
    let Run { journal, lab, lock } = &mut run;
    let start = Starter { lab, lock };
    let servers = lab.host(host);
    let containerd = start.server(journal, servers.containerd()?)?;
    start.answer(journal, &containerd, || servers.check_containerd())?;
    start.server(journal, servers.kubelet())?;
    let proxy = start.server(journal, servers.proxy())?;
    start.answer(journal, &proxy, || servers.check_proxy())?;
    journal.step(&format!("node {} is Ready", host.name()), || await_node(lab, host))
}

/// Lets the API server go on, or starts it, and waits until it answers.
///
/// # Errors
/// If it does not.
pub fn start_apiserver() -> Result<()> {
    let mut run = Run::begin(Lab::existing()?)?;
    let _ = run.lab.thaw_apiserver();
    let Run { journal, lab, lock } = &mut run;
    let start = Starter { lab, lock };
    let control = lab.control_plane();
    let apiserver = start.server(journal, control.apiserver())?;
    start.answer(journal, &apiserver, || control.check_apiserver()).map(drop)
}

/// Starts Vault unless it runs, unseals it, and waits until it serves.
///
/// # Errors
/// If it does not.
pub fn start_vault() -> Result<()> {
    let mut run = Run::begin(Lab::existing()?)?;
    let Run { journal, lab, lock } = &mut run;
    let vault = Starter { lab, lock }.server(journal, lab.vault().server())?;
    run.open_vault(&vault)
}

/// The images that every host has from the beginning.
struct Images {
    pause: Image,
    addons: Vec<(&'static Addon, Image)>,
}

impl Images {
    fn build() -> Result<Self> {
        let addon = |addon: &'static Addon| -> Result<_> {
            let image = Image::build(addon.name).with_context(|| format!("cannot have the add-on {}", addon.name))?;
            Ok((addon, image))
        };
        Ok(Self {
            pause: Image::build("pause").context("cannot have the image of pods' sandboxes")?,
            addons: ADDONS.iter().map(addon).collect::<Result<_>>()?,
        })
    }

    fn archives(&self) -> Vec<PathBuf> {
        let addons = self.addons.iter().map(|(_, image)| &image.archive);
        std::iter::once(&self.pause.archive).chain(addons).cloned().collect()
    }
}

struct Run {
    journal: Journal,
    lab: Lab,
    lock: Lock,
}

impl Run {
    fn begin(lab: Lab) -> Result<Self> {
        let lock = Lock::take(&lab.paths, LOCK_PATIENCE)?;
        hold_in_children(lock.share()?);
        Ok(Self { journal: Journal::open(&lab.paths)?, lab, lock })
    }

    fn foundations(&mut self) -> Result<()> {
        let Self { journal, lab, .. } = self;
        let paths = &lab.paths;
        journal.step("settings", || lab.settings.write(paths))?;
        journal.step("certificates", || pki::ensure(paths))?;
        for room in rooms().chain([MACHINE]) {
            journal.step(&format!("cgroup of {}", room.name), || cgroup::ensure(&room.cgroup()))?;
        }
        journal.step("folders", || {
            make_folder(&paths.volumes())?;
            HOSTS.iter().try_for_each(|host| make_folder(&paths.image_store(host)))
        })?;
        journal.step("holder of mount namespaces", || mounts::ensure_holder(paths))?;
        for room in rooms() {
            journal.step(&format!("mount namespace of {}", room.name), || mounts::ensure_namespace(paths, &room))?;
            journal.step(&format!("mounts of {}", room.name), || mounts::ensure_covers(paths, &room))?;
        }
        Ok(())
    }

    fn network(&mut self) -> Result<()> {
        let Self { journal, lab, .. } = self;
        journal.step("bridge", network::ensure_bridge)?;
        for room in rooms() {
            let name = room.name;
            journal.step(&format!("network namespace of {name}"), || network::ensure_namespace(&lab.paths, &room))?;
            journal.step(&format!("cable of {name}"), || network::ensure_cable(&room))?;
        }
        journal.step("routes", network::ensure_routes)
    }

    /// Answers Vault, which takes its time to start and is wanted by nobody before the end.
    fn servers(&mut self, images: &Images) -> Result<Started> {
        let Self { journal, lab, lock } = self;
        let start = Starter { lab, lock };
        let (control, vault) = (lab.control_plane(), lab.vault());
        journal.step("configuration of control", || control.configure())?;
        journal.step("configuration of vault", || vault.configure())?;
        journal.step("data of vault", || vault.drop_data_without_key())?;
        for host in HOSTS {
            journal.step(&format!("configuration of {}", host.name()), || lab.host(host).configure())?;
        }
        // What takes longest to answer is started first; the rest starts while it does.
        let etcd = start.server(journal, control.etcd())?;
        let mut stores = Vec::new();
        for host in HOSTS {
            stores.push((host, start.server(journal, lab.host(host).containerd()?)?));
        }
        start.answer(journal, &etcd, || control.check_etcd())?;
        let apiserver = start.server(journal, control.apiserver())?;
        let vault = start.server(journal, vault.server())?;
        for (host, containerd) in &stores {
            let host = lab.host(host);
            start.answer(journal, containerd, || host.check_containerd())?;
            journal.step(&format!("old containers of {}", host.host.name()), || purge_once(&host))?;
        }
        journal.step("images", || images::load_everywhere(&lab.hosts(), &images.archives()))?;
        let forgotten = start.answer(journal, &apiserver, || control.check_apiserver())?;
        journal.step("objects", || control.apply_objects())?;
        let mut manager = start.server(journal, control.controller_manager())?;
        if forgotten && !manager.new {
            // One that lost sight of the hosts' leases with an API server takes the hosts for dead, until its watches are back.
            manager = start.again(journal, manager)?;
        }
        let scheduler = start.server(journal, control.scheduler())?;
        let mut proxies = Vec::new();
        for host in HOSTS {
            start.server(journal, lab.host(host).kubelet())?;
            proxies.push((host, start.server(journal, lab.host(host).proxy())?));
        }
        start.answer(journal, &manager, || control.check_controller_manager())?;
        start.answer(journal, &scheduler, || control.check_scheduler())?;
        for (host, proxy) in &proxies {
            start.answer(journal, proxy, || lab.host(host).check_proxy())?;
        }
        Ok(vault)
    }

    /// Applied while the hosts' servers still start; a node is Ready when Calico has come to it.
    fn addons(&mut self, images: &Images) -> Result<()> {
        let Self { journal, lab, lock } = self;
        for (addon, image) in &images.addons {
            journal.step(&format!("add-on {}", addon.name), || addon.apply(lab, image))?;
        }
        // The API server takes a moment to know Calico's kinds.
        journal.step("pools of addresses", || wait_for(PATIENCE, "Calico's kinds", || addons::apply_pools(lab)))?;
        let start = Starter { lab, lock };
        let mut entries = Vec::new();
        for (local, port) in INGRESS_PORTS {
            entries.push((*local, start.server(journal, ingress_entry(*local, *port))?));
        }
        for host in HOSTS {
            journal.step(&format!("node {} is Ready", host.name()), || await_node(lab, host))?;
        }
        for (addon, _) in &images.addons {
            journal.step(&format!("add-on {} serves", addon.name), || addon.await_ready(lab))?;
        }
        for (local, server) in entries.iter().filter(|(local, _)| *local == INGRESS_PORTS[0].0) {
            let address = SocketAddr::from((MACHINE.address, *local));
            start.answer(journal, server, || http::status(address, "/").map(drop))?;
        }
        // Pods can be made from now on: they need the service account of their namespace.
        journal.step("service account", || {
            wait_for(PATIENCE, "the service account default/default", || {
                lab.kubectl(&["get", "serviceaccount", "default", "--namespace=default"])
            })
        })?;
        Ok(())
    }

    /// Opens Vault, and lets the controller manager in.
    fn vault(&mut self, started: &Started) -> Result<()> {
        self.open_vault(started)?;
        let Self { journal, lab, .. } = self;
        let (control, vault) = (lab.control_plane(), lab.vault());
        journal.step("policy of vault", || vault.write_policy())?;
        journal.step("login to vault", || {
            let reviewer = vault::reviewer(|words| control.kubectl(words))?;
            vault.admit_manager(&format!("https://{}:6443", CONTROL.address), &reviewer)
        })
    }

    fn open_vault(&mut self, started: &Started) -> Result<()> {
        let Self { journal, lab, lock } = self;
        let (start, vault) = (Starter { lab, lock }, lab.vault());
        start.answer(journal, started, || vault.check())?;
        journal.step("initialisation of vault", || vault.initialise())?;
        journal.step("unsealing of vault", || vault.unseal())
    }
}

/// What leads from a port of the machine's loopback device to the ingress controller's Service.
fn ingress_entry(local: u16, port: u16) -> Server {
    let listen = format!("TCP-LISTEN:{local},bind={},reuseaddr,fork", MACHINE.address);
    let connect = format!("TCP:{INGRESS_SERVICE}:{port},connect-timeout=5");
    let argv = ["socat".into(), listen, connect].into();
    Server { name: format!("ingress-{local}"), room: MACHINE, argv, config: Vec::new() }
}

/// A server, and whether this run of the lab started it.
struct Started {
    server: Server,
    new: bool,
}

struct Starter<'a> {
    lab: &'a Lab,
    lock: &'a Lock,
}

impl Starter<'_> {
    fn server(&self, journal: &mut Journal, server: Server) -> Result<Started> {
        let new = journal.step(&format!("start of {}", server.name), || server.ensure(&self.lab.paths, self.lock))?;
        Ok(Started { server, new })
    }

    fn again(&self, journal: &mut Journal, Started { server, .. }: Started) -> Result<Started> {
        journal.step(&format!("new start of {}", server.name), || server.restart(&self.lab.paths, self.lock))?;
        Ok(Started { server, new: true })
    }

    /// Waits until a server answers, and starts it again if it has long run and does not. Answers whether it is a new one.
    fn answer(&self, journal: &mut Journal, started: &Started, mut check: impl FnMut() -> Result<()>) -> Result<bool> {
        let Started { server, new } = started;
        journal.step(&format!("answer of {}", server.name), || {
            if !new {
                if self.await_answer(server, PATIENCE_WITH_RUNNING, &mut check).is_ok() {
                    return Ok(false);
                }
                eprintln!("lab: {} runs but does not answer: it is started again", server.name);
                server.restart(&self.lab.paths, self.lock)?;
            }
            self.await_answer(server, PATIENCE, &mut check).map(|()| true)
        })
    }

    fn await_answer(&self, server: &Server, limit: Duration, check: &mut impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + limit;
        while let Err(reason) = check() {
            // Waiting for a server that has ended makes no sense.
            server.check(&self.lab.paths)?;
            if Instant::now() >= deadline {
                bail!(
                    "{} did not answer within {limit:?}: {reason:#}; {}",
                    server.name,
                    server.log_end(&self.lab.paths)
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Removes containers of the image store's earlier lives, before kubelet sees them; once per life.
fn purge_once(host: &HostServers<'_>) -> Result<()> {
    let done = host.file("purged");
    if done.exists() {
        return Ok(());
    }
    images::purge(host, Duration::from_secs(30))?;
    write_whole(&done, &boot_id()?, 0o644)
}

fn await_node(lab: &Lab, host: &Host) -> Result<()> {
    let kubelet = lab.host(host).kubelet();
    let ready = wait_for(PATIENCE, &format!("node {} being Ready", host.name()), || {
        kubelet.check(&lab.paths)?;
        let get = |words: &[&str]| -> Result<Value> {
            Ok(serde_json::from_str(&lab.kubectl(&[&["get"], words, &[host.name(), "--output=json"]].concat())?)?)
        };
        // First: what the node says counts from then on.
        heard_of(&get(&["--namespace=kube-node-lease", "lease"])?, Timestamp::now())?;
        node_ready(&get(&["node"])?)
    });
    ready.with_context(|| kubelet.log_end(&lab.paths))
}

/// Whether a node's kubelet has renewed its lease just now. After the API server was away for 40 s nodes still say that they are
/// Ready, until the controller manager misses those that were not faster than it.
fn heard_of(lease: &Value, now: Timestamp) -> Result<()> {
    // Kubelet renews it every ten seconds.
    let fresh = SignedDuration::from_secs(20);
    let renewed: Timestamp = lease["spec"]["renewTime"].as_str().context("no lease yet")?.parse()?;
    let age = now.duration_since(renewed);
    if age > fresh { bail!("its kubelet was not heard of for {} s", age.as_secs()) } else { Ok(()) }
}

/// Whether a node is Ready, and Kubernetes keeps no pods off it. Who cordoned or tainted it has reasons of his own.
fn node_ready(node: &Value) -> Result<()> {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array).context("no conditions yet")?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready").context("no condition Ready yet")?;
    if ready["status"] != "True" {
        bail!("not ready: {}", ready["message"]);
    }
    let of_kubernetes = |taint: &&Value| {
        let key = taint["key"].as_str().unwrap_or_default();
        key.starts_with("node.kubernetes.io/") && key != "node.kubernetes.io/unschedulable"
    };
    match node.pointer("/spec/taints").and_then(Value::as_array).and_then(|taints| taints.iter().find(of_kubernetes)) {
        Some(taint) => bail!("still tainted: {taint}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_that_was_ready_before_the_api_server_was_away_has_to_say_so_again() {
        let lease = json!({"spec": {"renewTime": "2026-01-01T00:00:00.123456Z"}});
        let at =
            |seconds: i64| "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds);
        heard_of(&lease, at(11)).unwrap();
        assert_eq!(heard_of(&lease, at(45)).unwrap_err().to_string(), "its kubelet was not heard of for 44 s");
        assert!(heard_of(&json!({}), at(0)).is_err());
    }

    #[test]
    fn a_node_that_is_ready_but_tainted_takes_no_pods_yet() {
        let mut node = json!({"spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        node_ready(&node).unwrap();
        node["spec"]["taints"] = json!([{"key": "node.kubernetes.io/not-ready"}]);
        assert!(node_ready(&node).unwrap_err().to_string().starts_with("still tainted"));
        node["spec"]["taints"] = json!([{"key": "mine"}, {"key": "node.kubernetes.io/unschedulable"}]);
        node_ready(&node).unwrap();
        node = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "message": "no CNI"}]}});
        assert_eq!(node_ready(&node).unwrap_err().to_string(), "not ready: \"no CNI\"");
    }
}
