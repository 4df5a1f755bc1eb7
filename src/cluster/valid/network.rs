//! Address ranges, packet sizes, the way to the API, and certificates.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::Ipv4Net;

use super::{Check, HostName, text};
use crate::{
    api::{
        Cluster, ExposureSpec, ExposureType, IngressControllerSpec, IngressService, NetworkSpec, OverlayBackend,
        PkiBackend, PkiSpec,
    },
    cluster::Identity,
    network::{
        addresses::{Fabric, Overlay},
        underlay::{self, Underlay},
    },
    pki::keys::Wishes,
    settings::{ExposureSettings, GatewaySettings, NetworkSettings, Settings},
};

/// Default range of the pods' addresses.
pub const DEFAULT_POD_CIDR: Ipv4Net = net([10, 200, 0, 0], 16);
/// Default range of the Services' addresses.
pub const DEFAULT_SERVICE_CIDR: Ipv4Net = net([10, 96, 0, 0], 16);
/// Default range of the nodes' addresses.
pub const DEFAULT_OVERLAY_CIDR: Ipv4Net = net([172, 26, 0, 0], 20);
/// QEMU's user-mode network, which is a guest's way out. No other range of a guest may overlap it.
pub const EGRESS_CIDR: Ipv4Net = net([10, 0, 2, 0], 24);

/// Addresses that no host has, or that it must not take for its own.
const SPECIAL: [Ipv4Net; 4] =
    [net([0, 0, 0, 0], 8), net([127, 0, 0, 0], 8), net([169, 254, 0, 0], 16), net([224, 0, 0, 0], 3)];

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Default lifetime of a certificate authority.
pub const DEFAULT_CA_TTL: Duration = Duration::from_secs(87_600 * 3600);
/// Default lifetime of every other certificate.
pub const DEFAULT_LEAF_TTL: Duration = Duration::from_secs(2160 * 3600);
/// How long users have in a rotation of authorities, if nothing else is said.
const DEFAULT_OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// The same, of the key of service-account tokens: kubelets renew those of pods within a day.
const DEFAULT_TOKEN_OVERLAP: Duration = Duration::from_secs(25 * 3600);
/// As the CRD has it.
const MOST_ROTATIONS: u32 = 1_000_000;

const fn net(address: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(address[0], address[1], address[2], address[3]), prefix)
}

/// The guest's address ranges; they do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// Pods.
    pub pods: Ipv4Net,
    /// Services.
    pub services: Ipv4Net,
    /// Nodes.
    pub overlay: Overlay,
}

/// Sizes of packets in bytes, where the user chose them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mtu {
    /// Between nodes.
    pub overlay: Option<u32>,
    /// Between pods.
    pub pods: Option<u32>,
}

/// The way to a guest's API from outside the management cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// There is none.
    None,
    /// An Ingress that passes TLS through.
    Ingress {
        /// Host name: the user's, or made from the operator's template.
        host: HostName,
        /// IngressClass; `None` is the operator's.
        class: Option<String>,
    },
    /// A TLSRoute.
    TLSRoute {
        /// Host name: the user's, or made from the operator's template.
        host: HostName,
        /// The operator's gateway. None: there is none any more.
        gateway: Option<GatewaySettings>,
    },
    /// A load balancer.
    LoadBalancer {
        /// Host name that leads to it; `None` is its address.
        host: Option<HostName>,
    },
}

impl Exposure {
    /// The host name that is the guest's alone.
    pub fn host(&self) -> Option<&HostName> {
        match self {
            Self::None => None,
            Self::Ingress { host, .. } | Self::TLSRoute { host, .. } => Some(host),
            Self::LoadBalancer { host } => host.as_ref(),
        }
    }
}

/// An ingress controller inside a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressController {
    /// Its pods.
    pub replicas: u32,
    /// Whether a load balancer leads there.
    pub balanced: bool,
}

/// Certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pki {
    /// Who keeps the authorities.
    pub backend: PkiBackend,
    /// Whether keys of authorities in Vault are written down there, for escrow officers.
    pub exportable: bool,
    /// The Secret beside the Cluster that a new guest's roots are taken from, if they are not made.
    pub import_from: Option<String>,
    /// Lifetime of an authority.
    pub ca_ttl: Duration,
    /// Lifetime of every other certificate.
    pub leaf_ttl: Duration,
    /// The wish for other authorities: they are rotated when it is raised.
    pub rotate: u32,
    /// How long users have in a rotation.
    pub overlap: Duration,
    /// The wishes for other keys, likewise.
    pub keys: Wishes,
    /// How long tokens of a former key are good for in a rotation.
    pub token_overlap: Duration,
    /// What else the API answers to.
    pub alt_names: Vec<SubjectName>,
}

/// A name in a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SubjectName {
    /// A DNS name.
    Dns(HostName),
    /// An address.
    Address(Ipv4Addr),
}

impl Check {
    pub(super) fn ranges(&mut self, cluster: &Cluster, settings: &Settings) -> Ranges {
        let (kubernetes, overlay) = (&cluster.spec.kubernetes, &cluster.spec.network.overlay);
        let fabric = self.fabric(overlay.backend, &settings.network);
        let overlay_prefixes = match fabric {
            Fabric::Segment => 16..=24,
            // Each node has four addresses there.
            Fabric::Routed => 16..=22,
        };
        let named = [
            ("spec.kubernetes.podCIDR", kubernetes.pod_cidr.as_deref(), DEFAULT_POD_CIDR, 8..=20),
            ("spec.kubernetes.serviceCIDR", kubernetes.service_cidr.as_deref(), DEFAULT_SERVICE_CIDR, 12..=24),
            ("spec.network.overlay.cidr", overlay.cidr.as_deref(), DEFAULT_OVERLAY_CIDR, overlay_prefixes),
        ]
        .map(|(field, text, default, prefixes)| (field, self.range(field, text, default, prefixes)));
        for (place, (field, range)) in named.iter().enumerate() {
            for (other_field, other) in &named[..place] {
                if overlaps(*range, *other) {
                    self.fail(*field, format!("{range} overlaps {other_field} {other}"));
                }
            }
        }
        let [(_, pods), (_, services), (field, net)] = named;
        if cluster.spec.provider.aws.is_none()
            && underlay::judges(cluster)
            && let Some(problem) = Underlay::of_settings(settings).clash(net)
        {
            self.fail(field, problem);
        }
        Ranges { pods, services, overlay: Overlay { net, fabric } }
    }

    fn fabric(&mut self, backend: OverlayBackend, settings: &NetworkSettings) -> Fabric {
        if backend == OverlayBackend::Native {
            return Fabric::Segment;
        }
        let field = "spec.network.overlay.backend";
        if settings.flannel.is_none() {
            let problem =
                "Flannel is not set up in this installation: its operator has to set the chart's flannel.enabled";
            self.fail(field, problem);
        } else if settings.cluster_dns.is_none() {
            let problem =
                "Flannel needs VM pods that find each other: the operator has to set settings.network.clusterDNS";
            self.fail(field, problem);
        }
        Fabric::Routed
    }

    pub(super) fn range(
        &mut self,
        field: &str,
        value: Option<&str>,
        default: Ipv4Net,
        prefixes: RangeInclusive<u8>,
    ) -> Ipv4Net {
        let Some(text) = value else { return default };
        // Written as we would write it: parsers disagree on leading zeros.
        let Some(range) = text.parse::<Ipv4Net>().ok().filter(|range| range.to_string() == text) else {
            self.fail(field, format!("{} must be an IPv4 range such as {default}", text::shown(text)));
            return default;
        };
        if range.addr() != range.network() {
            self.fail(field, format!("{text} must have no host bits set; its network is {}", range.trunc()));
        } else if !prefixes.contains(&range.prefix_len()) {
            self.fail(field, format!("{text} must be between /{} and /{}", prefixes.start(), prefixes.end()));
        } else if let Some(special) = SPECIAL.into_iter().find(|special| overlaps(*special, range)) {
            self.fail(field, format!("{text} must be a range of unicast addresses outside of {special}"));
        } else if overlaps(range, EGRESS_CIDR) {
            self.fail(field, format!("{text} must not overlap {EGRESS_CIDR}, the nodes' way out"));
        }
        range
    }

    pub(super) fn vni(&mut self, vni: Option<i32>) -> Option<u32> {
        let field = "spec.network.overlay.vni";
        let vni = self.number(field, vni?, 1000..=9999);
        if vni == 4096 {
            self.fail(field, "4096 must not be used: it is Calico's own");
        }
        Some(vni)
    }

