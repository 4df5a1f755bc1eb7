//! Labels and taints of a pool on its Nodes. Kubelets give them when they register; when the pool changes, its Nodes follow
//! in place. Pure.
//!
//! What was given is recorded on the Node, and only a change of it is carried out: a taint that is there until a node's agent
//! has started, say, is not put back when that agent has taken it away.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Map, Value, json};

use crate::{api::names, cluster::valid::NodePool};

/// Annotation of a worker's Node inside the guest: labels and taints that its pool gave it.
pub const DRESS_ANNOTATION: &str = "giantnetes.io/pool-gave";

/// Patches of Nodes whose pool has changed, by node. With the resourceVersion that was seen, since the whole list of taints
/// is written.
pub fn changes(nodes: &[Node], workers: &[(&NodePool, String)]) -> Vec<(String, Value)> {
    let pools: BTreeMap<_, _> = workers.iter().map(|(pool, node)| (node, *pool)).collect();
    let change = |node: &Node| {
        let name = node.metadata.name.clone()?;
        let ours = node.metadata.labels.as_ref()?.contains_key(names::POOL_LABEL);
        let patch = ours.then(|| pools.get(&name)).flatten().and_then(|pool| change(node, pool))?;
        Some((name, patch))
    };
    nodes.iter().filter_map(change).collect()
}

fn change(node: &Node, pool: &NodePool) -> Option<Value> {
    let taints: Vec<_> = pool
        .taints
        .iter()
        .map(|taint| json!({"key": taint.key, "value": taint.value, "effect": taint.effect}))
        .collect();
    let wish = json!({"labels": pool.labels, "taints": taints});
    let record = node.metadata.annotations.as_ref().and_then(|all| all.get(DRESS_ANNOTATION));
    // Somebody's own writing is taken for nothing: then nothing is taken away.
    let record: Value = record.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    if record == wish {
        return None;
    }
    let mut labels: Map<String, Value> = Map::new();
    for key in record["labels"].as_object().into_iter().flat_map(Map::keys) {
        labels.insert(key.clone(), Value::Null);
    }
    labels.extend(pool.labels.iter().map(|(key, value)| (key.clone(), value.clone().into())));
    let there = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let given = record["taints"].as_array().into_iter().flatten().chain(&taints);
    let given: Vec<_> = given.map(|taint| (taint["key"].clone(), taint["effect"].clone())).collect();
    let foreign = |taint: &Taint| !given.iter().any(|(key, effect)| *key == taint.key && *effect == taint.effect);
    let all: Vec<_> = there.into_iter().filter(foreign).map(|taint| json!(taint)).chain(taints).collect();
    Some(json!({
        "metadata": {
            "resourceVersion": node.metadata.resource_version,
            "labels": labels,
            "annotations": {DRESS_ANNOTATION: wish.to_string()},
        },
        "spec": {"taints": all},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::Valid, kvm, testing::valid};

    fn changes(nodes: &[Node], cluster: &Valid) -> Vec<(String, Value)> {
        super::changes(nodes, &kvm::plan::workers(cluster, &[]))
    }

    fn pool(labels: Value, taints: Value) -> Valid {
        valid(json!({"nodePools": [{"name": "a", "labels": labels, "taints": taints}]}))
    }

    fn node(labels: Value, annotations: Value, taints: Value) -> Node {
        let metadata = json!({"name": "a-0", "resourceVersion": "7", "labels": labels, "annotations": annotations});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"taints": taints}})).unwrap()
    }

    #[test]
    fn nodes_follow_their_pool_and_keep_what_is_not_its() {
        let taint = |key: &str| json!({"key": key, "value": "", "effect": "NoSchedule"});
        let first = pool(json!({"x.org/a": "1", "x.org/b": "1"}), json!([taint("x.org/t")]));
        let bare = node(json!({names::POOL_LABEL: "a"}), json!({}), json!([taint("not-ready")]));
        let given = changes(&[bare], &first).remove(0).1;
        assert_eq!(given["spec"]["taints"], json!([taint("not-ready"), taint("x.org/t")]));
        let record = given["metadata"]["annotations"].clone();
        let labels = json!({names::POOL_LABEL: "a", "x.org/a": "1", "x.org/b": "1", "user": "x"});

        // Taken away by somebody: not put back.
        let dressed = node(labels.clone(), record.clone(), json!([taint("not-ready")]));
        assert!(changes(std::slice::from_ref(&dressed), &first).is_empty());

        let second = pool(json!({"x.org/a": "2"}), json!([]));
        let dressed = node(labels, record, json!([taint("not-ready"), taint("x.org/t")]));
        let patch = changes(&[dressed], &second).remove(0).1;
        assert_eq!(patch["metadata"]["labels"], json!({"x.org/a": "2", "x.org/b": null}));
        assert_eq!(patch["spec"]["taints"], json!([taint("not-ready")]));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn nodes_of_others_are_left_alone() {
        let cluster = pool(json!({"x.org/a": "1"}), json!([]));
        assert!(changes(&[node(json!({}), json!({}), json!([]))], &cluster).is_empty());
    }
}
