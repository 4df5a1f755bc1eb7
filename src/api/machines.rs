//! Where nodes run and how large they are: provider, control plane, etcd's volume, node pools.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AwsPoolSpec, AwsSpec, rules};

/// Where the nodes run.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProviderSpec {
    /// Nodes are QEMU virtual machines in pods of the management cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm: Option<KvmSpec>,
    /// Nodes are EC2 instances in stacks of CloudFormation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsSpec>,
}

/// Settings of the KVM provider.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KvmSpec {
    /// Entry of the operator's image catalogue. Default: the entry that is named like the version.
    /// Changing it: rolls the control plane, then the pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"), length(max = 63))]
    pub image: Option<String>,
    /// How guest instructions are run. `Auto` (default) uses KVM where a probe guest started on it and TCG, QEMU's
    /// translator, elsewhere. Changing it: rolls the control plane and the pools.
    #[serde(skip_serializing_if = "Accelerator::is_default")]
    pub accelerator: Accelerator,
}

/// How QEMU runs guest instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Accelerator {
    /// KVM where a probe guest started on it, else TCG.
    #[default]
    Auto,
    /// Hardware virtualisation, or the VM does not start.
    KVM,
    /// Emulation: works everywhere, slowly.
    TCG,
}

impl Accelerator {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The nodes that carry the guest's control plane.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlaneSpec {
    /// Number of nodes: 1, 3 or 5, each with a member of etcd. Default: 1. Changing it: in place, and never to fewer; from 1 the
    /// node that is there is replaced first, and the API is away for as long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    #[x_kube(validation = rules::odd_replicas())]
    pub replicas: Option<i32>,
    /// Size of each machine. Changing it: rolls the control plane.
    #[serde(default)]
    pub machine: MachineSpec,
    /// Zones (values of the hosts' label `giantnetes.io/zone`) that the nodes run in; at most 16. Default: those of the
    /// operator's settings. Changing them: rolls the control plane.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<LabelValue>", length(max = 16), inner(length(min = 1)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub zones: Vec<String>,
}

/// Size of a machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineSpec {
    /// Number of virtual CPUs, 1 to 64. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub cpus: Option<i32>,
    /// Memory of the machine in bytes, such as `4Gi`; 2Gi to 1024Gi. Default: 4Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", regex(pattern = rules::SIZE), length(max = 20))]
    #[x_kube(validation = rules::size("2Gi", "1024Gi"))]
    pub memory: Option<Quantity>,
    /// Root disk in bytes, such as `20Gi`; 8Gi to 4096Gi. Default: 20Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", regex(pattern = rules::SIZE), length(max = 20))]
    #[x_kube(validation = rules::size("8Gi", "4096Gi"))]
    pub disk: Option<Quantity>,
}

/// The guest's etcd.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EtcdSpec {
    /// Where etcd runs. Default: `Stacked`. Changing it: immutable.
    #[serde(skip_serializing_if = "EtcdMode::is_default")]
    pub mode: EtcdMode,
    /// The volume that keeps etcd's data. Changing it: immutable.
    pub storage: StorageSpec,
}

/// Where etcd runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EtcdMode {
    /// A member on every control-plane node.
    #[default]
    Stacked,
}

impl EtcdMode {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A persistent volume.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Size in bytes, such as `8Gi`; 1Gi to 1024Gi. Default: 8Gi. Changing it: immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", regex(pattern = rules::SIZE), length(max = 20))]
    #[x_kube(validation = rules::size("1Gi", "1024Gi"))]
    pub size: Option<Quantity>,
    /// StorageClass in the management cluster. Default: its default class. Changing it: immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::OBJECT_NAME), length(max = 253))]
    pub class_name: Option<String>,
}

/// A group of equal worker nodes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePoolSpec {
    /// Name: a DNS label of at most 20 characters, but not `master`. Its nodes are named after it.
    /// Changing it: immutable; another name is another pool.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(max = 20))]
    #[x_kube(validation = rules::pool_name())]
    pub name: String,
    /// Number of nodes, 0 to 100. Default: 1. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: Option<i32>,
    /// Size of each machine. Changing it: rolls the pool.
    #[serde(default)]
    pub machine: MachineSpec,
    /// Zones (values of the hosts' label `giantnetes.io/zone`) that the nodes run in; at most 16. Default: any.
    /// Changing them: rolls the pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<LabelValue>", length(max = 16), inner(length(min = 1)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub zones: Vec<String>,
    /// Labels of the pool's nodes, at most 16; keys of kubernetes.io, k8s.io and giantnetes.io are not for users.
    /// Default: none. Changing them: in place.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, LabelValue>", extend("maxProperties" = 16))]
    #[x_kube(validation = rules::label_keys())]
    #[x_kube(validation = rules::own_label_keys())]
    pub labels: BTreeMap<String, String>,
    /// Taints of the pool's nodes, at most 16. Default: none. Changing them: in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["key".into(), "effect".into()]))]
    pub taints: Vec<TaintSpec>,
    /// What its machines are on AWS, where `machine` says only the size of their disk. With provider `aws` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsPoolSpec>,
}

/// Value of a label; it may be empty.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "a schema and nothing else")]
struct LabelValue(
    #[schemars(regex(pattern = r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$"), length(max = 63))] String,
);

/// A taint of a node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaintSpec {
    /// Key, as that of a label. Changing it: in place.
    #[schemars(regex(pattern = rules::LABEL_KEY), length(max = 253))]
    #[x_kube(validation = rules::own_label_key())]
    pub key: String,
    /// Value, as that of a label. Default: empty. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<LabelValue>")]
    pub value: Option<String>,
    /// What happens to pods that do not tolerate it. Changing it: in place.
    pub effect: TaintEffect,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// They are not scheduled here.
    NoSchedule,
    /// They are scheduled here only if nowhere else.
    PreferNoSchedule,
    /// They are evicted.
    NoExecute,
}
