//! What keeps a guest in its place, tried by who is root in its VMs: steps of tests of guests, whatever their overlay.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lab::{Lab, command::Run, wait_for};
use serde_json::Value;

use super::{
    Guest, SYSTEM, patience,
    processes::{Process, tied},
    workload::in_node,
};

const MINUTE: Duration = Duration::from_secs(60);
/// The same address on every VM pod, seen from its VM.
const GATEWAY: &str = "172.26.0.1";

/// How a guest's nodes are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    Native,
    Flannel,
}

impl Overlay {
    /// Address of node `master-0`.
    fn master(self) -> &'static str {
        match self {
            Self::Native => "172.26.0.10",
            Self::Flannel => "172.26.0.42",
        }
    }

    /// Its VM pod, as its neighbour.
    fn router(self) -> &'static str {
        match self {
            Self::Native => GATEWAY,
            Self::Flannel => "172.26.0.41",
        }
    }

    /// The VXLAN device of its VM pod.
    fn device(self, vni: u64) -> String {
        match self {
            Self::Native => format!("vx{vni}"),
            Self::Flannel => format!("flannel.{vni}"),
        }
    }

    /// What serves this overlay in the management cluster, by its Service and its pod.
    fn servers(self, lab: &Lab) -> Result<Vec<(String, u16)>> {
        if self == Self::Native {
            return Ok(Vec::new());
        }
        let of =
            |object: &str, path: &str| lab.kubectl(&["-n", SYSTEM, "get", object, "-o", &format!("jsonpath={path}")]);
        let service = of("service/giantnetes-flannel-etcd", "{.spec.clusterIP}")?;
        let pod = of("pod/giantnetes-flannel-etcd-0", "{.status.podIP}")?;
        ensure!(!pod.is_empty(), "Flannel's etcd has no address");
        // A Service without a head has no address of its own.
        let addresses = [service, pod.clone(), pod];
        let all = addresses.into_iter().zip([2379, 2379, 2381]);
        Ok(all.filter(|(address, _)| !address.is_empty() && address != "None").collect())
    }
}

/// A pod with every right over the first node: what a tenant who is root in a VM can do.
const ROOT_IN_VM: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": {"nodeName": "master-0",
  "hostNetwork": true, "hostPID": true, "terminationGracePeriodSeconds": 0,
  "containers": [{"name": "root", "image": "giantnetes/toolbox:1", "imagePullPolicy": "Never",
    "command": ["sleep", "86400"], "securityContext": {"privileged": true}}]}}"#;

/// The machine on the bridge of the lab's hosts: the one private address that the chart's values open to guests.
const MACHINE: &str = "10.231.0.1";

