//! The CEL rules of the CRD, and the patterns that fields share. [`crate::cluster::valid`] repeats every one of them.
//!
//! Rules about one field sit on it. Rules about several sit on `spec`, those that need the status on the root. What is
//! fixed, for good or for now, is a table in [`super::fixed`].

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::ValidationRule;
use kube::core::{Message, Rule};

use super::fixed::FIXED;

/// An amount of bytes, without fractions.
pub(super) const SIZE: &str = "^[0-9]{1,15}(Ki|Mi|Gi|Ti|k|M|G|T)?$";
/// A lifetime of a certificate.
pub(super) const LIFETIME: &str = "^[1-9][0-9]{0,5}(h|m)$";
/// A name of an object: a DNS subdomain.
pub(super) const OBJECT_NAME: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// Name of a user or group: what a certificate's subject, a kubeconfig and RBAC carry as it is.
pub(super) const USER_NAME: &str = "^[A-Za-z0-9]([A-Za-z0-9._:@/+-]*[A-Za-z0-9])?$";
/// Name of a ClusterRole.
pub(super) const ROLE_NAME: &str = "^[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?$";
/// Name of a namespace.
pub(super) const NAMESPACE: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// What the names of users and groups must not begin with: Kubernetes' own, and ours.
pub const RESERVED: [&str; 2] = ["system:", "giantnetes:"];
/// A host name, or an IPv4 address.
pub(super) const HOST_NAME: &str = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";
/// A region of AWS.
pub(super) const AWS_REGION: &str = "^[a-z]{2}(-[a-z]+)+-[0-9]$";
/// A zone of one.
pub(super) const AWS_ZONE: &str = "^[a-z]{2}(-[a-z0-9]+)+$";
/// An image of EC2.
pub(super) const AWS_IMAGE: &str = "^ami-[0-9a-f]{8,17}$";
/// A type of EC2's instances.
pub(super) const INSTANCE_TYPE: &str = "^[a-z][a-z0-9-]{0,15}\\.[a-z0-9-]{2,15}$";
/// The ARN of an IAM role.
pub(super) const ROLE_ARN: &str = "^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,200}$";
/// What STS takes for an external id.
pub(super) const EXTERNAL_ID: &str = "^[A-Za-z0-9+=,.@:/_-]+$";
/// The form of an IPv4 range.
pub(super) const IPV4_RANGE: &str = r"^[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}$";
/// Key of a label or taint.
pub(super) const LABEL_KEY: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$";
/// Keys that are not for users.
const OWN_LABEL_KEY: &str = r"^([a-z0-9.-]*\.)?(kubernetes|k8s|giantnetes)\.io/";

/// A text of CEL.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

pub(super) fn ipv4_range() -> Rule {
    Rule::new("isCIDR(self) && cidr(self).ip().family() == 4").message("must be an IPv4 range such as 10.200.0.0/16")
}

pub(super) fn no_host_bits() -> Rule {
    Rule::new("!isCIDR(self) || cidr(self) == cidr(self).masked()").message("must have no host bits set")
}

pub(super) fn prefix(longest: u8, shortest: u8) -> Rule {
    Rule::new(format!(
        "!isCIDR(self) || (cidr(self).prefixLength() >= {longest} && cidr(self).prefixLength() <= {shortest})"
    ))
    .message(format!("must be between /{longest} and /{shortest}").as_str())
}

/// Addresses that a host can have; 10.0.2.0/24 is QEMU's user-mode network, the nodes' way out.
pub(super) fn unicast() -> Rule {
    let special = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"];
    let outside: Vec<_> = special.iter().map(|range| format!("!cidr('{range}').containsCIDR(self)")).collect();
    Rule::new(format!(
        "!isCIDR(self) || ({} && !cidr(self).containsCIDR('169.254.0.0/16') && !cidr(self).containsCIDR('10.0.2.0/24') && !cidr('10.0.2.0/24').containsCIDR(self))",
        outside.join(" && ")
    ))
    .message("must be a range of unicast addresses outside of 169.254.0.0/16 and 10.0.2.0/24, the nodes' way out")
}

