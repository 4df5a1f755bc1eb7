//! The backend `Native`: one segment for all nodes of a guest. VXLAN devices learn who is where, and DNS tells of the others.

use std::net::Ipv4Addr;

use giantnetes::{
    network::addresses::{Mac, NodeAddress},
    supervisor::config::{OverlayConfig, PeersConfig},
};

use crate::{
    dns::Dns,
    namespace::Namespace,
    world::{Backend, Guest},
};

struct Native;

impl Backend for Native {
    fn start(_: &Namespace) -> Self {
        Self
    }

    fn config(&self, guest: Guest, place: u8, dns: Ipv4Addr) -> OverlayConfig {
        OverlayConfig {
            vni: guest.vni,
            gateway: "172.26.0.1/20".parse().unwrap(),
            // The same for every guest: the addresses of one say nothing about another's.
            node: NodeAddress { ip: format!("172.26.0.{place}/20").parse().unwrap(), mac: self.carried_to(place) },
            mtu: None,
            peers: Some(PeersConfig { name: guest.service(), server: dns.into(), allowed: Vec::new() }),
            flannel: None,
        }
    }

    fn carried_to(&self, place: u8) -> Mac {
        Mac([2, 0, 0, 0, 0x77, place])
    }

    fn device(&self, guest: Guest) -> String {
        format!("vx{}", guest.vni)
    }

    fn join(&mut self, dns: &Dns, guest: Guest, _: &Namespace, _: &OverlayConfig, address: Ipv4Addr) {
        dns.add(&guest.service(), address);
    }

    fn leave(&mut self, dns: &Dns, guest: Guest, _: &OverlayConfig, address: Ipv4Addr) {
        dns.remove(&guest.service(), address);
    }
}

crate::conformance!(
    Native:
    nodes_reach_all_of_their_guest_and_nobody_else,
    what_a_stranger_floods_is_not_taken,
    forged_vxlan_is_not_taken,
    vms_and_qemu_send_no_vxlan,
    forged_sources_stay_at_home,
    forged_arp_convinces_nobody,
    each_node_has_its_own_gateway,
    packets_are_as_large_as_the_underlay_allows,
    a_way_that_is_too_narrow_is_told,
    nodes_come_and_go_and_move,
    what_does_not_answer_or_starts_again_loses_nothing,
    nothing_is_left_on_a_host,
);
