//! Static addresses on the overlay: derived from the cluster and the node's place. A control-plane node's place follows from
//! its index; that of a worker is remembered ([`super::places`]).

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
    /// Address, with the overlay's prefix length.
    pub ip: Ipv4Net,
    /// Ethernet address.
    pub mac: Mac,
}

/// The address of the gateway: `.1`, on every VM pod.
pub fn gateway(overlay: Ipv4Net) -> Ipv4Addr {
    nth(overlay, 1)
}

/// The address of a guest's DNS Service, by convention the tenth of its Services.
pub fn dns(services: Ipv4Net) -> Ipv4Addr {
    nth(services, 10)
}

/// The address of the `index`-th control-plane node.
pub fn master(identity: &Identity, overlay: Ipv4Net, index: u32) -> NodeAddress {
    at(identity, overlay, FIRST_MASTER + index)
}

/// The address of a worker at this place, which [`super::places`] gave it.
pub fn worker(identity: &Identity, overlay: Ipv4Net, place: Place) -> NodeAddress {
    at(identity, overlay, place.0)
}

fn at(identity: &Identity, overlay: Ipv4Net, place: u32) -> NodeAddress {
    let ip = nth(overlay, place);
    let hash = identity.seed().to_be_bytes();
    let last = ip.octets();
    NodeAddress {
        ip: Ipv4Net::new(ip, overlay.prefix_len()).unwrap_or(overlay),
        mac: Mac([0x02, hash[0], hash[1], hash[2], last[2], last[3]]),
    }
}

/// The `n`-th address of a network.
pub fn nth(network: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()).saturating_add(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::valid;

    #[test]
    fn addresses_follow_from_cluster_and_index() {
        let valid = valid(serde_json::json!({}));
        let overlay = valid.ranges.overlay;
        assert_eq!(gateway(overlay).to_string(), "172.26.0.1");
        let (first, second) = (master(&valid.identity, overlay, 0), master(&valid.identity, overlay, 1));
        assert_eq!(first.ip.to_string(), "172.26.0.10/20");
        assert_ne!(first.mac, second.mac);
        assert_eq!(Mac::try_from(first.mac.to_string()), Ok(first.mac));
    }

    #[test]
    fn a_bad_ethernet_address_is_an_error() {
        for text in ["", "02:00", "zz:00:00:00:00:01", "02:00:00:00:00:01:02"] {
            assert!(Mac::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
