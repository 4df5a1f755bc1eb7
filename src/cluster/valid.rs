//! The spec, checked and typed. After [`Valid::new`] nothing reads the raw spec, and no required value is an `Option`.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{
    api::{Accelerator, Cluster, ClusterStatus, MachineSpec},
    cluster::Identity,
    settings::Settings,
};

const GIB: u64 = 1 << 30;

/// Default range of the pods' addresses.
pub const DEFAULT_POD_CIDR: Ipv4Net = net([10, 200, 0, 0], 16);
/// Default range of the Services' addresses.
pub const DEFAULT_SERVICE_CIDR: Ipv4Net = net([10, 96, 0, 0], 16);
/// Default range of the nodes' addresses.
pub const DEFAULT_OVERLAY_CIDR: Ipv4Net = net([172, 26, 0, 0], 20);

const fn net(address: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(address[0], address[1], address[2], address[3]), prefix)
}

/// QEMU's user-mode network, which is a guest's way out. No other range of a guest may overlap it.
pub const EGRESS_CIDR: Ipv4Net = net([10, 0, 2, 0], 24);

/// What is wrong with a field of the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `spec.network.overlay.cidr`.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// A Kubernetes version of the catalogue, with the VM image that carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Such as `v1.36.3`.
    pub name: String,
    /// Image of the VM pod.
    pub image: String,
}

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

/// The volume of etcd's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Size in bytes.
    pub bytes: u64,
    /// StorageClass of the management cluster; `None` is its default class.
    pub class: Option<String>,
}

/// The guest's address ranges; they do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// Pods.
    pub pods: Ipv4Net,
    /// Services.
    pub services: Ipv4Net,
    /// Nodes.
    pub overlay: Ipv4Net,
}

/// A Cluster that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Valid {
    /// What the guest is called.
    pub identity: Identity,
    /// Version and image.
    pub version: Version,
    /// Address ranges.
    pub ranges: Ranges,
    /// The VNI that the user asked for, or that the guest has.
    pub requested_vni: Option<u32>,
    /// Control-plane machines.
    pub control_plane: Machine,
    /// etcd's volume.
    pub etcd: Storage,
    /// How QEMU runs the guest.
    pub accelerator: Accelerator,
}

impl Valid {
    /// Checks a Cluster. All violations are found at once.
    ///
    /// # Errors
    /// The list of violations, never empty.
    pub fn new(cluster: &Cluster, settings: &Settings) -> Result<Self, Vec<Violation>> {
        let spec = &cluster.spec;
        let mut check = Check::default();
        let fresh = ClusterStatus::default();
        let pinned = cluster.status.as_ref().unwrap_or(&fresh);
        let version = check.version(spec.kubernetes.version.as_ref(), pinned, settings);
        let ranges = check.ranges(cluster);
        let control_plane = check.machine(&spec.control_plane.machine);
        let etcd_bytes =
            check.bytes("spec.etcd.storage.size", spec.etcd.storage.size.as_ref(), 8 * GIB, GIB..=1024 * GIB);
        let requested_vni = check.vni(spec.network.overlay.vni.or(pinned.vni));
        if check.violations.is_empty() {
            Ok(Self {
                identity: Identity::of(cluster),
                version,
                ranges,
                requested_vni,
                control_plane,
                etcd: Storage { bytes: etcd_bytes, class: spec.etcd.storage.class_name.clone() },
                accelerator: spec.provider.kvm.clone().unwrap_or_default().accelerator,
            })
        } else {
            Err(check.violations)
        }
    }
}

/// Collects violations; every method answers a value that is only used if there are none.
#[derive(Default)]
struct Check {
    violations: Vec<Violation>,
}

impl Check {
    fn fail(&mut self, field: &'static str, problem: impl Into<String>) {
        self.violations.push(Violation { field, problem: problem.into() });
    }

