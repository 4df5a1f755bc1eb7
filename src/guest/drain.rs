//! Workers that are to go: their Nodes are cordoned and their pods evicted; when a worker is back, its Node is opened again.
//!
//! Whether a cordon is ours is written on the Node with it: what a user cordoned stays so.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{EvictParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tracing::{debug, info};

use super::plan::says_ready;
use crate::{
    api::names,
    kvm::vm_pod::VmPod,
    runtime::{CallError, call, chain},
};

/// Cordons and drains the Nodes of workers that are leaving, and opens those of workers that are back. Answers, by the UID of
/// each leaving VM pod, which pods have yet to go elsewhere.
///
/// # Errors
/// [`CallError`]
pub(super) async fn tend(
    client: &Client,
    vm_pods: &[Arc<VmPod>],
    nodes: &[Node],
) -> Result<BTreeMap<String, Vec<String>>, CallError> {
    let api = Api::<Node>::all(client.clone());
    for (name, patch) in patches(nodes, vm_pods) {
        info!(node = name, cordoned = !patch["spec"]["unschedulable"].is_null(), "a worker goes or is back");
        match call("patch", format!("Node {name}"), api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)))
            .await
        {
            // Changed in the meantime, or gone: the next look has what is now. Until then no pod is evicted.
            Err(error) if matches!(error.status(), Some(404 | 409)) => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    let mut drains = BTreeMap::new();
    for pod in vm_pods.iter().filter(|pod| is_leaving(pod)) {
        let node = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(pod.node()));
        // One that has never registered has nothing.
        let left = match node {
            Some(node) => drain(client, node).await?,
            None => Vec::new(),
        };
        drains.insert(pod.metadata.uid.clone().unwrap_or_default(), left);
    }
    Ok(drains)
}

/// Evicts a Node's pods as far as their PodDisruptionBudgets allow. Answers which are still there.
async fn drain(client: &Client, node: &Node) -> Result<Vec<String>, CallError> {
    let name = node.name_any();
    let params = ListParams::default().fields(&format!("spec.nodeName={name}"));
    let pods = call("list", format!("pods of Node {name}"), Api::<Pod>::all(client.clone()).list(&params)).await?;
    let mut left = Vec::new();
    for pod in pods.items.iter().filter(|pod| is_in_the_way(pod, says_ready(node).is_some())) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let place = format!("{namespace}/{name}");
        if pod.metadata.deletion_timestamp.is_none() && evict(client, &namespace, &name).await? == Evicted::Gone {
            continue;
        }
        left.push(place);
    }
    Ok(left)
}

/// What became of an eviction.
#[derive(Debug, PartialEq, Eq)]
enum Evicted {
    /// The pod is gone already.
    Gone,
    /// It ends, or may not yet.
    Stays,
}

async fn evict(client: &Client, namespace: &str, name: &str) -> Result<Evicted, CallError> {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let params = EvictParams::default();
    match call("evict", format!("Pod {namespace}/{name}"), api.evict(name, &params)).await {
        Ok(_) => Ok(Evicted::Stays),
        Err(error) if error.status() == Some(404) => Ok(Evicted::Gone),
        // Its budget does not allow it now, or it cannot be judged (more than one budget): it is asked for again.
        Err(error) if matches!(error.status(), Some(409 | 429 | 500)) => {
            debug!(error = chain(&error), "a pod may not be evicted yet");
            Ok(Evicted::Stays)
        }
        Err(error) => Err(error),
    }
}

fn is_leaving(pod: &VmPod) -> bool {
    pod.is_worker() && pod.runs() && !pod.is_going() && pod.leaving().is_some()
}

/// Cordons of Nodes whose worker is leaving, and their ends, by Node. With the resourceVersion that was seen.
fn patches(nodes: &[Node], vm_pods: &[Arc<VmPod>]) -> Vec<(String, Value)> {
    let change = |pod: &Arc<VmPod>| {
        let node = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(pod.node()))?;
        let closed = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default();
        let ours = node.annotations().contains_key(names::CORDONED_ANNOTATION);
        let (annotation, unschedulable) = if is_leaving(pod) && !closed {
            (json!(pod.metadata.uid), json!(true))
        } else if ours && pod.is_ready() && !pod.is_going() && pod.leaving().is_none() {
            (Value::Null, Value::Null)
        } else {
            return None;
        };
        let patch = json!({
            "metadata": {
                "resourceVersion": node.metadata.resource_version,
                "annotations": {names::CORDONED_ANNOTATION: annotation},
            },
            "spec": {"unschedulable": unschedulable},
        });
        Some((pod.node().to_owned(), patch))
    };
    vm_pods.iter().filter(|pod| pod.is_worker()).filter_map(change).collect()
}

