//! Machines and their volumes: the control plane, the node pools, etcd's storage.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{AwsPool, Check, PoolName, Zone, text};
use crate::api::{ControlPlaneSpec, MachineSpec, NodePoolSpec, StorageSpec, TaintEffect, TaintSpec};

const GIB: u64 = 1 << 30;

/// Size of a machine, in whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory of the guest, in MiB.
    pub memory_mib: u64,
    /// Root disk, in bytes.
    pub disk_bytes: u64,
}

/// The size of a machine that a spec does not say.
pub const DEFAULT_MACHINE: Machine = Machine { cpus: 2, memory_mib: 4096, disk_bytes: 20 * GIB };

/// The control-plane nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// How many there are: 1, 3 or 5.
    pub replicas: u32,
    /// Size of each.
    pub machine: Machine,
    /// Zones that they run in. None: those of the operator's settings.
    pub zones: BTreeSet<Zone>,
}

/// A group of equal worker nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePool {
    /// Its name.
    pub name: PoolName,
    /// How many nodes there are.
    pub replicas: u32,
    /// Size of each.
    pub machine: Machine,
    /// Zones that they run in. None: any.
    pub zones: BTreeSet<Zone>,
    /// Labels of the nodes.
    pub labels: BTreeMap<String, String>,
    /// Taints of the nodes.
    pub taints: Vec<Taint>,
    /// Its machines, on AWS.
    pub aws: AwsPool,
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, often empty.
    pub value: String,
    /// What it does to pods.
    pub effect: TaintEffect,
}

/// The volume of etcd's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Size in bytes.
    pub bytes: u64,
    /// StorageClass of the management cluster; `None` is its default class.
    pub class: Option<String>,
}

impl Check {
    pub(super) fn control_plane(&mut self, spec: &ControlPlaneSpec) -> ControlPlane {
        let replicas = spec.replicas.unwrap_or(1);
        if ![1, 3, 5].contains(&replicas) {
            self.fail("spec.controlPlane.replicas", format!("{replicas} must be 1, 3 or 5"));
        }
        ControlPlane {
            replicas: u32::try_from(replicas).unwrap_or(1),
            machine: self.machine("spec.controlPlane.machine", &spec.machine),
            zones: self.zones("spec.controlPlane.zones", &spec.zones),
        }
    }

    pub(super) fn pools(&mut self, specs: &[NodePoolSpec]) -> Vec<NodePool> {
        self.count("spec.nodePools", specs.len(), 20);
        let mut seen = BTreeSet::new();
        // What is too much is not looked at one by one: the message would be as long as the list.
        let mut pools: Vec<_> =
            specs.iter().take(20).enumerate().map(|(n, spec)| self.pool(n, spec, &mut seen)).collect();
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        pools
    }

