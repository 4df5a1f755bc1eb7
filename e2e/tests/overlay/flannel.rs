//! The backend `Flannel`: a network for each node, an etcd that has their leases, as the controller manager would write them,
//! and real flanneld beside every VM pod's supervisor.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use giantnetes::{
    flannel::{
        etcd::{Change, Client, EtcdError, Target, auth},
        lease::{self, Lease, Vtep},
        plan::Member,
        reconcile::{lease_to, read},
    },
    network::addresses::{Fabric, Mac, NodeAddress, Overlay},
    pki::{
        embedded::{self, Pair},
        leaf::{Authority, Leaf, Usage},
    },
    supervisor::{
        config::{FlannelConfig, OverlayConfig, PeersConfig},
        flannel::files,
    },
};
use k8s_openapi::jiff::Timestamp;
use secrecy::ExposeSecret as _;

use crate::{
    ADDRESS, CONFIG, FOLDER,
    dns::Dns,
    namespace::{self, Namespace, run, until},
    processes::{Process, spawn, tied},
    traffic::{Listener, PORT, Stream},
    world::{
        Backend, FOLLOWED, Guest,
        Host::{H1, H2, H3},
        OUTSIDE, QEMU, World, pod,
    },
};

const ONE: Guest = Guest { name: "one", vni: 1234 };
/// Where etcd serves, on the network between the hosts.
const ETCD: &str = "https://10.99.0.1:2379";
/// How long etcd may take to serve, on a busy machine.
const START: Duration = Duration::from_secs(60);
/// Who runs flanneld looks every 30 s whether all is well; a busy machine may let it wait.
const NOTICED: Duration = Duration::from_secs(90);
const DAY: Duration = Duration::from_secs(24 * 3600);

pub struct Flannel {
    folder: PathBuf,
    /// Name of the namespace that etcd is in.
    net: String,
    authority: Pair,
    etcd: Option<Process>,
    guests: BTreeMap<&'static str, BTreeMap<Ipv4Addr, Member>>,
    /// What runs flanneld, by the pod's address.
    containers: BTreeMap<Ipv4Addr, Process>,
    flanneld: PathBuf,
}

/// The folder of what `e2e/tools/build.sh` built.
fn tool(product: &str) -> PathBuf {
    run(&format!("{}/tools/build.sh --dir {product}", env!("CARGO_MANIFEST_DIR"))).trim().into()
}

impl Flannel {
    fn sign(&self, name: &'static str, common_name: &str, usage: Usage) -> Pair {
        let leaf = Leaf {
            name,
            authority: Authority::Etcd,
            common_name: common_name.to_owned(),
            organisations: Vec::new(),
            dns: Vec::new(),
            addresses: if usage == Usage::Server { vec![[10, 99, 0, 1].into()] } else { Vec::new() },
            usage,
        };
        embedded::sign(&self.authority, &leaf, Timestamp::now(), DAY).unwrap()
    }

