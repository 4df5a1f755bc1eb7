//! `Cluster`: the one object that a user writes. `spec: {}` is a whole working cluster.
//!
//! Every description says what changing the field does: *immutable*, *in place*, *rolls the pool* or *rolls the control
//! plane*. Unknown fields are not refused here: an object that a newer version stored must not end the watch of an older one.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{
    ClusterStatus, ControlPlaneSpec, EtcdSpec, ExposureSpec, IngressControllerSpec, KubernetesSpec, NetworkSpec,
    NodePoolSpec, PkiSpec, ProviderSpec,
};

/// What a guest cluster shall be.
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
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "CP", type_ = "string", json_path = ".status.controlPlane"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".status.provider"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    printcolumn(name = "VNI", type_ = "integer", json_path = ".status.vni", priority = 1),
    printcolumn(name = "Certificates End", type_ = "string", json_path = ".status.certificatesEndAt", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
// Rules over several fields, and those that compare with the object as it was, are in `rules`.
pub struct ClusterSpec {
    /// Kubernetes itself.
    #[serde(default)]
    pub kubernetes: KubernetesSpec,
    /// Where the nodes run. At most one provider; the default is `kvm`. Which one: immutable.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 1))]
    pub provider: ProviderSpec,
    /// The nodes that carry the guest's control plane.
    #[serde(default)]
    pub control_plane: ControlPlaneSpec,
    /// The guest's etcd.
    #[serde(default)]
    pub etcd: EtcdSpec,
    /// Groups of equal worker nodes, at most 20. Default: none; the control plane then runs pods. Changing the list: in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub node_pools: Vec<NodePoolSpec>,
    /// The guest's networks.
    #[serde(default)]
    pub network: NetworkSpec,
    /// How the guest's API is reached from outside the management cluster.
    #[serde(default)]
    pub exposure: ExposureSpec,
    /// What leads HTTP from outside to the guest's own workloads. Default: nothing. Changing it: in place.
    #[serde(default)]
    pub ingress_controller: IngressControllerSpec,
    /// The guest's certificates.
    #[serde(default)]
    pub pki: PkiSpec,
    /// While true, deleting the Cluster is refused. Default: false. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_protection: Option<bool>,
    /// A time, such as `2026-12-24T18:00:00Z`. Until then nothing is done, deletion included, but certificates are renewed.
    /// Default: not paused. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"), length(max = 40), extend("format" = "date-time"))]
    pub paused_until: Option<String>,
}

impl Cluster {
    /// Nodes that it asks for, the control plane's among them.
    pub fn nodes_or_default(&self) -> usize {
        let of_pools = self.spec.node_pools.iter().map(|pool| pool.replicas);
        let replicas = [self.spec.control_plane.replicas].into_iter().chain(of_pools);
        // A stored object may be older than the bounds.
        replicas.map(|replicas| usize::try_from(replicas.unwrap_or(1)).unwrap_or_default()).sum()
    }

    /// The wishes for other authorities, service-account keys and encryption keys, by their places in `spec.pki`: how often they were
    /// asked for, as it is written.
    pub fn rotations_asked(&self) -> [(&'static str, i32); 3] {
        let pki = &self.spec.pki;
        let (keys, encryption) = (&pki.service_account_key, &pki.encryption_key);
        [("ca", pki.ca.rotate), ("serviceAccountKey", keys.rotate), ("encryptionKey", encryption.rotate)]
            .map(|(place, count)| (place, count.unwrap_or_default()))
    }

    /// Whether keys of authorities that are in Vault are written down there for escrow officers.
    pub fn has_exportable_keys(&self) -> bool {
        self.spec.pki.exportable.unwrap_or_default()
    }

    /// Whether its authorities are to be in Vault.
    pub fn is_kept_in_vault(&self) -> bool {
        self.spec.pki.backend == super::PkiBackend::Vault
    }
}