/// Root in the VM of `master-0` reaches of its VM pod, of the management cluster and of others no more than designed. Leaves the
/// pod `root` there.
pub fn is_held_in_place(lab: &Lab, guest: &Guest, overlay: Overlay) -> Result<()> {
    guest.kubectl_input(&["apply", "-f", "-"], ROOT_IN_VM)?;
    guest.kubectl(&["wait", "--for=condition=Ready", "pod/root", "--timeout=180s"])?;
    let pod_address =
        lab.kubectl(&["-n", &guest.home()?, "get", "pod", "master-0", "-o", "jsonpath={.status.podIP}"])?;
    let url = format!("http://{pod_address}:8080/status");
    // The pod's own host reaches it, as kubelet's probes must; the policy keeps everybody else out.
    let host = lab.kubectl(&["-n", &guest.home()?, "get", "pod", "master-0", "-o", "jsonpath={.spec.nodeName}"])?;
    let host = lab::topology::HOSTS.iter().find(|known| known.name() == host).context("a host of the lab")?;
    let curl = || Run::line("ip netns exec").args([host.room.netns()]).args(["curl", "-sS", "-m", "5", &url]);
    let status: Value = serde_json::from_str(&curl().output().context("the supervisor answers its host")?)?;
    ensure!(!Run::new("curl").args(["-sS", "-m", "5", &url]).succeeds(), "the supervisor answers everybody");
    println!("    {status}");
    // The chart is installed without the device plugin, so no VM pod has the device.
    let reason = status["acceleratorReason"].as_str().unwrap_or_default();
    ensure!(status["accelerator"] == "TCG" && reason.contains("there is no /dev/kvm"), "{status}");

    // An exec that fails says nothing about a port.
    let reach = |address: &str, port: u16| -> Result<bool> {
        let connect = format!("nc -w 4 {address} {port} -e true 2>&1; echo exit=$?");
        let said = guest.kubectl(&["exec", "root", "--", "sh", "-c", &connect])?;
        match said.trim().rsplit_once("exit=") {
            Some((_, "0")) => Ok(true),
            Some((_, "1")) => Ok(false),
            _ => bail!("nc to {address}:{port} said {said:?}"),
        }
    };
    // What must work, or the rest would prove nothing: the same tool, to the API through the gateway.
    ensure!(reach(GATEWAY, 6443)?, "the gateway's API port is closed");
    ensure!(reach(overlay.master(), 6443)?, "the node does not reach itself");
    // And by the way out, over which the closed addresses are tried: what the operator's settings opened.
    let opened = std::net::TcpListener::bind((MACHINE, 0))?;
    let accepting = opened.try_clone()?;
    std::thread::spawn(move || accepting.incoming().for_each(drop));
    ensure!(reach(MACHINE, opened.local_addr()?.port())?, "the way out is closed");
    let api_server = lab::topology::CONTROL.address.to_string();
    let closed = [
        // The management cluster: its API's Service and address, Vault, kubelet, CoreDNS, the ingress controller.
        ("10.233.0.1", 443),
        (api_server.as_str(), 6443),
        (api_server.as_str(), lab::vault::PORT),
        ("10.231.0.11", 10250),
        ("10.231.0.13", 10250),
        ("10.233.0.10", 53),
        ("10.233.0.20", 443),
        ("10.0.2.2", 8080),
        ("10.0.2.2", 6443),
        (pod_address.as_str(), 8080),
        (pod_address.as_str(), 6443),
        (GATEWAY, 8080),
    ];
    let closed = closed.map(|(address, port)| (address.to_owned(), port)).into_iter().chain(overlay.servers(lab)?);
    for (address, port) in closed {
        ensure!(!reach(&address, port)?, "{address}:{port} is open to the guest");
    }
    // Past the route over the way out: the bridge is the other way to the pod's own addresses.
    guest.kubectl(&["exec", "root", "--", "ip", "route", "add", &pod_address, "via", overlay.router()])?;
    for port in [8080, 6443] {
        ensure!(!reach(&pod_address, port)?, "{pod_address}:{port} is open to the guest over the bridge");
    }
    guest.kubectl(&["exec", "root", "--", "ip", "route", "del", &pod_address])?;
    // Packets for other pods' VXLAN ports do not leave; the same tool to another port does.
    for (port, open) in [(8473_u16, true), (8472, false)] {
        let listener = std::net::UdpSocket::bind((MACHINE, port))?;
        listener.set_read_timeout(Some(Duration::from_secs(3)))?;
        // The one client of the toolbox that speaks UDP to a port of choice; nobody has to answer.
        let send = format!("timeout 3 tftp -g -l /tmp/x -r x {MACHINE} {port}");
        guest.kubectl(&["exec", "root", "--", "sh", "-c", &format!("{send}; true")])?;
        let came = listener.recv(&mut [0; 16]).is_ok();
        ensure!(
            came == open,
            "a packet for UDP port {port} {} the management network",
            if came { "reached" } else { "did not reach" }
        );
    }
    // Another's address: the bridge lets only the node's own through.
    guest.kubectl(&["exec", "root", "--", "ip", "address", "add", "172.26.0.77/32", "dev", "lo"])?;
    let spoofed = guest.kubectl(&["exec", "root", "--", "ping", "-c", "1", "-W", "2", "-I", "172.26.0.77", GATEWAY]);
    ensure!(
        guest.kubectl(&["exec", "root", "--", "ping", "-c", "1", "-W", "2", GATEWAY]).is_ok(),
        "no ping to the gateway"
    );
    ensure!(spoofed.is_err(), "a spoofed address got an answer");
    Ok(())
}