    /// What `work` comes to, with a client that may do everything, where etcd is reached.
    fn as_root<T: Send>(&self, work: impl AsyncFnOnce(Client) -> T + Send) -> T {
        let identity = self.sign("root", auth::ROOT, Usage::Client);
        namespace::inside(&self.net, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let authority = self.authority.certificate.as_str();
                work(Client::new(&Target { endpoint: ETCD, authority, identity: &identity }, None).unwrap()).await
            })
        })
    }

    /// Starts etcd with what it wrote before, and has it ask for rights.
    fn start_etcd(&mut self) {
        self.start_new_etcd();
        self.as_root(async |root| auth::enable(&root).await).unwrap();
    }

    /// Starts etcd, which asks nobody for rights if it is new.
    fn start_new_etcd(&mut self) {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut command = tied("ip");
        command.args(["netns", "exec", &self.net]).arg(tool("etcd").join("etcd")).args([
            format!("--data-dir={}", file("data")),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            "--client-cert-auth".into(),
            format!("--trusted-ca-file={}", file("ca.crt")),
            format!("--cert-file={}", file("tls.crt")),
            format!("--key-file={}", file("tls.key")),
            "--enable-grpc-gateway=false".into(),
            "--max-txn-ops=4096".into(),
            "--log-level=warn".into(),
        ]);
        self.etcd = Some(spawn(&mut command, &self.folder.join("etcd.log")).unwrap());
        until("etcd serves", START, || self.as_root(async |root| root.auth_status().await).is_ok());
    }

    /// What the controller manager writes of a guest.
    fn write(&self, guest: Guest) {
        let members: Vec<_> = self.guests[guest.name].values().cloned().collect();
        let network = "172.26.0.0/20".parse().unwrap();
        let written: Result<(), EtcdError> = self.as_root(async |root| {
            auth::ensure_guest(&root, guest.name).await?;
            let found = read(&root, guest.name).await?;
            lease_to(&root, (guest.name, network, guest.vni), &members, found).await.map(drop)
        });
        written.unwrap();
    }

    /// Puts the guest's certificate where the container of a pod finds it.
    fn certify(&self, guest: Guest, address: Ipv4Addr) {
        let folder = self.folder.join(address.to_string()).join("secret");
        fs::create_dir_all(&folder).unwrap();
        let Pair { certificate, key } = self.sign("flannel", &auth::user(guest.name), Usage::Client);
        for (name, content) in [
            (files::AUTHORITY, self.authority.certificate.as_str()),
            (files::KEY, key.expose_secret()),
            (files::CERTIFICATE, &certificate),
            (files::ENDPOINT, ETCD),
        ] {
            fs::write(folder.join(name), content).unwrap();
        }
    }

    /// Starts what runs flanneld beside a pod.
    fn accompany(&mut self, guest: Guest, ns: &str, overlay: &OverlayConfig, address: Ipv4Addr) {
        self.certify(guest, address);
        let folder = self.folder.join(address.to_string());
        fs::create_dir_all(folder.join("run")).unwrap();
        // A container takes all of its processes with it.
        let program = format!("#!/bin/sh\nexec setpriv --pdeathsig KILL -- {} \"$@\"\n", self.flanneld.display());
        fs::write(folder.join("flanneld"), program).unwrap();
        fs::set_permissions(folder.join("flanneld"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = tied("ip");
        command
            .args(["netns", "exec", ns])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "flannels_container", "--nocapture"])
            .env(CONFIG, serde_json::to_string(overlay).unwrap())
            .env(ADDRESS, address.to_string())
            .env(FOLDER, &folder);
        self.containers.insert(address, spawn(&mut command, &folder.join("log")).unwrap());
    }

    fn log(&self, address: Ipv4Addr) -> String {
        fs::read_to_string(self.folder.join(address.to_string()).join("log")).unwrap()
    }
}

impl Backend for Flannel {
    fn start(net: &Namespace) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = std::env::temp_dir().join(format!("giantnetes-{}", net.name()));
        fs::create_dir_all(&folder).unwrap();
        let authority = embedded::root("flannel", "test", Timestamp::now(), 10 * DAY).unwrap();
        let mut flannel = Self {
            folder,
            net: net.name().to_owned(),
            authority,
            etcd: None,
            guests: BTreeMap::new(),
            containers: BTreeMap::new(),
            flanneld: tool("flannel").join("flanneld"),
        };
        assert!(flannel.flanneld.is_file(), "flanneld is missing: `make tools` builds it");
        let server = flannel.sign("server", "etcd", Usage::Server);
        for (name, content) in [
            ("ca.crt", flannel.authority.certificate.as_str()),
            ("tls.crt", &server.certificate),
            ("tls.key", server.key.expose_secret()),
        ] {
            fs::write(flannel.folder.join(name), content).unwrap();
        }
        flannel.start_etcd();
        flannel
    }

    fn config(&self, guest: Guest, place: u8, dns: Ipv4Addr) -> OverlayConfig {
        let overlay = Overlay { net: "172.26.0.0/20".parse().unwrap(), fabric: Fabric::Routed };
        OverlayConfig {
            vni: guest.vni,
            gateway: "172.26.0.1/20".parse().unwrap(),
            node: node(overlay, place),
            mtu: None,
            peers: Some(PeersConfig { name: guest.service(), server: dns.into(), allowed: Vec::new() }),
            flannel: Some(FlannelConfig { guest: guest.name.into() }),
        }
    }

    fn carried_to(&self, place: u8) -> Mac {
        let overlay = Overlay { net: "172.26.0.0/20".parse().unwrap(), fabric: Fabric::Routed };
        node(overlay, place).vtep_mac()
    }

    fn device(&self, guest: Guest) -> String {
        format!("flannel.{}", guest.vni)
    }

    fn join(&mut self, dns: &Dns, guest: Guest, ns: &Namespace, overlay: &OverlayConfig, address: Ipv4Addr) {
        dns.add(&guest.service(), address);
        let member = Member { pod: address.to_string(), node: overlay.node, address };
        self.guests.entry(guest.name).or_default().insert(address, member);
        self.write(guest);
        self.accompany(guest, ns.name(), overlay, address);
    }

    fn leave(&mut self, dns: &Dns, guest: Guest, _: &OverlayConfig, address: Ipv4Addr) {
        self.containers.remove(&address);
        dns.remove(&guest.service(), address);
        self.guests.entry(guest.name).or_default().remove(&address);
        self.write(guest);
    }
}

