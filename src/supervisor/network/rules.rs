//! The nftables rules. Pure.
//!
//! QEMU's user-mode network turns 10.0.2.2 into the pod's loopback, so nothing that QEMU's user sends may go to an address
//! of the pod, to the overlay, to another pod's VXLAN port, or to a private address that the operator did not open: the
//! NetworkPolicy lets the pod reach the management cluster's DNS server, but only to ask for its peers. VXLAN, and questions
//! how large packets come, are taken from peers alone, and there are none until they are found. On the bridge the guest may
//! use its own addresses only, and of the pod only the gateway's API port.
//!
//! On a segment, the gateway is on every VM pod, so nothing of it crosses the overlay. Bridged packets meet the `forward`
//! chain too where the host filters bridges. With Flannel nothing is bridged: the pod forwards from its VM to the overlay and
//! back, and nothing that comes by the overlay is for the pod itself.

use std::net::{IpAddr, Ipv4Addr};

use super::{BRIDGE, PEERS, TAP, VXLAN_PORT};
use crate::{
    api::names::{API_PORT, PATH_PORT},
    supervisor::{
        QEMU_ID,
        config::{OverlayConfig, PeersConfig},
    },
};

/// Priority of the rules on the bridge. Where the host filters bridged packets (br_netfilter), its hooks at priority 0 take IP
/// packets out of the bridge's own chains, and rules at 0 would never see them.
const BEFORE_BRIDGE_FILTER: i32 = -200;
/// Port that IANA gave VXLAN: Calico's, inside a guest.
const IANA_VXLAN_PORT: u16 = 4789;
/// Private ranges: the management cluster's own addresses lie in them.
const PRIVATE: &str = "10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16";

/// Lines for `nft`. They replace what was there before.
pub(super) fn rules(overlay: &OverlayConfig, pod_address: IpAddr, resolvers: &[Ipv4Addr]) -> String {
    format!(
        "\
table inet giantnetes
delete table inet giantnetes
{}table bridge giantnetes
delete table bridge giantnetes
{}",
        inet(overlay, pod_address, resolvers),
        bridge(overlay)
    )
}

fn inet(overlay: &OverlayConfig, pod_address: IpAddr, resolvers: &[Ipv4Addr]) -> String {
    let (ip, gateway, network) = (overlay.node.ip.addr(), overlay.gateway.addr(), overlay.network());
    let (family, address) = if pod_address.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
    let dns = overlay.peers.as_ref().map(|peers| closed_dns(peers, resolvers)).unwrap_or_default();
    let vxlan = overlay.device();
    let routed = overlay.flannel.is_some();
    let (closed_overlay, own) = if routed {
        let closed = format!("    meta skuid {QEMU_ID} oifname \"{vxlan}\" drop\n");
        (closed, format!("{{ {gateway}, {} }}", overlay.node.router()))
    } else {
        (String::new(), gateway.to_string())
    };
    let for_the_pod = if routed { format!("    iifname \"{vxlan}\" drop\n") } else { String::new() };
    let forwarded = if routed {
        format!(
            "    iifname \"{BRIDGE}\" oifname \"{vxlan}\" ip saddr {ip} ip daddr {network} accept
    iifname \"{vxlan}\" oifname \"{BRIDGE}\" ip saddr {network} ip daddr {ip} accept"
        )
    } else {
        format!("    iifname \"{BRIDGE}\" oifname \"{BRIDGE}\" accept")
    };
    format!(
        "\
table inet giantnetes {{
  set {PEERS} {{
    type {address}
  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    meta skuid {QEMU_ID} oifname \"lo\" drop
    meta skuid {QEMU_ID} oifname \"{BRIDGE}\" drop
{closed_overlay}    meta skuid {QEMU_ID} udp dport {{ {IANA_VXLAN_PORT}, {VXLAN_PORT}, {PATH_PORT} }} drop
{dns}  }}
  chain input {{
    type filter hook input priority 0; policy accept;
{for_the_pod}    iifname != \"{BRIDGE}\" udp dport {{ {VXLAN_PORT}, {PATH_PORT} }} {family} saddr @{PEERS} accept
    udp dport {{ {VXLAN_PORT}, {PATH_PORT} }} drop
    iifname != \"{BRIDGE}\" accept
    ip saddr != {network} drop
    ip daddr != {own} drop
    ct state established,related accept
    tcp dport {API_PORT} accept
    icmp type echo-request accept
    drop
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
{forwarded}
  }}
}}
"
    )
}

