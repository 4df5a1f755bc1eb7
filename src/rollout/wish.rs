//! What of a spec a node is made for, as a hash: a node whose hash is another is outdated, and is rolled.
//!
//! The rendered configuration is not asked: it may move with a newer controller manager, which alone changes no guest. What
//! is in here is listed by hand, a key with its default is left out, and keys are in the order of their names, so that a key
//! that is added later moves nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    api::{Accelerator, AuditPolicy},
    cluster::{
        Valid,
        valid::{
            DEFAULT_MACHINE, DEFAULT_OVERLAY_CIDR, DEFAULT_POD_CIDR, DEFAULT_SERVICE_CIDR, Machine, NodePool, Oidc,
            Zone,
        },
    },
    runtime::apply::hash,
};

/// The wish that a node of the control plane is made for.
pub fn control_plane(cluster: &Valid) -> String {
    let mut wish = Wish::of_any(cluster);
    wish.machine(cluster.control_plane.machine);
    wish.zones(&cluster.control_plane.zones);
    // One that is alone does not look for others, and its controllers elect no leader.
    wish.unless("alone", cluster.has_one_master(), true);
    let kubernetes = &cluster.kubernetes;
    wish.unless("apiServer", &kubernetes.api_server.flags, &BTreeMap::new());
    wish.unless("controllerManager", &kubernetes.controller_manager, &BTreeMap::new());
    wish.unless("scheduler", &kubernetes.scheduler, &BTreeMap::new());
    wish.unless("audit", kubernetes.api_server.audit, AuditPolicy::default());
    wish.unless("oidc", kubernetes.api_server.oidc.as_ref().map(oidc), None);
    wish.hash()
}

/// The wish that a worker of `pool` is made for. Labels and taints change in place.
pub fn worker(cluster: &Valid, pool: &NodePool) -> String {
    let mut wish = Wish::of_any(cluster);
    wish.machine(pool.machine);
    wish.zones(&pool.zones);
    wish.hash()
}

