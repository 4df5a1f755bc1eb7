//! The objects of a node, in the order in which they are made, and which workers go. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{
    api::core::v1::{ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, VolumeResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use serde_json::json;

use super::pod::{self, NodePod};
use crate::{
    api::names,
    cluster::{
        Valid,
        valid::{Machine, NodePool, Storage, Zone},
    },
    network::{
        addresses::{self, EGRESS_MAC, NodeAddress},
        places::Place,
    },
    node_config::{self, NodeConfig, RENDER_REVISION, cloud_init},
    runtime::apply::hash,
    settings::Settings,
    supervisor::config::{self, OverlayConfig, PeersConfig, VmConfig},
};
use ipnet::Ipv4Net;

/// Everything of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeObjects {
    /// etcd's volume, on a control-plane node.
    pub claim: Option<PersistentVolumeClaim>,
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
    /// Address of the guest's API inside the management cluster.
    pub api_address: IpAddr,
    /// UID of the guest's namespace, which the VM pod names as its controller.
    pub namespace_uid: &'a str,
    /// The operator's settings.
    pub settings: &'a Settings,
}

/// The objects of the `index`-th control-plane node.
///
/// # Errors
/// Only if a configuration cannot be written down, which would be a defect of ours.
pub fn control_plane_node(cluster: &Valid, index: u32, around: Surroundings) -> Result<NodeObjects, PlanError> {
    let node = names::master(index);
    let address = addresses::master(&cluster.identity, cluster.ranges.overlay, index);
    let vm = VmConfig {
        etcd_bytes: Some(usable(cluster.etcd.bytes)),
        ..vm_config(cluster, &node, cluster.control_plane.machine, address, around)
    };
    let config = config_map(cluster, &node, node_config::control_plane(cluster, index), &vm)?;
    let zones: Vec<_> = if cluster.control_plane.zones.is_empty() {
        around.settings.kvm.control_plane_zones.iter().map(String::as_str).collect()
    } else {
        cluster.control_plane.zones.iter().map(Zone::as_str).collect()
    };
    let wish = wish(cluster, &config, &zones);
    let machine = cluster.control_plane.machine;
    let pod = pod::vm_pod(cluster, &NodePod { node: &node, machine, zones, worker: None, wish: &wish }, around);
    Ok(NodeObjects { claim: Some(etcd_claim(cluster, &node, &cluster.etcd)), config, pod })
}

/// The objects of a worker of `pool` at this place.
///
/// # Errors
/// Only if a configuration cannot be written down, which would be a defect of ours.
pub fn worker_node(
    cluster: &Valid,
    pool: &NodePool,
    node: &str,
    place: Place,
    around: Surroundings,
) -> Result<NodeObjects, PlanError> {
    let address = addresses::worker(&cluster.identity, cluster.ranges.overlay, place);
    let vm =
        VmConfig { api_address: Some(around.api_address), ..vm_config(cluster, node, pool.machine, address, around) };
    let render = |pool: &NodePool| config_map(cluster, node, node_config::worker(cluster, pool, node, place), &vm);
    let mut config = render(pool)?;
    let labels = pod::worker_labels(pool, node);
    config.metadata.labels.get_or_insert_default().extend(labels);
    config.metadata.annotations = Some([(names::PLACE_ANNOTATION.to_owned(), place.to_string())].into());
    // Labels and taints are given at registration; a change of them replaces no node.
    let bare = NodePool { labels: BTreeMap::new(), taints: Vec::new(), ..pool.clone() };
    let zones: Vec<_> = pool.zones.iter().map(Zone::as_str).collect();
    let wish = wish(cluster, &render(&bare)?, &zones);
    let worker = Some((pool, place));
    let pod = pod::vm_pod(cluster, &NodePod { node, machine: pool.machine, zones, worker, wish: &wish }, around);
    Ok(NodeObjects { claim: None, config, pod })
}