fn bridge(overlay: &OverlayConfig) -> String {
    let (ip, mac, network) = (overlay.node.ip.addr(), overlay.node.mac, overlay.network());
    let from_guest = |closed_ports: &str| {
        format!(
            "  chain from_guest {{
    ether saddr != {mac} drop
    udp dport {closed_ports} drop
    ether type arp arp saddr ether {mac} arp saddr ip {{ {ip}, 0.0.0.0 }} return
    ether type ip ip saddr {network} ip saddr != {ip} drop
    ether type ip return
    drop
  }}
"
        )
    };
    if overlay.flannel.is_some() {
        return format!(
            "\
table bridge giantnetes {{
  chain input {{
    type filter hook input priority {BEFORE_BRIDGE_FILTER}; policy accept;
    iifname \"{TAP}\" jump from_guest
  }}
{}}}
",
            from_guest(&VXLAN_PORT.to_string())
        );
    }
    let (gateway, vxlan) = (overlay.gateway.addr(), overlay.device());
    format!(
        "\
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
{}}}
",
        from_guest(&format!("{{ {IANA_VXLAN_PORT}, {VXLAN_PORT} }}"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        network::addresses::{Mac, NodeAddress},
        supervisor::{
            config::FlannelConfig,
            network::{links, nameservers},
        },
    };

    fn segment() -> OverlayConfig {
        OverlayConfig {
            vni: 1234,
            gateway: "172.26.0.1/20".parse().unwrap(),
            node: NodeAddress { ip: "172.26.0.10/20".parse().unwrap(), mac: Mac([2, 1, 2, 3, 0, 10]) },
            mtu: None,
            peers: None,
            flannel: None,
        }
    }

    fn routed() -> OverlayConfig {
        let node = NodeAddress { ip: "172.26.0.42/30".parse().unwrap(), mac: Mac([2, 1, 2, 3, 0, 42]) };
        OverlayConfig { node, flannel: Some(FlannelConfig { guest: "x".into() }), ..segment() }
    }

    #[test]
    fn devices_and_rules_of_a_segment_are_golden() {
        let links = links::segment(&segment(), [10, 1, 1, 1].into(), 1450);
        insta::assert_snapshot!(format!("{links}\n{}", rules(&segment(), [10, 1, 1, 1].into(), &[])));
    }

    #[test]
    fn devices_and_rules_with_flannel_are_golden() {
        let links = links::vtep(&routed(), [10, 1, 1, 1].into(), 1450) + &links::node_network(&routed(), 1450);
        insta::assert_snapshot!(format!("{links}\n{}", rules(&routed(), [10, 1, 1, 1].into(), &[])));
    }

    #[test]
    fn the_guest_asks_no_dns_server_of_the_management_cluster_but_its_resolvers() {
        let resolvers = nameservers("search a b\nnameserver 192.168.1.1\nnameserver fe80::1\n# nameserver 1.1.1.1\n");
        assert_eq!(resolvers, [Ipv4Addr::new(192, 168, 1, 1)]);
        let allowed = vec!["10.20.30.0/24".parse().unwrap()];
        let peers = PeersConfig { name: "nodes".into(), server: [10, 96, 0, 10].into(), allowed };
        insta::assert_snapshot!(closed_dns(&peers, &resolvers));
    }
}
