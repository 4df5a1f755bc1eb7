//! What a guest on AWS is made of: region, zones, network, machines, and as whom its account is entered.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;

use super::{Check, Ranges, text};
use crate::{
    api::{
        AwsCredentialsSpec, AwsPoolSpec, AwsSpec, ClusterSpec, ClusterStatus, DEFAULT_INSTANCE_TYPE, ExposureType,
        NEEDS_VAULT, NO_EXPOSURE, NO_FLANNEL, NO_INGRESS, NatGateways, OverlayBackend, POOL_ON_AWS, PkiBackend,
        SpotSpec,
    },
    cluster::valid::Version,
    settings::AwsSettings,
};

/// Addresses of a guest's network on AWS that names none.
const DEFAULT_NETWORK: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 8, 0, 0), 16);
/// Zones that a guest may have.
const MAX_ZONES: usize = 3;
/// Networks that one load balancer may be open to.
const MAX_NETWORKS: usize = 50;
/// Types that may stand in for a pool's own.
const MAX_TYPES: usize = 10;

/// A guest on AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aws {
    /// Region.
    pub region: String,
    /// Availability zones, in the order in which they are filled.
    pub zones: Vec<String>,
    /// Addresses of its network.
    pub network: Ipv4Net,
    /// How private subnets reach the world.
    pub nat: NatGateways,
    /// Image of the nodes.
    pub image: String,
    /// Instance type of control-plane nodes.
    pub control_plane_type: String,
    /// Networks that reach the API by a private way.
    pub private_access: Vec<Ipv4Net>,
    /// Networks that reach it over the internet.
    pub public_access: Vec<Ipv4Net>,
    /// As whom its account is entered.
    pub credentials: AwsCredentials,
}

/// As whom an account is entered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AwsCredentials {
    /// Name of the Secret beside the Cluster.
    pub secret: String,
    /// ARN of the role to assume.
    pub role: Option<String>,
    /// External id that its trust policy asks for.
    pub external_id: Option<String>,
}

/// The machines of a pool on AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsPool {
    /// Instance type.
    pub instance_type: String,
    /// Spot machines, if there are to be some.
    pub spot: Option<Spot>,
}

/// Spot machines beside such at the list price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// So many nodes at the list price first.
    pub on_demand: u32,
    /// Of the others this percentage, too.
    pub on_demand_percentage: u8,
    /// Types that may stand in for the pool's own.
    pub other_types: Vec<String>,
}

impl From<&AwsCredentialsSpec> for AwsCredentials {
    fn from(spec: &AwsCredentialsSpec) -> Self {
        let AwsCredentialsSpec { secret_name, role_arn, external_id } = spec.clone();
        Self { secret: secret_name, role: role_arn, external_id }
    }
}

impl Default for AwsPool {
    fn default() -> Self {
        Self { instance_type: DEFAULT_INSTANCE_TYPE.into(), spot: None }
    }
}

impl Check {
    /// The guest on AWS, if it is to be there.
    pub(super) fn aws(
        &mut self,
        spec: &ClusterSpec,
        pinned: &ClusterStatus,
        (version, ranges): (&Version, &Ranges),
        settings: &AwsSettings,
    ) -> Option<Aws> {
        let Some(aws) = &spec.provider.aws else {
            if spec.node_pools.iter().any(|pool| pool.aws.is_some()) {
                self.fail("spec.nodePools", POOL_ON_AWS);
            }
            return None;
        };
        if spec.provider.kvm.is_some() {
            self.fail("spec.provider", "must have at most 1 items: kvm or aws");
        }
        if !cfg!(feature = "aws") {
            self.fail("spec.provider.aws", "this controller manager was built without AWS");
        }
        self.goes_with_aws(spec);
        Some(Aws {
            zones: self.aws_zones(aws),
            network: self.aws_network(aws, ranges),
            nat: aws.nat,
            image: self.aws_image(aws, pinned, version, settings),
            control_plane_type: self.instance_type(
                "spec.provider.aws.controlPlane.instanceType",
                aws.control_plane.instance_type.as_deref(),
            ),
            private_access: self.access("private", &aws.api_access.private),
            public_access: self.access("public", &aws.api_access.public),
            credentials: self.credentials(&aws.credentials),
            region: aws.region.clone(),
        })
    }

