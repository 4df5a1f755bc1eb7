//! Hosts, and VM pods on them with their VMs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use giantnetes::{
    network::addresses::Mac,
    supervisor::{config::OverlayConfig, path_mtu::Narrow},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    ADDRESS, CONFIG, READY, WAYS,
    dns::Dns,
    namespace::{Namespace, run, try_run, until},
    processes::{Process, spawn, tied},
    traffic::{self, Listener, PORT},
};

/// How long others may take to follow a pod that comes, goes or moves.
pub const FOLLOWED: Duration = Duration::from_secs(5);
/// How long a pod's network may take to be set up, on a busy machine.
const SET_UP: Duration = Duration::from_secs(20);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Somewhere on the internet.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// QEMU's user.
pub const QEMU: u32 = 107;
/// What VXLAN over IPv4 takes of a packet.
pub const OVERHEAD: u32 = 50;

/// What differs between backends.
pub trait Backend {
    /// Starts what all guests of a world share, in the network between its hosts.
    fn start(net: &Namespace) -> Self;
    /// What the supervisor of the VM pod at this place is told: the VM's address is of it.
    fn config(&self, guest: Guest, place: u8, dns: Ipv4Addr) -> OverlayConfig;
    /// The Ethernet address of frames that VXLAN carries to this place.
    fn carried_to(&self, place: u8) -> Mac;
    /// Name of a guest's VXLAN device.
    fn device(&self, guest: Guest) -> String;
    /// A pod has its address, in this namespace: those that are to know learn of it.
    fn join(&mut self, dns: &Dns, guest: Guest, ns: &Namespace, overlay: &OverlayConfig, address: Ipv4Addr);
    /// A pod is gone.
    fn leave(&mut self, dns: &Dns, guest: Guest, overlay: &OverlayConfig, address: Ipv4Addr);
}

/// Makes tests of these cases for a backend.
#[macro_export]
macro_rules! conformance {
    ($backend:ident: $($case:ident),* $(,)?) => {
        $(
            #[test]
            fn $case() {
                $crate::world::run_in::<$backend>($crate::cases::$case);
            }
        )*
    };
}

/// Runs a case in a world of its own, and sees that nothing of that is left.
pub fn run_in<B: Backend>(case: impl FnOnce(&mut World<B>)) {
    let mut world = World::<B>::new();
    case(&mut world);
    let (prefix, folder) = (world.prefix.clone(), world.folder.0.clone());
    drop(world);
    let left = run("ip netns list");
    assert!(!left.lines().any(|line| line.starts_with(&prefix)) && !folder.exists(), "{left}");
}

/// A guest cluster.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    pub name: &'static str,
    pub vni: u32,
}

impl Guest {
    /// The name of the DNS that all of its VM pods have.
    pub fn service(self) -> String {
        format!("nodes.{}", self.name)
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Host {
    H1,
    H2,
    H3,
}

impl Host {
    const ALL: [Self; 3] = [Self::H1, Self::H2, Self::H3];

    fn number(self) -> u8 {
        self as u8 + 1
    }
}

/// A VM pod that is to be.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub name: &'static str,
    pub guest: Guest,
    pub place: u8,
    pub host: Host,
    /// MTU of the pod's interface.
    pub underlay: u32,
    /// MTU of the overlay that the user asks for.
    pub mtu: Option<u32>,
}

pub fn pod(name: &'static str, guest: Guest, place: u8, host: Host) -> Wish {
    Wish { name, guest, place, host, underlay: 1500, mtu: None }
}

/// A VM pod.
pub struct Pod {
    supervisor: Process,
    listener: Listener,
    pub vm: Namespace,
    pub ns: Namespace,
    pub wish: Wish,
    /// The pod's own address.
    pub address: Ipv4Addr,
    pub overlay: OverlayConfig,
    /// MTU of the overlay.
    pub mtu: u32,
}

impl Pod {
    /// The VM's address.
    pub fn ip(&self) -> Ipv4Addr {
        self.overlay.node.ip.addr()
    }

    /// Its pod's bridge, as the VM's neighbour.
    pub fn router(&self) -> Ipv4Addr {
        self.overlay.node.router()
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.overlay.gateway.addr()
    }

    /// Who answers the VM at an address.
    pub fn ask(&self, address: Ipv4Addr) -> Option<String> {
        traffic::ask(&self.vm, address)
    }

    pub fn reaches(&self, other: &Self) -> bool {
        self.ask(other.ip()).as_deref() == Some(other.wish.name)
    }

    /// Whether the VM got this content.
    pub fn heard(&self, content: &[u8]) -> bool {
        self.listener.heard(content)
    }

