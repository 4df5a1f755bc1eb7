//! The VM pod: one node of a guest. What it may do is the least that QEMU and its network need.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
        HTTPGetAction, HostPathVolumeSource, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, Pod, PodDNSConfig,
        PodSecurityContext, PodSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
        Volume, VolumeMount,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

use super::plan::Surroundings;
use crate::{
    api::names,
    cluster::{Valid, valid::parse_bytes},
    supervisor::{QEMU_ID, paths},
};

/// Annotation of a VM pod: hash over all that was rendered for its node.
pub const NODE_HASH_ANNOTATION: &str = "giantnetes.io/node-hash";

/// Seconds that a guest has to shut down.
const GRACE_SECONDS: i64 = 120;

/// The VM pod of a control-plane node. `wish` is the hash over all that is rendered for it.
pub(super) fn vm_pod(cluster: &Valid, node: &str, wish: &str, around: Surroundings) -> Pod {
    let identity = &cluster.identity;
    let mut labels = identity.labels();
    labels.insert(names::ROLE_LABEL.into(), names::ROLE_CONTROL_PLANE.into());
    labels.insert(names::NODE_LABEL.into(), node.into());
    Pod {
        metadata: ObjectMeta {
            name: Some(node.into()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(NODE_HASH_ANNOTATION.into(), wish.into())])),
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
            dns_policy: Some(if around.settings.resolvers.is_empty() { "Default" } else { "None" }.into()),
            dns_config: (!around.settings.resolvers.is_empty()).then(|| PodDNSConfig {
                nameservers: Some(around.settings.resolvers.iter().map(ToString::to_string).collect()),
                ..PodDNSConfig::default()
            }),
            security_context: Some(PodSecurityContext {
                fs_group: Some(i64::from(QEMU_ID)),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
                ..PodSecurityContext::default()
            }),
            containers: vec![container(cluster, around)],
            volumes: Some(volumes(node)),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn container(cluster: &Valid, around: Surroundings) -> Container {
    Container {
        name: "vm".into(),
        image: Some(cluster.version.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: Some(vec!["supervise".into(), format!("--config={}/{}", paths::CONFIG, crate::supervisor::config::FILE)]),
        env: Some(vec![EnvVar {
            name: "POD_IP".into(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector { field_path: "status.podIP".into(), api_version: None }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }]),
        ports: Some(vec![port("api", names::API_PORT), port("health", names::SUPERVISOR_PORT)]),
        resources: Some(resources(cluster, around)),
        // A guest's first boot under emulation takes minutes: that is the start-up probe's to wait for.
        startup_probe: Some(probe("/livez", 2, 60)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 3)),
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
        volume_mounts: Some(vec![
            mount("config", paths::CONFIG, true),
            mount("pki", paths::PKI, true),
            mount("etcd", paths::ETCD, false),
            mount("work", paths::WORK, false),
            mount("tun", paths::TUN, false),
        ]),
        ..Container::default()
    }
}

fn volumes(node: &str) -> Vec<Volume> {
    let volume = |name: &str| Volume { name: name.into(), ..Volume::default() };
    vec![
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
        Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: names::etcd_claim(node),
                read_only: None,
            }),
            ..volume("etcd")
        },
        Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..volume("work") },
        Volume {
            host_path: Some(HostPathVolumeSource { path: paths::TUN.into(), type_: Some("CharDevice".into()) }),
            ..volume("tun")
        },
    ]
}

/// Memory is the guest's and QEMU's own, as request and limit; CPU is a share of the virtual CPUs, without a limit.
fn resources(cluster: &Valid, around: Surroundings) -> ResourceRequirements {
    let machine = cluster.control_plane.machine;
    // Checked when the settings were read; QEMU needs some in any case.
    let overhead = parse_bytes(&around.settings.memory_overhead.0).unwrap_or(512 << 20) >> 20;
    let memory = Quantity(format!("{}Mi", machine.memory_mib + overhead));
    #[allow(clippy::cast_possible_truncation, reason = "at most 64 CPUs, in thousandths")]
    let millicpus = (f64::from(machine.cpus) * around.settings.cpu_request_ratio * 1000.0).round() as i64;
    ResourceRequirements {
        requests: Some(BTreeMap::from([
            ("memory".into(), memory.clone()),
            ("cpu".into(), Quantity(format!("{millicpus}m"))),
            ("ephemeral-storage".into(), Quantity(machine.disk_bytes.to_string())),
        ])),
        limits: Some(BTreeMap::from([("memory".into(), memory)])),
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