pub(super) fn size(least: &str, most: &str) -> Rule {
    Rule::new(format!(
        "isQuantity(self) && quantity(self).compareTo(quantity('{least}')) >= 0 && quantity(self).compareTo(quantity('{most}')) <= 0"
    ))
    .message(format!("must be between {least} and {most}").as_str())
}

pub(super) fn lifetime(least: &str, most: &str) -> Rule {
    Rule::new(format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"))
        .message(format!("must be between {least} and {most}").as_str())
}

pub(super) fn stays() -> Rule {
    Rule::new("self == oldSelf").message("is immutable")
}

/// `name` begins with nothing that is reserved.
fn is_free(name: &str) -> String {
    RESERVED.map(|prefix| format!("!{name}.startsWith('{prefix}')")).join(" && ")
}

pub(super) fn not_reserved() -> Rule {
    Rule::new(is_free("self")).message("must not begin with system: or giantnetes:")
}

pub(super) fn none_is_reserved() -> Rule {
    Rule::new(format!("self.all(group, {})", is_free("group")))
        .message("must not contain a group that begins with system: or giantnetes:")
}

pub(super) fn leaf_outlives_no_root() -> Rule {
    Rule::new("duration(has(self.leaf) && has(self.leaf.ttl) ? self.leaf.ttl : '2160h') <= duration(has(self.ca) && has(self.ca.ttl) ? self.ca.ttl : '87600h')")
        .message("must be at most ca.ttl")
        .field_path(".leaf.ttl")
}

/// Authorities in Vault are not rotated by us.
pub(super) fn rotates_embedded() -> Rule {
    Rule::new(
        "!has(self.backend) || self.backend != 'Vault' || !has(self.ca) || !has(self.ca.rotate) || self.ca.rotate == 0",
    )
    .message("must be 0 with backend Vault, whose authorities are not rotated yet")
    .field_path(".ca.rotate")
}

/// What is embedded can be exported in any case.
pub(super) fn exportable_is_of_vault() -> Rule {
    Rule::new("!has(self.exportable) || !self.exportable || has(self.backend) && self.backend == 'Vault'")
        .message("needs backend Vault; with Embedded, keys can be exported in any case")
        .field_path(".exportable")
}

pub(super) fn zones_of_the_region() -> Rule {
    Rule::new("self.zones.all(zone, zone.startsWith(self.region) && zone != self.region)")
        .message("must be zones of the region")
        .field_path(".zones")
}

pub(super) fn odd_replicas() -> Rule {
    Rule::new("self in [1, 3, 5]").message("must be 1, 3 or 5")
}

pub(super) fn pool_name() -> Rule {
    Rule::new("self != 'master'").message("must not be master, as control-plane nodes are called")
}

pub(super) fn not_calicos_vni() -> Rule {
    Rule::new("self != 4096").message("must not be 4096, Calico's own")
}

/// Each node has four addresses there.
pub(super) fn flannel_has_room() -> Rule {
    Rule::new("!has(self.backend) || self.backend != 'Flannel' || !has(self.cidr) || !isCIDR(self.cidr) || cidr(self.cidr).prefixLength() <= 22")
        .message("must be between /16 and /22 with backend Flannel, which gives each node a network of its own")
        .field_path(".cidr")
}

/// Pods' packets are in VXLAN between nodes, of which 1280 bytes have to be left.
pub(super) fn flannel_carries_packets_in_packets() -> Rule {
    Rule::new("!has(self.backend) || self.backend != 'Flannel' || !has(self.mtu) || self.mtu >= 1330")
        .message("must be at least 1330 with backend Flannel, over which pods' packets are 50 bytes smaller")
        .field_path(".mtu")
}

pub(super) fn feature_gate_names() -> Rule {
    Rule::new("self.all(name, name.matches('^[A-Z][A-Za-z0-9]{0,62}$'))")
        .message("must be names of feature gates such as InPlacePodVerticalScaling")
}

pub(super) fn flag_names() -> Rule {
    Rule::new("self.all(name, name.matches('^[a-z0-9][a-z0-9-]{0,63}$'))")
        .message("must be names of flags without leading dashes, at most 64 of a-z, 0-9 and -")
}

/// Sits on a component; `owned` are the flags that Giantnetes sets itself.
pub(super) fn owned_flags(owned: &[&str]) -> Rule {
    let list: Vec<_> = owned.iter().map(|flag| literal(flag)).collect();
    // One text per flag: the cost of joining a list is estimated by its longest thinkable member.
    let named: Vec<_> = owned.iter().map(|flag| format!("('{flag}' in self.extraArgs ? ' {flag}' : '')")).collect();
    Rule {
        message: Some(Message::Expression(format!("'Giantnetes sets this itself:' + {}", named.join(" + ")))),
        ..Rule::new(format!("!has(self.extraArgs) || ![{}].exists(flag, flag in self.extraArgs)", list.join(", ")))
    }
    .field_path(".extraArgs")
}

pub(super) fn label_keys() -> Rule {
    Rule::new(format!("self.all(key, size(key) <= 253 && key.matches({}))", literal(LABEL_KEY)))
        .message("must have keys such as example.com/role")
}

pub(super) fn own_label_keys() -> Rule {
    Rule::new(format!("self.all(key, !key.matches({}))", literal(OWN_LABEL_KEY))).message(OWN_LABELS)
}

pub(super) fn own_label_key() -> Rule {
    Rule::new(format!("!self.matches({})", literal(OWN_LABEL_KEY))).message(OWN_LABELS)
}

const OWN_LABELS: &str = "must not have keys of kubernetes.io, k8s.io or giantnetes.io";

pub(super) fn exposure_host() -> Rule {
    Rule::new("!has(self.host) || (has(self.type) && self.type != 'None')")
        .message("host needs type Ingress, TLSRoute or LoadBalancer")
}

pub(super) fn exposure_class() -> Rule {
    Rule::new("!has(self.className) || (has(self.type) && self.type == 'Ingress')")
        .message("className needs type Ingress")
}

/// The rules of the whole object.
pub(super) fn of_cluster() -> Vec<ValidationRule> {
    let status = "has(oldSelf.status) && has(oldSelf.status.version) ? oldSelf.status.version : ''";
    let before = format!("({} : ({status}))", given("oldSelf", &["spec", "kubernetes", "version"]));
    let after = format!("({} : ({status}))", given("self", &["spec", "kubernetes", "version"]));
    // Numbers of the versions before and after; a version that is not pinned yet has no before.
    let compare = |before: &str, holds: &str| {
        let numbers = |version: &str| format!("[{version}.substring(1).split('.').map(number, int(number))]");
        format!(
            "{before} == '' || {after} == '' || {}.all(new, {}.all(old, {holds}))",
            numbers(&after),
            numbers(before)
        )
    };
    let no_minor_skipped = "new[0] < old[0] || (new[0] == old[0] && new[1] <= old[1] + 1)";
    let version = ".spec.kubernetes.version";
    vec![
        rule("size(self.metadata.name) <= 52", "metadata.name must have at most 52 characters", None),
        rule("!self.metadata.name.contains('.')", "metadata.name must be a DNS label: without dots", None),
        rule(
            &compare(
                &before,
                "new[0] > old[0] || (new[0] == old[0] && (new[1] > old[1] || (new[1] == old[1] && new[2] >= old[2])))",
            ),
            "must not go back to an older version",
            Some(version),
        ),
        rule(&compare(&before, no_minor_skipped), "must not skip a minor version", Some(version)),
        // The next minor may be asked for when the control plane has arrived at this one.
        rule(
            &compare(&format!("({status})"), no_minor_skipped),
            "must not skip a minor version: the control plane is still replaced for the one before",
            Some(version),
        ),
    ]
}

/// A ClusterAccess's name is the begin of its Secret's.
pub(super) fn room_for_its_secret() -> ValidationRule {
    rule("size(self.metadata.name) <= 246", "metadata.name must have at most 246 characters", None)
}

/// The rules of `spec`.
pub(super) fn of_spec() -> Vec<ValidationRule> {
    let ranges = [
        ("kubernetes.podCIDR", given("self", &["kubernetes", "podCIDR"]) + " : '10.200.0.0/16'"),
        ("kubernetes.serviceCIDR", given("self", &["kubernetes", "serviceCIDR"]) + " : '10.96.0.0/16'"),
        ("network.overlay.cidr", given("self", &["network", "overlay", "cidr"]) + " : '172.26.0.0/20'"),
    ];
    let mut rules = Vec::new();
    for (place, (field, range)) in ranges.iter().enumerate() {
        for (other_field, other) in &ranges[..place] {
            rules.push(rule(
                &format!("!isCIDR({range}) || !isCIDR({other}) || (!cidr({range}).containsCIDR({other}) && !cidr({other}).containsCIDR({range}))"),
                &format!("must not overlap {other_field}"),
                Some(&format!(".{field}")),
            ));
        }
    }
    let (calico, overlay) = (["network", "calico", "mtu"], ["network", "overlay", "mtu"]);
    rules.push(rule(
        &format!("({} : 0) <= ({} : 8950)", given("self", &calico), given("self", &overlay)),
        "must be at most network.overlay.mtu",
        Some(".network.calico.mtu"),
    ));
    let replicas = |whose: &str| format!("({} : 1)", given(whose, &["controlPlane", "replicas"]));
    rules.push(rule(
        &format!("{} >= {}", replicas("self"), replicas("oldSelf")),
        "must not be fewer than before",
        Some(".controlPlane.replicas"),
    ));
    for what in ["ca", "serviceAccountKey", "encryptionKey"] {
        let rotate = |whose: &str| format!("({} : 0)", given(whose, &["pki", what, "rotate"]));
        rules.push(rule(
            &format!("{} >= {}", rotate("self"), rotate("oldSelf")),
            "must not be less than before",
            Some(&format!(".pki.{what}.rotate")),
        ));
    }
    rules.extend(of_aws());
    rules.extend(FIXED.iter().map(|fixed| rule(&fixed.cel(), fixed.why, Some(&fixed.field_path()))));
    rules
}

/// What goes with provider `aws`, and what does not.
fn of_aws() -> [ValidationRule; 5] {
    let is_aws = "(has(self.provider) && has(self.provider.aws))";
    let only = |path: &[&str], default: &str, wanted: &str, message: &str| {
        let given = given("self", path);
        rule(
            &format!("!{is_aws} || ({given} : '{default}') == '{wanted}'"),
            message,
            Some(&format!(".{}", path.join("."))),
        )
    };
    [
        only(&["pki", "backend"], "Embedded", "Vault", NEEDS_VAULT),
        only(&["exposure", "type"], "None", "None", NO_EXPOSURE),
        only(&["network", "overlay", "backend"], "Native", "Native", NO_FLANNEL),
        rule(
            &format!(
                "!{is_aws} || !has(self.ingressController) || !has(self.ingressController.enabled) || !self.ingressController.enabled"
            ),
            NO_INGRESS,
            Some(".ingressController.enabled"),
        ),
        rule(
            &format!("{is_aws} || !has(self.nodePools) || self.nodePools.all(pool, !has(pool.aws))"),
            POOL_ON_AWS,
            Some(".nodePools"),
        ),
    ]
}

/// Why a guest on AWS has its keys in Vault.
pub const NEEDS_VAULT: &str =
    "must be Vault with provider aws: its nodes prove to Vault who they are, and get certificates there";
/// Why a guest on AWS has no exposure.
pub const NO_EXPOSURE: &str = "must be None with provider aws, where provider.aws.apiAccess says who reaches the API";
/// Why a guest on AWS has no Flannel.
pub const NO_FLANNEL: &str = "must be Native with provider aws, whose nodes share a network of AWS's";
/// Why a guest on AWS has no ingress controller of ours.
pub const NO_INGRESS: &str = "must not be true with provider aws: its way leads by the management cluster";
/// Why a pool says nothing of AWS elsewhere.
pub const POOL_ON_AWS: &str = "must not have aws without provider aws";

/// `has(a.b) && has(a.b.c) ? a.b.c`: the begin of a condition whose other branch is the default.
pub(super) fn given(whose: &str, path: &[&str]) -> String {
    let mut place = whose.to_owned();
    let steps: Vec<_> = path
        .iter()
        .map(|step| {
            place = format!("{place}.{step}");
            format!("has({place})")
        })
        .collect();
    format!("{} ? {place}", steps.join(" && "))
}

fn rule(cel: &str, message: &str, field: Option<&str>) -> ValidationRule {
    ValidationRule {
        rule: cel.into(),
        message: Some(message.into()),
        field_path: field.map(Into::into),
        ..ValidationRule::default()
    }
}
