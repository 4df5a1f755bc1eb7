//! The VM pod: one node of a guest. What it may do is the least that QEMU and its network need.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
        EnvVarSource, HTTPGetAction, HostPathVolumeSource, NodeAffinity, NodeSelector, NodeSelectorRequirement,
        NodeSelectorTerm, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, Pod, PodAffinityTerm,
        PodAntiAffinity, PodDNSConfig, PodSecurityContext, PodSpec, Probe, ResourceRequirements, SeccompProfile,
        SecretVolumeSource, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

use super::{plan::Surroundings, without::Without};
use crate::{
    api::{Accelerator, names},
    cluster::{
        Valid,
        valid::{Machine, NodePool, parse_bytes},
    },
    flannel::certificates,
    network::{addresses::Fabric, places::Place},
    supervisor::{QEMU_ID, accelerator::TRANSLATIONS_MIB, paths},
};

/// Annotation of a VM pod: hash over all that was rendered for its node.
pub const NODE_HASH_ANNOTATION: &str = "giantnetes.io/node-hash";

/// The container that the VM runs in.
pub const CONTAINER: &str = "vm";

/// What tells hosts apart for the scheduler.
const HOST_TOPOLOGY: &str = "kubernetes.io/hostname";

/// Seconds that a guest has to shut down.
const GRACE_SECONDS: i64 = 120;

/// What makes one VM pod another than the next.
#[derive(Clone, Debug)]
pub(super) struct NodePod<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// Size of its machine.
    pub machine: Machine,
    /// Zones that it may run in. None: any host.
    pub zones: Vec<&'a str>,
    /// Pool and place of a worker; a control-plane node has neither.
    pub worker: Option<(&'a NodePool, Place)>,
    /// The hash over all that is rendered for it.
    pub hash: &'a str,
    /// The hash over what of the spec it is made for.
    pub wish: &'a str,
}

