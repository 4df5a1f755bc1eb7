//! How keys and certificates lie in Secrets.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use tracing::warn;

use super::{
    authority::Kept,
    embedded::{self, Pair, PkiError},
    plan::{FINGERPRINT_ANNOTATION, Root, SecretMeta},
};
use crate::{
    api::names,
    cluster::{Identity, Valid},
    runtime::apply::hash,
};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Instead of a key: the mount in Vault that has it.
const MOUNT: &str = "vault-mount";

/// Makes a root that is kept here.
pub(super) fn make_root(root: Root, cluster: &Valid, now: Timestamp) -> Result<Kept, PkiError> {
    Ok(Kept::Here(match root {
        Root::Ca(_) => embedded::root(root.name(), &cluster.identity.key.to_string(), now, cluster.pki.ca_ttl)?,
        Root::ServiceAccount => embedded::key_pair()?,
        Root::Encryption => Pair { certificate: String::new(), key: embedded::encryption_config()? },
    }))
}

/// What a root's Secret holds.
pub(super) fn root_data(kept: &Kept) -> BTreeMap<String, ByteString> {
    let (name, value) = match kept {
        Kept::Here(pair) => (KEY, pair.key.expose_secret()),
        Kept::InVault { mount, .. } => (MOUNT, mount.as_str()),
    };
    BTreeMap::from([(CERTIFICATE.to_owned(), bytes(kept.certificate())), (name.to_owned(), bytes(value))])
}

/// What identifies a root.
pub(super) fn fingerprint(root: Root, kept: &Kept) -> String {
    match (root, kept) {
        (Root::Encryption, Kept::Here(pair)) => embedded::fingerprint(pair.key.expose_secret()),
        _ => embedded::fingerprint(kept.certificate()),
    }
}

/// The root that a Secret holds.
pub(super) fn root_of(root: Root, secret: &Secret) -> Option<Kept> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok().filter(|text| !text.is_empty());
    if let Some(mount) = text(MOUNT) {
        return Some(Kept::InVault { certificate: text(CERTIFICATE)?, mount });
    }
    let certificate = if root == Root::Encryption { String::new() } else { text(CERTIFICATE)? };
    Some(Kept::Here(Pair { certificate, key: SecretString::from(text(KEY)?) }))
}

pub(crate) fn secret(
    identity: &Identity,
    namespace: &str,
    name: &str,
    mut annotations: BTreeMap<String, String>,
    data: BTreeMap<String, ByteString>,
) -> Secret {
    let owner = identity.owner();
    annotations.insert(owner.annotation.into(), owner.uid);
    annotations.insert(names::DATA_HASH_ANNOTATION.into(), data_hash(&data));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            labels: Some(identity.labels()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..Secret::default()
    }
}

pub(crate) fn issued(hash: &str, renew_at: Timestamp) -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::HASH_ANNOTATION.to_owned(), hash.to_owned()),
        (names::RENEW_AT_ANNOTATION.to_owned(), renew_at.to_string()),
    ])
}

pub(super) fn secret_meta(meta: &ObjectMeta) -> SecretMeta {
    let annotation = |name: &str| meta.annotations.as_ref().and_then(|all| all.get(name).cloned());
    let renew_at = annotation(names::RENEW_AT_ANNOTATION).and_then(|text| {
        text.parse()
            .inspect_err(|_| warn!(secret = meta.name, "unreadable renewal time; its certificates are issued anew"))
            .ok()
    });
    let label = |name: &str| meta.labels.as_ref().and_then(|all| all.get(name).cloned());
    let worker = label(names::ROLE_LABEL).filter(|role| role == names::ROLE_WORKER);
    SecretMeta {
        hash: annotation(names::HASH_ANNOTATION),
        renew_at,
        fingerprint: annotation(FINGERPRINT_ANNOTATION),
        worker: worker.and_then(|_| label(names::NODE_LABEL)),
    }
}

/// Whether a Secret holds what was put into it.
pub(super) fn is_intact(secret: &Secret) -> bool {
    let recorded = secret.metadata.annotations.as_ref().and_then(|all| all.get(names::DATA_HASH_ANNOTATION));
    recorded == Some(&data_hash(secret.data.as_ref().unwrap_or(&BTreeMap::new())))
}

/// Of keys nobody can guess, so it tells nothing about them.
fn data_hash(data: &BTreeMap<String, ByteString>) -> String {
    hash(&json!(data))
}

pub(crate) fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}