    pub(super) fn mtu(&mut self, spec: &NetworkSpec) -> Mtu {
        let mut mtu = |field: &str, value: Option<i32>| value.map(|mtu| self.number(field, mtu, 1280..=8950));
        let overlay = mtu("spec.network.overlay.mtu", spec.overlay.mtu);
        let pods = mtu("spec.network.calico.mtu", spec.calico.mtu);
        // What is left of a packet between nodes for one between pods: with Flannel, Calico puts one into the other.
        let (less, least) = match spec.overlay.backend {
            OverlayBackend::Native => (0, 1280),
            OverlayBackend::Flannel => (50, 1330),
        };
        if let Some(overlay) = overlay.filter(|mtu| *mtu < least) {
            let problem = format!(
                "{overlay} must be at least {least} with backend Flannel, over which pods' packets are {less} bytes smaller"
            );
            self.fail("spec.network.overlay.mtu", problem);
        }
        if let (Some(overlay), Some(pods)) = (overlay, pods)
            && pods > overlay.saturating_sub(less)
        {
            let of = if less == 0 { String::new() } else { format!(" less {less}") };
            self.fail("spec.network.calico.mtu", format!("{pods} must be at most network.overlay.mtu, {overlay}{of}"));
        }
        Mtu { overlay, pods }
    }

    pub(super) fn exposure(
        &mut self,
        spec: &ExposureSpec,
        identity: &Identity,
        settings: &ExposureSettings,
    ) -> Exposure {
        if let Some(host) = &spec.host {
            let is_name = text::is_host_name(host) && host.parse::<IpAddr>().is_err();
            self.text("spec.exposure.host", host, is_name, "must be a DNS name");
        }
        if let Some(class) = &spec.class_name {
            let field = "spec.exposure.className";
            self.text(field, class, text::is_object_name(class), "must be a name of an IngressClass");
        }
        if spec.host.is_some() && spec.type_ == ExposureType::None {
            self.fail("spec.exposure", "host needs type Ingress, TLSRoute or LoadBalancer");
        }
        if spec.class_name.is_some() && spec.type_ != ExposureType::Ingress {
            self.fail("spec.exposure", "className needs type Ingress");
        }
        let given = spec.host.as_deref();
        let mut named =
            || HostName::checked(&given.map_or_else(|| self.templated_host(identity, settings), str::to_owned));
        match spec.type_ {
            ExposureType::Ingress => Exposure::Ingress { host: named(), class: spec.class_name.clone() },
            ExposureType::TLSRoute => Exposure::TLSRoute { host: named(), gateway: settings.gateway.clone() },
            ExposureType::LoadBalancer => Exposure::LoadBalancer { host: given.map(HostName::checked) },
            ExposureType::None => Exposure::None,
        }
    }

    pub(super) fn ingress_controller(&mut self, spec: &IngressControllerSpec) -> Option<IngressController> {
        let replicas = self.number("spec.ingressController.replicas", spec.replicas.unwrap_or(1), 1..=10);
        let balanced = spec.service == IngressService::LoadBalancer;
        spec.enabled.unwrap_or_default().then_some(IngressController { replicas, balanced })
    }

    fn templated_host(&mut self, identity: &Identity, settings: &ExposureSettings) -> String {
        let field = "spec.exposure.host";
        let Some(template) = &settings.host_template else {
            self.fail(field, "must be given: the operator's settings have no template for it");
            return String::new();
        };
        let host = template
            .replace("{name}", &identity.key.name)
            .replace("{namespace}", &identity.key.namespace)
            .replace("{id}", &identity.id);
        let problem = "must be given: the operator's template makes no DNS name of this one's name and namespace";
        self.text(field, &host, text::is_host_name(&host), problem);
        host
    }

    fn rotations(&mut self, field: &'static str, count: Option<i32>) -> u32 {
        let count = u32::try_from(count.unwrap_or_default()).unwrap_or_else(|_| {
            self.fail(field, "must not be negative");
            0
        });
        if count > MOST_ROTATIONS {
            self.fail(field, "must be at most 1000000");
        }
        count
    }

