//! `Cluster`: the one object that a user writes. `spec: {}` is a whole working cluster.
//!
//! Every description says what changing the field does. What will roll nodes one day is immutable until it does.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::Condition;

/// A guest cluster. `spec: {}` gives a working one-node cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "giantnetes.io",
    version = "v1alpha1",
    kind = "Cluster",
    namespaced,
    status = "ClusterStatus",
    shortname = "gcl",
    category = "giantnetes",
    doc = "A guest cluster: a whole Kubernetes cluster of its own. `spec: {}` gives a working one-node cluster.",
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name may have at most 52 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "CP", type_ = "string", json_path = ".status.controlPlane"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".status.provider"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    printcolumn(name = "VNI", type_ = "integer", json_path = ".status.vni", priority = 1),
    printcolumn(name = "Certificates", type_ = "string", json_path = ".status.certificatesRenewAt", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
// Transition rules on a field do not run when the field comes or goes, so these sit on `spec` and compare value-or-default.
#[x_kube(validation = Rule::new("(has(self.kubernetes) && has(self.kubernetes.podCIDR) ? self.kubernetes.podCIDR : '10.200.0.0/16') == (has(oldSelf.kubernetes) && has(oldSelf.kubernetes.podCIDR) ? oldSelf.kubernetes.podCIDR : '10.200.0.0/16')").message("kubernetes.podCIDR is immutable"))]
#[x_kube(validation = Rule::new("(has(self.kubernetes) && has(self.kubernetes.serviceCIDR) ? self.kubernetes.serviceCIDR : '10.96.0.0/16') == (has(oldSelf.kubernetes) && has(oldSelf.kubernetes.serviceCIDR) ? oldSelf.kubernetes.serviceCIDR : '10.96.0.0/16')").message("kubernetes.serviceCIDR is immutable"))]
#[x_kube(validation = Rule::new("(has(self.network) && has(self.network.overlay) && has(self.network.overlay.cidr) ? self.network.overlay.cidr : '172.26.0.0/20') == (has(oldSelf.network) && has(oldSelf.network.overlay) && has(oldSelf.network.overlay.cidr) ? oldSelf.network.overlay.cidr : '172.26.0.0/20')").message("network.overlay.cidr is immutable"))]
#[x_kube(validation = Rule::new("(has(self.network) && has(self.network.overlay) && has(self.network.overlay.vni) ? self.network.overlay.vni : 0) == (has(oldSelf.network) && has(oldSelf.network.overlay) && has(oldSelf.network.overlay.vni) ? oldSelf.network.overlay.vni : 0)").message("network.overlay.vni is immutable"))]
// What will roll nodes one day must not change before it does: it would take effect unannounced, when a pod is lost.
#[x_kube(validation = Rule::new("(has(self.kubernetes) && has(self.kubernetes.version) ? [self.kubernetes.version] : []) == (has(oldSelf.kubernetes) && has(oldSelf.kubernetes.version) ? [oldSelf.kubernetes.version] : [])").message("kubernetes.version is immutable"))]
#[x_kube(validation = Rule::new("(has(self.provider) ? [self.provider] : []) == (has(oldSelf.provider) ? [oldSelf.provider] : [])").message("provider is immutable"))]
#[x_kube(validation = Rule::new("(has(self.controlPlane) ? [self.controlPlane] : []) == (has(oldSelf.controlPlane) ? [oldSelf.controlPlane] : [])").message("controlPlane is immutable"))]
#[x_kube(validation = Rule::new("(has(self.etcd) ? [self.etcd] : []) == (has(oldSelf.etcd) ? [oldSelf.etcd] : [])").message("etcd is immutable"))]
pub struct ClusterSpec {
    /// Kubernetes itself.
    #[serde(default)]
    pub kubernetes: KubernetesSpec,
    /// Where the nodes run. Exactly one provider; the default is `kvm`.
    #[serde(default)]
    pub provider: ProviderSpec,
    /// The nodes that carry the guest's control plane.
    #[serde(default)]
    pub control_plane: ControlPlaneSpec,
    /// The guest's etcd.
    #[serde(default)]
    pub etcd: EtcdSpec,
    /// The guest's networks.
    #[serde(default)]
    pub network: NetworkSpec,
}

/// Kubernetes itself.
#[derive(schemars::JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct KubernetesSpec {
    /// Version, such as `v1.36.3`; one of the operator's image catalogue. Default: the catalogue's default at creation. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^v[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}$"), length(max = 16))]
    pub version: Option<String>,
    /// Range of the pods' addresses. Default: 10.200.0.0/16. Immutable.
    #[serde(rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    pub pod_cidr: Option<String>,
    /// Range of the Services' addresses. Default: 10.96.0.0/16. Immutable.
    #[serde(rename = "serviceCIDR", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    pub service_cidr: Option<String>,
}

