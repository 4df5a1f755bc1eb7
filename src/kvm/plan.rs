//! The objects of a control-plane node, in the order in which they are made. Pure.

use k8s_openapi::{
    api::core::v1::{ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, VolumeResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use serde_json::json;

use super::pod;
use crate::{
    api::names,
    cluster::{Valid, valid::Storage},
    network::addresses::{self, EGRESS_MAC},
    node_config::{self, RENDER_REVISION, cloud_init},
    runtime::apply::hash,
    settings::KvmSettings,
    supervisor::config::{self, OverlayConfig, VmConfig},
};
use ipnet::Ipv4Net;

/// Everything of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeObjects {
    /// etcd's volume.
    pub claim: PersistentVolumeClaim,
    /// User data, and the supervisor's configuration.
    pub config: ConfigMap,
    /// The VM pod.
    pub pod: Pod,
}

/// What a node needs that its Cluster does not say.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The guest's VNI.
    pub vni: u32,
    /// UID of the guest's namespace, which the VM pod names as its controller.
    pub namespace_uid: &'a str,
    /// The operator's settings.
    pub settings: &'a KvmSettings,
}

/// The objects of the `index`-th control-plane node.
///
/// # Errors
/// Only if a configuration cannot be written down, which would be a defect of ours.
pub fn control_plane_node(cluster: &Valid, index: u32, around: Surroundings) -> Result<NodeObjects, PlanError> {
    let node = names::master(index);
    let vm = vm_config(cluster, index, around.vni);
    let config = config_map(cluster, index, &node, &vm)?;
    // The hash over all that is rendered for a node says whether it must be replaced.
    let wish = hash(&json!({"config": config.data, "image": cluster.version.image, "revision": RENDER_REVISION}));
    let pod = pod::vm_pod(cluster, &node, &wish, around);
    Ok(NodeObjects { claim: etcd_claim(cluster, &node, &cluster.etcd), config, pod })
}

/// Why a node's objects cannot be written down.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// User data.
    #[error("render user data of node {node}")]
    UserData {
        /// The node.
        node: String,
        /// Why not.
        #[source]
        source: serde_saphyr::ser::Error,
    },
    /// The supervisor's configuration.
    #[error("render the supervisor's configuration of node {node}")]
    Vm {
        /// The node.
        node: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

fn vm_config(cluster: &Valid, index: u32, vni: u32) -> VmConfig {
    let overlay = cluster.ranges.overlay;
    let gateway = Ipv4Net::new(addresses::gateway(overlay), overlay.prefix_len()).unwrap_or(overlay);
    VmConfig {
        node: names::master(index),
        cpus: cluster.control_plane.machine.cpus,
        memory_mib: cluster.control_plane.machine.memory_mib,
        disk_bytes: cluster.control_plane.machine.disk_bytes,
        etcd_bytes: Some(usable(cluster.etcd.bytes)),
        accelerator: cluster.accelerator,
        overlay: OverlayConfig {
            vni,
            gateway,
            node: addresses::master(&cluster.identity, overlay, index),
            peers: None,
        },
        egress_mac: EGRESS_MAC,
        api_address: None,
    }
}

/// What of a volume a disk file may take: the volume's own file system needs its share.
fn usable(bytes: u64) -> u64 {
    // Whole MiB, as disks are; ext4 keeps about five percent for itself.
    (bytes / 100 * 92) >> 20 << 20
}

fn config_map(cluster: &Valid, index: u32, node: &str, vm: &VmConfig) -> Result<ConfigMap, PlanError> {
    let rendered = node_config::control_plane(cluster, index);
    let instance = format!("{}-{node}", cluster.identity.id);
    let seed = cloud_init::render(&rendered, &instance)
        .map_err(|source| PlanError::UserData { node: node.to_owned(), source })?;
    let vm = serde_json::to_string_pretty(vm).map_err(|source| PlanError::Vm { node: node.to_owned(), source })?;
    let data = [
        ("user-data", seed.user_data),
        ("meta-data", seed.meta_data),
        ("network-config", seed.network_config),
        (config::FILE, vm),
    ];
    Ok(ConfigMap {
        metadata: metadata(cluster, names::node_config_map(node)),
        data: Some(data.map(|(key, value)| (key.to_owned(), value)).into()),
        ..ConfigMap::default()
    })
}

fn etcd_claim(cluster: &Valid, node: &str, storage: &Storage) -> PersistentVolumeClaim {
    let size = Quantity(storage.bytes.to_string());
    PersistentVolumeClaim {
        metadata: metadata(cluster, names::etcd_claim(node)),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: storage.class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size)].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

fn metadata(cluster: &Valid, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.identity.namespace.clone()),
        labels: Some(cluster.identity.labels()),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{settings, valid};

    fn objects(spec: serde_json::Value) -> NodeObjects {
        let settings = settings();
        let around = Surroundings { vni: 1234, namespace_uid: "ns-uid", settings: &settings.kvm };
        control_plane_node(&valid(spec), 0, around).unwrap()
    }

    #[test]
    fn the_pod_is_golden() {
        insta::assert_snapshot!(serde_saphyr::to_string(&objects(json!({})).pod).unwrap());
    }

    #[test]
    fn the_pod_has_no_more_rights_than_designed() {
        let spec = objects(json!({})).pod.spec.unwrap();
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!((spec.host_network, spec.host_pid, spec.host_ipc), (None, None, None));
        let container = &spec.containers[0];
        let security = container.security_context.as_ref().unwrap();
        assert_eq!((security.privileged, security.allow_privilege_escalation), (None, Some(false)));
        let capabilities = security.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop.as_deref(), Some(["ALL".to_owned()].as_slice()));
        assert_eq!(capabilities.add.as_ref().unwrap(), &["NET_ADMIN", "SETUID", "SETGID", "KILL"]);
    }

    #[test]
    fn no_object_holds_a_secret() {
        let NodeObjects { claim, config, pod } = objects(json!({}));
        let text = serde_json::to_string(&(claim, config, pod)).unwrap();
        for word in ["PRIVATE KEY", "BEGIN CERTIFICATE", "client-key-data"] {
            assert!(!text.contains(word), "{word}");
        }
    }

    #[test]
    fn the_hash_moves_with_what_is_rendered_and_only_with_that() {
        let hash = |spec| objects(spec).pod.metadata.annotations.unwrap()[pod::NODE_HASH_ANNOTATION].clone();
        assert_eq!(hash(json!({})), hash(json!({"controlPlane": {"machine": {"cpus": 2}}})));
        assert_ne!(hash(json!({})), hash(json!({"controlPlane": {"machine": {"cpus": 3}}})));
        assert_ne!(hash(json!({})), hash(json!({"kubernetes": {"podCIDR": "10.201.0.0/16"}})));
    }

    #[test]
    fn the_disk_file_fits_its_volume() {
        assert!(usable(8 << 30) < 8 << 30);
        assert_eq!(usable(8 << 30) % (1 << 20), 0);
    }
}
