//! The overlay of guests without VMs: network namespaces are the VM pods, a bridge among them is the management network, and
//! in each runs what the supervisor runs: its network set-up and the loop that follows peers.
//!
//! ```text
//!   pod a ─ eth0 ─┐            ┌─ eth0 ─ pod b        in each: br0, tap0 (held open), vx<VNI>, and beside tap0 a
//!               net0 (dns .1) ─┤                     "guest": a namespace whose interface is on the same bridge
//!   pod c ─ eth0 ─┘            └─ eth0 ─ stranger
//! ```
//!
//! The guest's own address is put on a veth in place of QEMU: packets on a tap come from its owner, so the rules of the tap
//! itself (forged sources) are given to that veth. Needs root, and makes nothing outside of its namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use giantnetes::{
    network::addresses::{Mac, NodeAddress},
    supervisor::{
        config::{OverlayConfig, PeersConfig},
        network, peers,
    },
};
use tokio_util::sync::CancellationToken;

/// Names of what this process plays when the test starts it again: set together with its configuration.
const ROLE: &str = "OVERLAY_TEST_ROLE";
/// How long a peer may take to be followed.
const FOLLOWED: Duration = Duration::from_secs(5);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

fn overlay(vni: u32, place: u8, name: &str) -> OverlayConfig {
    OverlayConfig {
        vni,
        gateway: "172.26.0.1/20".parse().unwrap(),
        node: NodeAddress { ip: format!("172.26.0.{place}/20").parse().unwrap(), mac: Mac([2, 0, 0, 0, 0x77, place]) },
        mtu: None,
        peers: Some(PeersConfig { name: name.into(), server: DNS.into(), allowed: Vec::new() }),
        flannel: None,
    }
}

/// Not a test by itself: a VM pod's supervisor as far as its network goes, or the DNS server.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let argument = std::env::var("OVERLAY_TEST_ARGUMENT").unwrap();
    if role == "dns" {
        return serve_dns(Path::new(&argument));
    }
    let words: Vec<_> = argument.split(' ').collect();
    let [vni, place, name, pod] = words[..] else { panic!("{argument}") };
    let (overlay, pod) = (overlay(vni.parse().unwrap(), place.parse().unwrap(), name), pod.parse::<IpAddr>().unwrap());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let network = network::set_up(&overlay, pod).await.unwrap();
        fs::write(std::env::var("OVERLAY_TEST_READY").unwrap(), network.mtu.to_string()).unwrap();
        peers::follow(overlay, pod, CancellationToken::new()).await;
        drop(network.tap);
    });
}

/// Answers questions for addresses from a file of lines `name address`, read anew each time.
fn serve_dns(records: &Path) {
    let socket = UdpSocket::bind((DNS, 53)).unwrap();
    let mut question = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut question).unwrap();
        let question = &question[..length];
        let mut labels = Vec::new();
        let mut at = 12;
        while question[at] != 0 {
            let label = usize::from(question[at]);
            labels.push(String::from_utf8_lossy(&question[at + 1..=at + label]).into_owned());
            at += label + 1;
        }
        let (name, end) = (labels.join("."), at + 5);
        let text = fs::read_to_string(records).unwrap();
        let found = text.lines().filter_map(|line| line.strip_prefix(&format!("{name} ")));
        let found: Vec<Ipv4Addr> = found.map(|address| address.parse().unwrap()).collect();
        let mut answer = question[..end].to_vec();
        // A response with authority; without an address, there is no such name.
        (answer[2], answer[3]) = (0x84, if found.is_empty() { 3 } else { 0 });
        let count = u16::try_from(found.len()).unwrap().to_be_bytes();
        answer[6..12].copy_from_slice(&[count[0], count[1], 0, 0, 0, 0]);
        for address in found {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
            answer.extend(address.octets());
        }
        socket.send_to(&answer, client).unwrap();
    }
}

/// Runs `program` and answers whether it succeeded, and what it said.
fn try_run(line: &str) -> (bool, String) {
    let words: Vec<_> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
fn run(line: &str) -> String {
    let (well, text) = try_run(line);
    assert!(well, "{line}: {text}");
    text
}

#[track_caller]
fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    start.elapsed()
}

/// Namespaces of this run. All of it goes when this is dropped.
struct World {
    prefix: String,
    folder: PathBuf,
    records: BTreeMap<String, Vec<Ipv4Addr>>,
    processes: Vec<(String, Child)>,
    namespaces: Vec<String>,
}