    /// A pinned version keeps its image, even one that the catalogue has dropped: its guest must be cared for.
    fn version(&mut self, wanted: Option<&String>, pinned: &ClusterStatus, settings: &Settings) -> Version {
        let catalogue = &settings.kubernetes;
        let name = wanted.or(pinned.version.as_ref()).unwrap_or(&catalogue.default_version).clone();
        if let (Some(version), Some(image)) = (&pinned.version, &pinned.image)
            && *version == name
        {
            return Version { name, image: image.clone() };
        }
        let image = catalogue.images.get(&name).cloned().unwrap_or_else(|| {
            let known: Vec<_> = catalogue.images.keys().map(String::as_str).collect();
            self.fail("spec.kubernetes.version", format!("{name} is not supported; there are {}", known.join(", ")));
            String::new()
        });
        Version { name, image }
    }

    fn ranges(&mut self, cluster: &Cluster) -> Ranges {
        let (kubernetes, overlay) = (&cluster.spec.kubernetes, &cluster.spec.network.overlay);
        let ranges = Ranges {
            pods: self.range("spec.kubernetes.podCIDR", kubernetes.pod_cidr.as_ref(), DEFAULT_POD_CIDR, 8..=20),
            services: self.range(
                "spec.kubernetes.serviceCIDR",
                kubernetes.service_cidr.as_ref(),
                DEFAULT_SERVICE_CIDR,
                12..=24,
            ),
            overlay: self.range("spec.network.overlay.cidr", overlay.cidr.as_ref(), DEFAULT_OVERLAY_CIDR, 16..=24),
        };
        let named = [
            ("spec.kubernetes.podCIDR", ranges.pods),
            ("spec.kubernetes.serviceCIDR", ranges.services),
            ("spec.network.overlay.cidr", ranges.overlay),
        ];
        for (place, (field, range)) in named.iter().enumerate() {
            if overlaps(*range, EGRESS_CIDR) {
                self.fail(field, format!("{range} overlaps {EGRESS_CIDR}, the nodes' way out"));
            }
            for (other_field, other) in &named[..place] {
                if overlaps(*range, *other) {
                    self.fail(field, format!("{range} overlaps {other_field} {other}"));
                }
            }
        }
        ranges
    }

    fn range(
        &mut self,
        field: &'static str,
        value: Option<&String>,
        default: Ipv4Net,
        prefixes: std::ops::RangeInclusive<u8>,
    ) -> Ipv4Net {
        let Some(text) = value else { return default };
        let Ok(range) = text.parse::<Ipv4Net>() else {
            self.fail(field, format!("{text:?} is not an IPv4 range such as {default}"));
            return default;
        };
        if range.addr() != range.network() {
            self.fail(field, format!("{text} has host bits set; its network is {}", range.trunc()));
        } else if !prefixes.contains(&range.prefix_len()) {
            let (longest, shortest) = (prefixes.end(), prefixes.start());
            self.fail(field, format!("{text} must be between /{shortest} and /{longest}"));
        } else if range.network().is_loopback() || range.network().is_multicast() || range.network().octets()[0] == 0 {
            self.fail(field, format!("{text} is not a range of unicast addresses"));
        }
        range
    }

    fn vni(&mut self, vni: Option<i32>) -> Option<u32> {
        let vni = vni?;
        match u32::try_from(vni) {
            Ok(number) if (1000..=9999).contains(&number) => Some(number),
            _ => {
                self.fail("spec.network.overlay.vni", format!("{vni} must be between 1000 and 9999"));
                None
            }
        }
    }

    fn machine(&mut self, spec: &MachineSpec) -> Machine {
        let cpus = spec.cpus.unwrap_or(2);
        if !(1..=64).contains(&cpus) {
            self.fail("spec.controlPlane.machine.cpus", format!("{cpus} must be between 1 and 64"));
        }
        let memory =
            self.bytes("spec.controlPlane.machine.memory", spec.memory.as_ref(), 4 * GIB, 2 * GIB..=1024 * GIB);
        let disk = self.bytes("spec.controlPlane.machine.disk", spec.disk.as_ref(), 20 * GIB, 8 * GIB..=4096 * GIB);
        Machine { cpus: u32::try_from(cpus).unwrap_or(1), memory_mib: memory >> 20, disk_bytes: disk }
    }

