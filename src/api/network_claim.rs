//! `NetworkClaim`: a cluster-scoped object whose *name* is the claimed resource, so that the API server decides races.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// What a claim is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ClaimKind {
    /// A VXLAN network identifier; the claim's name is `vni-<number>`.
    VNI,
    /// A host name of an Ingress; the claim's name is `host-<hash of it>`.
    Host,
}

/// The Cluster that holds a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ClusterRef {
    /// Namespace of the Cluster.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the Cluster.
    #[schemars(length(max = 253))]
    pub name: String,
    /// UID of the Cluster: a new Cluster of the same name does not inherit the claim.
    #[schemars(length(max = 128))]
    pub uid: String,
}

/// A claim on a resource that no two guests may share. Made and removed by the controller manager; not for users.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "giantnetes.io",
    version = "v1alpha1",
    kind = "NetworkClaim",
    shortname = "nclaim",
    category = "giantnetes",
    doc = "A claim on a resource that no two guests may share. Its name is the resource. Made and removed by the controller manager; not for users.",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.kind"),
    printcolumn(name = "Value", type_ = "integer", json_path = ".spec.value"),
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.host"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.clusterRef.namespace"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Released", type_ = "date", json_path = ".spec.releasedAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkClaimSpec {
    /// What is claimed.
    pub kind: ClaimKind,
    /// The claimed number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_215))]
    pub value: Option<i32>,
    /// The claimed host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub host: Option<String>,
    /// Who holds it.
    #[x_kube(validation = Rule::new("self == oldSelf").message("a claim cannot change hands"))]
    pub cluster_ref: ClusterRef,
    /// When it was given back. It stays for a quarantine, so that nobody gets a resource of which a trace may be left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Time>,
}
