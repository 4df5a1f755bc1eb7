//! What is promised. Silence says little by itself: each case that expects it has also seen the same way carry something.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use giantnetes::{
    api::names::PATH_PORT,
    network::addresses::{GATEWAY_MAC, Mac},
    supervisor::{network::VXLAN_PORT, path_mtu::Narrow},
};
use rustix::process::Signal;

use crate::{
    dns::Mood,
    forged::{self, End},
    namespace::{Namespace, run, try_run, until},
    traffic::{Listener, PORT, Stream, send_whole},
    world::{
        Backend, FOLLOWED, Guest,
        Host::{H1, H2, H3},
        OUTSIDE, OVERHEAD, Pod, QEMU, World, pod,
    },
};

const ONE: Guest = Guest { name: "one", vni: 1234 };
/// Another guest with the same VNI: it cannot be, and would change nothing.
const TWIN: Guest = Guest { name: "twin", vni: 1234 };
const OTHER: Guest = Guest { name: "other", vni: 2345 };
/// The port of VXLAN by the standard, which Calico uses.
const STANDARD_VXLAN: u16 = 4789;

/// Guests with the same addresses, on the same hosts.
pub fn nodes_reach_all_of_their_guest_and_nobody_else<B: Backend>(world: &mut World<B>) {
    let guests = [(ONE, ["a1", "b1", "c1"]), (TWIN, ["a2", "b2", "c2"]), (OTHER, ["a3", "b3", "c3"])];
    let mut wishes = Vec::new();
    for (guest, [a, b, c]) in guests {
        wishes.extend([pod(a, guest, 10, H1), pod(b, guest, 64, H2), pod(c, guest, 65, H3)]);
    }
    // One that no other guest has, and two on one host.
    wishes.push(pod("d1", ONE, 66, H1));
    world.add(&wishes);
    for (_, names) in guests {
        world.until_all_reach(&names);
    }
    world.until_all_reach(&["a1", "b1", "c1", "d1"]);
    // Not even beside their own: each is answered by one of its guest, however often it asks.
    for (_, [a, b, c]) in guests {
        for (from, to) in [(a, b), (b, c), (c, a)] {
            let (from, to) = (world.pod(from), world.pod(to));
            from.vm.ip("neigh flush dev overlay");
            assert!(from.reaches(to), "{} asks for {} and is answered by another", from.wish.name, to.wish.name);
        }
    }
    let only_one_has = world.pod("d1").ip();
    let gone = world.pod("c1").ip();
    world.remove("c1");
    for (from, address) in
        [("a2", only_one_has), ("c2", only_one_has), ("a3", only_one_has), ("a1", gone), ("b1", gone)]
    {
        let from = world.pod(from);
        from.vm.ip("neigh flush dev overlay");
        assert_eq!(from.ask(address), None, "{} reaches another guest's node", from.wish.name);
    }
}

/// One that sends what its VM says to a pod of another guest, without being of its peers.
pub fn what_a_stranger_floods_is_not_taken<B: Backend>(world: &mut World<B>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2), pod("stranger", TWIN, 66, H3)]);
    world.until_all_reach(&["a", "b"]);
    let (device, victim) = (world.backend.device(TWIN), world.pod("a").address);
    let stranger = world.pod("stranger");
    // Its supervisor leaves that alone as long as its guest's pods are the same.
    stranger.ns.run(&format!("bridge fdb append 00:00:00:00:00:00 dev {device} dst {victim}"));
    stranger.ns.run(&format!("nft add element inet giantnetes peers {{ {victim} }}"));
    let packets = |pod: &Pod, way: &str| {
        let all: serde_json::Value =
            serde_json::from_str(&pod.ns.ip(&format!("-j -s link show dev {device}"))).unwrap();
        all[0]["stats64"][way]["packets"].as_u64().unwrap()
    };
    let (sent, taken) = (packets(stranger, "tx"), packets(world.pod("a"), "rx"));
    // Many at once: members, too, send something to all now and then, which is counted with it.
    let socket = stranger.vm.inside(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
    let base = u32::from(stranger.overlay.gateway.network());
    for n in 100..150 {
        let _ = socket.send_to(b"anybody?", (Ipv4Addr::from(base + n), PORT));
    }
    until("the stranger's questions are sent", FOLLOWED, || packets(stranger, "tx") - sent >= 100);
    assert_eq!(stranger.ask(world.pod("a").ip()), None);
    let (sent, taken) = (packets(stranger, "tx") - sent, packets(world.pod("a"), "rx") - taken);
    assert!(taken < sent / 4, "of a stranger's {sent} packets {taken} were taken");
    let taken = packets(world.pod("a"), "rx");
    world.until_reached("b", "a");
    assert!(packets(world.pod("a"), "rx") > taken, "a member's packets are not counted there");
}

