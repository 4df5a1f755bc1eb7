//! How keys and certificates lie in Secrets.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use serde_json::json;
use tracing::warn;

use super::{keys::Wishes, plan::SecretMeta, roots};
use crate::{api::names, cluster::Identity, runtime::apply::hash};

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

/// Annotations of a Secret whose certificates were issued for what `hash` stands for.
pub(crate) fn issued(hash: &str, renew_at: Timestamp, ends_at: Timestamp) -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::HASH_ANNOTATION.to_owned(), hash.to_owned()),
        (names::RENEW_AT_ANNOTATION.to_owned(), renew_at.to_string()),
        (names::ENDS_AT_ANNOTATION.to_owned(), ends_at.to_string()),
    ])
}

pub(crate) fn secret_meta(meta: &ObjectMeta) -> SecretMeta {
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
        ends_at: annotation(names::ENDS_AT_ANNOTATION).and_then(|text| text.parse().ok()),
        fingerprints: roots::fingerprints(meta.annotations.as_ref()),
        worker: worker.and_then(|_| label(names::NODE_LABEL)),
        mark: annotation(names::AUTHORITIES_ANNOTATION).and_then(|text| text.parse().ok()),
        rotated_for: annotation(names::ROTATED_FOR_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or_default(),
        keys_for: Wishes::noted(annotation),
    }
}

/// Whether a Secret holds what was put into it.
pub(crate) fn is_intact(secret: &Secret) -> bool {
    let recorded = secret.metadata.annotations.as_ref().and_then(|all| all.get(names::DATA_HASH_ANNOTATION));
    recorded == Some(&data_hash(secret.data.as_ref().unwrap_or(&BTreeMap::new())))
}

/// Of keys nobody can guess, so it tells nothing about them.
pub(crate) fn data_hash(data: &BTreeMap<String, ByteString>) -> String {
    hash(&json!(data))
}

pub(crate) fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}
