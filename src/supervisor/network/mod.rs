//! The VM's network inside the pod's network namespace, and the rules that hold the guest in its place.
//!
//! On a segment, the VM pods' bridges are one, by VXLAN between them:
//!
//! ```text
//!  eth0 (the pod's) ── udp/8472 ── vx<VNI> ─┐
//!                                           br0 .1 ── tap0 ── QEMU ── the guest's first interface
//!  eth0 ── QEMU's own connections (user-mode network) ──────── QEMU ── the guest's second interface, its way out
//! ```
//!
//! With Flannel each bridge is a network of its own, and the pod forwards between it and a VXLAN device, to which flanneld
//! gives routes ([`super::flannel`]):
//!
//! ```text
//!  eth0 ── udp/8472 ── flannel.<VNI> .0 ── routes ── br0 .1 ── tap0 ── QEMU ── the guest's first interface .2
//! ```
//!
//! [`links`] and [`rules`] are pure; [`set_up`] hands what they say to `ip` and `nft` of the image. The other VM pods of the
//! guest come and go: [`super::peers`] follows them.

mod forwarding;
mod links;
mod rules;

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command};

use super::config::OverlayConfig;

/// UDP port of VXLAN: the kernel's and Flannel's.
pub const VXLAN_PORT: u16 = 8472;
/// What VXLAN over IPv4 adds to each packet: an Ethernet header, its own, UDP's and IP's.
const VXLAN_OVERHEAD: u32 = 14 + 8 + 8 + 20;
/// What IPv6's header has more.
const IPV6_OVERHEAD: u32 = 20;
/// Smallest MTU that a guest's pods can live with: IPv6's minimum.
const LEAST_MTU: u32 = 1280;

/// What VXLAN between pods with such addresses adds to each packet, in bytes.
pub fn overhead(pod_address: IpAddr) -> u32 {
    if pod_address.is_ipv4() { VXLAN_OVERHEAD } else { VXLAN_OVERHEAD + IPV6_OVERHEAD }
}

/// Smallest MTU of an overlay: with Flannel, Calico puts pods' packets into the nodes' by VXLAN once more.
fn least_mtu(overlay: &OverlayConfig) -> u32 {
    if overlay.flannel.is_some() { LEAST_MTU + VXLAN_OVERHEAD } else { LEAST_MTU }
}
/// The pod's interface, as every CNI calls it.
pub(super) const INTERFACE: &str = "eth0";
const TAP: &str = "tap0";
const BRIDGE: &str = "br0";
/// The nftables set of the addresses of the guest's other VM pods.
pub(super) const PEERS: &str = "peers";
const TIMEOUT: Duration = Duration::from_secs(20);

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
    #[error("the pod's interface has an MTU of {0}, which leaves the guest's pods less than {LEAST_MTU}")]
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
    /// The kernel does not forward between the VM and the overlay.
    #[error("have the kernel forward what comes in by {device}")]
    Forward {
        /// The device.
        device: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
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
    let mtu = overlay_mtu(&pod_mtu, overlay.mtu, least_mtu(overlay), overhead(pod_address))?;
    // Whatever a former life of this container left: the devices, then the rules (whose table `nft` replaces as a whole).
    for device in links::made_anew(overlay) {
        let _ = run("ip", &["link", "delete", &device], "").await;
    }
    // The guest asks the resolvers of its pod, and no other inside the management cluster.
    let resolvers = nameservers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    run("nft", &["-f", "-"], &rules::rules(overlay, pod_address, &resolvers)).await?;
    let tap = make_tap()?;
    let device = overlay.device();
    let commands = if overlay.flannel.is_none() {
        links::segment(overlay, pod_address, mtu)
    } else if Path::new("/sys/class/net").join(&device).exists() {
        links::node_network(overlay, mtu)
    } else {
        links::vtep(overlay, pod_address, mtu) + &links::node_network(overlay, mtu)
    };
    run("ip", &["-batch", "-"], &commands).await?;
    if overlay.flannel.is_some() {
        for device in [BRIDGE.to_owned(), device] {
            forwarding::switch_on(&device).map_err(|source| Error::Forward { device, source })?;
        }
    }
    Ok(Network { tap, mtu })
}

fn overlay_mtu(pod_mtu: &str, wanted: Option<u32>, least: u32, overhead: u32) -> Result<u32, Error> {
    let pod_mtu: u32 = pod_mtu.trim().parse().unwrap_or(0);
    let possible = pod_mtu.checked_sub(overhead).filter(|mtu| *mtu >= least).ok_or(Error::Mtu(pod_mtu))?;
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

    #[test]
    fn an_mtu_that_cannot_be_is_refused() {
        let mtu = |pod: &str, wanted, least| overlay_mtu(pod, wanted, least, overhead([10, 1, 1, 1].into()));
        assert_eq!(mtu("1500\n", None, 1280).unwrap(), 1450);
        assert_eq!(mtu("1500\n", Some(1450), 1280).unwrap(), 1450);
        assert_eq!(mtu("9000\n", Some(1400), 1280).unwrap(), 1400);
        let too_large = mtu("1500", Some(1451), 1280);
        assert!(matches!(too_large, Err(Error::MtuTooLarge { wanted: 1451, possible: 1450 })));
        assert!(matches!(mtu("1300", None, 1280), Err(Error::Mtu(1300))));
        // With Flannel.
        assert_eq!(mtu("1380", None, 1330).unwrap(), 1330);
        assert!(matches!(mtu("1379", None, 1330), Err(Error::Mtu(1379))));
        assert!(matches!(mtu("x", None, 1280), Err(Error::Mtu(0))));
        // Pods with IPv6 addresses.
        assert_eq!(overlay_mtu("1500", None, 1280, overhead("fd00::1".parse().unwrap())).unwrap(), 1430);
    }
}
