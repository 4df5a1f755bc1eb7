//! The objects that every guest gets. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{Node, Taint},
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};

use crate::{
    api::{NodeCounts, names},
    cluster::Valid,
    kvm::vm_pod::VmPod,
    pki::leaf::{ADMIN_GROUP, KUBELET_CLIENT_GROUP, KUBELET_METRICS_GROUP},
    rollout::wish,
};

/// The standard label of control-plane nodes. Kubelets may not set it on themselves.
pub const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";

/// What a group of ours is called inside a guest, and its role and binding with it.
fn named(group: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(group.into()),
        labels: Some([(names::MANAGED_BY_LABEL.to_owned(), names::MANAGER.to_owned())].into()),
        ..ObjectMeta::default()
    }
}

/// Roles that Kubernetes does not bring.
pub fn roles() -> [ClusterRole; 1] {
    let metrics = PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec!["nodes/metrics".into()]),
        verbs: vec!["get".into()],
        ..PolicyRule::default()
    };
    // Supervisors are asked which keys their API server verifies tokens with.
    let keys = PolicyRule {
        non_resource_urls: Some(vec!["/openid/v1/jwks".into()]),
        verbs: vec!["get".into()],
        ..PolicyRule::default()
    };
    [ClusterRole { metadata: named(KUBELET_METRICS_GROUP), rules: Some(vec![metrics, keys]), ..ClusterRole::default() }]
}

/// Rights that a guest needs before anybody can use it.
pub fn bindings() -> [ClusterRoleBinding; 3] {
    [
        (ADMIN_GROUP, "cluster-admin"),
        (KUBELET_CLIENT_GROUP, "system:kubelet-api-admin"),
        (KUBELET_METRICS_GROUP, KUBELET_METRICS_GROUP),
    ]
    .map(|(group, role)| ClusterRoleBinding {
        metadata: named(group),
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
}

/// Counts nodes.
pub fn count<'a>(nodes: impl IntoIterator<Item = &'a Node>, vm_pods: &[Arc<VmPod>]) -> NodeCounts {
    let each = nodes.into_iter().map(|node| is_ready(node, vm_pods));
    each.fold(NodeCounts::default(), |all, ready| NodeCounts {
        ready: all.ready + usize::from(ready),
        total: all.total + 1,
    })
}

/// Nodes that a guest is to have: not those of workers that are wanted no more, or were given up with their host.
pub fn wanted(nodes: &[Node], is_wanted: impl Fn(&str) -> bool) -> Vec<&Node> {
    let of_pool =
        |node: &Node| node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(names::POOL_LABEL));
    let named = |node: &Node| is_wanted(node.metadata.name.as_deref().unwrap_or_default());
    nodes.iter().filter(|node| !of_pool(node) || named(node)).collect()
}

/// How many of the others are silent.
pub fn silent(nodes: &[Node], is_wanted: impl Fn(&str) -> bool) -> usize {
    let all = nodes.iter().filter(|node| says_ready(node).is_none()).count();
    all - wanted(nodes, is_wanted).into_iter().filter(|node| says_ready(node).is_none()).count()
}

/// Whether the kubelet of the VM that runs now says so. What the last one said stays in the guest's etcd until the guest's
/// controllers miss it, for the better part of a minute: long enough for a VM to be started anew.
fn is_ready(node: &Node, vm_pods: &[Arc<VmPod>]) -> bool {
    let name = node.metadata.name.as_deref();
    let Some(vm_pod) = vm_pods.iter().find(|pod| Some(pod.node()) == name) else {
        // Of the users' own.
        return says_ready(node).is_some();
    };
    // Both clocks are the host's.
    says_ready(node).zip(vm_pod.started_at()).is_some_and(|(said, started)| said >= started)
}

/// When the Node's kubelet last said that the Node is ready, if that is what it says.
pub(super) fn says_ready(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_heartbeat_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// The VM pod whose image says which add-ons the guest has: one of the control plane that answers, and that is as it should be.
/// While several are replaced, those that wait for it carry what the others had before. A lone one has nobody beside it.
pub fn bearer<'a>(vm_pods: &'a [Arc<VmPod>], cluster: &Valid) -> Option<&'a Arc<VmPod>> {
    let (wish, alone) = (wish::control_plane(cluster), cluster.has_one_master());
    let mut masters = vm_pods.iter().filter(|pod| !pod.is_worker() && pod.answering_at().is_some());
    masters.find(|pod| alone || pod.wish().is_none_or(|made_for| *made_for == wish))
}

/// Names of control-plane nodes that lack the standard label.
pub fn unlabelled(nodes: &[Node]) -> Vec<String> {
    masters(nodes)
        .filter(|node| !node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(CONTROL_PLANE_LABEL)))
        .filter_map(|node| node.metadata.name.clone())
        .collect()
}

fn masters(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(|node| node.metadata.name.as_ref().is_some_and(|name| name.starts_with("master-")))
}

/// Taints of control-plane nodes that have to change, by node: with pools they are kept free of users' pods, without pools
/// they run them. Other taints stay. With the resourceVersion that was seen, since the whole list is written.
pub fn retaint(nodes: &[Node], has_pools: bool) -> Vec<(String, Value)> {
    let change = |node: &Node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let (ours, mut others): (Vec<_>, Vec<_>) =
            taints.into_iter().partition(|taint| taint.key == CONTROL_PLANE_LABEL && taint.effect == "NoSchedule");
        if ours.is_empty() != has_pools {
            return None;
        }
        if has_pools {
            let (key, effect) = (CONTROL_PLANE_LABEL.to_owned(), "NoSchedule".to_owned());
            others.push(Taint { key, effect, ..Taint::default() });
        }
        let version = &node.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": others}});
        Some((node.metadata.name.clone()?, patch))
    };
    masters(nodes).filter_map(change).collect()
}