/// The hash over all that is rendered for a node: it says whether the node must be replaced.
fn wish(cluster: &Valid, config: &ConfigMap, zones: &[&str]) -> String {
    let mut all = json!({"config": config.data, "image": cluster.version.image, "revision": RENDER_REVISION});
    if !zones.is_empty() {
        all["zones"] = json!(zones);
    }
    hash(&all)
}

/// Workers whose objects are there and that are wanted no more: of each pool the highest index first.
pub fn unwanted(cluster: &Valid, known: impl IntoIterator<Item = String>) -> Vec<String> {
    let wanted: BTreeSet<_> = cluster.workers().map(|(_, node)| node).collect();
    let known: BTreeSet<_> = known.into_iter().filter(|node| !wanted.contains(node)).collect();
    let mut unwanted: Vec<_> = known.into_iter().collect();
    let order = |node: &String| {
        let (pool, index) = node.rsplit_once('-').unwrap_or((node, ""));
        (pool.to_owned(), Reverse(index.parse::<u32>().unwrap_or_default()))
    };
    unwanted.sort_by_key(order);
    unwanted
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

fn vm_config(cluster: &Valid, node: &str, machine: Machine, address: NodeAddress, around: Surroundings) -> VmConfig {
    let overlay = cluster.ranges.overlay;
    let gateway = Ipv4Net::new(addresses::gateway(overlay), overlay.prefix_len()).unwrap_or(overlay);
    let network = &around.settings.network;
    let (service, namespace) = (names::NODES_SERVICE, &cluster.identity.namespace);
    let peers = network.cluster_dns.map(|server| PeersConfig {
        name: format!("{service}.{namespace}.svc.{}", network.cluster_domain),
        server,
        allowed: network.egress_allowed.clone(),
    });
    VmConfig {
        node: node.to_owned(),
        cpus: machine.cpus,
        memory_mib: machine.memory_mib,
        disk_bytes: machine.disk_bytes,
        etcd_bytes: None,
        accelerator: cluster.accelerator,
        overlay: OverlayConfig { vni: around.vni, gateway, node: address, peers },
        egress_mac: EGRESS_MAC,
        api_address: None,
    }
}

/// What of a volume a disk file may take: the volume's own file system needs its share.
fn usable(bytes: u64) -> u64 {
    // Whole MiB, as disks are; ext4 keeps about five percent for itself.
    (bytes / 100 * 92) >> 20 << 20
}

fn config_map(cluster: &Valid, node: &str, rendered: NodeConfig, vm: &VmConfig) -> Result<ConfigMap, PlanError> {
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

    fn around(settings: &Settings) -> Surroundings<'_> {
        Surroundings { vni: 1234, api_address: [10, 96, 7, 7].into(), namespace_uid: "ns-uid", settings }
    }

    fn objects(spec: serde_json::Value) -> NodeObjects {
        control_plane_node(&valid(spec), 0, around(&settings())).unwrap()
    }

    fn worker(pool: serde_json::Value) -> NodeObjects {
        let mut settings = settings();
        settings.network.cluster_dns = Some([10, 96, 0, 10].into());
        let valid = valid(json!({"nodePools": [pool]}));
        worker_node(&valid, &valid.pools[0], "a-0", Place(64), around(&settings)).unwrap()
    }

    #[test]
    fn a_worker_is_golden() {
        let NodeObjects { claim, config, pod } = worker(json!({
            "name": "a", "machine": {"cpus": 1, "memory": "2Gi"}, "zones": ["data", "front"],
        }));
        assert_eq!(claim, None);
        let vm = &config.data.as_ref().unwrap()["vm.json"];
        let meta = serde_saphyr::to_string(&config.metadata).unwrap();
        insta::assert_snapshot!(format!("{meta}---\n{vm}\n---\n{}", serde_saphyr::to_string(&pod).unwrap()));
    }

    #[test]
    fn labels_and_taints_replace_no_node_and_machines_and_zones_do() {
        let hash = |pool| worker(pool).pod.metadata.annotations.unwrap()[pod::NODE_HASH_ANNOTATION].clone();
        let plain = hash(json!({"name": "a"}));
        let dressed = json!({
            "name": "a", "labels": {"x.example.com/y": "z"}, "taints": [{"key": "x.example.com/y", "effect": "NoExecute"}],
        });
        assert_ne!(worker(dressed.clone()).config, worker(json!({"name": "a"})).config);
        assert_eq!(hash(dressed), plain);
        assert_ne!(hash(json!({"name": "a", "zones": ["z"]})), plain);
        assert_ne!(hash(json!({"name": "a", "machine": {"cpus": 1}})), plain);
    }

    #[test]
    fn pools_change_nothing_of_the_control_plane() {
        assert_eq!(objects(json!({"nodePools": [{"name": "a"}]})), objects(json!({})));
    }

    #[test]
    fn the_control_plane_runs_in_its_zones() {
        let zones =
            |objects: NodeObjects| serde_json::to_value(objects.pod.spec.unwrap().affinity).unwrap().to_string();
        assert!(zones(objects(json!({"controlPlane": {"zones": ["a"]}}))).contains(r#""values":["a"]"#));
        let mut settings = settings();
        settings.kvm.control_plane_zones.insert("b".into());
        let defaulted = control_plane_node(&valid(json!({})), 0, around(&settings)).unwrap();
        assert!(zones(defaulted).contains(r#""values":["b"]"#));
        assert!(!zones(objects(json!({}))).contains(names::ZONE_LABEL));
    }

    #[test]
    fn nodes_of_the_control_plane_share_no_host_while_another_is_free() {
        let spread = |index| {
            let objects = control_plane_node(&valid(json!({})), index, around(&settings())).unwrap();
            let spread = objects.pod.spec.unwrap().affinity.unwrap().pod_anti_affinity.unwrap();
            (spread.preferred_during_scheduling_ignored_during_execution.unwrap().remove(0), objects.pod.metadata)
        };
        let ((first, _), (second, second_meta)) = (spread(0), spread(1));
        assert_eq!((first.weight, first.pod_affinity_term.topology_key.as_str()), (100, "kubernetes.io/hostname"));
        assert_eq!(first, second);
        // It keeps away from the others by labels that they have.
        let kept_from = first.pod_affinity_term.label_selector.unwrap().match_labels.unwrap();
        let labels = second_meta.labels.unwrap();
        assert!(kept_from.len() == 2 && kept_from.iter().all(|(name, value)| labels.get(name) == Some(value)));
    }

    #[test]
    fn what_is_wanted_no_more_goes_from_the_top() {
        let cluster = valid(json!({"nodePools": [{"name": "a", "replicas": 2}, {"name": "a-0", "replicas": 0}]}));
        let known = ["a-0", "a-1", "a-2", "a-10", "a-0-0", "b-1", "b-0"].map(str::to_owned);
        assert_eq!(unwanted(&cluster, known), ["a-10", "a-2", "a-0-0", "b-1", "b-0"]);
    }

    #[test]
    fn the_pod_is_golden() {
        insta::assert_snapshot!(serde_saphyr::to_string(&objects(json!({})).pod).unwrap());
    }

    #[test]
    fn kvm_is_asked_for_where_the_cluster_says_so_and_replaces_no_node() {
        let limits = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].resources.clone().unwrap().limits.unwrap();
        let asks = |pod: &Pod| limits(pod).get(names::KVM_RESOURCE) == Some(&Quantity("1".into()));
        let accelerated = |accelerator| objects(json!({"provider": {"kvm": {"accelerator": accelerator}}})).pod;
        assert!(asks(&accelerated("KVM")) && !asks(&accelerated("TCG")));
        let mut auto = accelerated("Auto");
        let hash = |pod: &Pod| pod.metadata.annotations.clone().unwrap()[pod::NODE_HASH_ANNOTATION].clone();
        let before = hash(&auto);
        assert!(!asks(&auto));
        pod::ask_for_kvm(&mut auto);
        assert!(asks(&auto) && limits(&auto).contains_key("memory"));
        assert_eq!(hash(&auto), before);
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
