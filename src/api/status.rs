//! `ClusterStatus`: what the controller manager says about a guest.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{AwsStatus, Condition};

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
    /// Entry of the image catalogue that the image was taken from, if it is not the one that is named like the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_entry: Option<String>,
    /// The `giantnetes roll` that the image was pinned with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_at: Option<String>,
    /// Provider of the nodes: `kvm` or `aws`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Kubernetes version of the guest's control plane. Pinned: a newer controller manager alone changes no guest. While nodes are
    /// replaced for another version it is the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub version: Option<String>,
    /// VXLAN network identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<i32>,
    /// URL of the guest's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Address of the guest's ingress controller, ports 80 and 443: of its Service in the management cluster, or of that one's
    /// load balancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<String>,
    /// Where the guest's authorities are, if it is Vault. Recorded before the first of them is made there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultPlace>,
    /// What is recorded of a guest on AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsStatus>,
    /// How the guest's authorities are rotated, if they were or are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationStatus>,
    /// Whether etcd was seen to hold the guest's objects. It is never formed anew after that: a node of the control plane whose
    /// volume is blank joins the others, and where no volume is left nothing is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_formed: Option<bool>,
    /// When (RFC 3339) the next certificate is renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates_renew_at: Option<String>,
    /// When (RFC 3339) the first certificate ends, if it is not renewed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates_end_at: Option<String>,
    /// Control-plane nodes, `ready/wanted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<String>,
    /// Nodes that the guest's API lists, `ready/all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
    /// One word for people, derived from the conditions: Pending, Provisioning, Ready, Updating, Degraded, Paused or
    /// Deleting.
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

/// How a guest's authorities are rotated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotationStatus {
    /// The `spec.pki.ca.rotate` that was carried out last.
    pub carried_out: i32,
    /// The `spec.pki.serviceAccountKey.rotate` that was carried out last, if one was.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub service_account_key_carried_out: i32,
    /// The `spec.pki.encryptionKey.rotate` that was carried out last, if one was.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub encryption_key_carried_out: i32,
    /// Generation of the authorities and keys: the first ones are 1. While some are rotated it is that of those that come.
    pub generation: i32,
    /// What is rotated: `CA`, `ServiceAccountKey` or `EncryptionKey`. None: nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What is asked for beside that, and is rotated after it, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queued: Vec<String>,
    /// What the rotation is at: of authorities `Trust`, `Reissue`, `Overlap`, `Serve` or `Drop`, of the service-account key `Trust`,
    /// `Sign`, `Overlap` or `Drop`, of the encryption key `Read`, `Write`, `Rewrite` or `Drop`. None: nothing is rotated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Since when (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Until when (RFC 3339) what users hold of the former authorities, or tokens of the former key, are good for at least. None: it is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

impl RotationStatus {
    /// What goes on, for people. None: nothing is rotated.
    pub fn going_on(&self) -> Option<String> {
        let Self { generation, subject, stage, until, waits_for, queued, .. } = self;
        let until = until.as_ref().map(|until| format!(", users have time until {until}")).unwrap_or_default();
        let waits = waits_for.as_ref().map(|what| format!(", waits for {what}")).unwrap_or_default();
        let of = subject.as_ref().map(|subject| format!(" of {subject}")).unwrap_or_default();
        let then = if queued.is_empty() { String::new() } else { format!("; then {}", queued.join(", ")) };
        Some(format!("generation {generation}{of}: {}{until}{waits}{then}", stage.as_ref()?))
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference
fn is_zero(count: &i32) -> bool {
    *count == 0
}

/// A place in a Vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VaultPlace {
    /// URL of the Vault.
    pub address: String,
    /// Its namespace, where it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What the paths of the guest's PKI mounts begin with.
    pub path: String,
}

impl std::fmt::Display for VaultPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let namespace = self.namespace.as_ref().map(|name| format!(" in namespace {name}")).unwrap_or_default();
        write!(f, "{} at {}{namespace}", self.path, self.address)
    }
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