/// Nodes of workers that are no more: wanted by nobody, and without a VM pod that could bring them back.
pub fn gone(nodes: &[Node], is_kept: impl Fn(&str) -> bool) -> Vec<&Node> {
    let is_worker = |node: &&Node| {
        // What users added themselves has no such label.
        node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(names::POOL_LABEL))
    };
    nodes.iter().filter(is_worker).filter(|node| !is_kept(node.metadata.name.as_deref().unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, pool: Option<&str>, taints: Value) -> Node {
        let labels = pool.map(|pool| json!({names::POOL_LABEL: pool})).unwrap_or_default();
        let metadata = json!({"name": name, "resourceVersion": "7", "labels": labels});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"taints": taints}})).unwrap()
    }

    #[test]
    fn the_control_plane_is_tainted_exactly_while_there_are_pools() {
        let not_ready = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let ours = json!({"key": CONTROL_PLANE_LABEL, "effect": "NoSchedule"});
        let bare = [node("master-0", None, json!([not_ready])), node("a-0", Some("a"), json!([]))];
        assert!(retaint(&bare, false).is_empty());
        let tainted = retaint(&bare, true);
        assert_eq!(tainted.len(), 1);
        assert_eq!(tainted[0].1["spec"]["taints"], json!([not_ready, ours]));
        assert_eq!(tainted[0].1["metadata"]["resourceVersion"], "7");
        let tainted = [node("master-0", None, json!([ours, not_ready]))];
        assert!(retaint(&tainted, true).is_empty());
        assert_eq!(retaint(&tainted, false)[0].1["spec"]["taints"], json!([not_ready]));
    }

    #[test]
    fn a_node_that_was_given_up_is_not_waited_for() {
        let nodes =
            [node("master-0", None, json!([])), node("a-0", Some("a"), json!([])), node("theirs", None, json!([]))];
        assert_eq!(count(wanted(&nodes, |name| name == "a-0"), &[]).total, 3);
        assert_eq!(count(wanted(&nodes, |name| name == "a-1"), &[]).total, 2);
        assert_eq!([silent(&nodes, |name| name == "a-0"), silent(&nodes, |name| name == "a-1")], [0, 1]);
    }

    #[test]
    fn what_a_kubelet_said_before_its_vm_was_started_anew_counts_no_more() {
        let vm_pod = |state: Value| -> [Arc<VmPod>; 1] {
            let status = json!({"containerStatuses": [{"state": state}]});
            [Arc::new(serde_json::from_value(json!({"metadata": {"name": "a-0"}, "status": status})).unwrap())]
        };
        let running = |since: &str| vm_pod(json!({"running": {"startedAt": since}}));
        let mut said = node("a-0", Some("a"), json!([]));
        let condition = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": "2030-01-01T00:01:00Z"});
        said.status = serde_json::from_value(json!({"conditions": [condition]})).unwrap();
        let ready = |vm_pods: &[Arc<VmPod>]| count([&said], vm_pods).ready;
        assert_eq!(ready(&running("2030-01-01T00:00:10Z")), 1);
        assert_eq!(ready(&running("2030-01-01T00:01:10Z")), 0);
        assert_eq!(ready(&vm_pod(json!({"waiting": {"reason": "CrashLoopBackOff"}}))), 0);
        // One that users joined themselves has no VM pod.
        assert_eq!(ready(&[]), 1);
    }

    #[test]
    fn add_ons_are_those_of_a_control_plane_node_that_is_as_it_should_be() {
        let cluster = |replicas: u32| crate::testing::valid(json!({"controlPlane": {"replicas": replicas}}));
        let vm_pod = |name: &str, made_for: &str, ready: &str| -> Arc<VmPod> {
            let annotations = json!({names::NODE_WISH_ANNOTATION: made_for});
            let status = json!({"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]});
            let labels = json!({names::ROLE_LABEL: names::ROLE_CONTROL_PLANE, names::NODE_LABEL: name});
            let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
            Arc::new(serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap())
        };
        let (three, one) = (cluster(3), cluster(1));
        let now = wish::control_plane(&three);
        let bearer = |pods: &[Arc<VmPod>], cluster| bearer(pods, cluster).map(|pod| pod.node().to_owned());
        let old = vm_pod("master-1", "another", "True");
        let pods = [old.clone(), vm_pod("master-0", &now, "True")];
        assert_eq!(bearer(&pods, &three).as_deref(), Some("master-0"));
        // The new one is away for a moment: nothing of before comes back.
        assert_eq!(bearer(&[old.clone(), vm_pod("master-0", &now, "False")], &three), None);
        assert_eq!(bearer(&[old], &one).as_deref(), Some("master-1"));
    }

    #[test]
    fn only_workers_that_nobody_keeps_are_gone() {
        let none = json!([]);
        let nodes = [
            node("master-0", None, none.clone()),
            node("a-0", Some("a"), none.clone()),
            node("a-1", Some("a"), none.clone()),
            node("theirs", None, none),
        ];
        let gone = gone(&nodes, |name| name == "a-0");
        assert_eq!(gone.iter().filter_map(|node| node.metadata.name.as_deref()).collect::<Vec<_>>(), ["a-1"]);
    }
}