/// Where the nodes run.
#[derive(schemars::JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ProviderSpec {
    /// Nodes are QEMU virtual machines in pods of the management cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm: Option<KvmSpec>,
}

/// Settings of the KVM provider.
#[derive(schemars::JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct KvmSpec {
    /// How guest instructions are run. `Auto` (default) uses KVM where a probe guest started on it and TCG, QEMU's translator, elsewhere. Immutable.
    pub accelerator: Accelerator,
}

/// How QEMU runs guest instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Accelerator {
    /// KVM where a probe guest started on it, else TCG.
    #[default]
    Auto,
    /// Hardware virtualisation, or the VM does not start.
    KVM,
    /// Emulation: works everywhere, slowly.
    TCG,
}

/// The nodes that carry the guest's control plane.
#[derive(schemars::JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ControlPlaneSpec {
    /// Size of each control-plane machine. Immutable.
    pub machine: MachineSpec,
}

/// Size of a machine.
#[derive(schemars::JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MachineSpec {
    /// Virtual CPUs. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub cpus: Option<i32>,
    /// Memory of the guest, such as `4Gi`. Default: 4Gi; at least 2Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Root disk, such as `20Gi`. Default: 20Gi; at least 8Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Quantity>,
}

/// The guest's etcd.
#[derive(schemars::JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct EtcdSpec {
    /// The volume that keeps etcd's data.
    pub storage: StorageSpec,
}

/// A persistent volume.
#[derive(schemars::JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct StorageSpec {
    /// Size, such as `8Gi`. Default: 8Gi; at least 1Gi. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// StorageClass in the management cluster. Default: its default class. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,
}

/// The guest's networks.
#[derive(schemars::JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NetworkSpec {
    /// The VXLAN network that joins the guest's nodes.
    pub overlay: OverlaySpec,
}

/// The VXLAN network that joins a guest's nodes.
#[derive(schemars::JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct OverlaySpec {
    /// Addresses of the nodes; may be equal in all guests. Default: 172.26.0.0/20. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    pub cidr: Option<String>,
    /// VXLAN network identifier, unique over all guests. Default: chosen by the controller. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1000, max = 9999))]
    pub vni: Option<i32>,
}

/// What the controller manager says about a guest.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Short id of the guest; its objects live in namespace `g8s-<id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// UID of the guest's namespace. Pinned: were that namespace deleted, a new one would not hold the guest's roots.
    #[serde(default, rename = "namespaceUID", skip_serializing_if = "Option::is_none")]
    pub namespace_uid: Option<String>,
    /// Image of the guest's VM pods. Pinned, as the version is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Provider of the nodes: `kvm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Kubernetes version of the guest. Pinned: a newer controller manager alone changes no guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// VXLAN network identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<i32>,
    /// URL of the guest's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// When (RFC 3339) the next certificate is renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates_renew_at: Option<String>,
    /// Control-plane nodes, `ready/wanted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<String>,
    /// Nodes that the guest's API lists, `ready/all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
    /// One word for people, derived from the conditions: Pending, Provisioning, Ready, Degraded or Deleting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What the guest waits for, or what is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The conditions; see docs/api.md for their types and reasons.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// How many nodes there are, and how many of them are Ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// Nodes whose condition Ready is True.
    pub ready: usize,
    /// All nodes.
    pub total: usize,
}

impl std::fmt::Display for NodeCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ready, self.total)
    }
}
