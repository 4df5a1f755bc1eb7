//! `spec.kubernetes`: the version, and what its components are told.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{flags, rules};

/// Kubernetes itself.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesSpec {
    /// Version, such as `v1.36.3`; one of the operator's image catalogue. Default: the catalogue's default at creation.
    /// Changing it, to a later patch or the next minor: rolls the control plane, then the pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^v[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}$"), length(max = 16))]
    pub version: Option<String>,
    /// Feature gates of every component, by name; at most 64. Default: none but Kubernetes' own defaults.
    /// Changing them: rolls the control plane and the pools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = rules::feature_gate_names())]
    pub feature_gates: BTreeMap<String, bool>,
    /// IPv4 range of the pods' addresses, /8 to /20. Default: 10.200.0.0/16. Changing it: immutable.
    #[serde(default, rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    #[x_kube(validation = rules::ipv4_range())]
    #[x_kube(validation = rules::no_host_bits())]
    #[x_kube(validation = rules::prefix(8, 20))]
    #[x_kube(validation = rules::unicast())]
    pub pod_cidr: Option<String>,
    /// IPv4 range of the Services' addresses, /12 to /24. Default: 10.96.0.0/16. Changing it: immutable.
    #[serde(default, rename = "serviceCIDR", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    #[x_kube(validation = rules::ipv4_range())]
    #[x_kube(validation = rules::no_host_bits())]
    #[x_kube(validation = rules::prefix(12, 24))]
    #[x_kube(validation = rules::unicast())]
    pub service_cidr: Option<String>,
    /// kube-apiserver.
    #[serde(default)]
    #[x_kube(validation = rules::owned_flags(flags::API_SERVER))]
    pub api_server: ApiServerSpec,
    /// kube-controller-manager. Changing it: rolls the control plane.
    #[serde(default)]
    #[x_kube(validation = rules::owned_flags(flags::CONTROLLER_MANAGER))]
    pub controller_manager: ComponentSpec,
    /// kube-scheduler. Changing it: rolls the control plane.
    #[serde(default)]
    #[x_kube(validation = rules::owned_flags(flags::SCHEDULER))]
    pub scheduler: ComponentSpec,
    /// kubelet, on every node. Changing it: rolls the control plane and the pools.
    #[serde(default)]
    #[x_kube(validation = rules::owned_flags(flags::KUBELET))]
    pub kubelet: ComponentSpec,
    /// kube-proxy, on every node. Changing it: rolls the control plane and the pools.
    #[serde(default)]
    #[x_kube(validation = rules::owned_flags(flags::PROXY))]
    pub proxy: ComponentSpec,
}

/// A component of Kubernetes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentSpec {
    /// Flags by name without dashes, such as `v: "4"`; at most 32. What Giantnetes sets itself is refused. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, FlagValue>", extend("maxProperties" = 32))]
    #[x_kube(validation = rules::flag_names())]
    pub extra_args: BTreeMap<String, String>,
}

/// kube-apiserver.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiServerSpec {
    /// Flags by name without dashes, such as `v: "4"`; at most 32. What Giantnetes sets itself is refused. Default: none.
    /// Changing them: rolls the control plane.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, FlagValue>", extend("maxProperties" = 32))]
    #[x_kube(validation = rules::flag_names())]
    pub extra_args: BTreeMap<String, String>,
    /// Users of an OpenID Connect issuer. Default: none. Changing it: rolls the control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcSpec>,
    /// The audit log. Changing it: rolls the control plane.
    #[serde(default)]
    pub audit: AuditSpec,
}

/// Value of a flag: printable ASCII on one line.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "a schema and nothing else")]
struct FlagValue(#[schemars(length(max = 1024), regex(pattern = r"^[ -~]*$"))] String);

/// Users of an OpenID Connect issuer.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OidcSpec {
    /// URL of the issuer: https, without query or fragment.
    #[serde(rename = "issuerURL")]
    #[schemars(regex(pattern = r"^https://[A-Za-z0-9._~:/-]+$"), length(max = 512))]
    pub issuer_url: String,
    /// The audience that tokens must be issued for.
    #[serde(rename = "clientID")]
    #[schemars(regex(pattern = r"^[!-~]+$"), length(max = 256))]
    pub client_id: String,
    /// Claim that names the user. Default: `sub`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[!-~]+$"), length(max = 128))]
    pub username_claim: Option<String>,
    /// Put before the user's name. Default: the issuer's URL and `#`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[ -~]*$"), length(max = 128))]
    pub username_prefix: Option<String>,
    /// Claim that names the user's groups. Default: no groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[!-~]+$"), length(max = 128))]
    pub groups_claim: Option<String>,
    /// Put before each group's name. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[ -~]*$"), length(max = 128))]
    pub groups_prefix: Option<String>,
    /// Certificates (PEM) that the issuer's own is checked with. Default: those of the node's operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^-----BEGIN CERTIFICATE-----\n"), length(max = 32768))]
    pub ca_bundle: Option<String>,
}

/// The audit log.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditSpec {
    /// What is logged. Default: `Metadata`.
    #[serde(skip_serializing_if = "AuditPolicy::is_default")]
    pub policy: AuditPolicy,
}

/// What the audit log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AuditPolicy {
    /// Nothing.
    None,
    /// Who did what and when, without bodies: bodies hold secrets.
    #[default]
    Metadata,
    /// The bodies of writes too, except those of Secrets, ConfigMaps and tokens.
    Request,
}

impl AuditPolicy {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