/// Another guest of this spec, with an overlay of the same kind and the same addresses inside, and whoever is root in the VM of
/// `default-0`, where a pod of [`super::workload::ROOT_ON_EVERY_NODE`] runs: nothing of one leads to the other.
pub fn is_apart(lab: &Lab, guest: &Guest, overlay: Overlay, spec: &str) -> Result<()> {
    let other = Guest::create(lab, "e2e-other", "other", spec);
    // Its API answers and its node is on its overlay: what could be reached is there.
    other.await_condition(patience(), "ControlPlaneReady", "True")?;
    let home = other.home()?;
    let in_other = |command: &str| lab.kubectl(&["-n", &home, "exec", "master-0", "--", "sh", "-c", command]);
    let pod = lab.kubectl(&["-n", &home, "get", "pod", "master-0", "-o", "jsonpath={.status.podIP}"])?;
    let vni = other.object()?["status"]["vni"].as_u64().context("a guest without a VNI")?;

    // A command that does not get into the node says nothing about a port.
    let reach = |address: &str, port: u16| -> Result<bool> {
        let connect = format!(
            "python3 -c \"import socket; socket.create_connection(('{address}', {port}), 4)\" 2>/dev/null; echo exit=$?"
        );
        match in_node(guest, "default-0", &connect)?.trim() {
            "exit=0" => Ok(true),
            "exit=1" => Ok(false),
            said => bail!("a connection to {address}:{port} said {said:?}"),
        }
    };
    // What must work, or the rest would prove nothing.
    ensure!(reach(GATEWAY, 6443)? && reach(overlay.master(), 10250)?, "the node reaches nothing at all");
    let service = lab.kubectl(&["-n", &home, "get", "service", "master", "-o", "jsonpath={.spec.clusterIP}"])?;
    let mut closed = vec![(pod.clone(), 6443), (pod.clone(), 8080), (service, 6443), ("10.233.0.1".into(), 443)];
    // The lab's etcd listens on its loopback device alone: in its place something that does not.
    let _etcd = listener(ETCD)?;
    closed.extend([ETCD.port(), 6443, lab::vault::PORT].map(|port| ("10.231.0.2".into(), port)));
    closed.extend(["10.231.0.11", "10.231.0.12", "10.231.0.13"].map(|host| (host.to_owned(), 10250)));
    closed.extend([6443, 8080].map(|port| ("10.0.2.2".into(), port)));
    closed.extend(overlay.servers(lab)?);
    for (address, port) in &closed {
        ensure!(!reach(address, *port)?, "{address}:{port} is open to a guest");
    }

    // VXLAN with the other's VNI, to its VM pod: over the way out, and over the guest's own overlay.
    let (device, master) = (overlay.device(vni), overlay.master());
    let received = || -> Result<u64> {
        let count = in_other(&format!("cat /sys/class/net/{device}/statistics/rx_packets"))?;
        Ok(count.trim().parse()?)
    };
    let before = received()?;
    for way in ["egress", "overlay"] {
        let forge = format!(
            "ip link add forged type vxlan id {vni} remote {pod} dstport 8472 dev {way} && \
             ip address add 172.26.9.9/32 dev forged && ip link set forged up && \
             ip route add {master}/32 dev forged table 99 && ip rule add from 172.26.9.9 table 99; \
             ping -c 3 -W 1 -I 172.26.9.9 {master}; ip -s link show forged; \
             ip rule del from 172.26.9.9; ip link del forged"
        );
        let said = in_node(guest, "default-0", &forge)?;
        ensure!(said.contains("100% packet loss"), "the other guest answers a forged packet: {said}");
        ensure!(sent(&said) > 0, "nothing was forged: {said}");
    }
    ensure!(received()? == before, "forged packets reached the other guest's overlay");
    let gone = other.delete(MINUTE * 3)?;
    println!("    the other guest is gone after {gone:.1?}");
    Ok(())
}

/// Where the management cluster's etcd would listen.
const ETCD: SocketAddr = SocketAddr::new(IpAddr::V4(lab::topology::CONTROL.address), 2379);

/// Takes connections at an address of the management cluster's control plane, until it is dropped.
fn listener(at: SocketAddr) -> Result<Process> {
    let serve =
        format!("import socket\ns = socket.create_server(('{}', {}))\nwhile True: s.accept()", at.ip(), at.port());
    let room = lab::topology::CONTROL.netns();
    let listener = Process(tied("ip").args(["netns", "exec", &room, "python3", "-c", &serve]).spawn()?);
    // From the machine it is reached, or that a guest does not reach it would prove nothing.
    wait_for(MINUTE, "a connection from the machine", || {
        Ok(std::net::TcpStream::connect_timeout(&at, Duration::from_secs(2))?)
    })?;
    Ok(listener)
}

/// Packets that a device has sent, as `ip -s link show` says it.
fn sent(said: &str) -> u64 {
    let mut lines = said.lines().skip_while(|line| !line.trim_start().starts_with("TX:"));
    let counts = lines.nth(1).unwrap_or_default();
    counts.split_whitespace().nth(1).and_then(|packets| packets.parse().ok()).unwrap_or(0)
}
