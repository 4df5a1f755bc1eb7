//! The VM's network inside the pod's network namespace, and the rules that hold the guest in its place.
//!
//! ```text
//!  eth0 (the pod's) ── udp/8472 ── vx<VNI> ─┐
//!                                           br0 .1 ── tap0 ── QEMU ── the guest's first interface
//!  eth0 ── QEMU's own connections (user-mode network) ──────── QEMU ── the guest's second interface, its way out
//! ```
//!
//! [`commands`] and [`rules`] are pure; [`set_up`] runs them with `ip` and `nft` of the image. The other VM pods of the guest
//! come and go: [`super::peers`] follows them.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    QEMU_ID,
    config::{OverlayConfig, PeersConfig},
};
use crate::{api::names::API_PORT, network::addresses::GATEWAY_MAC};

/// UDP port of VXLAN: the kernel's and Flannel's.
pub const VXLAN_PORT: u16 = 8472;
/// What VXLAN over IPv4 adds to each packet.
const VXLAN_OVERHEAD: u32 = 50;
/// Smallest MTU that a guest can live with: IPv6's minimum.
const LEAST_MTU: u32 = 1280;
/// The pod's interface, as every CNI calls it.
pub(super) const INTERFACE: &str = "eth0";
const TAP: &str = "tap0";
const BRIDGE: &str = "br0";
/// The nftables set of the addresses of the guest's other VM pods.
pub(super) const PEERS: &str = "peers";
const TIMEOUT: Duration = Duration::from_secs(20);

/// Priority of the rules on the bridge. Where the host filters bridged packets (br_netfilter), its hooks at priority 0 take IP
/// packets out of the bridge's own chains, and rules at 0 would never see them.
const BEFORE_BRIDGE_FILTER: i32 = -200;
/// Private ranges: the management cluster's own addresses lie in them.
const PRIVATE: &str = "10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16";

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program failed.
    #[error("run `{program}`: {message}")]
    Command {
        /// `ip`, `bridge` or `nft`.
        program: &'static str,
        /// What it said.
        message: String,
    },
    /// The tap device.
    #[error("make tap device {TAP} (does the pod have /dev/net/tun and NET_ADMIN?)")]
    Tap(#[source] std::io::Error),
    /// The pod's interface is too small.
    #[error("the pod's interface has an MTU of {0}, which leaves the guest less than {LEAST_MTU}")]
    Mtu(u32),
    /// The user asked for larger packets than fit.
    #[error(
        "spec.network.overlay.mtu asks for {wanted}, and the pod's interface leaves {possible}; ask for that at most"
    )]
    MtuTooLarge {
        /// What is asked for.
        wanted: u32,
        /// What VXLAN leaves of the interface's.
        possible: u32,
    },
    /// The pod's interface cannot be read.
    #[error("read the MTU of the pod's interface")]
    ReadMtu(#[source] std::io::Error),
}

/// A network that is set up.
#[derive(Debug)]
pub struct Network {
    /// The guest's end of the bridge, for QEMU to inherit.
    pub tap: OwnedFd,
    /// MTU of the overlay.
    pub mtu: u32,
}

/// Sets everything up. May run again in the same pod, after a restart of its container.
///
/// # Errors
/// [`Error`]
pub async fn set_up(overlay: &OverlayConfig, pod_address: IpAddr) -> Result<Network, Error> {
    let pod_mtu = std::fs::read_to_string(format!("/sys/class/net/{INTERFACE}/mtu")).map_err(Error::ReadMtu)?;
    let mtu = overlay_mtu(&pod_mtu, overlay.mtu)?;
    // Whatever a former life of this container left: the devices, then the rules (whose table `nft` replaces as a whole).
    for device in [BRIDGE.to_owned(), vxlan_name(overlay.vni), TAP.to_owned()] {
        let _ = run("ip", &["link", "delete", &device], "").await;
    }
    // The guest asks the resolvers of its pod, and no other inside the management cluster.
    let resolvers = nameservers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    run("nft", &["-f", "-"], &rules(overlay, pod_address, &resolvers)).await?;
    let tap = make_tap()?;
    run("ip", &["-batch", "-"], &commands(overlay, pod_address, mtu)).await?;
    Ok(Network { tap, mtu })
}

