//! The objects of a node, in the order in which they are made, and which workers go. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, VolumeResourceRequirements},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
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
        addresses::{EGRESS_MAC, Fabric, NodeAddress},
        places::Place,
    },
    node_config::{self, Blank, NodeConfig, RENDER_REVISION, cloud_init},
    rollout::wish,
    runtime::apply::hash,
    settings::Settings,
    supervisor::config::{self, FlannelConfig, OverlayConfig, PeersConfig, VmConfig},
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
    /// Whether etcd was seen to hold the guest's objects: it is never formed again.
    pub etcd_formed: bool,
    /// The operator's settings.
    pub settings: &'a Settings,
}

/// The objects of the `index`-th control-plane node.
///
/// # Errors
/// Only if a configuration cannot be written down, which would be a defect of ours.
pub fn control_plane_node(cluster: &Valid, index: u32, around: Surroundings) -> Result<NodeObjects, PlanError> {
    let node = names::master(index);
    let address = cluster.ranges.overlay.master(&cluster.identity, index);
    let vm = VmConfig {
        etcd_bytes: Some(usable(cluster.etcd.bytes)),
        ..vm_config(cluster, &node, cluster.control_plane.machine, address, around)
    };
    // Two that form one each would be two guests of one name.
    let blank = if index == 0 && !around.etcd_formed { Blank::Forms } else { Blank::Joins };
    let render = |blank| config_map(cluster, &node, node_config::control_plane(cluster, index, blank), &vm);
    let config = render(blank)?;
    let zones: Vec<_> = if cluster.control_plane.zones.is_empty() {
        around.settings.kvm.control_plane_zones.iter().map(String::as_str).collect()
    } else {
        cluster.control_plane.zones.iter().map(Zone::as_str).collect()
    };
    // What a blank disk means changes while the node runs, and is written down at once: it makes no other node of it.
    let (hash, wish) = (rendered(cluster, &render(Blank::Joins)?, &zones), wish::control_plane(cluster));
    let machine = cluster.control_plane.machine;
    let of = NodePod { node: &node, machine, zones, worker: None, hash: &hash, wish: &wish };
    let pod = pod::vm_pod(cluster, &of, around);
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
    let address = cluster.ranges.overlay.worker(&cluster.identity, place);
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
    let (hash, wish) = (rendered(cluster, &render(&bare)?, &zones), wish::worker(cluster, pool));
    let of = NodePod { node, machine: pool.machine, zones, worker: Some((pool, place)), hash: &hash, wish: &wish };
    let pod = pod::vm_pod(cluster, &of, around);
    Ok(NodeObjects { claim: None, config, pod })
}

/// What refuses evictions of VM pods: whoever drains a host cordons it first, and then the nodes on it are moved one by one.
/// Beside the control plane there should be so many workers. A number and no share of them: the pods have no controller with
/// a scale.
pub fn budget(cluster: &Valid, workers: usize) -> PodDisruptionBudget {
    let masters = i32::try_from(cluster.control_plane.replicas).unwrap_or(i32::MAX);
    let nodes = masters.saturating_add(i32::try_from(workers).unwrap_or(i32::MAX));
    let selector = [(names::CLUSTER_LABEL.to_owned(), cluster.identity.id.clone())].into();
    PodDisruptionBudget {
        metadata: cluster.identity.metadata(names::BUDGET),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(nodes)),
            selector: Some(LabelSelector { match_labels: Some(selector), ..LabelSelector::default() }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

/// The hash over all that is rendered for a node. Where it is another, a newer manager would make the node otherwise; whether
/// it is replaced for that, its wish says.
fn rendered(cluster: &Valid, config: &ConfigMap, zones: &[&str]) -> String {
    let mut all = json!({"config": config.data, "image": cluster.version.image, "revision": RENDER_REVISION});
    if !zones.is_empty() {
        all["zones"] = json!(zones);
    }
    hash(&all)
}

/// A worker that something of is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub node: String,
    /// Its place on the overlay, if that is written down.
    pub place: Option<Place>,
    /// Whether it was given up, with the host that it was on.
    pub lost: bool,
}

impl Known {
    /// The worker that an object was made for.
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        let labels = meta.labels.as_ref()?;
        let node = labels.get(names::NODE_LABEL)?.clone();
        let is_worker = labels.get(names::ROLE_LABEL).is_some_and(|role| role == names::ROLE_WORKER);
        let lost = meta.annotations.as_ref().is_some_and(|all| all.contains_key(names::LOST_ANNOTATION));
        is_worker.then(|| Self { node, place: Place::of(meta), lost })
    }
}

