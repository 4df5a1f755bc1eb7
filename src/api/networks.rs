//! `spec.network` and `spec.exposure`: what joins the guest's nodes, and how its API is reached.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// The guest's networks.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkSpec {
    /// The VXLAN network that joins the guest's nodes.
    pub overlay: OverlaySpec,
    /// Calico, the network of the guest's pods.
    pub calico: CalicoSpec,
}

/// The VXLAN network that joins a guest's nodes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::flannel_has_room())]
#[x_kube(validation = rules::flannel_carries_packets_in_packets())]
pub struct OverlaySpec {
    /// Who forwards between the nodes. Default: `Native`. Changing it: immutable.
    #[serde(default, skip_serializing_if = "OverlayBackend::is_default")]
    pub backend: OverlayBackend,
    /// IPv4 range of the nodes' addresses, /16 to /24, with Flannel /16 to /22; may be equal in all guests, and must not overlap
    /// the management cluster's own addresses. Default: 172.26.0.0/20. Changing it: immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    #[x_kube(validation = rules::ipv4_range())]
    #[x_kube(validation = rules::no_host_bits())]
    #[x_kube(validation = rules::prefix(16, 24))]
    #[x_kube(validation = rules::unicast())]
    pub cidr: Option<String>,
    /// VXLAN network identifier, 1000 to 9999 without 4096 (Calico's own), unique over all guests. Default: chosen by the
    /// controller. Changing it: immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1000, max = 9999))]
    #[x_kube(validation = rules::not_calicos_vni())]
    pub vni: Option<i32>,
    /// Largest packet between nodes in bytes, 1280 to 8950, with Flannel from 1330 on. Default: what the pods' own network leaves after VXLAN's 50.
    /// One that is larger keeps the nodes from starting. Changing it: rolls the control plane and the pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 8950))]
    pub mtu: Option<i32>,
}

/// Who forwards between the guest's nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OverlayBackend {
    /// The supervisors of the VM pods: the nodes are on one Ethernet segment.
    #[default]
    Native,
    /// flanneld beside every VM: each node has a network of its own, and there are routes between them. The operator has to
    /// have set Flannel's etcd up.
    Flannel,
}

impl OverlayBackend {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Calico, the network of the guest's pods.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CalicoSpec {
    /// Largest packet between pods in bytes, 1280 to 8950; at most `overlay.mtu`. Default: the overlay's. Changing it: in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 8950))]
    pub mtu: Option<i32>,
}

/// How the guest's API is reached from outside the management cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::exposure_host())]
#[x_kube(validation = rules::exposure_class())]
pub struct ExposureSpec {
    /// The way in. Default: `None`. Changing it: in place; the kubeconfig follows.
    #[serde(default, rename = "type", skip_serializing_if = "ExposureType::is_default")]
    pub type_: ExposureType,
    /// Host name of the API, for types `Ingress`, `TLSRoute` and `LoadBalancer`; the DNS of the latter's must lead to the load
    /// balancer. Default: of a load balancer, its address; otherwise made from the operator's template. Changing it: in place;
    /// the kubeconfig follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::HOST_NAME), length(max = 253))]
    pub host: Option<String>,
    /// IngressClass in the management cluster, for type `Ingress`. Default: the operator's. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::OBJECT_NAME), length(max = 253))]
    pub class_name: Option<String>,
}

/// The way to a guest's API from outside the management cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExposureType {
    /// There is none.
    #[default]
    None,
    /// An Ingress that passes TLS through by host name.
    Ingress,
    /// A TLSRoute of the Gateway API at the operator's gateway, which passes TLS through by host name.
    TLSRoute,
    /// A load balancer that the management cluster's provider makes for a Service.
    LoadBalancer,
}

impl ExposureType {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