/// The same for every guest: the addresses of one say nothing about another's.
fn node(overlay: Overlay, place: u8) -> NodeAddress {
    let identity = giantnetes::cluster::Identity::new(
        giantnetes::cluster::ClusterKey { namespace: "test".into(), name: "overlay".into() },
        "uid".into(),
    );
    overlay.worker(&identity, giantnetes::network::places::Place(place.into()))
}

impl Drop for Flannel {
    fn drop(&mut self) {
        self.containers.clear();
        self.etcd = None;
        if std::thread::panicking() {
            println!("what etcd and flanneld wrote is kept in {}", self.folder.display());
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Ids of processes in a namespace that run this program.
fn processes_in(ns: &Namespace, program: &str) -> Vec<String> {
    let all = run(&format!("ip netns pids {}", ns.name()));
    let named = |id: &&str| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == program);
    all.split_whitespace().filter(named).map(str::to_owned).collect()
}

fn kill(ids: &[String]) {
    for id in ids {
        let _ = Command::new("kill").args(["-9", id]).status().unwrap();
    }
}

/// flanneld, what runs it, and etcd are killed, stand still and come back, and no packet is lost.
fn flanneld_and_its_etcd_go_and_come_without_loss(world: &mut World<Flannel>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2), pod("c", ONE, 65, H3)]);
    world.until_all_reach(&["a", "b", "c"]);
    let started = Instant::now();
    let stream = Stream::start(&world.pod("a").vm, &world.pod("b").vm, world.pod("b").ip());
    for _ in 0..3 {
        for name in ["a", "b"] {
            let before = processes_in(&world.pod(name).ns, "flanneld");
            assert_eq!(before.len(), 1, "{before:?}");
            kill(&before);
            until("flanneld is started anew", FOLLOWED, || {
                let now = processes_in(&world.pod(name).ns, "flanneld");
                now.len() == 1 && now != before
            });
        }
    }
    // The whole container.
    for name in ["a", "b"] {
        let (address, ns, overlay) = {
            let pod = world.pod(name);
            (pod.address, pod.ns.name().to_owned(), pod.overlay.clone())
        };
        world.backend.containers.remove(&address);
        until("its flanneld is gone, too", FOLLOWED, || processes_in(&world.pod(name).ns, "flanneld").is_empty());
        world.backend.accompany(ONE, &ns, &overlay, address);
        until("flanneld is back", FOLLOWED, || processes_in(&world.pod(name).ns, "flanneld").len() == 1);
    }
    // etcd is away, for longer than a call may take.
    world.backend.etcd = None;
    std::thread::sleep(Duration::from_secs(6));
    world.backend.start_etcd();
    world.remove("c");
    world.add(&[pod("c", ONE, 65, H1)]);
    println!("one that came after all of that was reached after {:.1?}", world.until_reached("a", "c"));
    // A certificate that is exchanged.
    let before = processes_in(&world.pod("a").ns, "flanneld");
    world.backend.certify(ONE, world.pod("a").address);
    until("flanneld has the new certificate", NOTICED, || {
        let now = processes_in(&world.pod("a").ns, "flanneld");
        now.len() == 1 && now != before
    });
    stream.lost_nothing(started.elapsed() / 2, started);
    world.until_all_reach(&["a", "b", "c"]);
}

