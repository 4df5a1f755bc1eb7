//! What the operator of the management cluster decides: the chart's values, handed to the process as one YAML file.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use ipnet::{IpNet, Ipv4Net};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

pub use aws::AwsSettings;
pub use vault::{VaultAuth, VaultSettings};

use crate::cluster::valid::parse_bytes;

mod aws;
mod vault;

/// Settings of the controller manager. Unknown fields are refused: a typo must not silently mean the default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The Kubernetes versions that guests may have.
    pub kubernetes: KubernetesSettings,
    /// What guests share.
    #[serde(default)]
    pub network: NetworkSettings,
    /// How guests' APIs are reached from outside.
    #[serde(default)]
    pub exposure: ExposureSettings,
    /// The KVM provider.
    #[serde(default)]
    pub kvm: KvmSettings,
    /// How nodes are replaced.
    #[serde(default)]
    pub rollout: RolloutSettings,
    /// What users may ask for.
    #[serde(default)]
    pub access: AccessSettings,
    /// Who keeps the authorities of Clusters that ask for it. None: no Cluster can.
    #[serde(default)]
    pub vault: Option<VaultSettings>,
    /// The AWS provider.
    #[serde(default)]
    pub aws: AwsSettings,
}

/// What users may ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessSettings {
    /// Longest lifetime of a user's certificate, such as `24h`: nobody can take one back before it ends.
    #[serde(rename = "maxTTL")]
    pub max_ttl: SignedDuration,
}

impl Default for AccessSettings {
    fn default() -> Self {
        Self { max_ttl: SignedDuration::from_hours(24) }
    }
}

/// How nodes are replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RolloutSettings {
    /// How long the pods of a worker that is to go have to find another one, such as `10m`. Then it goes with them.
    pub drain_timeout: SignedDuration,
}

impl Default for RolloutSettings {
    fn default() -> Self {
        Self { drain_timeout: SignedDuration::from_mins(10) }
    }
}

/// How guests' APIs are reached from outside the management cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExposureSettings {
    /// Host name of a guest that asks for an Ingress and names none. `{name}`, `{namespace}` and `{id}` stand for the
    /// guest's; without a template a guest must name its host.
    pub host_template: Option<String>,
    /// IngressClass of a guest that names none. None: the management cluster's default class; empty: none, for an ingress
    /// controller that serves Ingresses without a class.
    pub class_name: Option<String>,
    /// Port at which the ingress controller is reached.
    pub port: u16,
    /// Further annotations of every Ingress.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of every Service with a load balancer, in the words of the management cluster's provider.
    pub load_balancer_annotations: BTreeMap<String, String>,
    /// The gateway of guests that ask for a TLSRoute. None: no guest can.
    pub gateway: Option<GatewaySettings>,
}

/// A Gateway of the management cluster, with a listener that passes TLS through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewaySettings {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of the listener. None: every one that takes the route.
    #[serde(default)]
    pub section_name: Option<String>,
    /// Port at which that listener is reached.
    #[serde(default = "https")]
    pub port: u16,
}

fn https() -> u16 {
    443
}

impl Default for ExposureSettings {
    fn default() -> Self {
        Self {
            host_template: None,
            class_name: None,
            port: 443,
            annotations: BTreeMap::new(),
            load_balancer_annotations: BTreeMap::new(),
            gateway: None,
        }
    }
}

/// What guests share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkSettings {
    /// How long a released VNI stays unused, such as `1h`.
    pub quarantine: SignedDuration,
    /// Private ranges that guests may reach nevertheless, such as a mirror of images. Everything that is not private they
    /// may reach anyway.
    pub egress_allowed: Vec<Ipv4Net>,
    /// Address of the management cluster's DNS server, by which the VM pods of a guest find each other. None: each VM is
    /// alone on its overlay, and workers reach nothing but their API.
    #[serde(rename = "clusterDNS", deserialize_with = "address_or_nothing")]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the management cluster's Services.
    pub cluster_domain: String,
    /// Ranges of the management cluster's pods, which no guest's overlay may overlap.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges of its Services, likewise.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<IpNet>,
    /// Ranges of its hosts, likewise.
    #[serde(rename = "hostCIDRs")]
    pub host_cidrs: Vec<IpNet>,
    /// Namespace of the controller manager, whose pods may ask VM pods how they are. The chart sets it.
    pub manager_namespace: String,
    /// Flannel's etcd, for guests whose overlay is Flannel's. None: no guest can. The chart sets it.
    pub flannel: Option<FlannelSettings>,
    /// Namespaces whose pods may scrape VM pods: what supervisors count, and guests' components. None: nobody may.
    pub monitoring_namespaces: BTreeSet<String>,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            quarantine: SignedDuration::from_hours(1),
            egress_allowed: Vec::new(),
            cluster_dns: None,
            cluster_domain: "cluster.local".into(),
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            host_cidrs: Vec::new(),
            manager_namespace: "giantnetes-system".into(),
            flannel: None,
            monitoring_namespaces: BTreeSet::new(),
        }
    }
}

