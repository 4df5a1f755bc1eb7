//! Devices, addresses and routes, as lines for `ip -batch`. Pure.

use std::net::IpAddr;

use super::{BRIDGE, INTERFACE, TAP, VXLAN_PORT};
use crate::{network::addresses::GATEWAY_MAC, supervisor::config::OverlayConfig};

/// Devices that a former life of the container left and that are made anew. Flannel's is not among them: flanneld, which
/// runs on in a container of its own, would not give its routes and neighbours to another.
pub(super) fn made_anew(overlay: &OverlayConfig) -> Vec<String> {
    let mut devices = vec![BRIDGE.to_owned(), TAP.to_owned()];
    if overlay.flannel.is_none() {
        devices.push(overlay.device());
    }
    devices
}

/// The segment: VM and VXLAN on one bridge.
pub(super) fn segment(overlay: &OverlayConfig, pod_address: IpAddr, mtu: u32) -> String {
    let (vxlan, gateway) = (overlay.device(), overlay.gateway);
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

/// The VXLAN device that flanneld takes over, as it would make it: it keeps one whose VNI, address, parent and port are its
/// own, and the Ethernet address of that (`ensureLink` in its `pkg/backend/vxlan/device.go`). What is for a node that is not
/// there stays here, and does not follow the pod's default route.
pub(super) fn vtep(overlay: &OverlayConfig, pod_address: IpAddr, mtu: u32) -> String {
    let (vxlan, mac, network) = (overlay.device(), overlay.node.vtep_mac(), overlay.network());
    format!(
        "\
link add {vxlan} address {mac} mtu {mtu} type vxlan id {vni} local {pod_address} dev {INTERFACE} dstport {VXLAN_PORT} nolearning
link set {vxlan} up
route replace unreachable {network}
",
        vni = overlay.vni,
    )
}

/// The node's own network: the VM alone on the bridge, of which the pod is the router, and the gateway.
pub(super) fn node_network(overlay: &OverlayConfig, mtu: u32) -> String {
    let (router, prefix) = (overlay.node.router(), overlay.node.subnet().prefix_len());
    format!(
        "\
link add {BRIDGE} address {GATEWAY_MAC} mtu {mtu} type bridge
link set {TAP} mtu {mtu} master {BRIDGE} up
link set {BRIDGE} up
address add {router}/{prefix} dev {BRIDGE}
address add {gateway}/32 dev {BRIDGE}
",
        gateway = overlay.gateway.addr(),
    )
}