    /// Stops the supervisor, or lets it go on.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.supervisor.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// From whom VXLAN is taken.
    pub fn taken_from(&self) -> BTreeSet<Ipv4Addr> {
        let all: serde_json::Value =
            serde_json::from_str(&self.ns.run("nft -j list set inet giantnetes peers")).unwrap();
        let parts = all["nftables"].as_array().unwrap().iter();
        let elements = parts.flat_map(|part| part["set"]["elem"].as_array().into_iter().flatten());
        elements.map(|element| element.as_str().unwrap().parse().unwrap()).collect()
    }
}

/// Goes with all that is in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// All of it goes when this is dropped: the pods first, for what they are on is below them.
pub struct World<B> {
    pods: BTreeMap<&'static str, Pod>,
    pub backend: B,
    pub dns: Dns,
    hosts: [Namespace; 3],
    pub net: Namespace,
    prefix: String,
    folder: Folder,
    /// The last part of the last pod's address.
    last: u8,
}

impl<B: Backend> World<B> {
    fn new() -> Self {
        // Tests may run beside each other.
        static WORLDS: AtomicU32 = AtomicU32::new(0);
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("ov{}-{number}-", std::process::id());
        let folder = Folder(std::env::temp_dir().join(format!("giantnetes-{prefix}overlay")));
        fs::create_dir_all(&folder.0).unwrap();
        let net = Namespace::new(format!("{prefix}net"));
        // A bridge without an address of its own takes one of its ports', and another when that port goes: whoever asked the
        // server before would ask nobody.
        net.ip("link add name net0 address 02:00:00:00:00:53 type bridge");
        net.ip(&format!("addr add {DNS}/24 dev net0"));
        net.ip("link set net0 up");
        net.ip(&format!("addr add {OUTSIDE}/32 dev lo"));
        let hosts = Host::ALL.map(|host| make_host(&prefix, host, &net));
        let (dns, backend) = (Dns::start(&net, DNS), B::start(&net));
        Self { pods: BTreeMap::new(), backend, dns, hosts, net, prefix, folder, last: 1 }
    }

    pub fn host(&self, host: Host) -> &Namespace {
        &self.hosts[host as usize]
    }

    pub fn pod(&self, name: &str) -> &Pod {
        &self.pods[name]
    }

    /// Pods, with their VMs as soon as their networks are set up.
    pub fn add(&mut self, wishes: &[Wish]) {
        // They start at the same time.
        for wish in wishes {
            let pod = self.begin(*wish);
            self.pods.insert(wish.name, pod);
        }
        for wish in wishes {
            let mtu = self.set_up(wish.name).unwrap();
            let pod = self.pods.get_mut(wish.name).unwrap();
            pod.mtu = mtu;
            plug(pod);
        }
    }

    /// A pod whose network is not set up: why.
    pub fn refused(&mut self, wish: Wish) -> String {
        let pod = self.begin(wish);
        let error = self.set_up(wish.name).unwrap_err();
        self.backend.leave(&self.dns, wish.guest, &pod.overlay, pod.address);
        error
    }

    pub fn remove(&mut self, name: &str) {
        let Pod { wish, address, overlay, .. } = self.pods.remove(name).unwrap();
        self.backend.leave(&self.dns, wish.guest, &overlay, address);
        for file in [self.ready(name), self.ready(&format!("{name}.{WAYS}"))] {
            let _ = fs::remove_file(file);
        }
    }

    /// The supervisor ends, and its VM with it; then the pod's kubelet starts it again.
    pub fn restart(&mut self, name: &str) {
        let Process(ended) = &mut self.pods.get_mut(name).unwrap().supervisor;
        let _ = ended.kill();
        let _ = ended.wait();
        let _ = fs::remove_file(self.ready(name));
        let pod = &self.pods[name];
        let supervisor = self.supervise(&pod.ns, pod.wish, &pod.overlay, pod.address);
        self.pods.get_mut(name).unwrap().supervisor = supervisor;
        self.set_up(name).unwrap();
        plug(&self.pods[name]);
    }

    #[track_caller]
    pub fn until_reached(&self, from: &str, to: &str) -> Duration {
        let (from, to) = (&self.pods[from], &self.pods[to]);
        until(&format!("{} reaches {}", from.wish.name, to.wish.name), FOLLOWED, || from.reaches(to))
    }

    /// All pairs of these reach each other.
    #[track_caller]
    pub fn until_all_reach(&self, names: &[&str]) {
        for from in names {
            for to in names.iter().filter(|to| *to != from) {
                self.until_reached(from, to);
            }
        }
    }

    /// To which pods one sends what its VM says, whether to all or to one.
    pub fn sent_to(&self, name: &str) -> BTreeSet<Ipv4Addr> {
        let pod = &self.pods[name];
        let shown = pod.ns.run(&format!("bridge -j fdb show dev {}", self.backend.device(pod.wish.guest)));
        let entries: Vec<serde_json::Value> = serde_json::from_str(&shown).unwrap();
        entries.iter().filter_map(|entry| entry["dst"].as_str()).map(|address| address.parse().unwrap()).collect()
    }