    fn pool<'a>(&mut self, index: usize, spec: &'a NodePoolSpec, seen: &mut BTreeSet<&'a str>) -> NodePool {
        let place = format!("spec.nodePools[{index}]");
        let field = |name: &str| format!("{place}.{name}");
        let is_name = text::is_label(&spec.name) && spec.name.len() <= 20;
        self.text(field("name"), &spec.name, is_name, "must be a DNS label of at most 20 characters");
        self.text(
            field("name"),
            &spec.name,
            spec.name != "master",
            "must not be master, as control-plane nodes are called",
        );
        if !seen.insert(&spec.name) {
            self.fail(field("name"), format!("there are two of this name, {}", text::shown(&spec.name)));
        }
        self.count(&field("labels"), spec.labels.len(), 16);
        for (key, value) in &spec.labels {
            self.label(&field("labels"), key, value);
        }
        NodePool {
            name: PoolName::checked(&spec.name),
            replicas: self.number(field("replicas"), spec.replicas.unwrap_or(1), 0..=100),
            machine: self.machine(&field("machine"), &spec.machine),
            zones: self.zones(&field("zones"), &spec.zones),
            labels: spec.labels.clone(),
            taints: self.taints(&field("taints"), &spec.taints),
            aws: self.aws_pool(&field("aws"), spec.aws.as_ref()),
        }
    }

    fn taints(&mut self, field: &str, specs: &[TaintSpec]) -> Vec<Taint> {
        self.count(field, specs.len(), 16);
        let mut seen = BTreeSet::new();
        for TaintSpec { key, value, effect } in specs {
            self.label(field, key, value.as_deref().unwrap_or_default());
            if !seen.insert((key, effect)) {
                self.fail(field, format!("there are two of key {} and effect {effect:?}", text::shown(key)));
            }
        }
        let taint = |spec: &TaintSpec| Taint {
            key: spec.key.clone(),
            value: spec.value.clone().unwrap_or_default(),
            effect: spec.effect,
        };
        specs.iter().map(taint).collect()
    }

    fn label(&mut self, field: &str, key: &str, value: &str) {
        self.text(field, key, text::is_label_key(key), "must be a key such as example.com/role");
        self.text(
            field,
            key,
            !text::is_own_label_key(key),
            "must not be a key of kubernetes.io, k8s.io or giantnetes.io",
        );
        self.text(field, value, text::is_label_value(value), "must be a value of a label, at most 63 characters");
    }

    fn zones(&mut self, field: &str, zones: &[String]) -> BTreeSet<Zone> {
        self.count(field, zones.len(), 16);
        let mut seen = BTreeSet::new();
        for zone in zones {
            let holds = !zone.is_empty() && text::is_label_value(zone);
            self.text(field, zone, holds, "must be a value of a label, at most 63 characters");
            if !seen.insert(Zone::checked(zone)) {
                self.fail(field, format!("has {} twice", text::shown(zone)));
            }
        }
        seen
    }

    fn machine(&mut self, field: &str, spec: &MachineSpec) -> Machine {
        let bytes = |check: &mut Self, name: &str, value: Option<&Quantity>, default, bounds| {
            check.bytes(&format!("{field}.{name}"), value, default, bounds)
        };
        let default = DEFAULT_MACHINE;
        Machine {
            cpus: spec.cpus.map_or(default.cpus, |cpus| self.number(format!("{field}.cpus"), cpus, 1..=64)),
            memory_mib: bytes(self, "memory", spec.memory.as_ref(), default.memory_mib << 20, 2 * GIB..=1024 * GIB)
                >> 20,
            disk_bytes: bytes(self, "disk", spec.disk.as_ref(), default.disk_bytes, 8 * GIB..=4096 * GIB),
        }
    }

    pub(super) fn storage(&mut self, field: &str, spec: &StorageSpec) -> Storage {
        if let Some(class) = &spec.class_name {
            let place = format!("{field}.className");
            self.text(place, class, text::is_object_name(class), "must be a name of a StorageClass");
        }
        Storage {
            bytes: self.bytes(&format!("{field}.size"), spec.size.as_ref(), 8 * GIB, GIB..=1024 * GIB),
            class: spec.class_name.clone(),
        }
    }

    fn bytes(&mut self, field: &str, value: Option<&Quantity>, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        let Some(Quantity(text)) = value else { return default };
        match parse_bytes(text) {
            Some(bytes) if bounds.contains(&bytes) => bytes,
            Some(_) => {
                let (least, most) = (bounds.start() >> 30, bounds.end() >> 30);
                self.fail(field, format!("{} must be between {least}Gi and {most}Gi", text::shown(text)));
                default
            }
            None => {
                self.fail(field, format!("{} must be a whole amount of bytes such as 8Gi", text::shown(text)));
                default
            }
        }
    }
}

/// Bytes of a quantity such as `8Gi`, `512M` or `1073741824`. Fractions are not for sizes.
pub fn parse_bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 9] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("", 1),
    ];
    let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number = &text[..text.len() - unit.len()];
    if number.len() > 15 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(*factor)
}
