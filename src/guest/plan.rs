//! The objects that every guest gets. Pure.

use k8s_openapi::{
    api::{
        core::v1::Node,
        rbac::v1::{ClusterRoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    api::{NodeCounts, names},
    pki::leaf::{ADMIN_GROUP, KUBELET_CLIENT_GROUP},
};

/// The standard label of control-plane nodes. Kubelets may not set it on themselves.
pub const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";

/// Rights that a guest needs before anybody can use it.
pub fn bindings() -> Vec<ClusterRoleBinding> {
    [(ADMIN_GROUP, "cluster-admin"), (KUBELET_CLIENT_GROUP, "system:kubelet-api-admin")]
        .map(|(group, role)| ClusterRoleBinding {
            metadata: ObjectMeta {
                name: Some(group.into()),
                labels: Some([(names::MANAGED_BY_LABEL.to_owned(), names::MANAGER.to_owned())].into()),
                ..ObjectMeta::default()
            },
            role_ref: RoleRef {
                api_group: Some("rbac.authorization.k8s.io".into()),
                kind: "ClusterRole".into(),
                name: role.into(),
            },
            subjects: Some(vec![Subject {
                api_group: Some("rbac.authorization.k8s.io".into()),
                kind: "Group".into(),
                name: group.into(),
                namespace: None,
            }]),
        })
        .into()
}

/// Counts nodes.
pub fn count(nodes: &[Node]) -> NodeCounts {
    NodeCounts { ready: nodes.iter().filter(|node| is_ready(node)).count(), total: nodes.len() }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// Names of control-plane nodes that lack the standard label.
pub fn unlabelled(nodes: &[Node]) -> Vec<String> {
    nodes
        .iter()
        .filter(|node| !node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(CONTROL_PLANE_LABEL)))
        .filter_map(|node| node.metadata.name.clone())
        .filter(|name| name.starts_with("master-"))
        .collect()
}