/// A frame for the VM of `to` as its own guest's `from` would send it.
fn letter<B: Backend>(world: &World<B>, from: &str, to: &str, content: &str) -> Vec<u8> {
    let end = |name: &str| {
        let pod = world.pod(name);
        End { mac: world.backend.carried_to(pod.wish.place), ip: pod.ip() }
    };
    forged::datagram(end(from), end(to), PORT, content.as_bytes())
}

/// Root in a VM pod makes VXLAN packets by hand.
pub fn forged_vxlan_is_not_taken<B: Backend>(world: &mut World<B>) {
    world.add(&[
        pod("a", ONE, 10, H1),
        pod("b", ONE, 64, H2),
        pod("x", OTHER, 10, H1),
        pod("y", OTHER, 64, H3),
        pod("twin", TWIN, 65, H3),
    ]);
    world.until_all_reach(&["a", "b"]);
    world.until_all_reach(&["x", "y"]);
    // From whose pod, to whose pod, with whose network identifier.
    let forged = [
        ("x", "b", OTHER, "its own identifier, to another guest's pod"),
        ("x", "b", ONE, "another guest's identifier, to a pod of that"),
        ("twin", "b", ONE, "the same identifier, to another guest's pod"),
        ("a", "b", OTHER, "another guest's identifier, to its own peer"),
        ("a", "y", OTHER, "another guest's identifier, to a pod of that"),
        ("a", "y", ONE, "its own identifier, to another guest's pod"),
    ];
    for (from, to, guest, what) in forged {
        let packet = forged::vxlan(guest.vni, &letter(world, "a", "b", what));
        forged::send(&world.pod(from).ns, world.pod(to).address, VXLAN_PORT, &packet);
    }
    // A packet made this way is one: a peer's is taken, and arrives after those that were sent before it.
    for (from, to, guest) in [("a", "b", ONE), ("x", "y", OTHER)] {
        let packet = forged::vxlan(guest.vni, &letter(world, from, to, "a peer's"));
        forged::send(&world.pod(from).ns, world.pod(to).address, VXLAN_PORT, &packet);
        until("a peer's packet arrives", FOLLOWED, || world.pod(to).heard(b"a peer's"));
    }
    for name in ["a", "b", "x", "y", "twin"] {
        for (.., what) in forged {
            assert!(!world.pod(name).heard(what.as_bytes()), "{name} takes VXLAN with {what}");
        }
    }
}

