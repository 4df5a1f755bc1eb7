//! What differs between machines: how a node learns what it is, and where it finds others and its disk.
//!
//! On QEMU all of it is known when a node is rendered. An instance of EC2 is made by a template, which may be that of many: what
//! only the instance itself can know it writes down when it boots, and units take it from there.

use std::net::Ipv4Addr;

use super::{File, paths};
use crate::{
    api::names::{self, API_PORT},
    network::addresses::NodeAddress,
};

/// File of what an instance knows of itself, as units read it: an environment.
pub const FACTS: &str = "/run/giantnetes/machine";
/// Variable of [`FACTS`]: the node's name.
pub const NODE: &str = "GIANTNETES_NODE";
/// Variable of [`FACTS`]: the node's address.
pub const ADDRESS: &str = "GIANTNETES_ADDRESS";
/// Variable of [`FACTS`]: what Kubernetes' cloud controller knows the instance by.
pub const PROVIDER_ID: &str = "GIANTNETES_PROVIDER_ID";
/// Link to the disk that holds etcd's data, on an instance.
pub const ETCD_DISK: &str = "/run/giantnetes/etcd-disk";
/// Resolver of every network of EC2's, whatever its addresses are.
const EC2_RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

/// What nodes on EC2 share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ec2 {
    /// The guest's own zone, in which its API and the nodes of its control plane have names.
    pub domain: String,
    /// Whether a cloud controller runs inside the guest. Then a node takes no pods before that has seen it.
    pub has_cloud_controller: bool,
}

impl Ec2 {
    /// Name of the API's load balancer inside the network.
    pub fn api(&self) -> String {
        format!("api.{}", self.domain)
    }

    /// Name of the lasting address of a control-plane node.
    pub fn master(&self, index: u32) -> String {
        format!("{}.{}", names::master(index), self.domain)
    }
}

/// A node's machine.
#[derive(Clone, Debug)]
pub(super) enum Machine<'a> {
    /// One that a VM pod runs, at this address of the overlay.
    Qemu(NodeAddress),
    /// An instance.
    Ec2(&'a Ec2),
}

impl Machine<'_> {
    /// The node's address, as flags take it.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Qemu(address) => address.ip.addr().to_string(),
            Self::Ec2(_) => variable(ADDRESS),
        }
    }

    /// Who tells it addresses of names.
    pub(super) fn resolver(&self) -> File {
        let resolver = match self {
            // QEMU's user-mode network has one at this address.
            Self::Qemu(_) => Ipv4Addr::new(10, 0, 2, 3),
            Self::Ec2(_) => EC2_RESOLVER,
        };
        File::new("/etc/resolv.conf", format!("nameserver {resolver}\n"))
    }

    /// URLs at which etcd listens on this port.
    pub(super) fn etcd_listens(&self, port: u16, on_loopback: bool) -> String {
        match self {
            Self::Qemu(address) if on_loopback => {
                format!("https://127.0.0.1:{port},https://{}:{port}", address.ip.addr())
            }
            Self::Qemu(address) => format!("https://{}:{port}", address.ip.addr()),
            // Its lasting address may come after it; who gets in is said by the security group.
            Self::Ec2(_) => format!("https://0.0.0.0:{port}"),
        }
    }

    /// The disk that holds etcd's data.
    pub(super) fn etcd_disk(&self) -> String {
        match self {
            Self::Qemu(_) => format!("/dev/disk/by-id/virtio-{}", paths::ETCD_DISK_SERIAL),
            Self::Ec2(_) => ETCD_DISK.into(),
        }
    }

    /// Flags of kubelet that no other machine needs.
    pub(super) fn kubelet_flags(&self) -> Vec<String> {
        match self {
            Self::Qemu(_) => vec![],
            Self::Ec2(ec2) => {
                let external = ec2.has_cloud_controller.then(|| "--cloud-provider=external".to_owned());
                std::iter::once(format!("--provider-id={}", variable(PROVIDER_ID))).chain(external).collect()
            }
        }
    }

    /// URL at which a worker reaches the API.
    pub(super) fn api(&self, gateway: Ipv4Addr) -> String {
        match self {
            // Its VM pod forwards what comes there.
            Self::Qemu(_) => format!("https://{gateway}:{API_PORT}"),
            Self::Ec2(ec2) => format!("https://{}:{API_PORT}", ec2.api()),
        }
    }
}

/// How a flag names what a machine puts in.
pub(super) fn variable(name: &str) -> String {
    format!("${{{name}}}")
}

/// Whether a machine puts in the value of this argument of ours. Nothing else of ours has such a value: what users write in it is
/// names, numbers and labels.
pub(super) fn is_put_in(argument: &str) -> bool {
    let value = argument.split_once('=').map_or("", |(_, value)| value);
    [NODE, ADDRESS, PROVIDER_ID].iter().any(|name| value == variable(name))
}