fn overlay_mtu(pod_mtu: &str, wanted: Option<u32>) -> Result<u32, Error> {
    let pod_mtu: u32 = pod_mtu.trim().parse().unwrap_or(0);
    let possible = pod_mtu.checked_sub(VXLAN_OVERHEAD).filter(|mtu| *mtu >= LEAST_MTU).ok_or(Error::Mtu(pod_mtu))?;
    match wanted {
        Some(wanted) if wanted > possible => Err(Error::MtuTooLarge { wanted, possible }),
        wanted => Ok(wanted.unwrap_or(possible)),
    }
}

fn make_tap() -> Result<OwnedFd, Error> {
    use std::os::fd::AsFd as _;
    let device = tun_rs::DeviceBuilder::new()
        .name(TAP)
        .layer(tun_rs::Layer::L2)
        .with(|options| {
            // QEMU's virtio-net wants the virtio header on every packet: that is what makes segmentation offload work.
            options.offload(true);
        })
        .build_sync()
        .map_err(Error::Tap)?;
    device.as_fd().try_clone_to_owned().map_err(Error::Tap)
}

/// IPv4 addresses of the resolvers that a `resolv.conf` names.
fn nameservers(resolv_conf: &str) -> Vec<Ipv4Addr> {
    let addresses = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    addresses.filter_map(|address| address.trim().parse().ok()).collect()
}

/// Name of the VXLAN device.
pub(super) fn vxlan_name(vni: u32) -> String {
    format!("vx{vni}")
}

/// Lines for `ip -batch`.
fn commands(overlay: &OverlayConfig, pod_address: IpAddr, mtu: u32) -> String {
    let (vxlan, gateway) = (vxlan_name(overlay.vni), overlay.gateway);
    format!(
        "\
link add {BRIDGE} address {GATEWAY_MAC} mtu {mtu} type bridge
link add {vxlan} mtu {mtu} type vxlan id {vni} local {pod_address} dstport {VXLAN_PORT} learning
link set {vxlan} master {BRIDGE} up
link set {TAP} mtu {mtu} master {BRIDGE} up
link set {BRIDGE} up
address add {gateway} dev {BRIDGE}
",
        vni = overlay.vni,
    )
}

/// The nftables rules.
///
/// QEMU's user-mode network turns 10.0.2.2 into the pod's loopback, so nothing that QEMU's user sends may go to an address
/// of the pod, to another pod's VXLAN port, or to a private address that the operator did not open: the NetworkPolicy lets
/// the pod reach the management cluster's DNS server, but only to ask for its peers. VXLAN is taken from peers alone, and
/// there are none until they are found. On the bridge the guest may use its own addresses only, and of the pod only the
/// gateway's API port; the gateway is on every VM pod, so nothing of it crosses the overlay. Bridged packets meet the
/// `forward` chain too where the host filters bridges.
fn rules(overlay: &OverlayConfig, pod_address: IpAddr, resolvers: &[Ipv4Addr]) -> String {
    let (ip, mac, gateway) = (overlay.node.ip.addr(), overlay.node.mac, overlay.gateway.addr());
    let (vxlan, network) = (vxlan_name(overlay.vni), overlay.gateway.trunc());
    let (family, address) = if pod_address.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
    let dns = overlay.peers.as_ref().map(|peers| closed_dns(peers, resolvers)).unwrap_or_default();
    format!(
        "\
table inet giantnetes
delete table inet giantnetes
table inet giantnetes {{
  set {PEERS} {{
    type {address}
  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    meta skuid {QEMU_ID} oifname \"lo\" drop
    meta skuid {QEMU_ID} oifname \"{BRIDGE}\" drop
    meta skuid {QEMU_ID} udp dport {{ 4789, {VXLAN_PORT} }} drop
{dns}  }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname != \"{BRIDGE}\" udp dport {VXLAN_PORT} {family} saddr @{PEERS} accept
    udp dport {VXLAN_PORT} drop
    iifname != \"{BRIDGE}\" accept
    ip saddr != {network} drop
    ip daddr != {gateway} drop
    ct state established,related accept
    tcp dport {API_PORT} accept
    icmp type echo-request accept
    drop
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    iifname \"{BRIDGE}\" oifname \"{BRIDGE}\" accept
  }}
}}
table bridge giantnetes
delete table bridge giantnetes
table bridge giantnetes {{
  chain forward {{
    type filter hook forward priority {BEFORE_BRIDGE_FILTER}; policy accept;
    iifname \"{TAP}\" jump from_guest
    oifname \"{vxlan}\" arp daddr ip {gateway} drop
    iifname \"{vxlan}\" arp saddr ip {gateway} drop
  }}
  chain input {{
    type filter hook input priority {BEFORE_BRIDGE_FILTER}; policy accept;
    iifname \"{TAP}\" jump from_guest
    iifname \"{vxlan}\" drop
  }}
  chain output {{
    type filter hook output priority {BEFORE_BRIDGE_FILTER}; policy accept;
    oifname \"{vxlan}\" drop
  }}
  chain from_guest {{
    ether saddr != {mac} drop
    udp dport {{ 4789, {VXLAN_PORT} }} drop
    ether type arp arp saddr ether {mac} arp saddr ip {{ {ip}, 0.0.0.0 }} return
    ether type ip ip saddr {network} ip saddr != {ip} drop
    ether type ip return
    drop
  }}
}}
"
    )
}

