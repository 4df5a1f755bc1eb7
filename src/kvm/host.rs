//! Which hosts offer KVM: what the cache keeps of the management cluster's Nodes.

use k8s_openapi::{
    ClusterResourceScope, Metadata, Resource,
    api::core::v1::{Pod, Taint},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};

use super::pod;
use crate::api::names;

/// A Node of the management cluster with the few fields that we read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// As in any object.
    pub metadata: ObjectMeta,
    /// See [`HostSpec`].
    #[serde(default)]
    pub spec: HostSpec,
    /// See [`HostStatus`].
    #[serde(default)]
    pub status: HostStatus,
}

/// The few fields of a Node's specification that we read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostSpec {
    /// What keeps pods away.
    #[serde(default)]
    pub taints: Vec<Taint>,
}

/// The few fields of a Node's status that we read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// What it has for pods.
    #[serde(default)]
    pub allocatable: Allocatable,
}

/// What a host has for pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocatable {
    /// How many VM pods may use KVM, a number; empty where nobody offers it.
    #[serde(rename = "giantnetes.io/kvm", default)]
    pub kvm: String,
}

impl Resource for Host {
    const API_VERSION: &'static str = "v1";
    const GROUP: &'static str = "";
    const KIND: &'static str = "Node";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "nodes";
    type Scope = ClusterResourceScope;
}

impl Metadata for Host {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Host {
    /// Whether this host offers KVM to `pod`: VM pods tolerate no taint, and some are kept to zones.
    pub fn offers_kvm(&self, pod: &Pod) -> bool {
        let offers = self.status.allocatable.kvm.parse::<u32>().is_ok_and(|devices| devices > 0);
        let is_open = self.spec.taints.iter().all(|taint| taint.effect == "PreferNoSchedule");
        let zone = self.metadata.labels.as_ref().and_then(|labels| labels.get(names::ZONE_LABEL));
        offers && is_open && pod::zones(pod).is_none_or(|zones| zone.is_some_and(|zone| zones.contains(zone)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        kvm::plan::{Surroundings, control_plane_node},
        testing::{settings, valid},
    };

    fn host(zone: &str, kvm: &str, taints: serde_json::Value) -> Host {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "labels": {names::ZONE_LABEL: zone}},
            "spec": {"taints": taints, "podCIDR": "10.0.0.0/24"},
            "status": {"allocatable": {"cpu": "2", names::KVM_RESOURCE: kvm}},
        }))
        .unwrap()
    }

    fn pod(spec: serde_json::Value) -> Pod {
        let (settings, api_address) = (settings(), [10, 96, 7, 7].into());
        let around = Surroundings { vni: 1234, api_address, namespace_uid: "ns-uid", settings: &settings };
        control_plane_node(&valid(spec), 0, around).unwrap().pod
    }

    #[test]
    fn a_host_offers_kvm_to_pods_that_may_run_on_it() {
        let (anywhere, in_a) = (pod(json!({})), pod(json!({"controlPlane": {"zones": ["a"]}})));
        assert!(host("b", "110", json!([])).offers_kvm(&anywhere));
        assert!(host("a", "1", json!([])).offers_kvm(&in_a) && !host("b", "1", json!([])).offers_kvm(&in_a));
        assert!(!host("a", "0", json!([])).offers_kvm(&anywhere));
        let bare: Host = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        assert!(!bare.offers_kvm(&anywhere));
        let cordoned = json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
        assert!(!host("a", "1", cordoned).offers_kvm(&anywhere));
        assert!(host("a", "1", json!([{"key": "x", "effect": "PreferNoSchedule"}])).offers_kvm(&anywhere));
    }
}
