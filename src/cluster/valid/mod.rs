//! The spec, checked and typed. After [`Valid::new`] nothing reads the raw spec, and no required value is an `Option`.
//!
//! The rules are those of the CRD, in [`crate::api`], once more: a stored object may be older than they are. What only we
//! can check comes on top: that version and image are in the operator's catalogue. [`update`] judges a change.

mod aws;
mod check;
mod kubernetes;
mod machine;
mod network;
mod text;
mod update;

use k8s_openapi::jiff::Timestamp;

pub use aws::{Aws, AwsCredentials, AwsPool, Spot};
pub use check::Violation;
pub use kubernetes::{ApiServer, Flags, Kubernetes, Oidc, Version};
pub use machine::{ControlPlane, DEFAULT_MACHINE, Machine, NodePool, Storage, Taint, parse_bytes};
pub use network::{
    DEFAULT_CA_TTL, DEFAULT_LEAF_TTL, DEFAULT_OVERLAY_CIDR, DEFAULT_POD_CIDR, DEFAULT_SERVICE_CIDR, EGRESS_CIDR,
    Exposure, IngressController, Mtu, Pki, Ranges, SubjectName, parse_lifetime,
};
pub use text::{HostName, PoolName, Zone, is_label, is_name_with};
pub use update::update;

use self::check::Check;
use crate::{
    api::{Accelerator, Cluster, ClusterStatus},
    cluster::Identity,
    settings::Settings,
};

/// A Cluster that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Valid {
    /// What the guest is called.
    pub identity: Identity,
    /// Version and image.
    pub version: Version,
    /// What Kubernetes' components are told.
    pub kubernetes: Kubernetes,
    /// Address ranges.
    pub ranges: Ranges,
    /// The VNI that the user asked for, or that the guest has.
    pub requested_vni: Option<u32>,
    /// Packet sizes that the user asked for.
    pub mtu: Mtu,
    /// Control-plane nodes.
    pub control_plane: ControlPlane,
    /// etcd's volume.
    pub etcd: Storage,
    /// Node pools, by name.
    pub pools: Vec<NodePool>,
    /// What it is made of on AWS, if its nodes are there.
    pub aws: Option<Aws>,
    /// How QEMU runs the guest.
    pub accelerator: Accelerator,
    /// The way to the API from outside the management cluster.
    pub exposure: Exposure,
    /// The guest's own ingress controller, if it has one.
    pub ingress_controller: Option<IngressController>,
    /// Certificates.
    pub pki: Pki,
    /// Whether deletion is refused.
    pub deletion_protection: bool,
    /// Until when nothing is done but renewing certificates.
    pub paused_until: Option<Timestamp>,
}

impl Valid {
    /// Whether a node of it has others to find.
    pub fn has_peers(&self) -> bool {
        !self.has_one_master() || !self.pools.is_empty()
    }

    /// Whether its control plane is one node: then nobody takes over from it, and etcd has one member.
    pub fn has_one_master(&self) -> bool {
        self.control_plane.replicas == 1
    }

    /// Checks a Cluster. All violations are found at once.
    ///
    /// # Errors
    /// The list of violations, never empty.
    pub fn new(cluster: &Cluster, settings: &Settings) -> Result<Self, Vec<Violation>> {
        let spec = &cluster.spec;
        let mut check = Check::default();
        let fresh = ClusterStatus::default();
        let pinned = cluster.status.as_ref().unwrap_or(&fresh);
        let identity = Identity::of(cluster);
        check.cluster_name(&identity.key.name);
        let kvm = spec.provider.kvm.clone().unwrap_or_default();
        let version = check.version(cluster, kvm.image.as_deref(), pinned, settings);
        let ranges = check.ranges(cluster, settings);
        let valid = Self {
            aws: check.aws(spec, pinned, (&version, &ranges), &settings.aws),
            version,
            kubernetes: check.kubernetes(&spec.kubernetes),
            ranges,
            requested_vni: check.vni(spec.network.overlay.vni.or(pinned.vni)),
            mtu: check.mtu(&spec.network),
            control_plane: check.control_plane(&spec.control_plane),
            etcd: check.storage("spec.etcd.storage", &spec.etcd.storage),
            pools: check.pools(&spec.node_pools),
            accelerator: kvm.accelerator,
            exposure: check.exposure(&spec.exposure, &identity, &settings.exposure),
            ingress_controller: check.ingress_controller(&spec.ingress_controller),
            pki: check.pki(&spec.pki, settings),
            deletion_protection: spec.deletion_protection.unwrap_or_default(),
            paused_until: check.time("spec.pausedUntil", spec.paused_until.as_deref()),
            identity,
        };
        check.finish(valid)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        api::names,
        testing::{cluster, settings},
    };