/// An etcd that comes back empty is filled again, and flanneld goes on from there.
fn an_etcd_that_lost_its_data_has_it_again(world: &mut World<Flannel>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2)]);
    world.until_all_reach(&["a", "b"]);
    let started = Instant::now();
    let stream = Stream::start(&world.pod("a").vm, &world.pod("b").vm, world.pod("b").ip());
    world.backend.etcd = None;
    fs::remove_dir_all(world.backend.folder.join("data")).unwrap();
    // For longer than from one look to the next, nothing is in it, and then nobody may ask.
    let long = Duration::from_secs(35);
    world.backend.start_new_etcd();
    std::thread::sleep(long);
    world.backend.as_root(async |root| auth::enable(&root).await).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert!(world.pod("a").reaches(world.pod("b")), "what is not known is taken for gone");
    world.backend.write(ONE);
    world.add(&[pod("c", ONE, 65, H3)]);
    let took = until("a reaches one that came since", NOTICED, || world.pod("a").reaches(world.pod("c")));
    println!("after another etcd a node was reached after {took:.1?}");
    stream.lost_nothing(started.elapsed() / 2, started);
}

/// A pod that has a dead sibling's address waits until that has no lease any more, and then has its own subnet.
fn an_inherited_address_brings_no_others_subnet(world: &mut World<Flannel>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2)]);
    world.until_all_reach(&["a", "b"]);
    // As a controller manager leaves it that is late: the sibling's lease names the address of b.
    let (ns, overlay, address) = {
        let b = world.pod("b");
        (b.ns.name().to_owned(), b.overlay.clone(), b.address)
    };
    let sibling = world.backend.config(ONE, 65, [10, 99, 0, 1].into()).node;
    let doubled = lease::key(ONE.name, sibling.subnet());
    let vtep = Lease::Vxlan(Vtep { public_ip: address, vni: ONE.vni, mac: sibling.vtep_mac() }).to_json();
    world.backend.containers.remove(&address);
    world.backend.as_root(async |root| {
        root.write(&[], &[Change::Put { key: &doubled, value: &vtep }]).await.unwrap();
    });
    world.backend.accompany(ONE, &ns, &overlay, address);
    until("it is told", FOLLOWED, || {
        world.backend.log(address).contains("which is leased to this VM pod's address as well")
    });
    assert!(processes_in(&world.pod("b").ns, "flanneld").is_empty(), "it starts nevertheless");
    assert!(world.pod("a").reaches(world.pod("b")), "what waits costs packets");
    world.backend.write(ONE);
    until("flanneld is started", FOLLOWED, || processes_in(&world.pod("b").ns, "flanneld").len() == 1);
    let file = world.backend.folder.join(address.to_string()).join("run/subnet.env");
    // Of the VTEP, which is the network's own address, flanneld says the next one.
    let own = format!("FLANNEL_SUBNET={}/30\n", overlay.node.router());
    until("it says that it has its own subnet", FOLLOWED, || {
        fs::read_to_string(&file).is_ok_and(|said| said.contains(&own))
    });
    world.until_all_reach(&["a", "b"]);
}

/// Of another node's pod, the overlay leads to the VM alone.
fn no_pod_is_reached_by_the_overlay(world: &mut World<Flannel>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2)]);
    world.until_all_reach(&["a", "b"]);
    let (a, b) = (world.pod("a"), world.pod("b"));
    let subnet = b.overlay.node.subnet();
    let listen = |ns: &Namespace, port: u16| ns.inside(|| TcpListener::bind(("0.0.0.0", port))).unwrap();
    let _in_the_pod = [6443, 8080].map(|port| listen(&b.ns, port));
    let _in_the_vm = listen(&b.vm, 8080);
    let connects = |to: Ipv4Addr, port: u16| {
        let to = SocketAddr::from((to, port));
        a.vm.inside(|| TcpStream::connect_timeout(&to, Duration::from_millis(500))).is_ok()
    };
    assert!(connects(b.ip(), 8080), "the VM is not reached");
    for to in [subnet.network(), b.router()] {
        for port in [6443, 8080] {
            assert!(!connects(to, port), "{to}:{port} is reached");
        }
    }
}

