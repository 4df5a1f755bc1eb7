//! `vault`: the Vault that keeps the authorities of Clusters whose `pki.backend` is it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use x509_parser::pem::Pem;

/// A Vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultSettings {
    /// Its URL, such as `https://vault.example.com:8200`.
    pub address: String,
    /// Certificates (PEM) of the authorities that its own may be of; public.
    pub ca_certificate: String,
    /// Its namespace, where it has some (Vault Enterprise, HCP).
    #[serde(default)]
    pub namespace: Option<String>,
    /// First segment of the paths of all PKI mounts, which the policy of the controller manager names, too.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// How the controller manager logs in.
    pub auth: VaultAuth,
}

/// How the controller manager logs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum VaultAuth {
    /// By the token of its ServiceAccount.
    Kubernetes {
        /// Path of the auth method.
        #[serde(default = "default_kubernetes_mount")]
        mount: String,
        /// Its role, which is bound to the ServiceAccount.
        role: String,
        /// File with the token.
        #[serde(default = "default_token_file")]
        token_file: PathBuf,
    },
    /// By a role's id and secret.
    AppRole {
        /// Path of the auth method.
        #[serde(default = "default_approle_mount")]
        mount: String,
        /// File with the role's id.
        role_id_file: PathBuf,
        /// File with the secret; it is read at every login.
        secret_id_file: PathBuf,
    },
}

fn default_prefix() -> String {
    "giantnetes".into()
}

fn default_kubernetes_mount() -> String {
    "kubernetes".into()
}

fn default_approle_mount() -> String {
    "approle".into()
}

/// Where Kubernetes puts it.
fn default_token_file() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

impl VaultSettings {
    /// What is wrong with them: the field, and what it must be.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        let is_path = |text: &str| {
            let plain = |segment: &str| {
                !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            };
            text.split('/').all(plain)
        };
        let (VaultAuth::Kubernetes { mount, .. } | VaultAuth::AppRole { mount, .. }) = &self.auth;
        let host = self.address.strip_prefix("https://").unwrap_or_default();
        let is_authority =
            |host: &str| host.parse::<http::uri::Authority>().is_ok_and(|host| !host.as_str().contains('@'));
        if !is_authority(host) {
            return Some(("address", "must be https:// and a host, with a port if it is another than 443"));
        }
        let mut certificates = Pem::iter_from_buffer(self.ca_certificate.as_bytes()).peekable();
        if certificates.peek().is_none() || !certificates.all(|pem| pem.is_ok_and(|pem| pem.parse_x509().is_ok())) {
            return Some(("caCertificate", "must be certificates as PEM"));
        }
        if self.namespace.as_ref().is_some_and(|namespace| !is_path(namespace)) {
            return Some(("namespace", "must be a path of letters, digits, - and _"));
        }
        if self.prefix.contains('/') || !is_path(&self.prefix) {
            return Some(("prefix", "must be letters, digits, - and _"));
        }
        (!is_path(mount)).then_some(("auth: mount", "must be a path of letters, digits, - and _"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_vault_can_be_reached_by_is_told() {
        let settings = |address: &str, ca: &str, prefix: &str, auth: &str| {
            let text = format!("{{address: '{address}', caCertificate: {ca:?}, prefix: '{prefix}', auth: {auth}}}");
            let parsed: VaultSettings = serde_saphyr::from_str(&text).unwrap();
            parsed.problem().map(|(field, _)| field)
        };
        let certificate = crate::testing::certificate();
        let (ca, kubernetes) = (certificate.as_str(), "{kubernetes: {role: giantnetes}}");
        assert_eq!(settings("https://10.0.0.1:8200", ca, "giantnetes", kubernetes), None);
        let app_role = "{appRole: {mount: a/b, roleIdFile: /role, secretIdFile: /secret}}";
        assert_eq!(settings("https://vault.example.com", ca, "g", app_role), None);
        for address in ["http://vault", "vault:8200", "https://", "https://root@vault", "https://vault/v1"] {
            assert_eq!(settings(address, ca, "g", kubernetes), Some("address"), "{address}");
        }
        let torn = &certificate[..certificate.len() / 2];
        for ca in ["", "-----BEGIN CERTIFICATE-----", torn] {
            assert_eq!(settings("https://vault", ca, "g", kubernetes), Some("caCertificate"), "{ca}");
        }
        for prefix in ["", "a/b", "sys mounts", ".."] {
            assert_eq!(settings("https://vault", ca, prefix, kubernetes), Some("prefix"), "{prefix}");
        }
        assert_eq!(settings("https://vault", ca, "g", "{kubernetes: {role: a, mount: a//b}}"), Some("auth: mount"));
    }
}