/// Root in a VM, and QEMU's user in its pod, who is all that a VM can become there.
pub fn vms_and_qemu_send_no_vxlan<B: Backend>(world: &mut World<B>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2), pod("x", OTHER, 64, H3)]);
    world.until_all_reach(&["a", "b"]);
    const OPEN: u16 = 9999;
    let ports = [VXLAN_PORT, STANDARD_VXLAN, OPEN];
    let outside = ports.map(|port| Listener::start(&world.net, port, "outside"));
    let heard_outside = |content: &str| outside.iter().any(|listener| listener.heard(content.as_bytes()));
    let a = world.pod("a");
    let own_vxlan = |to: &str, content: &str| forged::vxlan(ONE.vni, &letter(world, "a", to, content));

    // The VM sends by the overlay to pods, to its own pod, and to the internet.
    for underlay in ["10.99.0.0/16".to_owned(), format!("{OUTSIDE}/32")] {
        a.vm.ip(&format!("route add {underlay} via {}", a.router()));
    }
    for port in [VXLAN_PORT, STANDARD_VXLAN] {
        for (to, letter_to) in [("a", "a"), ("b", "b"), ("x", "b")] {
            forged::send(&a.vm, world.pod(to).address, port, &own_vxlan(letter_to, "from the VM"));
        }
        forged::send(&a.vm, a.gateway(), port, &own_vxlan("a", "from the VM"));
    }
    for port in ports {
        forged::send(&a.vm, OUTSIDE, port, b"from the VM");
    }

    // QEMU's user sends to pods, among them its own, and to the internet.
    let from_qemu =
        |to: Ipv4Addr, port: u16, content: &[u8]| a.ns.feed(QEMU, &format!("exec cat >/dev/udp/{to}/{port}"), content);
    for port in [VXLAN_PORT, STANDARD_VXLAN] {
        for (to, letter_to) in [("a", "a"), ("b", "b"), ("x", "b")] {
            from_qemu(world.pod(to).address, port, &own_vxlan(letter_to, "from QEMU"));
        }
        from_qemu(OUTSIDE, port, b"from QEMU");
        from_qemu([127, 0, 0, 1].into(), port, &own_vxlan("a", "from QEMU"));
    }

    // It has a way out, and root in the pod has one to `b`: nothing but rules stops it.
    assert!(from_qemu(OUTSIDE, OPEN, b"well"), "QEMU's user has no way out");
    until("QEMU's user is heard outside", FOLLOWED, || outside[2].heard(b"well"));
    let root = own_vxlan("b", "from root");
    assert!(a.ns.feed(0, &format!("exec cat >/dev/udp/{}/{VXLAN_PORT}", world.pod("b").address), &root));
    until("root's packet arrives", FOLLOWED, || world.pod("b").heard(b"from root"));
    world.until_reached("a", "b");
    for content in ["from the VM", "from QEMU"] {
        assert!(!heard_outside(content), "what came {content} left the pod");
        for name in ["a", "b", "x"] {
            assert!(!world.pod(name).heard(content.as_bytes()), "{name} took what came {content}");
        }
    }
}

/// A VM that takes another's addresses is not heard.
pub fn forged_sources_stay_at_home<B: Backend>(world: &mut World<B>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2), pod("c", ONE, 65, H3)]);
    world.until_all_reach(&["a", "b", "c"]);
    let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
    // One that nobody has, one that somebody has, and the gateway's.
    let nobodys = Ipv4Addr::from(u32::from(a.overlay.gateway.broadcast()) - 1);
    let way = if a.overlay.flannel.is_some() { format!("via {}", a.router()) } else { String::new() };
    // Pods of a guest have addresses of their own on a segment; where nodes are routed, theirs are in packets of the nodes'.
    let pods = a.overlay.flannel.is_some().then_some(Ipv4Addr::new(10, 200, 0, 9));
    for taken in [nobodys, c.ip(), a.gateway()].into_iter().chain(pods) {
        a.vm.ip(&format!("addr add {taken}/32 dev overlay"));
        a.vm.ip(&format!("route add {}/32 {way} dev overlay src {taken}", b.ip()));
        let content = format!("from {taken}");
        let socket = a.vm.inside(|| std::net::UdpSocket::bind((taken, 0))).unwrap();
        socket.send_to(content.as_bytes(), (b.ip(), PORT)).unwrap();
        assert_eq!(a.ask(b.ip()), None, "{taken} is accepted");
        assert!(!b.heard(content.as_bytes()), "{taken} is heard");
        a.vm.ip(&format!("route del {}/32", b.ip()));
        a.vm.ip(&format!("addr del {taken}/32 dev overlay"));
        world.until_reached("a", "b");
    }
    for taken in [Mac([2, 0, 0, 0, 0x66, 0x66]), c.overlay.node.mac, GATEWAY_MAC] {
        a.vm.ip(&format!("link set overlay address {taken}"));
        assert_eq!(a.ask(b.ip()), None, "{taken} is accepted");
        a.vm.ip(&format!("link set overlay address {}", a.overlay.node.mac));
        world.until_reached("a", "b");
        world.until_reached("c", "b");
    }
}

/// Ethernet address that a VM has for an address.
fn neighbour(pod: &Pod, address: Ipv4Addr) -> Option<String> {
    let shown = pod.vm.ip(&format!("neigh show {address} dev overlay"));
    let mut words = shown.split_whitespace();
    words.find(|word| *word == "lladdr")?;
    words.next().map(str::to_owned)
}

