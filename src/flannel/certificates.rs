//! Certificates of Flannel's etcd and of its clients. Pure.

use std::net::{IpAddr, Ipv4Addr};

use super::etcd::auth;
use crate::pki::leaf::{Authority, Leaf, Usage};

/// Names of the installation's Secrets.
pub mod secrets {
    /// The two authorities.
    pub fn authorities(service: &str) -> String {
        format!("{service}-authorities")
    }

    /// What the members mount.
    pub fn server(service: &str) -> String {
        format!("{service}-server")
    }
}

/// Name of the Secret in a guest's namespace that its VM pods' flanneld mount.
pub const OF_GUEST: &str = "flannel";

/// What etcd shows its clients: its Service's address and names.
pub(super) fn server(service: &str, namespace: &str, members: u32, address: IpAddr) -> Leaf {
    let mut dns: Vec<_> = ["", ".svc"].iter().map(|end| format!("{service}.{namespace}{end}")).collect();
    dns.extend(member_names(service, namespace, members));
    let addresses = vec![address, Ipv4Addr::LOCALHOST.into()];
    leaf("server", service, Usage::Server, dns, addresses)
}

/// What members show each other.
pub(super) fn peer(service: &str, namespace: &str, members: u32) -> Leaf {
    leaf("peer", service, Usage::Both, member_names(service, namespace, members), Vec::new())
}

/// The controller manager as a client.
pub(super) fn root() -> Leaf {
    leaf("root", auth::ROOT, Usage::Client, Vec::new(), Vec::new())
}

/// A guest as a client: etcd takes the common name for the user. Without names of hosts, which etcd would compare with the
/// address that a client comes from.
pub(super) fn guest(id: &str) -> Leaf {
    leaf("flannel", &auth::user(id), Usage::Client, Vec::new(), Vec::new())
}

/// Each by itself: for a wildcard etcd would ask DNS who a peer is.
fn member_names(service: &str, namespace: &str, members: u32) -> Vec<String> {
    (0..members).map(|index| format!("{service}-{index}.{service}-peers.{namespace}.svc")).collect()
}

fn leaf(name: &'static str, common_name: &str, usage: Usage, dns: Vec<String>, addresses: Vec<IpAddr>) -> Leaf {
    Leaf {
        name,
        // Which of its two authorities signs, the caller says; it is none of a guest's.
        authority: Authority::Etcd,
        common_name: common_name.to_owned(),
        organisations: Vec::new(),
        dns,
        addresses,
        usage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_each() {
        let leaf = server("x-flannel-etcd", "ns", 3, [10, 96, 0, 7].into());
        assert_eq!(
            leaf.dns,
            [
                "x-flannel-etcd.ns",
                "x-flannel-etcd.ns.svc",
                "x-flannel-etcd-0.x-flannel-etcd-peers.ns.svc",
                "x-flannel-etcd-1.x-flannel-etcd-peers.ns.svc",
                "x-flannel-etcd-2.x-flannel-etcd-peers.ns.svc",
            ]
        );
        assert_eq!(leaf.addresses, [IpAddr::from([10, 96, 0, 7]), [127, 0, 0, 1].into()]);
        assert_eq!(peer("x-flannel-etcd", "ns", 1).dns, ["x-flannel-etcd-0.x-flannel-etcd-peers.ns.svc"]);
    }

    #[test]
    fn a_guest_is_its_user_and_nothing_else() {
        let leaf = guest("ab");
        assert_eq!((leaf.common_name.as_str(), leaf.usage), ("g8s-ab", Usage::Client));
        assert!(leaf.dns.is_empty() && leaf.addresses.is_empty());
    }
}