    fn bytes(
        &mut self,
        field: &'static str,
        value: Option<&Quantity>,
        default: u64,
        bounds: std::ops::RangeInclusive<u64>,
    ) -> u64 {
        let Some(Quantity(text)) = value else { return default };
        match parse_bytes(text) {
            Some(bytes) if bounds.contains(&bytes) => bytes,
            Some(_) => {
                let (least, most) = (bounds.start() >> 30, bounds.end() >> 30);
                self.fail(field, format!("{text} must be between {least}Gi and {most}Gi"));
                default
            }
            None => {
                self.fail(field, format!("{text:?} is not a whole amount of bytes such as 8Gi"));
                default
            }
        }
    }
}

fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Bytes of a quantity such as `8Gi`, `512M` or `1073741824`. Fractions are not for sizes.
pub fn parse_bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("", 1),
    ];
    let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number = &text[..text.len() - unit.len()];
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::testing::{cluster, settings};

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
        assert_eq!(valid.control_plane, Machine { cpus: 2, memory_mib: 4096, disk_bytes: 20 << 30 });
    }

    #[test]
    fn every_bad_field_is_named() {
        for (spec, field) in [
            (json!({"kubernetes": {"version": "v1.2.3"}}), "spec.kubernetes.version: v1.2.3 is not supported"),
            (json!({"kubernetes": {"podCIDR": "10.200.0.0"}}), "spec.kubernetes.podCIDR: "),
            (
                json!({"kubernetes": {"podCIDR": "10.200.0.1/16"}}),
                "spec.kubernetes.podCIDR: 10.200.0.1/16 has host bits",
            ),
            (json!({"kubernetes": {"podCIDR": "10.200.0.0/28"}}), "spec.kubernetes.podCIDR: 10.200.0.0/28 must be"),
            (json!({"kubernetes": {"podCIDR": "10.96.0.0/16"}}), "spec.kubernetes.serviceCIDR: 10.96.0.0/16 overlaps"),
            (json!({"kubernetes": {"podCIDR": "10.0.0.0/16"}}), "spec.kubernetes.podCIDR: 10.0.0.0/16 overlaps"),
            (json!({"kubernetes": {"serviceCIDR": "224.0.0.0/16"}}), "spec.kubernetes.serviceCIDR: "),
            (json!({"network": {"overlay": {"cidr": "fe80::/64"}}}), "spec.network.overlay.cidr: "),
            (json!({"network": {"overlay": {"vni": 1}}}), "spec.network.overlay.vni: 1 must be"),
            (json!({"network": {"overlay": {"vni": -1}}}), "spec.network.overlay.vni: -1 must be"),
            (json!({"controlPlane": {"machine": {"cpus": 0}}}), "spec.controlPlane.machine.cpus: "),
            (json!({"controlPlane": {"machine": {"memory": "1Gi"}}}), "spec.controlPlane.machine.memory: 1Gi must be"),
            (json!({"controlPlane": {"machine": {"memory": "4GiB"}}}), "spec.controlPlane.machine.memory: \"4GiB\""),
            (json!({"controlPlane": {"machine": {"disk": "-8Gi"}}}), "spec.controlPlane.machine.disk: "),
            (json!({"etcd": {"storage": {"size": "99999999999999Ti"}}}), "spec.etcd.storage.size: "),
        ] {
            let found = problems(spec.clone());
            assert!(found.iter().any(|problem| problem.starts_with(field)), "{spec}: {found:?}");
        }
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
    fn a_guest_keeps_its_vni() {
        let mut cluster = cluster(json!({}));
        cluster.status.get_or_insert_default().vni = Some(4321);
        assert_eq!(Valid::new(&cluster, &settings()).unwrap().requested_vni, Some(4321));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(cidr in ".{0,20}", size in ".{0,12}") {
            let _ = problems(json!({
                "kubernetes": {"podCIDR": cidr, "serviceCIDR": cidr, "version": size},
                "network": {"overlay": {"cidr": cidr}},
                "etcd": {"storage": {"size": size}},
                "controlPlane": {"machine": {"memory": size, "disk": size}},
            }));
        }
    }
}