/// Flannel's etcd, in the controller manager's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlannelSettings {
    /// Name of its Service and StatefulSet.
    pub service: String,
    /// How many members it has: 1 or 3.
    pub members: u32,
}

/// An address; an empty text is none, as chart values have it.
fn address_or_nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// The Kubernetes versions that guests may have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesSettings {
    /// Version of a new guest that names none.
    pub default_version: String,
    /// VM image of each version, such as `v1.36.3: giantnetes/vm:v1.36.3`.
    pub images: BTreeMap<String, String>,
}

/// The KVM provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KvmSettings {
    /// Whether guests get VMs. If not, everything else of them is made and `ControlPlaneReady` says so.
    pub enabled: bool,
    /// CPU request of a VM pod as a share of its virtual CPUs, between 0 and 1.
    pub cpu_request_ratio: f64,
    /// Memory that QEMU and the supervisor need beside the guest's; part of the pod's request and limit. What emulation keeps
    /// of translated code comes on top.
    pub memory_overhead: Quantity,
    /// Resolvers that guests ask. None: those of the host.
    pub resolvers: Vec<IpAddr>,
    /// Zones of the control-plane nodes of guests that name none. None: any host.
    pub control_plane_zones: BTreeSet<String>,
    /// How long a host may be silent before the workers on it are given up and others take their part, such as `5m`.
    pub host_timeout: SignedDuration,
}