    fn problems(spec: serde_json::Value) -> Vec<String> {
        match Valid::new(&cluster(spec), &settings()) {
            Ok(_) => Vec::new(),
            Err(violations) => violations.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn an_empty_spec_is_valid() {
        let valid = Valid::new(&cluster(json!({})), &settings()).unwrap();
        assert_eq!(valid.version.name, "v1.36.3");
        assert_eq!(valid.control_plane.machine, Machine { cpus: 2, memory_mib: 4096, disk_bytes: 20 << 30 });
    }

    #[test]
    fn all_violations_are_found_at_once() {
        let spec = json!({"network": {"overlay": {"vni": 1}}, "controlPlane": {"machine": {"cpus": 0, "disk": "1"}}});
        assert_eq!(problems(spec).len(), 3);
    }

    #[test]
    fn a_pinned_version_keeps_its_image_whatever_the_catalogue_says() {
        let mut cluster = cluster(json!({}));
        let status = cluster.status.get_or_insert_default();
        (status.version, status.image) = (Some("v1.35.1".into()), Some("old".into()));
        assert_eq!(Valid::new(&cluster, &settings()).unwrap().version.image, "old");
    }

    #[test]
    fn an_image_moves_with_the_version_the_entry_and_a_roll_and_never_by_itself() {
        let mut settings = settings();
        let images = [("v1.36.3", "now"), ("v1.36.4", "next"), ("debug", "other")];
        settings.kubernetes.images = images.map(|(entry, image)| (entry.to_owned(), image.to_owned())).into();
        let version = |spec, roll: Option<&str>, pinned: serde_json::Value| {
            let mut cluster = cluster(spec);
            cluster.status = serde_json::from_value(pinned).unwrap();
            let roll = roll.map(|roll| [(names::ROLL_ANNOTATION.to_owned(), roll.to_owned())].into());
            cluster.metadata.annotations = roll;
            let version = Valid::new(&cluster, &settings).unwrap().version;
            (version.image, version.roll)
        };
        let (old, rolled) = (json!({"version": "v1.36.3", "image": "old"}), Some("t".to_owned()));
        let image = |spec| version(spec, None, old.clone()).0;
        assert_eq!(image(json!({})), "old");
        assert_eq!(
            image(json!({"kubernetes": {"version": "v1.36.3"}, "provider": {"kvm": {"image": "v1.36.3"}}})),
            "old"
        );
        assert_eq!(image(json!({"kubernetes": {"version": "v1.36.4"}})), "next");
        assert_eq!(image(json!({"provider": {"kvm": {"image": "debug"}}})), "other");
        assert_eq!(version(json!({}), Some("t"), old), ("now".into(), rolled.clone()));
        let pinned = json!({"version": "v1.36.3", "image": "old", "imageEntry": "debug", "rolledAt": "t"});
        assert_eq!(version(json!({}), Some("t"), pinned.clone()).0, "now");
        let debug = json!({"provider": {"kvm": {"image": "debug"}}});
        assert_eq!(version(debug.clone(), Some("t"), pinned.clone()), ("old".into(), rolled.clone()));
        // Somebody's file does not have the annotation: nobody asked for anything.
        assert_eq!(version(debug, None, pinned), ("old".into(), rolled.clone()));
        let dropped = json!({"version": "v1.35.1", "image": "old"});
        assert_eq!(version(json!({}), Some("t"), dropped), ("old".into(), rolled));
    }

    #[test]
    fn a_bundle_that_the_api_server_could_not_read_is_refused() {
        let oidc = |bundle: &str| {
            let oidc = json!({"issuerURL": "https://a.example", "clientID": "b", "caBundle": bundle});
            problems(json!({"kubernetes": {"apiServer": {"oidc": oidc}}}))
        };
        let good = crate::testing::certificate();
        assert_eq!(oidc(&good), Vec::<String>::new());
        assert_eq!(oidc(&format!("{good}{good}")), Vec::<String>::new());
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let torn = &good[..good.len() / 2];
        for bad in [torn, "-----BEGIN CERTIFICATE-----\n", &format!("{good}{key}"), &format!("{good}{torn}")] {
            assert_eq!(oidc(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn an_overlay_lies_beside_the_management_cluster_unless_the_guest_is_made_already() {
        let mut settings = settings();
        settings.network.pod_cidrs = vec!["172.16.0.0/12".parse().unwrap()];
        settings.network.service_cidrs = vec!["10.96.0.0/12".parse().unwrap()];
        let violations = |cluster: &Cluster| Valid::new(cluster, &settings).err().unwrap_or_default();
        let mut clashing = cluster(json!({}));
        let found = violations(&clashing);
        assert!(found.len() == 1 && found[0].field == "spec.network.overlay.cidr", "{found:?}");
        assert!(found[0].problem.starts_with("172.26.0.0/20 overlaps 172.16.0.0/12, "), "{found:?}");
        // Its pods and Services may have the management cluster's addresses: they are known inside its VMs alone.
        let kubernetes = json!({"podCIDR": "172.16.0.0/16", "serviceCIDR": "10.96.0.0/16"});
        let beside = json!({"kubernetes": kubernetes, "network": {"overlay": {"cidr": "10.50.0.0/20"}}});
        assert_eq!(violations(&cluster(beside)), []);
        clashing.status.get_or_insert_default().vni = Some(4321);
        assert_eq!(violations(&clashing), []);
    }

    #[test]
    fn a_guest_keeps_its_vni() {
        let mut cluster = cluster(json!({}));
        cluster.status.get_or_insert_default().vni = Some(4321);
        assert_eq!(Valid::new(&cluster, &settings()).unwrap().requested_vni, Some(4321));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(cidr in ".{0,20}", size in ".{0,12}", any in any::<String>()) {
            let component = json!({"extraArgs": {any.clone(): any, "v": size}});
            let _ = problems(json!({
                "kubernetes": {
                    "podCIDR": cidr, "serviceCIDR": cidr, "version": size, "featureGates": {any.clone(): true},
                    "apiServer": {"extraArgs": {any.clone(): any}, "oidc": {
                        "issuerURL": format!("https://{any}"), "clientID": any, "usernamePrefix": any, "caBundle": any,
                    }},
                    "kubelet": component, "proxy": component,
                },
                "provider": {"kvm": {"image": any}},
                "network": {"overlay": {"cidr": cidr}},
                "etcd": {"storage": {"size": size, "className": any}},
                "controlPlane": {"machine": {"memory": size, "disk": size}, "zones": [any.clone()]},
                "nodePools": [{
                    "name": any, "labels": {any.clone(): any}, "zones": [size.clone()],
                    "taints": [{"key": any, "value": any, "effect": "NoSchedule"}],
                }],
                "exposure": {"type": "Ingress", "host": any, "className": any},
                "pki": {"ca": {"ttl": size}, "leaf": {"ttl": size}, "apiServer": {"altNames": [any.clone()]}},
                "pausedUntil": any,
            }));
        }
    }
}