/// Labels of what belongs to a worker.
pub(super) fn worker_labels(pool: &NodePool, node: &str) -> BTreeMap<String, String> {
    [(names::ROLE_LABEL, names::ROLE_WORKER), (names::POOL_LABEL, pool.name.as_str()), (names::NODE_LABEL, node)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// The VM pod of a node.
pub(super) fn vm_pod(cluster: &Valid, of: &NodePod, around: Surroundings) -> Pod {
    let identity = &cluster.identity;
    let mut labels = identity.labels();
    let mut annotations: BTreeMap<_, _> = [(NODE_HASH_ANNOTATION, of.hash), (names::NODE_WISH_ANNOTATION, of.wish)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    // Prometheus knows nothing else of a pod's namespace than its name.
    annotations.insert(names::OWNER_NAME_ANNOTATION.into(), identity.key.to_string());
    match of.worker {
        Some((pool, place)) => {
            labels.extend(worker_labels(pool, of.node));
            annotations.insert(names::PLACE_ANNOTATION.into(), place.to_string());
        }
        None => {
            labels.insert(names::ROLE_LABEL.into(), names::ROLE_CONTROL_PLANE.into());
            labels.insert(names::NODE_LABEL.into(), of.node.into());
        }
    }
    let with_flannel = cluster.ranges.overlay.fabric == Fabric::Routed;
    if with_flannel {
        labels.insert(names::OVERLAY_LABEL.into(), names::OVERLAY_FLANNEL.into());
    }
    let kvm = &around.settings.kvm;
    Pod {
        metadata: ObjectMeta {
            name: Some(of.node.into()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            // `kubectl drain` takes a pod with a controller for managed; a namespace is cluster-scoped, so it may be one.
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Namespace".into(),
                name: identity.namespace.clone(),
                uid: around.namespace_uid.into(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("Always".into()),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            // The guest reaches this pod's resolvers, so they must not be those of the management cluster.
            dns_policy: Some(if kvm.resolvers.is_empty() { "Default" } else { "None" }.into()),
            dns_config: (!kvm.resolvers.is_empty()).then(|| PodDNSConfig {
                nameservers: Some(kvm.resolvers.iter().map(ToString::to_string).collect()),
                ..PodDNSConfig::default()
            }),
            security_context: Some(PodSecurityContext {
                fs_group: Some(i64::from(QEMU_ID)),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
                ..PodSecurityContext::default()
            }),
            affinity: Some(affinity(cluster, of)),
            init_containers: with_flannel.then(|| vec![flanneld(cluster)]),
            containers: vec![container(cluster, of, around)],
            volumes: Some(if with_flannel { [volumes(of), flannels_volumes()].concat() } else { volumes(of) }),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

/// In its zones and nowhere else; nodes of one pool, and those of the control plane, rather on different hosts.
/// ([`ask_for_own_host`] makes a rule of it.)
fn affinity(cluster: &Valid, of: &NodePod) -> Affinity {
    let zones = (!of.zones.is_empty()).then(|| NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm {
                match_expressions: Some(vec![NodeSelectorRequirement {
                    key: names::ZONE_LABEL.into(),
                    operator: "In".into(),
                    values: Some(of.zones.iter().map(|zone| (*zone).to_owned()).collect()),
                }]),
                ..NodeSelectorTerm::default()
            }],
        }),
        ..NodeAffinity::default()
    });
    let (label, kin) = match of.worker {
        Some((pool, _)) => (names::POOL_LABEL, pool.name.as_str()),
        None => (names::ROLE_LABEL, names::ROLE_CONTROL_PLANE),
    };
    let spread = PodAntiAffinity {
        preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
            weight: 100,
            pod_affinity_term: PodAffinityTerm {
                topology_key: HOST_TOPOLOGY.into(),
                label_selector: Some(LabelSelector {
                    match_labels: Some(BTreeMap::from([
                        (names::CLUSTER_LABEL.to_owned(), cluster.identity.id.clone()),
                        (label.to_owned(), kin.to_owned()),
                    ])),
                    ..LabelSelector::default()
                }),
                ..PodAffinityTerm::default()
            },
        }]),
        ..PodAntiAffinity::default()
    };
    Affinity { node_affinity: zones, pod_anti_affinity: Some(spread), pod_affinity: None }
}

fn container(cluster: &Valid, of: &NodePod, around: Surroundings) -> Container {
    let mut mounts = vec![mount("config", paths::CONFIG, true), mount("pki", paths::PKI, true)];
    if of.worker.is_none() {
        mounts.push(mount("etcd", paths::ETCD, false));
    }
    mounts.extend([mount("work", paths::WORK, false), mount("tun", paths::TUN, false)]);
    Container {
        name: CONTAINER.into(),
        image: Some(cluster.version.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: Some(vec!["supervise".into(), config_argument()]),
        env: Some(vec![pod_address()]),
        ports: Some(vec![port("api", names::API_PORT), port("health", names::SUPERVISOR_PORT)]),
        resources: Some(resources(of.machine, cluster.accelerator, around)),
        // A guest's first boot under emulation takes minutes: that is the start-up probe's to wait for.
        startup_probe: Some(probe("/livez", 2, 60)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 3)),
        // A supervisor that cannot go on says why in its last line: it ends up in the Cluster's conditions.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: Some(["NET_ADMIN", "SETUID", "SETGID", "KILL"].map(Into::into).into()),
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// flanneld, in a container of its own that runs before the VM and for as long as it does: no process of the VM's may see its
/// key, and all of them read what their group may.
fn flanneld(cluster: &Valid) -> Container {
    Container {
        name: "flannel".into(),
        image: Some(cluster.version.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: Some(vec!["flannel".into(), config_argument()]),
        env: Some(vec![pod_address()]),
        restart_policy: Some("Always".into()),
        resources: Some(ResourceRequirements {
            requests: Some(amounts(&[("cpu", "10m"), ("memory", "64Mi")])),
            limits: Some(amounts(&[("memory", "128Mi")])),
            ..ResourceRequirements::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: Some(vec!["NET_ADMIN".into()]) }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            mount("config", paths::CONFIG, true),
            mount("flannel", paths::FLANNEL, true),
            mount("flannel-run", paths::FLANNEL_RUN, false),
        ]),
        ..Container::default()
    }
}

fn flannels_volumes() -> Vec<Volume> {
    let secret = SecretVolumeSource {
        secret_name: Some(certificates::OF_GUEST.into()),
        default_mode: Some(0o400),
        ..SecretVolumeSource::default()
    };
    vec![
        Volume { name: "flannel".into(), secret: Some(secret), ..Volume::default() },
        Volume { name: "flannel-run".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() },
    ]
}

fn amounts(of: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    of.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
}

fn config_argument() -> String {
    format!("--config={}/{}", paths::CONFIG, crate::supervisor::config::FILE)
}

fn pod_address() -> EnvVar {
    EnvVar {
        name: "POD_IP".into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: "status.podIP".into(), api_version: None }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn volumes(of: &NodePod) -> Vec<Volume> {
    let node = of.node;
    let volume = |name: &str| Volume { name: name.into(), ..Volume::default() };
    let etcd = of.worker.is_none().then(|| Volume {
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: names::etcd_claim(node),
            read_only: None,
        }),
        ..volume("etcd")
    });
    let mut volumes = vec![
        Volume {
            config_map: Some(ConfigMapVolumeSource {
                name: names::node_config_map(node),
                ..ConfigMapVolumeSource::default()
            }),
            ..volume("config")
        },
        Volume {
            secret: Some(SecretVolumeSource {
                secret_name: Some(names::node_secret(node)),
                // With fsGroup: root and QEMU's group, nobody else.
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..volume("pki")
        },
    ];
    volumes.extend(etcd);
    volumes.extend([
        Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..volume("work") },
        Volume {
            host_path: Some(HostPathVolumeSource { path: paths::TUN.into(), type_: Some("CharDevice".into()) }),
            ..volume("tun")
        },
    ]);
    volumes
}

/// Lets a VM pod run only where it gets KVM. No part of what is hashed: where a node runs replaces no node.
pub(super) fn ask_for_kvm(pod: &mut Pod) {
    let containers = pod.spec.iter_mut().flat_map(|spec| &mut spec.containers);
    for container in containers {
        let limits = container.resources.get_or_insert_default().limits.get_or_insert_default();
        limits.insert(names::KVM_RESOURCE.into(), Quantity("1".into()));
    }
}

/// Lets a control-plane node run only on a host that holds no more of its guest's than the emptiest one. A rule of the one that
/// comes, not of those that are there: who does without it may join them.
pub(super) fn ask_for_own_host(pod: &mut Pod) {
    let labels = pod.metadata.labels.iter().flatten();
    let kin = labels.filter(|(key, _)| [names::CLUSTER_LABEL, names::ROLE_LABEL].contains(&key.as_str()));
    let rule = TopologySpreadConstraint {
        max_skew: 1,
        topology_key: HOST_TOPOLOGY.into(),
        when_unsatisfiable: "DoNotSchedule".into(),
        // Hosts that are cordoned or not ready count for nothing.
        node_taints_policy: Some("Honor".into()),
        label_selector: Some(LabelSelector {
            match_labels: Some(kin.map(|(key, value)| (key.clone(), value.clone())).collect()),
            ..LabelSelector::default()
        }),
        ..TopologySpreadConstraint::default()
    };
    pod.spec.get_or_insert_default().topology_spread_constraints = Some(vec![rule]);
}

/// Writes on a VM pod what it was made without.
pub(super) fn note_what_it_lacks(pod: &mut Pod, without: Without) {
    if without != Without::default() {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(names::DOES_WITHOUT_ANNOTATION.into(), without.to_string());
    }
}

/// The zones that a VM pod is kept to. None: any host.
pub(super) fn zones(pod: &Pod) -> Option<&[String]> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut rules = required.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    rules.find(|rule| rule.key == names::ZONE_LABEL)?.values.as_deref()
}

/// Memory is the guest's and QEMU's own; CPU is a share of the virtual CPUs, without a limit. Emulation takes more: it is
/// asked for where it is certain, and allowed where it may come to it.
fn resources(machine: Machine, accelerator: Accelerator, around: Surroundings) -> ResourceRequirements {
    let kvm = &around.settings.kvm;
    // Checked when the settings were read; QEMU needs some in any case.
    let overhead = parse_bytes(&kvm.memory_overhead.0).unwrap_or(512 << 20) >> 20;
    let memory = |emulated: bool| {
        let translations = if emulated { u64::from(TRANSLATIONS_MIB) } else { 0 };
        ("memory".to_owned(), Quantity(format!("{}Mi", machine.memory_mib + overhead + translations)))
    };
    #[allow(clippy::cast_possible_truncation, reason = "at most 64 CPUs, in thousandths")]
    let millicpus = (f64::from(machine.cpus) * kvm.cpu_request_ratio * 1000.0).round() as i64;
    let kvm = (accelerator == Accelerator::KVM).then(|| (names::KVM_RESOURCE.to_owned(), Quantity("1".into())));
    ResourceRequirements {
        requests: Some(BTreeMap::from([
            memory(accelerator == Accelerator::TCG),
            ("cpu".into(), Quantity(format!("{millicpus}m"))),
            ("ephemeral-storage".into(), Quantity(machine.disk_bytes.to_string())),
        ])),
        limits: Some([memory(accelerator != Accelerator::KVM)].into_iter().chain(kvm).collect()),
        ..ResourceRequirements::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::Int(i32::from(names::SUPERVISOR_PORT)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort { name: Some(name.into()), container_port: i32::from(number), ..ContainerPort::default() }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