/// A VM, or root in its pod, claims to have addresses of others.
pub fn forged_arp_convinces_nobody<B: Backend>(world: &mut World<B>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2), pod("c", ONE, 65, H3)]);
    world.until_all_reach(&["a", "b", "c"]);
    let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
    // The most credulous of nodes: it believes whatever it is told, and at once.
    c.vm.set("ipv4/conf/overlay/arp_accept", "1");
    c.vm.set("ipv4/neigh/overlay/locktime", "0");
    let gateway = c.gateway();
    let _ = c.ask(gateway);
    until("c knows its gateway", FOLLOWED, || neighbour(c, gateway).is_some());
    let before = [b.ip(), gateway].map(|address| neighbour(c, address));
    assert!(before.iter().all(Option::is_some), "{before:?}");
    let (own, told) = (a.overlay.node.mac, End { mac: c.overlay.node.mac, ip: c.ip() });

    let mut frames = Vec::new();
    for claimed in [b.ip(), gateway] {
        frames.extend(forged::claims(own, End { mac: own, ip: claimed }, &[told]));
        // With its own Ethernet address on the frame alone, and on the claim alone.
        frames.extend(forged::claims(own, End { mac: Mac([2, 0, 0, 0, 0x66, 0x66]), ip: claimed }, &[told]));
        frames.extend(forged::claims(b.overlay.node.mac, End { mac: own, ip: claimed }, &[told]));
    }
    forged::send_frames(&a.vm, "overlay", &frames);
    // Its own address it may claim, and a claim made this way is one: c forgets, and knows again.
    c.vm.ip(&format!("neigh flush to {}", a.ip()));
    let claims = forged::claims(own, End { mac: own, ip: a.ip() }, &[told]);
    until("a true claim is believed", FOLLOWED, || {
        forged::send_frames(&a.vm, "overlay", &claims);
        neighbour(c, a.ip()) == Some(own.to_string())
    });
    let after = [b.ip(), gateway].map(|address| neighbour(c, address));
    assert_eq!(after, before, "c believes a VM");
    assert!(c.reaches(b));

    // The gateway is nobody's but the pod's own, not even a peer's whose rules are broken.
    for frame in forged::claims(own, End { mac: own, ip: gateway }, &[told]) {
        forged::send(&a.ns, c.address, VXLAN_PORT, &forged::vxlan(ONE.vni, &frame));
    }
    let packet = forged::vxlan(ONE.vni, &letter(world, "a", "c", "after it"));
    forged::send(&a.ns, c.address, VXLAN_PORT, &packet);
    until("a peer's packet arrives", FOLLOWED, || c.heard(b"after it"));
    assert_eq!(neighbour(c, gateway), before[1], "c believes a peer's pod");
    assert!(c.reaches(b));
}

/// The gateway's address is on every VM pod, and nothing of it crosses the overlay.
pub fn each_node_has_its_own_gateway<B: Backend>(world: &mut World<B>) {
    const API: u16 = 6443;
    const SUPERVISOR: u16 = 8080;
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2)]);
    world.until_all_reach(&["a", "b"]);
    let listen = |name: &str, port: u16| {
        let listener = world.pod(name).ns.inside(|| TcpListener::bind(("0.0.0.0", port))).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let connects = |name: &str, to: Ipv4Addr, port: u16| {
        let to = SocketAddr::from((to, port));
        world.pod(name).vm.inside(|| TcpStream::connect_timeout(&to, Duration::from_millis(500))).is_ok()
    };
    let _supervisors = ["a", "b"].map(|name| listen(name, SUPERVISOR));
    let [at_a, at_b] = ["a", "b"].map(|name| listen(name, API));
    for (name, own, others) in [("a", &at_a, &at_b), ("b", &at_b, &at_a)] {
        let gateway = world.pod(name).gateway();
        assert!(connects(name, gateway, API), "{name} does not reach the API at its gateway");
        assert!(own.accept().is_ok() && others.accept().is_err(), "{name} reaches another's gateway");
        assert!(!connects(name, gateway, SUPERVISOR), "{name} reaches its supervisor");
    }
    // Nor any other address of a pod.
    let a = world.pod("a");
    a.vm.ip(&format!("route add 10.99.0.0/16 via {}", a.router()));
    for to in ["a", "b"].map(|name| world.pod(name).address) {
        assert!(!connects("a", to, API), "a VM reaches {to}");
    }
}