    pub(super) fn pki(&mut self, spec: &PkiSpec, settings: &Settings) -> Pki {
        if spec.backend == PkiBackend::Vault && settings.vault.is_none() {
            let problem = "Vault is not set up in this installation: its operator has to name one in settings.vault";
            self.fail("spec.pki.backend", problem);
        }
        let ca_ttl =
            self.lifetime("spec.pki.ca.ttl", spec.ca.ttl.as_deref(), DEFAULT_CA_TTL, 24 * HOUR..=175_200 * HOUR);
        let leaf_ttl =
            self.lifetime("spec.pki.leaf.ttl", spec.leaf.ttl.as_deref(), DEFAULT_LEAF_TTL, 10 * MINUTE..=8760 * HOUR);
        if leaf_ttl > ca_ttl {
            self.fail("spec.pki.leaf.ttl", "must be at most ca.ttl: no certificate outlives what signed it");
        }
        let rotate = self.rotations("spec.pki.ca.rotate", spec.ca.rotate);
        let keys = Wishes {
            service_account: self.rotations("spec.pki.serviceAccountKey.rotate", spec.service_account_key.rotate),
            encryption: self.rotations("spec.pki.encryptionKey.rotate", spec.encryption_key.rotate),
        };
        let token_overlap = self.lifetime(
            "spec.pki.serviceAccountKey.overlap",
            spec.service_account_key.overlap.as_deref(),
            DEFAULT_TOKEN_OVERLAP,
            HOUR..=8760 * HOUR,
        );
        if rotate > 0 && spec.backend == PkiBackend::Vault {
            self.fail("spec.pki.ca.rotate", "must be 0 with backend Vault, whose authorities are not rotated yet");
        }
        let range = 10 * MINUTE..=8760 * HOUR;
        let overlap = self.lifetime("spec.pki.ca.overlap", spec.ca.overlap.as_deref(), DEFAULT_OVERLAP, range);
        let exportable = spec.exportable.unwrap_or_default();
        if exportable && spec.backend != PkiBackend::Vault {
            self.fail("spec.pki.exportable", "needs backend Vault; with Embedded, keys can be exported in any case");
        }
        let import_from = spec.import_from.as_ref().map(|import| import.secret_name.clone());
        if let Some(name) = &import_from {
            let field = "spec.pki.importFrom.secretName";
            self.text(field, name, text::is_object_name(name), "must be the name of a Secret");
        }
        let field = "spec.pki.apiServer.altNames";
        let names = &spec.api_server.alt_names;
        self.count(field, names.len(), 16);
        let mut alt_names: Vec<_> = names
            .iter()
            .map(|name| {
                self.text(field, name, text::is_host_name(name), "must be a DNS name or an IPv4 address");
                name.parse().map_or_else(|_| SubjectName::Dns(HostName::checked(name)), SubjectName::Address)
            })
            .collect();
        alt_names.sort();
        if alt_names.windows(2).any(|two| two[0] == two[1]) {
            self.fail(field, "has a name twice");
        }
        Pki {
            backend: spec.backend,
            exportable,
            import_from,
            ca_ttl,
            leaf_ttl,
            rotate,
            overlap,
            keys,
            token_overlap,
            alt_names,
        }
    }

    fn lifetime(
        &mut self,
        field: &str,
        value: Option<&str>,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(text) = value else { return default };
        match parse_lifetime(text) {
            Some(lifetime) if bounds.contains(&lifetime) => lifetime,
            Some(_) => {
                let [least, most] = [bounds.start(), bounds.end()].map(|bound| match bound.as_secs() / 60 {
                    minutes if minutes % 60 == 0 => format!("{}h", minutes / 60),
                    minutes => format!("{minutes}m"),
                });
                self.fail(field, format!("{text} must be between {least} and {most}"));
                default
            }
            None => {
                self.fail(field, format!("{} must be hours or minutes such as 2160h", text::shown(text)));
                default
            }
        }
    }
}

/// A lifetime such as `2160h` or `10m`.
pub fn parse_lifetime(text: &str) -> Option<Duration> {
    let (number, unit) = match (text.strip_suffix('h'), text.strip_suffix('m')) {
        (Some(hours), _) => (hours, HOUR),
        (_, Some(minutes)) => (minutes, MINUTE),
        (None, None) => return None,
    };
    let plain =
        (1..=6).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
    unit.checked_mul(plain.then(|| number.parse().ok())??)
}

fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}
