//! `spec.pki`: the guest's certificates.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// The guest's certificates.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::leaf_outlives_no_root(),
    validation = rules::rotates_embedded(),
    validation = rules::exportable_is_of_vault(),
)]
pub struct PkiSpec {
    /// Who keeps the certificate authorities. Default: `Embedded`. Changing it: immutable.
    #[serde(default, skip_serializing_if = "PkiBackend::is_default")]
    pub backend: PkiBackend,
    /// Whether keys of authorities in Vault can be exported. They are made by the controller manager then, written down in Vault
    /// where it cannot read them, and imported; else they are made in Vault and never leave it. With backend `Vault` alone; embedded
    /// ones can be exported in any case. Default: false. Changing it: immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exportable: Option<bool>,
    /// Roots that were exported from another guest, for a Cluster that is to take its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import_from: Option<ImportSpec>,
    /// The certificate authorities.
    #[serde(default)]
    pub ca: CaSpec,
    /// The key that signs service-account tokens.
    #[serde(default, skip_serializing_if = "ServiceAccountKeySpec::is_default")]
    pub service_account_key: ServiceAccountKeySpec,
    /// The key that Secrets are encrypted with in etcd.
    #[serde(default, skip_serializing_if = "EncryptionKeySpec::is_default")]
    pub encryption_key: EncryptionKeySpec,
    /// Every other certificate.
    #[serde(default)]
    pub leaf: LeafSpec,
    /// The API server's certificate.
    #[serde(default)]
    pub api_server: ApiServerCertificateSpec,
}

/// Who keeps a guest's certificate authorities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PkiBackend {
    /// The controller manager, in Secrets of the guest's namespace.
    #[default]
    Embedded,
    /// Vault, in PKI mounts of the guest's own; the keys of the authorities never leave it, unless they are `exportable`.
    Vault,
}

impl PkiBackend {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a new guest's certificate authorities and keys are taken from.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportSpec {
    /// A Secret beside the Cluster, of type `giantnetes.io/roots`, as `giantnetes pki import` makes it. It is read once, when the
    /// guest is new. Without it they are made. Changing it: immutable.
    #[schemars(regex(pattern = rules::OBJECT_NAME), length(max = 253))]
    pub secret_name: String,
}

/// The certificate authorities.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaSpec {
    /// Lifetime in hours or minutes, such as `87600h`; 24h to 175200h. Default: 87600h, ten years. Changing it: immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::LIFETIME), length(max = 8))]
    #[x_kube(validation = rules::lifetime("24h", "175200h"))]
    pub ttl: Option<String>,
    /// Raising it puts new authorities in the place of the guest's, once, whatever it is raised by; `status.rotation` tells how far
    /// that is. Not with `backend: Vault`. Default: 0. Changing it: in place; it must not become less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub rotate: Option<i32>,
    /// How long what users hold of the former authorities is good for in a rotation, in hours or minutes, after every node has what
    /// the new ones signed: 10m to 8760h. Default: 24h. Changing it: in place, also while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::LIFETIME), length(max = 8))]
    #[x_kube(validation = rules::lifetime("10m", "8760h"))]
    pub overlap: Option<String>,
}

/// The key that signs service-account tokens.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountKeySpec {
    /// Raising it puts a new key in the place of the guest's, once, whatever it is raised by; `status.rotation` tells how far that is.
    /// Default: 0. Changing it: in place; it must not become less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub rotate: Option<i32>,
    /// How long tokens of the former key are good for in a rotation, in hours or minutes, after every new one is of the new key: 1h to
    /// 8760h. Kubelets renew those of pods within 24 hours. Default: 25h. Changing it: in place, also while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::LIFETIME), length(max = 8))]
    #[x_kube(validation = rules::lifetime("1h", "8760h"))]
    pub overlap: Option<String>,
}

impl ServiceAccountKeySpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The key that Secrets are encrypted with in etcd.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionKeySpec {
    /// Raising it puts a new key in the place of the guest's, once, whatever it is raised by, and has every Secret stored anew;
    /// `status.rotation` tells how far that is. Default: 0. Changing it: in place; it must not become less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub rotate: Option<i32>,
}

impl EncryptionKeySpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Certificates that are no authority.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeafSpec {
    /// Lifetime in hours or minutes, such as `2160h`; 10m to 8760h, at most `ca.ttl`. Renewed at two thirds. Default: 2160h,
    /// ninety days. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::LIFETIME), length(max = 8))]
    #[x_kube(validation = rules::lifetime("10m", "8760h"))]
    pub ttl: Option<String>,
}

/// The API server's certificate.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiServerCertificateSpec {
    /// Further DNS names and IPv4 addresses that the API answers to; at most 16. Default: none. Changing them: in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253), regex(pattern = rules::HOST_NAME)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub alt_names: Vec<String>,
}
