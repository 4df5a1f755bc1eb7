//! What tells our stacks and resources from others', and what a stack is called.

use std::collections::BTreeMap;

use crate::api::names;

/// Whose a stack is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// UID of the Cluster: it alone decides whose a stack is.
    pub uid: String,
    /// The guest's short id, part of all names.
    pub id: String,
    /// `namespace/name` of the Cluster, for people.
    pub name: String,
}

impl Owner {
    /// Name of the guest's stack for network, API, keys and control plane.
    pub fn cluster_stack(&self) -> String {
        names::guest_namespace(&self.id)
    }

    /// Name of the stack of one of its node pools.
    pub fn pool_stack(&self, pool: &str) -> String {
        format!("{}-{pool}", self.cluster_stack())
    }

    /// The guest's own zone, in which its API and its control-plane nodes have names.
    pub fn domain(&self) -> String {
        // `internal` is set aside for networks that nobody else sees.
        format!("{}.giantnetes.internal", self.id)
    }

    /// Tags of the guest's stacks. CloudFormation passes them on to everything that it makes and that has tags, but for
    /// what Auto Scaling makes.
    pub fn tags(&self) -> BTreeMap<String, String> {
        [
            (names::OWNER_UID_ANNOTATION.to_owned(), self.uid.clone()),
            (names::OWNER_NAME_ANNOTATION.to_owned(), self.name.clone()),
            (names::CLUSTER_LABEL.to_owned(), self.id.clone()),
            (names::MANAGED_BY_LABEL.to_owned(), names::MANAGER.to_owned()),
            (self.kubernetes_tag(), "owned".to_owned()),
        ]
        .into()
    }

    /// The tag by which Kubernetes' cloud controller and CSI driver know what belongs to a cluster.
    pub fn kubernetes_tag(&self) -> String {
        format!("kubernetes.io/cluster/{}", self.id)
    }
}

/// Whether a tag is ours or AWS's to set, and so not a user's.
pub fn is_reserved(key: &str) -> bool {
    key == "Name"
        || key == names::MANAGED_BY_LABEL
        || ["aws:", "giantnetes.io/", "kubernetes.io/"].iter().any(|prefix| key.starts_with(prefix))
}
