//! The VM's network inside the pod's network namespace, and the rules that hold the guest in its place.
//!
//! ```text
//!  eth0 (the pod's) ── udp/8472 ── vx<VNI> ─┐
//!                                           br0 .1 ── tap0 ── QEMU ── the guest's first interface
//!  eth0 ── QEMU's own connections (user-mode network) ──────── QEMU ── the guest's second interface, its way out
//! ```
//!
//! [`commands`] and [`rules`] are pure; [`set_up`] runs them with `ip` and `nft` of the image.

use std::{net::IpAddr, os::fd::OwnedFd, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{QEMU_ID, config::OverlayConfig};
use crate::{api::names::API_PORT, network::addresses::GATEWAY_MAC};

/// UDP port of VXLAN: the kernel's and Flannel's.
pub const VXLAN_PORT: u16 = 8472;
/// What VXLAN over IPv4 adds to each packet.
const VXLAN_OVERHEAD: u32 = 50;
/// Smallest MTU that a guest can live with: IPv6's minimum.
const LEAST_MTU: u32 = 1280;
const TAP: &str = "tap0";
const BRIDGE: &str = "br0";
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program failed.
    #[error("run `{program}`: {message}")]
    Command {
        /// `ip` or `nft`.
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
    let mtu = overlay_mtu(&std::fs::read_to_string("/sys/class/net/eth0/mtu").map_err(Error::ReadMtu)?)?;
    // Whatever a former life of this container left: the devices, then the rules (whose table `nft` replaces as a whole).
    for device in [BRIDGE.to_owned(), vxlan_name(overlay.vni), TAP.to_owned()] {
        let _ = run("ip", &["link", "delete", &device], "").await;
    }
    run("nft", &["-f", "-"], &rules(overlay)).await?;
    let tap = make_tap()?;
    run("ip", &["-batch", "-"], &commands(overlay, pod_address, mtu)).await?;
    Ok(Network { tap, mtu })
}

fn overlay_mtu(pod_mtu: &str) -> Result<u32, Error> {
    let pod_mtu: u32 = pod_mtu.trim().parse().unwrap_or(0);
    pod_mtu.checked_sub(VXLAN_OVERHEAD).filter(|mtu| *mtu >= LEAST_MTU).ok_or(Error::Mtu(pod_mtu))
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

fn vxlan_name(vni: u32) -> String {
    format!("vx{vni}")
}

/// Lines for `ip -batch`.
fn commands(overlay: &OverlayConfig, pod_address: IpAddr, mtu: u32) -> String {
    let (vxlan, gateway) = (vxlan_name(overlay.vni), overlay.gateway);
    format!(
        "\
link add {BRIDGE} address {GATEWAY_MAC} mtu {mtu} type bridge
link add {vxlan} mtu {mtu} type vxlan id {vni} local {pod_address} dstport {VXLAN_PORT} nolearning
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
/// of the pod, nor to another pod's VXLAN port. What comes to ours is dropped as long as a guest has one node. On the bridge
/// the guest may use its own addresses only, and of the pod only the gateway's API port.
fn rules(overlay: &OverlayConfig) -> String {
    let (ip, mac, gateway) = (overlay.node.ip.addr(), overlay.node.mac, overlay.gateway.addr());
    let (vxlan, network) = (vxlan_name(overlay.vni), overlay.gateway.trunc());
    format!(
        "\
table inet giantnetes
delete table inet giantnetes
table inet giantnetes {{
  chain output {{
    type filter hook output priority 0; policy accept;
    meta skuid {QEMU_ID} oifname \"lo\" drop
    meta skuid {QEMU_ID} oifname \"{BRIDGE}\" drop
    meta skuid {QEMU_ID} udp dport {{ 4789, {VXLAN_PORT} }} drop
  }}
  chain input {{
    type filter hook input priority 0; policy accept;
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
  }}
}}
table bridge giantnetes
delete table bridge giantnetes
table bridge giantnetes {{
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname \"{TAP}\" jump from_guest
    oifname \"{vxlan}\" arp daddr ip {gateway} drop
    iifname \"{vxlan}\" arp saddr ip {gateway} drop
  }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname \"{TAP}\" jump from_guest
    iifname \"{vxlan}\" drop
  }}
  chain from_guest {{
    ether saddr != {mac} drop
    udp dport {{ 4789, {VXLAN_PORT} }} drop
    ether type arp arp saddr ether {mac} arp saddr ip {{ {ip}, 0.0.0.0 }} return
    ether type ip return
    drop
  }}
}}
"
    )
}

async fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<(), Error> {
    let failed = |message: String| Error::Command { program, message };
    let work = async {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
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
        return Ok(());
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
        }
    }

    #[test]
    fn devices_and_rules_are_golden() {
        let text = commands(&overlay(), [10, 1, 1, 1].into(), 1450);
        insta::assert_snapshot!(format!("{text}\n{}", rules(&overlay())));
    }

    #[test]
    fn a_small_mtu_is_refused() {
        assert_eq!(overlay_mtu("1500\n").unwrap(), 1450);
        assert!(matches!(overlay_mtu("1300"), Err(Error::Mtu(1300))));
        assert!(matches!(overlay_mtu("x"), Err(Error::Mtu(0))));
    }
}