    /// What of the rest of the spec has another meaning there, or none.
    fn goes_with_aws(&mut self, spec: &ClusterSpec) {
        let rules = [
            (spec.pki.backend == PkiBackend::Vault, "spec.pki.backend", NEEDS_VAULT),
            (spec.exposure.type_ == ExposureType::None, "spec.exposure.type", NO_EXPOSURE),
            (spec.network.overlay.backend == OverlayBackend::Native, "spec.network.overlay.backend", NO_FLANNEL),
            (spec.ingress_controller.enabled != Some(true), "spec.ingressController.enabled", NO_INGRESS),
        ];
        for (holds, field, why) in rules {
            if !holds {
                self.fail(field, why);
            }
        }
    }

    fn aws_zones(&mut self, aws: &AwsSpec) -> Vec<String> {
        let field = "spec.provider.aws.zones";
        let region = "spec.provider.aws.region";
        self.text(region, &aws.region, is_region(&aws.region), "must be a region such as eu-central-1");
        self.count(field, aws.zones.len(), MAX_ZONES);
        if aws.zones.is_empty() {
            self.fail(field, "must have at least 1 items");
        }
        let mut seen = BTreeSet::new();
        for zone in aws.zones.iter().take(MAX_ZONES) {
            let rest = zone.strip_prefix(&aws.region).unwrap_or_default();
            let holds = !rest.is_empty() && zone.len() <= 40 && is_words(zone);
            self.text(field, zone, holds, "must be zones of the region, such as eu-central-1a");
            if !seen.insert(zone) {
                self.fail(field, format!("has {} twice", text::shown(zone)));
            }
        }
        aws.zones.clone()
    }

    fn aws_network(&mut self, aws: &AwsSpec, ranges: &Ranges) -> Ipv4Net {
        let field = "spec.provider.aws.network";
        let network = self.range(field, aws.network.as_deref(), DEFAULT_NETWORK, 16..=22);
        for (name, other) in [("podCIDR", ranges.pods), ("serviceCIDR", ranges.services)] {
            if network.contains(&other) || other.contains(&network) {
                self.fail(field, format!("{network} must not overlap kubernetes.{name}, {other}"));
            }
        }
        network
    }

    /// What is pinned stays, unless another version, another image or a roll is asked for.
    fn aws_image(
        &mut self,
        aws: &AwsSpec,
        pinned: &ClusterStatus,
        version: &Version,
        settings: &AwsSettings,
    ) -> String {
        let field = "spec.provider.aws.image";
        if let Some(image) = &aws.image {
            self.text(field, image, is_image(image), "must be an image such as ami-0123456789abcdef0");
            return image.clone();
        }
        let offered = settings.images.get(&version.name).and_then(|of| of.get(&aws.region));
        let is_same = pinned.version.as_ref() == Some(&version.name) && pinned.rolled_at == version.roll;
        let kept = pinned.aws.as_ref().and_then(|aws| aws.image.as_ref());
        let Some(image) = kept.filter(|_| is_same || offered.is_none()).or(offered) else {
            let problem = format!(
                "the operator has no image of {} in {} (settings.aws.images): name one",
                version.name, aws.region
            );
            self.fail(field, problem);
            return String::new();
        };
        image.clone()
    }

    fn access(&mut self, whose: &str, networks: &[String]) -> Vec<Ipv4Net> {
        let field = format!("spec.provider.aws.apiAccess.{whose}");
        self.count(&field, networks.len(), MAX_NETWORKS);
        let mut found = Vec::new();
        for text in networks.iter().take(MAX_NETWORKS) {
            match text.parse::<Ipv4Net>().ok().filter(|net| net.trunc() == *net && !found.contains(net)) {
                Some(network) => found.push(network),
                None => {
                    self.text(&field, text, false, "must be another IPv4 range without host bits, such as 10.0.0.0/8")
                }
            }
        }
        found
    }