/// A value of a namespace's counters of IP.
fn counter(ns: &Namespace, name: &str) -> u64 {
    let text = ns.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split(' ').position(|word| word == name).unwrap();
    values.split(' ').nth(place).unwrap().parse().unwrap()
}

pub fn packets_are_as_large_as_the_underlay_allows<B: Backend>(world: &mut World<B>) {
    for (underlay, names) in [(1500, ["a", "b"]), (1400, ["c", "d"])] {
        let guest = if underlay == 1500 { ONE } else { OTHER };
        let mut pods = [pod(names[0], guest, 10, H1), pod(names[1], guest, 64, H2)];
        pods.iter_mut().for_each(|pod| pod.underlay = underlay);
        world.add(&pods);
        let (from, to, limit) = (world.pod(names[0]), world.pod(names[1]), underlay - OVERHEAD);
        assert_eq!((from.mtu, to.mtu), (limit, limit));
        world.until_all_reach(&names);
        // A VM that does not keep to it. The smaller one is sent later, so the larger one would be there before it.
        from.vm.ip(&format!("link set overlay mtu {underlay}"));
        let larger = send_whole(&from.vm, to.ip(), limit + 1);
        let largest = send_whole(&from.vm, to.ip(), limit);
        until(&format!("{limit} bytes arrive"), FOLLOWED, || to.heard(&largest));
        assert!(!to.heard(&larger), "{} bytes arrive", limit + 1);
        // Nor does the underlay take anything apart, which is slow, and which many do not carry.
        for ns in [&from.ns, &to.ns, world.host(H1), world.host(H2)] {
            assert_eq!((counter(ns, "FragCreates"), counter(ns, "ReasmReqds")), (0, 0), "{}", ns.name());
        }
    }
    // What the user asks for.
    let mut wish = pod("less", ONE, 65, H3);
    wish.mtu = Some(1300);
    world.add(&[wish]);
    assert_eq!(world.pod("less").mtu, 1300);
    let mut wish = pod("more", ONE, 66, H3);
    wish.mtu = Some(1451);
    let error = world.refused(wish);
    assert!(error.contains("asks for 1451") && error.contains("leaves 1450"), "{error}");
    let mut wish = pod("narrow", ONE, 67, H3);
    // Pods' packets are in VXLAN once more where nodes are routed.
    wish.underlay = if world.pod("a").overlay.flannel.is_some() { 1379 } else { 1329 };
    let error = world.refused(wish);
    assert!(error.contains(&format!("MTU of {}", wish.underlay)), "{error}");
}

/// How long a way may take to be tried twice and measured, on a busy machine.
const MEASURED: Duration = Duration::from_secs(120);

