//! What the lab consists of: its rooms, hosts and address ranges. The one place to add a host.
//!
//! A *room* is where servers run: a network namespace, a mount namespace and a cgroup of one name. The control plane
//! has one, every host has one.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

/// Name of the bridge in the machine's own network namespace, which joins the rooms.
pub const BRIDGE: &str = "g8s-lab";
/// The machine's address on the bridge.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 231, 0, 1);
/// The network of the bridge.
pub const NODE_RANGE: &str = "10.231.0.0/24";
/// The network that pods get their addresses from, a /24 per host.
pub const POD_RANGE: &str = "10.232.0.0/16";
/// The network of ClusterIPs.
pub const SERVICE_RANGE: &str = "10.233.0.0/16";
/// The first ClusterIP: the API server's.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 233, 0, 1);
/// Where cluster DNS answers.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 233, 0, 10);
/// The ingress controller's ClusterIP.
pub const INGRESS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 233, 0, 20);
/// The ports of the machine's loopback device that lead to the ingress controller, and the Service's port of each.
pub const INGRESS_PORTS: &[(u16, u16)] = &[(10080, 80), (10443, 443)];
/// Root of everything the lab has in the cgroup hierarchies.
pub const CGROUP: &str = "giantnetes-lab";

/// Where servers run: namespaces, address and cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// `control`, `host1`, …
    pub name: &'static str,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
}

impl Room {
    /// Its network namespace, a name in /run/netns.
    pub fn netns(&self) -> String {
        format!("g8s-{}", self.name)
    }

    /// The machine's end of its cable to the bridge (device names have at most 15 characters).
    pub fn veth(&self) -> String {
        format!("g8s-v-{}", self.name)
    }

    /// The cgroup its servers run in, relative to a hierarchy's root. A leaf, as cgroup v2 demands of a cgroup that
    /// holds processes: kubelet's `kubepods` is its sibling.
    pub fn cgroup(&self) -> String {
        format!("{CGROUP}/{}/system", self.name)
    }
}

/// The room of etcd, kube-apiserver, kube-controller-manager, kube-scheduler and Vault.
pub const CONTROL: Room = Room { name: "control", address: Ipv4Addr::new(10, 231, 0, 2) };

/// The machine's own namespaces, as a room: only what has to listen on its loopback device runs there.
pub const MACHINE: Room = Room { name: "machine", address: Ipv4Addr::LOCALHOST };

/// A host: a node of the management cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The room it lives in, named as the node is.
    pub room: Room,
    /// Where its pods get their addresses from.
    pub pods: &'static str,
    /// The host's application zone, its label `giantnetes.io/zone`.
    pub zone: &'static str,
}

impl Host {
    /// The node's name.
    pub fn name(&self) -> &'static str {
        self.room.name
    }
}

/// All hosts.
pub const HOSTS: &[Host] = &[
    Host {
        room: Room { name: "host1", address: Ipv4Addr::new(10, 231, 0, 11) },
        pods: "10.232.1.0/24",
        zone: "control",
    },
    Host { room: Room { name: "host2", address: Ipv4Addr::new(10, 231, 0, 12) }, pods: "10.232.2.0/24", zone: "front" },
    Host { room: Room { name: "host3", address: Ipv4Addr::new(10, 231, 0, 13) }, pods: "10.232.3.0/24", zone: "data" },
];

/// The host of a name.
///
/// # Errors
/// If there is none; the message lists those that there are.
pub fn host(name: &str) -> Result<&'static Host> {
    let known = || HOSTS.iter().map(Host::name).collect::<Vec<_>>().join(", ");
    HOSTS
        .iter()
        .find(|host| host.name() == name)
        .with_context(|| format!("there is no host {name}; known: {}", known()))
}

/// The rooms with namespaces of their own: the control plane's and every host's.
pub fn rooms() -> impl Iterator<Item = Room> {
    std::iter::once(CONTROL).chain(HOSTS.iter().map(|host| host.room))
}

/// Routes to pods and Services, for who is no host: network and next hop. A ClusterIP is translated by any host's
/// kube-proxy: the first's is used.
pub fn routes() -> impl Iterator<Item = (&'static str, Ipv4Addr)> {
    let services = HOSTS.first().map(|host| (SERVICE_RANGE, host.room.address));
    HOSTS.iter().map(|host| (host.pods, host.room.address)).chain(services)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_the_kernels_limit() {
        assert!(rooms().all(|room| room.veth().len() <= 15));
    }

    #[test]
    fn every_room_has_an_address_of_its_own() {
        let mut addresses: Vec<_> = rooms().map(|room| room.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), rooms().count());
        assert!(!addresses.contains(&GATEWAY));
    }
}