/// What keeps QEMU's user away from the management cluster's DNS: its Service, and its pods, whose addresses and port are not
/// known.
fn closed_dns(peers: &PeersConfig, resolvers: &[Ipv4Addr]) -> String {
    let mut text = match peers.server {
        IpAddr::V4(server) => format!("    meta skuid {QEMU_ID} ip daddr {server} drop\n"),
        IpAddr::V6(server) => format!("    meta skuid {QEMU_ID} ip6 daddr {server} drop\n"),
    };
    let allowed = resolvers.iter().map(ToString::to_string).chain(peers.allowed.iter().map(ToString::to_string));
    for allowed in allowed {
        text.push_str(&format!("    meta skuid {QEMU_ID} ip daddr {allowed} accept\n"));
    }
    text.push_str(&format!("    meta skuid {QEMU_ID} ip daddr {{ {PRIVATE} }} drop\n"));
    text
}

/// Runs a program and answers what it wrote.
pub(super) async fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let failed = |message: String| Error::Command { program, message };
    let work = async {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(TIMEOUT, work)
        .await
        .map_err(|_| failed(format!("no answer in {} s", TIMEOUT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::addresses::{Mac, NodeAddress};

    fn overlay() -> OverlayConfig {
        OverlayConfig {
            vni: 1234,
            gateway: "172.26.0.1/20".parse().unwrap(),
            node: NodeAddress { ip: "172.26.0.10/20".parse().unwrap(), mac: Mac([2, 1, 2, 3, 0, 10]) },
            mtu: None,
            peers: None,
        }
    }

    #[test]
    fn devices_and_rules_are_golden() {
        let text = commands(&overlay(), [10, 1, 1, 1].into(), 1450);
        insta::assert_snapshot!(format!("{text}\n{}", rules(&overlay(), [10, 1, 1, 1].into(), &[])));
    }

    #[test]
    fn the_guest_asks_no_dns_server_of_the_management_cluster_but_its_resolvers() {
        let resolvers = nameservers("search a b\nnameserver 192.168.1.1\nnameserver fe80::1\n# nameserver 1.1.1.1\n");
        assert_eq!(resolvers, [Ipv4Addr::new(192, 168, 1, 1)]);
        let allowed = vec!["10.20.30.0/24".parse().unwrap()];
        let peers = PeersConfig { name: "nodes".into(), server: [10, 96, 0, 10].into(), allowed };
        insta::assert_snapshot!(closed_dns(&peers, &resolvers));
    }

    #[test]
    fn an_mtu_that_cannot_be_is_refused() {
        assert_eq!(overlay_mtu("1500\n", None).unwrap(), 1450);
        assert_eq!(overlay_mtu("1500\n", Some(1450)).unwrap(), 1450);
        assert_eq!(overlay_mtu("9000\n", Some(1400)).unwrap(), 1400);
        let too_large = overlay_mtu("1500", Some(1451));
        assert!(matches!(too_large, Err(Error::MtuTooLarge { wanted: 1451, possible: 1450 })));
        assert!(matches!(overlay_mtu("1300", None), Err(Error::Mtu(1300))));
        assert!(matches!(overlay_mtu("x", None), Err(Error::Mtu(0))));
    }
}