/// QEMU's user, who is all that a VM can become in its pod, reaches neither Flannel's etcd nor anything by flanneld's device. The
/// supervisor's user does: nothing but the rules stops the other. Which of them does is not asked: taking one away was not noticed.
fn qemu_is_kept_from_etcd_and_the_device(world: &mut World<Flannel>) {
    const SUPERVISOR: u32 = 0;
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2)]);
    world.until_all_reach(&["a", "b"]);
    let (a, b) = (world.pod("a"), world.pod("b"));

    let connects = |user: u32| a.ns.feed(user, "exec timeout 3 bash -c 'exec 3<>/dev/tcp/10.99.0.1/2379'", b"");
    assert!(connects(SUPERVISOR), "etcd is not there");
    assert!(!connects(QEMU), "QEMU's user reaches etcd");

    // To another node, and to where a user of a VM may go by the pod's own interface: a supervisor would never make that route.
    let (device, gateway) = (world.backend.device(ONE), b.overlay.node.subnet().network());
    a.ns.ip(&format!("route add {OUTSIDE}/32 via {gateway} dev {device} onlink"));
    let sent = || {
        let shown: serde_json::Value =
            serde_json::from_str(&a.ns.ip(&format!("-j -s link show dev {device}"))).unwrap();
        shown[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    // How many of ten packets leave by the device. Nobody else has anything to say there.
    let leave = |user: u32, to: Ipv4Addr, what: &str| {
        let before = sent();
        let script = format!("for n in 1 2 3 4 5 6 7 8 9 10; do echo -n '{what}' >/dev/udp/{to}/{PORT}; done");
        let _ = a.ns.feed(user, &script, b"");
        sent() - before
    };
    for to in [b.ip(), OUTSIDE] {
        assert_eq!(leave(QEMU, to, "from QEMU"), 0, "QEMU's user sends to {to} by {device}");
        let supervisors = leave(SUPERVISOR, to, "from the supervisor");
        assert!(supervisors >= 10, "of the supervisor's ten packets to {to} {supervisors} left by {device}");
    }
    until("the supervisor is heard", FOLLOWED, || b.heard(b"from the supervisor"));
    assert!(!b.heard(b"from QEMU"), "QEMU's user is heard");
    // It has a way out nevertheless, where it is its own.
    a.ns.ip(&format!("route del {OUTSIDE}/32"));
    let outside = Listener::start(&world.net, PORT, "outside");
    let _ = leave(QEMU, OUTSIDE, "well");
    until("QEMU's user is heard outside", FOLLOWED, || outside.heard(b"well"));
}

crate::conformance!(
    Flannel:
    nodes_reach_all_of_their_guest_and_nobody_else,
    forged_vxlan_is_not_taken,
    vms_and_qemu_send_no_vxlan,
    forged_sources_stay_at_home,
    each_node_has_its_own_gateway,
    packets_are_as_large_as_the_underlay_allows,
    a_way_that_is_too_narrow_is_told,
    nodes_come_and_go_and_move,
    what_does_not_answer_or_starts_again_loses_nothing,
    nothing_is_left_on_a_host,
);

#[test]
fn goes_and_comes_without_loss() {
    crate::world::run_in::<Flannel>(flanneld_and_its_etcd_go_and_come_without_loss);
}

#[test]
fn is_filled_again() {
    crate::world::run_in::<Flannel>(an_etcd_that_lost_its_data_has_it_again);
}

#[test]
fn waits_for_its_own_subnet() {
    crate::world::run_in::<Flannel>(an_inherited_address_brings_no_others_subnet);
}

#[test]
fn qemu_is_kept_away() {
    crate::world::run_in::<Flannel>(qemu_is_kept_from_etcd_and_the_device);
}

#[test]
fn pods_are_not_reached() {
    crate::world::run_in::<Flannel>(no_pod_is_reached_by_the_overlay);
}
