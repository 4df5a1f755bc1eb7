//! `ClusterAccess`: a user's way into a guest. Its result is a Secret beside it, with a kubeconfig.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{Condition, rules};

/// The Cluster that a user gets access to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AccessedCluster {
    /// Name of the Cluster, in the namespace of the ClusterAccess. Changing it: immutable.
    #[schemars(regex(pattern = rules::OBJECT_NAME), length(max = 52))]
    pub name: String,
}

/// Rights of a user inside the guest.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessRights {
    /// A ClusterRole of the guest, such as `view`, `edit` or `cluster-admin`. Changing it: in place.
    #[schemars(regex(pattern = rules::ROLE_NAME), length(max = 128))]
    pub cluster_role: String,
    /// Namespaces of the guest in which the user has them; those that are not there are waited for. At least one, if it is
    /// given at all. Default: in the whole guest. Changing them: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(max = 63), regex(pattern = rules::NAMESPACE)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub namespaces: Option<Vec<String>>,
}

/// Who shall have access to which guest, and for how long.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "giantnetes.io",
    version = "v1alpha1",
    kind = "ClusterAccess",
    plural = "clusteraccesses",
    namespaced,
    status = "ClusterAccessStatus",
    shortname = "gca",
    category = "giantnetes",
    doc = "A user's access to a guest cluster: a client certificate of the guest's own authority, in a kubeconfig in a Secret beside it.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "User", type_ = "string", json_path = ".spec.user"),
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.rights.clusterRole"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secret"),
    printcolumn(name = "Certificate Ends", type_ = "string", json_path = ".status.certificateEndsAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterAccessSpec {
    /// The Cluster. Changing it: immutable.
    #[x_kube(validation = rules::stays())]
    pub cluster_ref: AccessedCluster,
    /// Name of the user, as the guest's RBAC knows it; not `system:…` or `giantnetes:…`. Changing it: in place. A certificate
    /// that was issued is good until it ends.
    #[schemars(regex(pattern = rules::USER_NAME), length(max = 64))]
    #[x_kube(validation = rules::not_reserved())]
    pub user: String,
    /// Groups of the user, as the guest's RBAC knows them; not `system:…` or `giantnetes:…`; at most 16. Default: none.
    /// Changing them: in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 64), regex(pattern = rules::USER_NAME)))]
    #[x_kube(merge_strategy = ListMerge::Set, validation = rules::none_is_reserved())]
    pub groups: Vec<String>,
    /// Lifetime of the certificate in hours or minutes, such as `8h`; 10m to 720h, and at most what the operator of the
    /// management cluster allows. Renewed at two thirds, for as long as the ClusterAccess is there. Default: 8h. Changing it:
    /// in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::LIFETIME), length(max = 8))]
    #[x_kube(validation = rules::lifetime("10m", "720h"))]
    pub ttl: Option<String>,
    /// Rights that the user gets inside the guest, for as long as the ClusterAccess is there. Default: none but those that the
    /// guest's own bindings give the user and the groups. Changing them: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rights: Option<AccessRights>,
}

/// What the controller manager says about a ClusterAccess.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterAccessStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Name of the Secret with the kubeconfig, in its key `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// When (RFC 3339) the certificate ends. It is renewed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ends_at: Option<String>,
    /// The one condition, `Ready`; its reasons are those of a Cluster.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl ClusterAccess {
    /// The condition `Ready`, if it was told of the spec as it is now.
    pub fn told(&self) -> Option<&Condition> {
        let status = self.status.as_ref().filter(|status| status.observed_generation == self.metadata.generation)?;
        status.conditions.iter().find(|condition| condition.type_ == "Ready")
    }
}