/// Whether a pod has to go before its node is powered off. Those of DaemonSets and of the kubelet itself have nowhere to go, and
/// what has ended holds nothing. Where the kubelet does not answer, nobody can see an evicted pod's end.
fn is_in_the_way(pod: &Pod, kubelet_answers: bool) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    let of_daemon_set = owners.into_iter().any(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet");
    let is_mirror = pod.annotations().contains_key("kubernetes.io/config.mirror");
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let has_ended = matches!(phase, Some("Succeeded" | "Failed"));
    let is_evicted = pod.metadata.deletion_timestamp.is_some();
    !of_daemon_set && !is_mirror && !has_ended && (kubelet_answers || !is_evicted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm_pod(annotations: Value, ready: bool) -> Arc<VmPod> {
        let ready = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {
                    "name": "a-0", "uid": "u", "labels": {names::ROLE_LABEL: names::ROLE_WORKER}, "annotations": annotations,
                },
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap(),
        )
    }

    fn leaving() -> Value {
        json!({names::LEAVING_SINCE_ANNOTATION: "2026-10-01T00:00:00Z", names::LEAVING_FOR_ANNOTATION: "x"})
    }

    fn node(annotations: Value, unschedulable: Option<bool>) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "a-0", "resourceVersion": "7", "annotations": annotations},
            "spec": {"unschedulable": unschedulable},
        }))
        .unwrap()
    }

    #[test]
    fn a_cordon_of_ours_ends_when_the_worker_is_back_and_a_users_stays() {
        let patch = |node: Node, pod| patches(&[node], &[pod]).into_iter().next().map(|(_, patch)| patch);
        let ours = json!({names::CORDONED_ANNOTATION: "u"});
        let cordon = patch(node(json!({}), None), vm_pod(leaving(), true)).unwrap();
        assert_eq!(cordon["spec"], json!({"unschedulable": true}));
        assert_eq!(cordon["metadata"], json!({"resourceVersion": "7", "annotations": ours}));
        // It is cordoned, by us or by a user; after a crash, too, there is nothing to do twice.
        assert_eq!(patch(node(ours.clone(), Some(true)), vm_pod(leaving(), true)), None);
        assert_eq!(patch(node(json!({}), Some(true)), vm_pod(leaving(), true)), None);
        // Its VM is new, but its kubelet does not answer yet.
        assert_eq!(patch(node(ours.clone(), Some(true)), vm_pod(json!({}), false)), None);
        let open = patch(node(ours, Some(true)), vm_pod(json!({}), true)).unwrap();
        assert_eq!(open["spec"], json!({"unschedulable": null}));
        assert_eq!(open["metadata"]["annotations"], json!({names::CORDONED_ANNOTATION: null}));
        assert_eq!(patch(node(json!({}), Some(true)), vm_pod(json!({}), true)), None);
    }

    #[test]
    fn what_has_nowhere_to_go_is_in_nobodys_way() {
        let pod = |pod: Value| serde_json::from_value::<Pod>(pod).unwrap();
        let owned = |kind: &str| {
            let owner = json!({"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "x", "controller": true});
            pod(json!({"metadata": {"name": "p", "ownerReferences": [owner]}, "status": {"phase": "Running"}}))
        };
        assert!(is_in_the_way(&owned("ReplicaSet"), true) && is_in_the_way(&owned("ReplicaSet"), false));
        assert!(!is_in_the_way(&owned("DaemonSet"), true));
        let mirror = json!({"metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"}}});
        assert!(!is_in_the_way(&pod(mirror), true));
        let ended = json!({"metadata": {"name": "p"}, "status": {"phase": "Succeeded"}});
        assert!(!is_in_the_way(&pod(ended), true));
        let evicted = pod(json!({"metadata": {"name": "p", "deletionTimestamp": "2026-10-01T00:00:00Z"}}));
        assert!(is_in_the_way(&evicted, true) && !is_in_the_way(&evicted, false));
    }
}
