//! Static addresses on the overlay: derived from the cluster and the node's place. A control-plane node's place follows from
//! its index; that of a worker is remembered ([`super::places`]).
//!
//! On a segment, place `p` is the `p`-th address of the overlay. Where nodes are joined by routes, it is the `p`-th /30:
//!
//! ```text
//!   .0 the VXLAN device of the VM pod    .1 its bridge, the node's router    .2 the node    .3 broadcast
//! ```
//!
//! The gateway is `.1` of the whole overlay on every VM pod, in either fabric: no place is that low.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::places::Place;
use crate::cluster::Identity;

/// First control-plane node's place in the overlay; the places below are reserved (.1 is the gateway).
const FIRST_MASTER: u32 = 10;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes: Vec<u8> = text
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{text:?} is not an Ethernet address: {error}"))?;
        let bytes = bytes.try_into().map_err(|_| format!("{text:?} is not an Ethernet address: six bytes"))?;
        Ok(Self(bytes))
    }
}

/// Ethernet address of the gateway on every VM pod's bridge: the same everywhere, as its IP address is.
pub const GATEWAY_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);

/// Ethernet address of a node's second interface, the way out. Each VM has that network for itself.
pub const EGRESS_MAC: Mac = Mac([0x02, 0, 0, 0, 0x02, 0x0f]);

/// A node's place on the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAddress {
    /// Address, with the prefix length of the network that its interface is in.
    pub ip: Ipv4Net,
    /// Ethernet address.
    pub mac: Mac,
}

impl NodeAddress {
    /// The network that the node's interface is in: the overlay, or the node's own.
    pub fn subnet(&self) -> Ipv4Net {
        self.ip.trunc()
    }

    /// The bridge of its VM pod, by which it reaches the other nodes' networks.
    pub fn router(&self) -> Ipv4Addr {
        nth(self.subnet(), 1)
    }

    /// Ethernet address of its VM pod's VXLAN device, where that is an end by itself and no port of a bridge.
    pub fn vtep_mac(&self) -> Mac {
        let [_, rest @ ..] = self.mac.0;
        let [a, b, c, d, e] = rest;
        Mac([0x06, a, b, c, d, e])
    }
}

/// How the nodes of a guest are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabric {
    /// One Ethernet segment over all VM pods.
    Segment,
    /// A network of its own for every node, and routes between the VM pods.
    Routed,
}

impl Fabric {
    /// Prefix length of a node's own network: it holds the VM pod's two addresses and the node's.
    const OWN_PREFIX: u8 = 30;
}

/// The network of a guest's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its addresses.
    pub net: Ipv4Net,
    /// How nodes are joined on it.
    pub fabric: Fabric,
}

impl Overlay {
    /// The gateway: the same address on every VM pod.
    pub fn gateway(&self) -> Ipv4Addr {
        nth(self.net, 1)
    }

    /// The address of the `index`-th control-plane node.
    pub fn master(&self, identity: &Identity, index: u32) -> NodeAddress {
        self.at(identity, FIRST_MASTER.saturating_add(index))
    }

    /// The address of a worker at this place, which [`super::places`] gave it.
    pub fn worker(&self, identity: &Identity, place: Place) -> NodeAddress {
        self.at(identity, place.0)
    }

    /// The last place that there is.
    pub fn last_place(&self) -> u32 {
        let left = |prefix: u8| (1_u64 << prefix.saturating_sub(self.net.prefix_len())).saturating_sub(1);
        let last = match self.fabric {
            // The highest address is the broadcast's.
            Fabric::Segment => left(32).saturating_sub(1),
            Fabric::Routed => left(Fabric::OWN_PREFIX),
        };
        u32::try_from(last).unwrap_or(u32::MAX)
    }

    fn at(&self, identity: &Identity, place: u32) -> NodeAddress {
        let (number, prefix) = match self.fabric {
            Fabric::Segment => (place, self.net.prefix_len()),
            Fabric::Routed => (place.saturating_mul(4).saturating_add(2), Fabric::OWN_PREFIX),
        };
        let ip = nth(self.net, number);
        let hash = identity.seed().to_be_bytes();
        let last = ip.octets();
        NodeAddress {
            ip: Ipv4Net::new(ip, prefix).unwrap_or(self.net),
            mac: Mac([0x02, hash[0], hash[1], hash[2], last[2], last[3]]),
        }
    }
}

/// The address of a guest's DNS Service, by convention the tenth of its Services.
pub fn dns(services: Ipv4Net) -> Ipv4Addr {
    nth(services, 10)
}

/// The `n`-th address of a network.
pub fn nth(network: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()).saturating_add(n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::valid;

    #[test]
    fn addresses_follow_from_cluster_and_index() {
        let valid = valid(serde_json::json!({}));
        let overlay = valid.ranges.overlay;
        assert_eq!(overlay.gateway().to_string(), "172.26.0.1");
        let (first, second) = (overlay.master(&valid.identity, 0), overlay.master(&valid.identity, 1));
        assert_eq!(first.ip.to_string(), "172.26.0.10/20");
        assert_ne!(first.mac, second.mac);
        assert_eq!(Mac::try_from(first.mac.to_string()), Ok(first.mac));
    }

    #[test]
    fn a_routed_node_has_a_network_of_its_own() {
        let valid = valid(serde_json::json!({}));
        let overlay = Overlay { fabric: Fabric::Routed, ..valid.ranges.overlay };
        assert_eq!(overlay.gateway().to_string(), "172.26.0.1");
        let (master, worker) = (overlay.master(&valid.identity, 0), overlay.worker(&valid.identity, Place(64)));
        assert_eq!(master.ip.to_string(), "172.26.0.42/30");
        assert_eq!(worker.ip.to_string(), "172.26.1.2/30");
        assert_eq!((worker.subnet().to_string().as_str(), worker.router()), ("172.26.1.0/30", [172, 26, 1, 1].into()));
        assert_ne!(worker.mac, worker.vtep_mac());
        assert_eq!(worker.vtep_mac().0[0] & 3, 2, "local, and of one interface");
    }

    proptest! {
        /// Up to the last place, networks are within the overlay, apart, and away from the gateway.
        #[test]
        fn routed_networks_are_apart(prefix in 16_u8..=24, place in any::<u32>(), other in any::<u32>()) {
            let valid = valid(serde_json::json!({}));
            let net = Ipv4Net::new([172, 26, 0, 0].into(), prefix).unwrap();
            let overlay = Overlay { net, fabric: Fabric::Routed };
            let of = |place: u32| {
                let place = FIRST_MASTER + place % (overlay.last_place() - FIRST_MASTER + 1);
                (place, overlay.worker(&valid.identity, Place(place)))
            };
            let ((place, one), (other, two)) = (of(place), of(other));
            prop_assert!(net.contains(&one.subnet()) && !one.subnet().contains(&overlay.gateway()));
            prop_assert_eq!(one.subnet().contains(&two.subnet()), place == other);
            prop_assert_eq!(one.mac == two.mac, place == other);
            prop_assert_eq!(overlay.worker(&valid.identity, Place(overlay.last_place())).subnet().broadcast(), net.broadcast());
        }
    }

    #[test]
    fn a_bad_ethernet_address_is_an_error() {
        for text in ["", "02:00", "zz:00:00:00:00:01", "02:00:00:00:00:01:02"] {
            assert!(Mac::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