/// The workers that there should be, with their pools: by pool, then by index. Of each pool those that are there and not
/// lost are kept, the lowest first; others come under the lowest indices that are free. What is lost keeps its index until
/// nothing of it is left: its VM may run on, behind a broken network.
pub fn workers<'a>(cluster: &'a Valid, known: &[Known]) -> Vec<(&'a NodePool, String)> {
    let mut lost: BTreeMap<(&str, u32), bool> = BTreeMap::new();
    for known in known {
        if let Some(index) = index_of(&known.node) {
            *lost.entry(index).or_default() |= known.lost;
        }
    }
    let of = |pool: &'a NodePool| {
        let name = pool.name.as_str();
        let count = usize::try_from(pool.replicas).unwrap_or_default();
        let there = lost.range((name, 0)..=(name, u32::MAX)).filter(|(_, lost)| !**lost);
        let mut indices: Vec<_> = there.map(|((_, index), _)| *index).take(count).collect();
        let free = (0..u32::MAX).filter(|index| !lost.contains_key(&(name, *index)));
        indices.extend(free.take(count - indices.len()));
        indices.sort_unstable();
        indices.into_iter().map(move |index| (pool, names::worker(name, index)))
    };
    cluster.pools.iter().flat_map(of).collect()
}

/// Pool and index of a worker.
fn index_of(node: &str) -> Option<(&str, u32)> {
    let (pool, index) = node.rsplit_once('-')?;
    Some((pool, index.parse().ok()?))
}

/// Workers that something of is there and that are wanted no more: of each pool the highest index first.
pub fn unwanted(wanted: &[(&NodePool, String)], known: &[Known]) -> Vec<String> {
    let wanted: BTreeSet<_> = wanted.iter().map(|(_, node)| node).collect();
    let known: BTreeSet<_> = known.iter().map(|known| &known.node).filter(|node| !wanted.contains(node)).collect();
    let mut unwanted: Vec<_> = known.into_iter().cloned().collect();
    let order = |node: &String| {
        let (pool, index) = index_of(node).unwrap_or((node, 0));
        (pool.to_owned(), Reverse(index))
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
    let gateway = Ipv4Net::new(overlay.gateway(), overlay.net.prefix_len()).unwrap_or(overlay.net);
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
        overlay: OverlayConfig {
            vni: around.vni,
            gateway,
            node: address,
            mtu: cluster.mtu.overlay,
            peers,
            flannel: (overlay.fabric == Fabric::Routed).then(|| FlannelConfig { guest: cluster.identity.id.clone() }),
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
        metadata: cluster.identity.metadata(names::node_config_map(node)),
        data: Some(data.map(|(key, value)| (key.to_owned(), value)).into()),
        ..ConfigMap::default()
    })
}