impl World {
    fn new() -> Self {
        let prefix = format!("ov{}", std::process::id() % 10_000);
        let folder = std::env::temp_dir().join(format!("giantnetes-overlay-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut world =
            Self { prefix, folder, records: BTreeMap::new(), processes: Vec::new(), namespaces: Vec::new() };
        let ns = world.namespace("net");
        // A bridge without an address of its own takes one of its ports', and another when that port goes: whoever asked the
        // server before would ask nobody.
        run(&format!("ip -n {ns} link add name net0 address 02:00:00:00:00:53 type bridge"));
        run(&format!("ip -n {ns} addr add {DNS}/16 dev net0"));
        run(&format!("ip -n {ns} link set net0 up"));
        world.write_records();
        let records = world.folder.join("records").display().to_string();
        world.start("net", "dns", &records);
        world
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn namespace(&mut self, name: &str) -> String {
        let ns = self.name(name);
        run(&format!("ip netns add {ns}"));
        self.namespaces.push(ns.clone());
        run(&format!("ip -n {ns} link set lo up"));
        ns
    }

    fn write_records(&self) {
        let lines = self.records.iter().flat_map(|(name, all)| all.iter().map(move |ip| format!("{name} {ip}\n")));
        let (new, file) = (self.folder.join("new"), self.folder.join("records"));
        fs::write(&new, lines.collect::<String>()).unwrap();
        fs::rename(new, file).unwrap();
    }

    fn publish(&mut self, name: &str, pods: &[Ipv4Addr]) {
        self.records.insert(name.into(), pods.into());
        self.write_records();
    }

    fn start(&mut self, ns: &str, role: &str, argument: &str) {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name(ns)])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "role", "--nocapture"])
            .env(ROLE, role)
            .env("OVERLAY_TEST_ARGUMENT", argument)
            .env("OVERLAY_TEST_READY", self.folder.join(ns))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.processes.push((ns.into(), child));
    }

    /// A VM pod with its guest beside it.
    fn pod(&mut self, name: &str, vni: u32, place: u8, guest: &str, ip: Ipv4Addr) {
        let (ns, net) = (self.namespace(name), self.name("net"));
        run(&format!("ip -n {net} link add name {name} type veth peer name eth0 netns {ns}"));
        run(&format!("ip -n {net} link set dev {name} master net0 up"));
        run(&format!("ip -n {ns} addr add {ip}/16 dev eth0"));
        run(&format!("ip -n {ns} link set eth0 up"));
        self.start(name, "pod", &format!("{vni} {place} {guest} {ip}"));
        let ready = self.folder.join(name);
        until(&format!("network of {name}"), Duration::from_secs(20), || ready.exists());
        assert_eq!(fs::read_to_string(ready).unwrap(), "1450");
        let vm = self.namespace(&format!("{name}vm"));
        run(&format!("ip -n {ns} link add name vm type veth peer name overlay netns {vm}"));
        run(&format!("ip -n {ns} link set dev vm master br0 up"));
        run(&format!("ip -n {vm} link set overlay address 02:00:00:00:77:{place:02x} mtu 1450"));
        run(&format!("ip -n {vm} addr add 172.26.0.{place}/20 dev overlay"));
        run(&format!("ip -n {vm} link set overlay up"));
        // The rules speak of the tap: the guest stands beside it, so they are told of its interface as well.
        for chain in ["forward", "input"] {
            run(&format!("ip netns exec {ns} nft insert rule bridge giantnetes {chain} iifname vm jump from_guest"));
        }
    }

    fn remove(&mut self, name: &str) {
        for (_, child) in self.processes.iter_mut().filter(|(ns, _)| ns == name) {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.processes.retain(|(ns, _)| ns != name);
        let gone = [self.name(name), self.name(&format!("{name}vm"))];
        for ns in &gone {
            run(&format!("ip netns del {ns}"));
        }
        self.namespaces.retain(|ns| !gone.contains(ns));
        let _ = fs::remove_file(self.folder.join(name));
    }

    /// Whether a guest reaches an address: nobody listens there, and only who is there can say so.
    fn reaches(&self, name: &str, place: u8) -> bool {
        let ns = self.name(&format!("{name}vm"));
        let connect = format!("exec 3<>/dev/tcp/172.26.0.{place}/6443");
        let output =
            Command::new("ip").args(["netns", "exec", &ns, "timeout", "1", "bash", "-c", &connect]).output().unwrap();
        String::from_utf8_lossy(&output.stderr).contains("refused")
    }

    fn flooded(&self, name: &str, vni: u32) -> String {
        let ns = self.name(name);
        let all = run(&format!("ip netns exec {ns} bridge fdb show dev vx{vni}"));
        let mut peers: Vec<_> = all.lines().filter(|line| line.starts_with("00:00")).map(str::to_owned).collect();
        peers.sort();
        peers.join("\n")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        for ns in &self.namespaces {
            let _ = try_run(&format!("ip netns del {ns}"));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 1, last)
}

#[test]
fn members_of_one_guest_reach_each_other_and_nobody_else_does() {
    if std::env::var(ROLE).is_ok() {
        return;
    }
    let mut world = World::new();
    world.publish("nodes.one", &[ip(1), ip(2), ip(3)]);
    world.publish("nodes.two", &[ip(4)]);
    world.pod("a", 1234, 10, "nodes.one", ip(1));
    world.pod("b", 1234, 64, "nodes.one", ip(2));
    world.pod("c", 1234, 65, "nodes.one", ip(3));
    // Another guest, with the same addresses and even the same VNI.
    world.pod("stranger", 1234, 66, "nodes.two", ip(4));

    for (from, to) in [("a", 64), ("b", 65), ("c", 10), ("b", 10), ("c", 64)] {
        until(&format!("{from} reaches .{to}"), FOLLOWED, || world.reaches(from, to));
    }
    assert!(!world.reaches("stranger", 10), "another guest is reached");
    assert!(!world.reaches("a", 66), "another guest is reached");

    // One that floods VXLAN to a member without being one: dropped at the member, before and after it is told of it.
    let stranger = world.name("stranger");
    run(&format!("ip netns exec {stranger} bridge fdb append 00:00:00:00:00:00 dev vx1234 dst {}", ip(1)));
    run(&format!("ip netns exec {stranger} nft add element inet giantnetes peers {{ {} }}", ip(1)));
    let packets = |name: &str, way: &str| {
        let ns = world.name(name);
        let count = run(&format!("ip netns exec {ns} cat /sys/class/net/vx1234/statistics/{way}_packets"));
        count.trim().parse::<u64>().unwrap()
    };
    std::thread::sleep(Duration::from_secs(1));
    let (sent, taken) = (packets("stranger", "tx"), packets("a", "rx"));
    // Many at once: members, too, send something to all now and then, which is counted with it.
    let vm = world.name("strangervm");
    let knock = "for last in $(seq 100 139); do timeout 2 bash -c \"exec 3<>/dev/tcp/172.26.0.$last/6443\" 2>/dev/null & done; wait";
    let _ = Command::new("ip").args(["netns", "exec", &vm, "bash", "-c", knock]).status().unwrap();
    assert!(!world.reaches("stranger", 10));
    let (sent, taken) = (packets("stranger", "tx") - sent, packets("a", "rx") - taken);
    assert!(sent >= 40 && taken < sent / 4, "of a stranger's {sent} packets {taken} were taken");
    let taken = packets("a", "rx");
    assert!(world.reaches("b", 10) && packets("a", "rx") > taken, "a member's packets are not counted there");

    // The gateway is on every pod: each guest has its own.
    assert!(world.reaches("a", 1) && world.reaches("b", 1));

    forged_sources_stay_at_home(&world);

    // A peer that goes and comes back elsewhere. Only `a` speaks: it has to be sent after `c`, not the other way round.
    world.remove("c");
    world.publish("nodes.one", &[ip(1), ip(2)]);
    let took = until("c is forgotten", FOLLOWED, || !world.flooded("a", 1234).contains("10.99.1.3"));
    println!("a peer that went was forgotten after {took:?}");
    assert!(
        !run(&format!("ip netns exec {} nft list set inet giantnetes peers", world.name("a"))).contains("10.99.1.3")
    );
    world.publish("nodes.one", &[ip(1), ip(2), ip(7)]);
    world.pod("c", 1234, 65, "nodes.one", ip(7));
    let took = until("c is found", FOLLOWED, || world.reaches("a", 65));
    println!("a peer that came back was reached after {took:?}");

    // The server forgets everybody: an answer that does not know us takes nobody away.
    let before = world.flooded("a", 1234);
    world.publish("nodes.one", &[]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(world.flooded("a", 1234), before);
    assert!(world.reaches("a", 65));

    let folder = world.folder.clone();
    let namespaces = world.namespaces.clone();
    drop(world);
    let left = run("ip netns list");
    assert!(!namespaces.iter().any(|ns| left.contains(ns.as_str())) && !folder.exists(), "{left}");
    assert!(!run("ip -o link").contains("vx1234"), "a device was left in the host's own namespace");
}

/// A guest that takes another's addresses is not heard.
fn forged_sources_stay_at_home(world: &World) {
    let vm = world.name("avm");
    run(&format!("ip -n {vm} addr add 172.26.0.99/20 dev overlay"));
    run(&format!("ip -n {vm} route add 172.26.0.64/32 dev overlay src 172.26.0.99"));
    assert!(!world.reaches("a", 64), "another node's address is accepted");
    run(&format!("ip -n {vm} route del 172.26.0.64/32"));
    run(&format!("ip -n {vm} addr del 172.26.0.99/20 dev overlay"));
    until("a is heard again", FOLLOWED, || world.reaches("a", 64));
    run(&format!("ip -n {vm} link set overlay address 02:00:00:00:77:41"));
    assert!(!world.reaches("a", 64), "another node's Ethernet address is accepted");
    run(&format!("ip -n {vm} link set overlay address 02:00:00:00:77:0a"));
    until("a is heard again", FOLLOWED, || world.reaches("a", 64));
}