/// A network that carries less than pods' interfaces promise is told by those who send over it, whether it says so or not.
pub fn a_way_that_is_too_narrow_is_told<B: Backend>(world: &mut World<B>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2), pod("c", ONE, 65, H3), pod("x", OTHER, 10, H2)]);
    world.until_all_reach(&["a", "b", "c"]);
    let [a, b, c] = ["a", "b", "c"].map(|name| world.pod(name).address);
    // A bridge may carry four bytes more than it is told, for a VLAN's tag: it depends on its filters.
    let knows = |world: &World<B>, name: &str, whole: usize, narrow: &[Ipv4Addr]| {
        let (wide, ways) = world.ways(name);
        let is_told = |(way, peer): (&Narrow, &Ipv4Addr)| {
            way.peer == *peer && way.size == 1500 && (1400..=1404).contains(&way.passes)
        };
        wide == whole && ways.len() == narrow.len() && ways.iter().zip(narrow).all(is_told)
    };
    let all_whole = |world: &World<B>| ["a", "b", "c"].iter().all(|name| knows(world, name, 2, &[]));
    let took = until("all ways are wide", MEASURED, || all_whole(world));
    println!("all ways were tried after {took:.1?}");

    // A switch that drops what is larger, and says nothing.
    world.net.ip("link set dev h2 mtu 1400");
    let took = until("ways to and from b are too narrow", MEASURED, || {
        knows(world, "a", 1, &[b]) && knows(world, "c", 1, &[b]) && knows(world, "b", 0, &[a, c])
    });
    println!("a silent loss was told after {took:.1?}");
    // One that went is at no end of a way, and one that comes finds the way as it is.
    world.remove("c");
    until("the way to c is forgotten", MEASURED, || knows(world, "b", 0, &[a]));
    world.add(&[pod("c", ONE, 65, H3)]);
    let c = world.pod("c").address;
    until("the way to the new c is known", MEASURED, || knows(world, "b", 0, &[a, c]));
    world.net.ip("link set dev h2 mtu 1500");
    let took = until("all ways are wide again", MEASURED, || all_whole(world));
    println!("its end was told after {took:.1?}");

    // A router that says so, and takes apart what may be: VXLAN comes over in pieces.
    world.host(H2).ip("link set dev uplink mtu 1400");
    until("ways from b are too narrow", MEASURED, || knows(world, "b", 0, &[a, c]));
    world.host(H2).ip("link set dev uplink mtu 1500");
    until("all ways are wide at last", MEASURED, || all_whole(world));

    // Who says nothing is not taken for a narrow way.
    world.pod("c").signal(Signal::STOP);
    let quiet = Duration::from_secs(8);
    let started = Instant::now();
    while started.elapsed() < quiet {
        for name in ["a", "b"] {
            assert_eq!(world.ways(name).1, [], "{name} takes silence for a narrow way");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    world.pod("c").signal(Signal::CONT);
    // Nor is anybody else answered.
    let asked = world.pod("x").ns.inside(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.send_to(b"g8s-size", (b, PATH_PORT)).unwrap();
        socket.recv(&mut [0; 64])
    });
    assert!(asked.is_err(), "another guest's pod is answered");
}

/// What a pod's kernel holds of others: to whom it sends, and from whom it takes something.
fn peers<B: Backend>(world: &World<B>, name: &str) -> [BTreeSet<Ipv4Addr>; 2] {
    [world.sent_to(name), world.pod(name).taken_from()]
}

pub fn nodes_come_and_go_and_move<B: Backend>(world: &mut World<B>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2), pod("c", ONE, 65, H2)]);
    world.until_all_reach(&["a", "b", "c"]);
    let b = world.pod("b").address;
    let (before, ip) = (world.pod("c").address, world.pod("c").ip());

    world.remove("c");
    for name in ["a", "b"] {
        let took = until("c is forgotten", FOLLOWED, || peers(world, name).iter().all(|all| !all.contains(&before)));
        println!("{name} forgot one that went after {took:.1?}");
    }
    assert_eq!(world.pod("a").ask(ip), None);

    // On another host, with another address of its pod: as the same node. Only `a` speaks: it has to be sent after `c`, not
    // the other way round.
    world.add(&[pod("c", ONE, 65, H3)]);
    let after = world.pod("c").address;
    assert!(after != before && world.pod("c").ip() == ip);
    println!("one that came back elsewhere was reached after {:.1?}", world.until_reached("a", "c"));

    // At once, before anybody has noticed that it went.
    world.until_all_reach(&["a", "b", "c"]);
    world.remove("c");
    world.add(&[pod("c", ONE, 65, H1)]);
    println!("one that moved was reached after {:.1?}", world.until_reached("b", "c"));
    world.until_all_reach(&["a", "b", "c"]);
    let moved = world.pod("c").address;
    until("a has b and c alone", FOLLOWED, || peers(world, "a").iter().all(|all| *all == [b, moved].into()));

    // The server forgets everybody: an answer that does not know us takes nobody away.
    let stream = Stream::start(&world.pod("a").vm, &world.pod("c").vm, ip);
    let (started, known) = (Instant::now(), peers(world, "a"));
    world.dns.is(Mood::KnowsNobody);
    // Longer than the time between two questions.
    let asked = Duration::from_secs(3);
    std::thread::sleep(asked);
    assert_eq!(peers(world, "a"), known);
    stream.lost_nothing(asked, started);
    world.dns.is(Mood::Well);
}

