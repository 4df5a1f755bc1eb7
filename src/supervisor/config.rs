//! What the controller tells a VM pod's supervisor: one JSON file of the node's ConfigMap. No secret is in it.

use std::net::IpAddr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{
    api::Accelerator,
    network::addresses::{Mac, NodeAddress},
};

/// Name of the file in the ConfigMap.
pub const FILE: &str = "vm.json";

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmConfig {
    /// The node's name.
    pub node: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of the root disk in bytes.
    pub disk_bytes: u64,
    /// Size of etcd's disk in bytes; none on a worker.
    pub etcd_bytes: Option<u64>,
    /// How guest instructions are run.
    pub accelerator: Accelerator,
    /// The overlay.
    pub overlay: OverlayConfig,
    /// Ethernet address of the guest's way out.
    pub egress_mac: Mac,
    /// On a worker: where the guest's API is, seen from the pod. None on a control-plane node, which has it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_address: Option<IpAddr>,
}

/// The overlay as one VM pod sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OverlayConfig {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Address of the gateway on the pod's bridge, with the overlay's prefix length.
    pub gateway: Ipv4Net,
    /// The VM's place.
    pub node: NodeAddress,
    /// Size of its packets that the user asked for. None: as large as the pod's interface allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// How the guest's other VM pods are found. None: this pod has no peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeersConfig>,
    /// How flanneld finds the ways to the other nodes. None: the overlay is one segment, which needs no flanneld.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flannel: Option<FlannelConfig>,
}

impl OverlayConfig {
    /// Name of the VXLAN device. Flannel's is what flanneld calls it.
    pub fn device(&self) -> String {
        let kind = if self.flannel.is_some() { "flannel." } else { "vx" };
        format!("{kind}{}", self.vni)
    }

    /// The network of all nodes.
    pub fn network(&self) -> Ipv4Net {
        self.gateway.trunc()
    }
}

/// How flanneld finds the ways to the other nodes. Where Flannel's etcd is, and by which certificate, is beside the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlannelConfig {
    /// The guest's id, under which its keys are in Flannel's etcd.
    pub guest: String,
}

/// How the guest's other VM pods are found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeersConfig {
    /// Name whose addresses are those of all VM pods of the guest, this one among them.
    pub name: String,
    /// The management cluster's DNS server, which knows it.
    pub server: IpAddr,
    /// Private ranges in which the guest may ask DNS servers nevertheless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<Ipv4Net>,
}