impl Default for KvmSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            cpu_request_ratio: 0.1,
            memory_overhead: Quantity("512Mi".into()),
            resolvers: Vec::new(),
            control_plane_zones: BTreeSet::new(),
            host_timeout: SignedDuration::from_mins(5),
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("read settings from {path}")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML of the expected shape.
    #[error("parse settings of {path}")]
    Parse {
        /// The file.
        path: String,
        /// Where and why.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// The default version has no image.
    #[error("kubernetes.defaultVersion {0} is not among kubernetes.images")]
    DefaultWithoutImage(String),
    /// The ratio is out of bounds.
    #[error("kvm.cpuRequestRatio {0} must be between 0 and 1")]
    CpuRequestRatio(f64),
    /// The quarantine is no time that can pass.
    #[error("network.quarantine {0:#} must be between 0 and 720h")]
    Quarantine(SignedDuration),
    /// A time-out is no time that can pass.
    #[error("{0} {1:#} must be between 0 and 24h")]
    Timeout(&'static str, SignedDuration),
    /// A count of members that makes no etcd.
    #[error("network.flannel.members {0} must be 1 or 3")]
    FlannelMembers(u32),
    /// A Vault that cannot be asked.
    #[error("vault.{0} {1}")]
    Vault(&'static str, &'static str),
    /// Guests on AWS cannot be made so.
    #[error("aws.{0} {1}")]
    Aws(&'static str, &'static str),
    /// The overhead is no size.
    #[error("kvm.memoryOverhead {0:?} is not a whole amount of bytes such as 512Mi")]
    MemoryOverhead(String),
}

impl Settings {
    /// Reads and checks a settings file.
    ///
    /// # Errors
    /// [`SettingsError`]
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let name = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: name(), source })?;
        let settings: Self = serde_saphyr::from_str(&text)
            .map_err(|source| SettingsError::Parse { path: name(), source: Box::new(source) })?;
        settings.checked()
    }

    /// The settings of the chart of this version, if nobody changes its values.
    ///
    /// # Errors
    /// [`SettingsError`], if the chart was built in with values that cannot be used: a test sees that it was not.
    pub fn of_chart() -> Result<Self, SettingsError> {
        #[derive(Deserialize)]
        struct Values {
            settings: Settings,
        }
        let values: Values = serde_saphyr::from_str(include_str!("../charts/giantnetes/values.yaml"))
            .map_err(|source| SettingsError::Parse { path: "the chart".into(), source: Box::new(source) })?;
        values.settings.checked()
    }

    fn checked(self) -> Result<Self, SettingsError> {
        if !self.kubernetes.images.contains_key(&self.kubernetes.default_version) {
            return Err(SettingsError::DefaultWithoutImage(self.kubernetes.default_version));
        }
        if !(0.0..=1.0).contains(&self.kvm.cpu_request_ratio) {
            return Err(SettingsError::CpuRequestRatio(self.kvm.cpu_request_ratio));
        }
        let quarantine = self.network.quarantine;
        if quarantine.is_negative() || quarantine > SignedDuration::from_hours(720) {
            return Err(SettingsError::Quarantine(quarantine));
        }
        if let Some(members) =
            self.network.flannel.as_ref().map(|flannel| flannel.members).filter(|n| ![1, 3].contains(n))
        {
            return Err(SettingsError::FlannelMembers(members));
        }
        let timeouts =
            [("rollout.drainTimeout", self.rollout.drain_timeout), ("kvm.hostTimeout", self.kvm.host_timeout)];
        for (name, timeout) in timeouts {
            if timeout.is_negative() || timeout > SignedDuration::from_hours(24) {
                return Err(SettingsError::Timeout(name, timeout));
            }
        }
        if parse_bytes(&self.kvm.memory_overhead.0).is_none() {
            return Err(SettingsError::MemoryOverhead(self.kvm.memory_overhead.0));
        }
        if let Some((field, problem)) = self.vault.as_ref().and_then(VaultSettings::problem) {
            return Err(SettingsError::Vault(field, problem));
        }
        if let Some((field, problem)) = self.aws.problem() {
            return Err(SettingsError::Aws(field, problem));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        let settings: Settings = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        settings.checked().map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_version_needs_an_image() {
        assert!(parse("kubernetes: {defaultVersion: v1.36.3, images: {v1.36.3: a}}").is_ok());
        let error = parse("kubernetes: {defaultVersion: v1.36.4, images: {v1.36.3: a}}").unwrap_err();
        assert!(error.contains("v1.36.4"), "{error}");
    }

    #[test]
    fn the_charts_settings_are_the_defaults() {
        let chart = Settings::of_chart().unwrap();
        let kubernetes = chart.kubernetes.clone();
        let (network, exposure) = (NetworkSettings::default(), ExposureSettings::default());
        let (kvm, rollout) = (KvmSettings::default(), RolloutSettings::default());
        let access = AccessSettings::default();
        assert_eq!(
            chart,
            Settings { kubernetes, network, exposure, kvm, rollout, access, vault: None, aws: AwsSettings::default() }
        );
    }

    #[test]
    fn a_typo_and_a_wild_ratio_are_refused() {
        let typo = parse("{kubernetes: {defaultVersion: v1, images: {v1: a}}, kvm: {resolver: []}}").unwrap_err();
        assert!(typo.contains("resolver"), "{typo}");
        let ratio =
            parse("{kubernetes: {defaultVersion: v1, images: {v1: a}}, kvm: {cpuRequestRatio: 2}}").unwrap_err();
        assert!(ratio.contains("cpuRequestRatio"), "{ratio}");
        let size = "{kubernetes: {defaultVersion: v1, images: {v1: a}}, kvm: {memoryOverhead: 1.5Gi}}";
        assert!(parse(size).unwrap_err().contains("memoryOverhead"));
        let quarantine = "{kubernetes: {defaultVersion: v1, images: {v1: a}}, network: {quarantine: 1h}}";
        assert_eq!(parse(quarantine).unwrap().network, NetworkSettings::default());
        let dns = |text: &str| parse(&quarantine.replace("quarantine: 1h", &format!("clusterDNS: {text}")));
        assert_eq!(dns("''").unwrap().network.cluster_dns, None);
        assert_eq!(dns("10.96.0.10").unwrap().network.cluster_dns, Some([10, 96, 0, 10].into()));
        assert!(dns("kube-dns").is_err());
        let timeouts = |text: &str| parse(&quarantine.replace("network: {quarantine: 1h}", text));
        let drain = timeouts("rollout: {drainTimeout: 90s}").unwrap();
        assert_eq!(drain.rollout.drain_timeout, SignedDuration::from_secs(90));
        assert!(timeouts("rollout: {drainTimeout: 25h}").unwrap_err().contains("rollout.drainTimeout"));
        assert!(timeouts("kvm: {hostTimeout: -5m}").unwrap_err().contains("kvm.hostTimeout"));
        let flannel =
            |members| quarantine.replace("quarantine: 1h", &format!("flannel: {{service: a, members: {members}}}"));
        assert_eq!(parse(&flannel(3)).unwrap().network.flannel.unwrap().members, 3);
        assert!(parse(&flannel(2)).unwrap_err().contains("network.flannel.members 2"));
        assert!(parse(&quarantine.replace("1h", "-1s")).unwrap_err().contains("network.quarantine"));
    }
}