    fn credentials(&mut self, spec: &AwsCredentialsSpec) -> AwsCredentials {
        let field = |name: &str| format!("spec.provider.aws.credentials.{name}");
        let secret = &spec.secret_name;
        self.text(field("secretName"), secret, text::is_object_name(secret), "must be the name of a Secret");
        if let Some(role) = &spec.role_arn {
            self.text(field("roleARN"), role, is_role(role), "must be the ARN of an IAM role");
        }
        if let Some(id) = &spec.external_id {
            let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@:/_-".contains(&byte);
            let holds = (2..=1224).contains(&id.len()) && id.bytes().all(is_letter);
            self.text(field("externalID"), id, holds, "must be 2 to 1224 letters, digits and +=,.@:/_-");
        }
        spec.into()
    }

    /// The machines of a pool.
    pub(super) fn aws_pool(&mut self, field: &str, spec: Option<&AwsPoolSpec>) -> AwsPool {
        let Some(spec) = spec else { return AwsPool::default() };
        let instance_type = self.instance_type(&format!("{field}.instanceType"), spec.instance_type.as_deref());
        let spot = spec.spot.as_ref().map(|spot| self.spot(&format!("{field}.spot"), spot, &instance_type));
        AwsPool { instance_type, spot }
    }

    fn spot(&mut self, field: &str, spec: &SpotSpec, own: &str) -> Spot {
        let types = format!("{field}.otherTypes");
        self.count(&types, spec.other_types.len(), MAX_TYPES);
        let mut seen = BTreeSet::from([own]);
        for name in spec.other_types.iter().take(MAX_TYPES) {
            self.instance_type(&types, Some(name));
            if !seen.insert(name) {
                self.fail(&types, format!("has {} twice", text::shown(name)));
            }
        }
        let percentage = spec.on_demand_percentage.unwrap_or_default();
        let percentage = self.number(format!("{field}.onDemandPercentage"), percentage, 0..=100);
        Spot {
            on_demand: self.number(format!("{field}.onDemand"), spec.on_demand.unwrap_or_default(), 0..=100),
            on_demand_percentage: u8::try_from(percentage).unwrap_or(100),
            other_types: spec.other_types.clone(),
        }
    }

    fn instance_type(&mut self, field: &str, name: Option<&str>) -> String {
        let name = name.unwrap_or(DEFAULT_INSTANCE_TYPE);
        self.text(field, name, is_instance_type(name), "must be an instance type such as m7i.large");
        name.to_owned()
    }
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Words of small letters and digits with hyphens between them.
fn is_words(text: &str) -> bool {
    text.split('-').all(|word| !word.is_empty() && word.bytes().all(is_lower))
}

/// `eu-central-1`
fn is_region(text: &str) -> bool {
    let words: Vec<_> = text.split('-').collect();
    let letters = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let [first, middle @ .., last] = words.as_slice() else { return false };
    let is_number = last.len() == 1 && last.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= 32
        && first.len() == 2
        && letters(first)
        && !middle.is_empty()
        && middle.iter().all(letters)
        && is_number
}

/// `ami-0123456789abcdef0`
fn is_image(text: &str) -> bool {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix("ami-").is_some_and(|id| (8..=17).contains(&id.len()) && id.bytes().all(is_hex))
}

/// `m7i.large`
fn is_instance_type(text: &str) -> bool {
    let is_letter = |byte: u8| is_lower(byte) || byte == b'-';
    text.len() <= 32
        && text.split_once('.').is_some_and(|(family, size)| {
            family.len() <= 16
                && family.starts_with(|first: char| first.is_ascii_lowercase())
                && (2..=15).contains(&size.len())
                && family.bytes().chain(size.bytes()).all(is_letter)
        })
}

/// `arn:aws:iam::111122223333:role/NAME`
fn is_role(text: &str) -> bool {
    let parts: Vec<_> = text.split(':').collect();
    let ["arn", partition, "iam", "", account, resource] = parts.as_slice() else { return false };
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_/-".contains(&byte);
    partition.strip_prefix("aws").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
        && account.len() == 12
        && account.bytes().all(|byte| byte.is_ascii_digit())
        && resource
            .strip_prefix("role/")
            .is_some_and(|name| (1..=200).contains(&name.len()) && name.bytes().all(is_letter))
}
