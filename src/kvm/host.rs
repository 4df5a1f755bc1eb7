//! Hosts: Nodes of the management cluster, as far as the VMs on them are concerned. Of a whole Node the cache keeps this.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ClusterResourceScope, Metadata, Resource, api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};

use super::pod;
use crate::{api::names, network::underlay::Underlay};

/// Taint by which people say that a host is off for certain, and its volumes may be attached elsewhere.
pub const OUT_OF_SERVICE_TAINT: &str = "node.kubernetes.io/out-of-service";

/// A Node with the few fields that we read.
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

/// The few fields of a Node's spec that we read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSpec {
    /// Ranges of the pods on it, where the management cluster gives such.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// Its taints.
    pub taints: Vec<HostTaint>,
}

/// A taint of a Node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostTaint {
    /// Its key.
    pub key: String,
    /// What it does to pods that do not tolerate it.
    #[serde(default)]
    pub effect: String,
}

/// The few fields of a Node's status that we read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostStatus {
    /// Conditions, `Ready` among them.
    pub conditions: Vec<HostCondition>,
    /// Its addresses.
    pub addresses: Vec<HostAddress>,
    /// What it has for pods.
    pub allocatable: Allocatable,
}

/// An address of a Node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname` and the like.
    #[serde(rename = "type")]
    pub type_: String,
    /// It.
    pub address: String,
}

/// What a host has for pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocatable {
    /// How many VM pods may use KVM, a number; empty where nobody offers it.
    #[serde(rename = "giantnetes.io/kvm", default)]
    pub kvm: String,
}

/// A condition of a Node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostCondition {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Since when it is so.
    #[serde(default)]
    pub last_transition_time: Option<Timestamp>,
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

/// How a host is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// Nothing new may come to it, so what is on it has to go.
    pub cordoned: bool,
    /// Since when its kubelet is silent or unwell. None: it is well, as far as is known.
    pub silent_since: Option<Timestamp>,
    /// Whether people say that it is off for certain.
    pub out_of_service: bool,
}

impl Host {
    /// Whether this host offers KVM to `pod`: VM pods tolerate no taint, and some are kept to zones.
    pub fn offers_kvm(&self, pod: &Pod) -> bool {
        let offers = self.status.allocatable.kvm.parse::<u32>().is_ok_and(|devices| devices > 0);
        let is_open = self.spec.taints.iter().all(|taint| taint.effect == "PreferNoSchedule");
        let zone = self.metadata.labels.as_ref().and_then(|labels| labels.get(names::ZONE_LABEL));
        offers && is_open && pod::zones(pod).is_none_or(|zones| zone.is_some_and(|zone| zones.contains(zone)))
    }

    /// Its addresses within the management cluster.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let internal = self.status.addresses.iter().filter(|one| one.type_ == "InternalIP");
        internal.filter_map(|one| one.address.parse().ok())
    }

    /// Adds its own addresses and those of the pods on it.
    pub fn note(&self, underlay: &mut Underlay) {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        for address in self.addresses() {
            underlay.add_address(address, format!("the address of host {name}"));
        }
        for range in self.spec.pod_cidrs.iter().filter_map(|range| range.parse().ok()) {
            underlay.add_range(range, format!("the pods of host {name}"));
        }
    }

    /// How it is. One that has not said anything yet is taken to be well.
    pub fn state(&self) -> HostState {
        let ready = self.status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let silent = ready.filter(|condition| condition.status != "True");
        HostState {
            cordoned: self.spec.unschedulable,
            silent_since: silent.and_then(|condition| condition.last_transition_time),
            out_of_service: self.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE_TAINT),
        }
    }
}

impl HostState {
    /// Whether what is on it is given up at `now`, or after which time it would be. None: it is well.
    pub fn gives_up_in(&self, now: Timestamp, timeout: SignedDuration) -> Option<SignedDuration> {
        let silent = now.duration_since(self.silent_since?);
        Some((timeout - silent).max(SignedDuration::ZERO))
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
        let around =
            Surroundings { vni: 1234, api_address, namespace_uid: "ns-uid", etcd_formed: false, settings: &settings };
        control_plane_node(&valid(spec), 0, around).unwrap().pod
    }

    #[test]
    fn a_host_has_addresses_of_its_own_and_of_its_pods() {
        let host: Host = serde_json::from_value(json!({
            "metadata": {"name": "h1"},
            "spec": {"podCIDR": "10.7.1.0/24", "podCIDRs": ["10.7.1.0/24", "fd00::/64"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "10.9.0.1"}, {"type": "InternalIP", "address": "172.26.3.4"},
            ]},
        }))
        .unwrap();
        let mut underlay = Underlay::default();
        host.note(&mut underlay);
        let clash = |overlay: &str| underlay.clash(overlay.parse().unwrap());
        assert!(clash("172.26.0.0/20").unwrap().contains("172.26.3.4/32, the address of host h1"));
        assert!(clash("10.7.0.0/20").unwrap().contains("10.7.1.0/24, the pods of host h1"));
        assert_eq!(clash("10.9.0.0/20"), None);
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

    #[test]
    fn a_host_is_dead_when_it_was_silent_for_long() {
        let host = |ready: &str| -> Host {
            serde_json::from_value(json!({
                "metadata": {"name": "h", "labels": {"a": "b"}},
                "spec": {"podCIDR": "10.0.0.0/24", "taints": [{"key": OUT_OF_SERVICE_TAINT, "effect": "NoExecute"}]},
                "status": {
                    "images": [{"names": ["x"]}],
                    "conditions": [
                        {"type": "DiskPressure", "status": "False", "lastTransitionTime": "2026-10-01T00:00:00Z"},
                        {"type": "Ready", "status": ready, "lastTransitionTime": "2026-10-01T00:00:00Z"},
                    ],
                },
            }))
            .unwrap()
        };
        let (five, at) = (SignedDuration::from_mins(5), |time: &str| time.parse::<Timestamp>().unwrap());
        let state = host("Unknown").state();
        assert!(state.out_of_service && !state.cordoned);
        assert_eq!(state.gives_up_in(at("2026-10-01T00:02:00Z"), five), Some(SignedDuration::from_mins(3)));
        assert_eq!(state.gives_up_in(at("2026-10-01T01:00:00Z"), five), Some(SignedDuration::ZERO));
        assert_eq!(host("True").state().gives_up_in(at("2026-10-01T01:00:00Z"), five), None);
        assert_eq!(Host::default().state(), HostState::default());
    }
}