fn etcd_claim(cluster: &Valid, node: &str, storage: &Storage) -> PersistentVolumeClaim {
    let size = Quantity(storage.bytes.to_string());
    PersistentVolumeClaim {
        metadata: cluster.identity.metadata(names::etcd_claim(node)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{settings, valid};

    fn around(settings: &Settings) -> Surroundings<'_> {
        Surroundings {
            vni: 1234,
            api_address: [10, 96, 7, 7].into(),
            namespace_uid: "ns-uid",
            etcd_formed: false,
            settings,
        }
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
    fn with_flannel_a_worker_has_flanneld_beside_it_and_its_certificate_there_alone() {
        let plain = worker(json!({"name": "a"}));
        let mut settings = settings();
        settings.network.cluster_dns = Some([10, 96, 0, 10].into());
        let mut cluster = valid(json!({"nodePools": [{"name": "a"}]}));
        cluster.ranges.overlay.fabric = Fabric::Routed;
        let made = worker_node(&cluster, &cluster.pools[0], "a-0", Place(64), around(&settings)).unwrap();
        let (vm, spec) = (&made.config.data.as_ref().unwrap()["vm.json"], made.pod.spec.as_ref().unwrap());
        let flanneld = serde_saphyr::to_string(&spec.init_containers).unwrap();
        insta::assert_snapshot!(format!("{vm}\n---\n{flanneld}"));
        let of = |containers: &[k8s_openapi::api::core::v1::Container]| serde_json::to_string(containers).unwrap();
        assert_eq!(of(&spec.containers), of(&plain.pod.spec.as_ref().unwrap().containers));
        assert!(plain.pod.spec.as_ref().unwrap().init_containers.is_none());
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

    fn known(nodes: &[&str]) -> Vec<Known> {
        let of = |text: &&str| {
            let (node, lost) = text.strip_suffix('!').map_or((*text, false), |node| (node, true));
            Known { node: node.into(), place: None, lost }
        };
        nodes.iter().map(of).collect()
    }

    #[test]
    fn what_is_wanted_no_more_goes_from_the_top() {
        let cluster = valid(json!({"nodePools": [{"name": "a", "replicas": 2}, {"name": "a-0", "replicas": 0}]}));
        let known = known(&["a-0", "a-1", "a-2", "a-10", "a-0-0", "b-1", "b-0"]);
        let wanted = workers(&cluster, &known);
        assert_eq!(unwanted(&wanted, &known), ["a-10", "a-2", "a-0-0", "b-1", "b-0"]);
    }

    #[test]
    fn who_is_there_is_kept_and_who_is_lost_has_a_successor() {
        let names = |replicas: u32, there: &[&str]| {
            let cluster = valid(json!({"nodePools": [{"name": "a", "replicas": replicas}]}));
            let wanted = workers(&cluster, &known(there));
            wanted.into_iter().map(|(_, node)| node.replace("a-", "")).collect::<Vec<_>>().join(" ")
        };
        for (replicas, there, expected) in [
            (3, [].as_slice(), "0 1 2"),
            (3, &["a-0", "a-1", "a-2"], "0 1 2"),
            (2, &["a-0", "a-1", "a-2"], "0 1"),
            // A ConfigMap and a pod of one worker; one of them says that it is lost.
            (3, &["a-0", "a-1!", "a-1", "a-2"], "0 2 3"),
            // Its host is back, and it stays lost: its successor is not bothered.
            (3, &["a-0", "a-1!", "a-2", "a-3"], "0 2 3"),
            // Nothing of it is left: its index is free for the next.
            (3, &["a-0", "a-2", "a-3"], "0 2 3"),
            (4, &["a-0", "a-2", "a-3"], "0 1 2 3"),
            (1, &["a-0!", "a-1!"], "2"),
            (0, &["a-0!", "a-1"], ""),
            (2, &["a-0-0", "b-0", "a-x", "a"], "0 1"),
        ] {
            assert_eq!(names(replicas, there), expected, "{replicas} {there:?}");
        }
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
    fn what_the_operator_changes_moves_the_hash_and_not_the_wish() {
        let of = |settings: &Settings| {
            let around = Surroundings { vni: 1234, ..around(settings) };
            let pod = control_plane_node(&valid(json!({})), 0, around).unwrap().pod;
            let annotations = pod.metadata.annotations.unwrap();
            [pod::NODE_HASH_ANNOTATION, names::NODE_WISH_ANNOTATION].map(|name| annotations[name].clone())
        };
        let mut settings = settings();
        let before = of(&settings);
        settings.kvm.control_plane_zones.insert("b".into());
        let after = of(&settings);
        assert!(before[0] != after[0] && before[1] == after[1], "{before:?} {after:?}");
    }

    #[test]
    fn the_disk_file_fits_its_volume() {
        assert!(usable(8 << 30) < 8 << 30);
        assert_eq!(usable(8 << 30) % (1 << 20), 0);
    }
}