/// The kernel carries packets, whatever is with the processes that tell it where to.
pub fn what_does_not_answer_or_starts_again_loses_nothing<B: Backend>(world: &mut World<B>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2), pod("c", ONE, 65, H3)]);
    world.until_all_reach(&["a", "b", "c"]);
    let (started, long) = (Instant::now(), Duration::from_secs(3));
    let stream = Stream::start(&world.pod("a").vm, &world.pod("b").vm, world.pod("b").ip());

    // DNS is silent for longer than a question may take.
    world.dns.is(Mood::Silent);
    std::thread::sleep(long);
    world.dns.is(Mood::Well);
    // Supervisors stand still, while another node goes and comes back with another address.
    for name in ["a", "b"] {
        world.pod(name).signal(Signal::STOP);
    }
    world.remove("c");
    world.add(&[pod("c", ONE, 65, H1)]);
    std::thread::sleep(long);
    for name in ["a", "b"] {
        world.pod(name).signal(Signal::CONT);
    }
    println!("one that came meanwhile was reached after {:.1?}", world.until_reached("a", "c"));
    // Another supervisor starts again and again. Its VM ends with it, and its network is set up anew.
    for _ in 0..3 {
        world.restart("c");
        println!("one that started again was reached after {:.1?}", world.until_reached("a", "c"));
        world.until_reached("c", "b");
    }
    // Supervisors are dead, as long as nobody starts them again.
    for name in ["a", "b"] {
        world.pod(name).signal(Signal::KILL);
    }
    std::thread::sleep(long);
    stream.lost_nothing(long * 3, started);
    for name in ["a", "b"] {
        world.restart(name);
    }
    world.until_all_reach(&["a", "b", "c"]);
}

/// What a namespace has, without what it knows of these addresses.
fn inventory(ns: &Namespace, without: &[Ipv4Addr]) -> String {
    let neighbours = ns.ip("neigh show");
    // Whether an entry is fresh is no matter.
    let neighbours = neighbours.lines().filter_map(|line| line.split_once(" lladdr ").map(|(entry, _)| entry));
    let others = |entry: &&str| !without.iter().any(|address| entry.starts_with(&format!("{address} ")));
    let mut neighbours: Vec<_> = neighbours.filter(others).collect();
    neighbours.sort_unstable();
    let shown =
        ["-o link", "-o addr", "rule", "route show table all", "-o -d link show type vxlan"].map(|what| ns.ip(what));
    let rules = ns.run("nft list ruleset");
    format!("{}\n{rules}\n{}\n{}", shown.join("\n"), ns.run("bridge fdb show"), neighbours.join("\n"))
}

pub fn nothing_is_left_on_a_host<B: Backend>(world: &mut World<B>) {
    world.add(&[pod("a", ONE, 10, H1), pod("b", ONE, 64, H2), pod("c", ONE, 65, H3)]);
    world.until_all_reach(&["a", "b", "c"]);
    let before = inventory(world.host(H1), &[]);
    world.add(&[pod("d", ONE, 66, H1), pod("x", OTHER, 10, H1), pod("y", OTHER, 64, H3)]);
    world.until_all_reach(&["a", "b", "c", "d"]);
    world.until_all_reach(&["x", "y"]);
    let pods = ["d", "x"].map(|name| world.pod(name).address);
    assert_ne!(inventory(world.host(H1), &pods), before, "nothing is seen of pods");
    for name in ["d", "x", "y"] {
        world.remove(name);
    }
    // The kernel takes namespaces apart after they are gone.
    let same = || inventory(world.host(H1), &pods) == before;
    let start = Instant::now();
    while !same() && start.elapsed() < FOLLOWED {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(inventory(world.host(H1), &pods), before);
    world.until_all_reach(&["a", "b", "c"]);
    // Nor is anything of it in the namespace of who starts pods, which here is the machine's own.
    for guest in [ONE, OTHER] {
        let device = world.backend.device(guest);
        assert!(!try_run(&format!("ip link show dev {device}")).0, "{device} was left on the machine");
    }
    assert!(!run("nft list tables").contains("giantnetes"), "rules were left on the machine");
}