/// Values by key, without those that are the default.
#[derive(Default)]
struct Wish(BTreeMap<&'static str, Value>);

impl Wish {
    /// What every node is made for.
    fn of_any(cluster: &Valid) -> Self {
        let mut wish = Self::default();
        let (kubernetes, ranges) = (&cluster.kubernetes, &cluster.ranges);
        wish.0.insert("version", json!(cluster.version.name));
        wish.0.insert("image", json!(cluster.version.image));
        wish.unless("roll", &cluster.version.roll, &None);
        wish.unless("accelerator", cluster.accelerator, Accelerator::default());
        wish.unless("featureGates", &kubernetes.feature_gates, &BTreeMap::new());
        wish.unless("kubelet", &kubernetes.kubelet, &BTreeMap::new());
        wish.unless("proxy", &kubernetes.proxy, &BTreeMap::new());
        wish.unless("podCIDR", ranges.pods, DEFAULT_POD_CIDR);
        wish.unless("serviceCIDR", ranges.services, DEFAULT_SERVICE_CIDR);
        wish.unless("overlayCIDR", ranges.overlay.net, DEFAULT_OVERLAY_CIDR);
        wish.unless("overlayMTU", cluster.mtu.overlay, None);
        wish
    }

    fn unless<T: Serialize + PartialEq>(&mut self, key: &'static str, value: T, default: T) {
        if value != default {
            self.0.insert(key, json!(value));
        }
    }

    fn machine(&mut self, machine: Machine) {
        self.unless("cpus", machine.cpus, DEFAULT_MACHINE.cpus);
        self.unless("memory", machine.memory_mib, DEFAULT_MACHINE.memory_mib);
        self.unless("disk", machine.disk_bytes, DEFAULT_MACHINE.disk_bytes);
    }

    fn zones(&mut self, zones: &BTreeSet<Zone>) {
        self.unless("zones", zones.iter().map(Zone::as_str).collect(), Vec::new());
    }

    fn hash(self) -> String {
        hash(&json!(self.0))
    }
}

fn oidc(oidc: &Oidc) -> BTreeMap<&'static str, &String> {
    let keys = [
        ("issuerURL", Some(&oidc.issuer_url)),
        ("clientID", Some(&oidc.client_id)),
        ("usernameClaim", Some(&oidc.username_claim)),
        ("usernamePrefix", Some(&oidc.username_prefix)),
        ("groupsClaim", oidc.groups_claim.as_ref()),
        ("groupsPrefix", Some(&oidc.groups_prefix)),
        ("caBundle", oidc.ca_bundle.as_ref()),
    ];
    keys.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::valid;

    fn wishes(spec: Value) -> (String, String) {
        let mut spec = spec;
        if spec.get("nodePools").is_none() {
            spec["nodePools"] = json!([{"name": "a"}]);
        }
        let cluster = valid(spec);
        (control_plane(&cluster), worker(&cluster, &cluster.pools[0]))
    }

    /// What the nodes of every guest carry: another hash would roll all of them when the manager is updated.
    #[test]
    fn the_wish_of_the_default_stays() {
        let plain = "f7a9c090b2d4f8c7".to_owned();
        assert_eq!(wishes(json!({})), (plain.clone(), plain));
    }

    #[test]
    fn each_field_rolls_the_nodes_that_it_is_for() {
        let flag = json!({"extraArgs": {"v": "4"}});
        let oidc = json!({"issuerURL": "https://a.example", "clientID": "b"});
        for (spec, master, worker) in [
            (json!({"kubernetes": {"featureGates": {"A": true}}}), true, true),
            (json!({"kubernetes": {"podCIDR": "10.201.0.0/16"}}), true, true),
            (json!({"kubernetes": {"serviceCIDR": "10.97.0.0/16"}}), true, true),
            (json!({"network": {"overlay": {"cidr": "172.27.0.0/20"}}}), true, true),
            (json!({"network": {"overlay": {"mtu": 1400}}}), true, true),
            (json!({"kubernetes": {"kubelet": flag}}), true, true),
            (json!({"kubernetes": {"proxy": flag}}), true, true),
            (json!({"provider": {"kvm": {"accelerator": "TCG"}}}), true, true),
            (json!({"kubernetes": {"apiServer": flag}}), true, false),
            (json!({"kubernetes": {"controllerManager": flag}}), true, false),
            (json!({"kubernetes": {"scheduler": flag}}), true, false),
            (json!({"kubernetes": {"apiServer": {"audit": {"policy": "None"}}}}), true, false),
            (json!({"kubernetes": {"apiServer": {"oidc": oidc}}}), true, false),
            (json!({"controlPlane": {"machine": {"cpus": 3}}}), true, false),
            (json!({"controlPlane": {"machine": {"memory": "5Gi"}}}), true, false),
            (json!({"controlPlane": {"machine": {"disk": "30Gi"}}}), true, false),
            (json!({"controlPlane": {"zones": ["a"]}}), true, false),
            (json!({"controlPlane": {"replicas": 3}}), true, false),
            (json!({"nodePools": [{"name": "a", "machine": {"cpus": 1}}]}), false, true),
            (json!({"nodePools": [{"name": "a", "machine": {"memory": "2Gi"}}]}), false, true),
            (json!({"nodePools": [{"name": "a", "machine": {"disk": "9Gi"}}]}), false, true),
            (json!({"nodePools": [{"name": "a", "zones": ["z"]}]}), false, true),
            (json!({"nodePools": [{"name": "a", "replicas": 3, "labels": {"x.example.com/y": "z"}}]}), false, false),
            (json!({"pki": {"leaf": {"ttl": "10m"}, "apiServer": {"altNames": ["a.example"]}}}), false, false),
            (json!({"exposure": {"type": "Ingress"}, "network": {"calico": {"mtu": 1400}}}), false, false),
            (json!({"etcd": {"storage": {"size": "9Gi"}}, "deletionProtection": true}), false, false),
        ] {
            let (before, after) = (wishes(json!({})), wishes(spec.clone()));
            assert_eq!((before.0 != after.0, before.1 != after.1), (master, worker), "{spec}");
        }
    }

    #[test]
    fn more_nodes_beside_several_replace_none() {
        let of = |replicas: i32| wishes(json!({"controlPlane": {"replicas": replicas}}));
        assert_eq!(of(3), of(5));
    }

    #[test]
    fn a_default_written_down_is_no_other_wish() {
        let written = wishes(json!({
            "kubernetes": {"podCIDR": "10.200.0.0/16", "version": "v1.36.3", "apiServer": {"audit": {"policy": "Metadata"}}},
            "controlPlane": {"machine": {"cpus": 2, "memory": "4096Mi", "disk": "20Gi"}, "zones": []},
            "provider": {"kvm": {"accelerator": "Auto", "image": "v1.36.3"}},
            "nodePools": [{"name": "a", "machine": {"cpus": 2}}],
        }));
        assert_eq!(written, wishes(json!({})));
    }

    #[test]
    fn a_roll_that_is_asked_for_is_another_wish() {
        let mut cluster = valid(json!({"nodePools": [{"name": "a"}]}));
        let before = (control_plane(&cluster), worker(&cluster, &cluster.pools[0]));
        cluster.version.roll = Some("2026-10-01T00:00:00Z".into());
        assert_ne!(control_plane(&cluster), before.0);
        assert_ne!(worker(&cluster, &cluster.pools[0]), before.1);
    }
}