    /// What a pod's supervisor knows of the ways to its peers: to how many packets of full size pass whole, and the others.
    pub fn ways(&self, name: &str) -> (usize, Vec<Narrow>) {
        let said = fs::read_to_string(self.folder.0.join(format!("{name}.{WAYS}"))).unwrap_or_default();
        serde_json::from_str(&said).unwrap_or_default()
    }

    fn ready(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    fn begin(&mut self, wish: Wish) -> Pod {
        let Wish { name, guest, place, host, underlay, .. } = wish;
        self.last += 1;
        let (number, prefix) = (host.number(), &self.prefix);
        let address = Ipv4Addr::new(10, 99, number, self.last);
        let (ns, vm) = (Namespace::new(format!("{prefix}{name}")), Namespace::new(format!("{prefix}{name}vm")));
        let on = self.host(host);
        on.ip(&format!("link add name {name} type veth peer name eth0 netns {}", ns.name()));
        on.ip(&format!("link set dev {name} mtu {underlay} master cni0 up"));
        ns.ip(&format!("link set dev eth0 mtu {underlay} up"));
        ns.ip(&format!("addr add {address}/24 dev eth0"));
        ns.ip(&format!("route add default via 10.99.{number}.1"));
        // As pods of a host that forwards have it.
        ns.set("ipv4/ip_forward", "1");
        ns.ip(&format!("link add name vm type veth peer name overlay netns {}", vm.name()));
        let overlay = OverlayConfig { mtu: wish.mtu, ..self.backend.config(guest, place, DNS) };
        vm.ip(&format!("link set overlay address {}", overlay.node.mac));
        self.backend.join(&self.dns, guest, &ns, &overlay, address);
        let supervisor = self.supervise(&ns, wish, &overlay, address);
        let listener = Listener::start(&vm, PORT, name);
        Pod { supervisor, listener, vm, ns, wish, address, overlay, mtu: 0 }
    }

    fn supervise(&self, ns: &Namespace, wish: Wish, overlay: &OverlayConfig, address: Ipv4Addr) -> Process {
        let mut command = tied("ip");
        command
            .args(["netns", "exec", ns.name()])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "supervisor", "--nocapture"])
            .env(CONFIG, serde_json::to_string(overlay).unwrap())
            .env(ADDRESS, address.to_string())
            .env(READY, self.ready(wish.name));
        spawn(&mut command, &self.folder.0.join("log")).unwrap()
    }

    /// Waits until a pod's network is set up, and answers the MTU of its overlay, or why there is none.
    fn set_up(&self, name: &str) -> Result<u32, String> {
        let ready = self.ready(name);
        until(&format!("network of {name}"), SET_UP, || ready.exists());
        let said = fs::read_to_string(ready).unwrap();
        said.parse().map_err(|_| said)
    }
}

fn make_host(prefix: &str, host: Host, net: &Namespace) -> Namespace {
    let number = host.number();
    let ns = Namespace::new(format!("{prefix}h{number}"));
    // Addresses that the kernel gives by itself, and takes its time for, are nobody's here.
    ns.set("ipv6/conf/default/disable_ipv6", "1");
    ns.set("ipv4/ip_forward", "1");
    net.ip(&format!("link add name h{number} type veth peer name uplink netns {}", ns.name()));
    net.ip(&format!("link set dev h{number} master net0 up"));
    net.ip(&format!("route add 10.99.{number}.0/24 via 10.99.0.{}", 10 + number));
    ns.ip("link set dev uplink up");
    ns.ip(&format!("addr add 10.99.0.{}/24 dev uplink", 10 + number));
    ns.ip(&format!("route add default via {DNS}"));
    for other in Host::ALL.map(Host::number).into_iter().filter(|other| *other != number) {
        ns.ip(&format!("route add 10.99.{other}.0/24 via 10.99.0.{}", 10 + other));
    }
    ns.ip(&format!("link add name cni0 address 02:00:00:00:99:0{number} type bridge"));
    ns.ip(&format!("addr add 10.99.{number}.1/24 dev cni0"));
    ns.ip("link set cni0 up");
    ns
}

/// Puts the VM on the bridge, which may be another than before.
fn plug(pod: &Pod) {
    pod.ns.ip("link set dev vm master br0 up");
    pod.vm.ip(&format!("link set dev overlay mtu {} up", pod.mtu));
    // It may have it already.
    let _ = try_run(&format!("ip -n {} addr add {} dev overlay", pod.vm.name(), pod.overlay.node.ip));
    if pod.overlay.flannel.is_some() {
        pod.vm.ip(&format!("route replace {} via {}", pod.overlay.network(), pod.router()));
    }
    // The rules speak of the tap: the VM stands beside it, so they are told of its interface as well.
    let chains: &[_] = if pod.overlay.flannel.is_some() { &["input"] } else { &["forward", "input"] };
    for chain in chains {
        pod.ns.run(&format!("nft insert rule bridge giantnetes {chain} iifname vm jump from_guest"));
    }
}
