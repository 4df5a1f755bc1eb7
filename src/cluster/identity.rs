//! What a guest is called: everything is derived from the Cluster's UID, so it is the same at every look.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use sha2::{Digest as _, Sha256};

use crate::{
    api::{Cluster, ClusterRef, names},
    runtime::{apply::Owner, queue},
};

/// Namespace and name of a Cluster: the key of all queues.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey {
    /// Namespace of the Cluster.
    pub namespace: String,
    /// Name of the Cluster.
    pub name: String,
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl queue::Key for ClusterKey {
    fn group(&self) -> &str {
        &self.namespace
    }
}

impl ClusterKey {
    /// The key of the Cluster that a reference names.
    pub fn of_ref(cluster: &ClusterRef) -> Self {
        Self { namespace: cluster.namespace.clone(), name: cluster.name.clone() }
    }

    /// The key of a Cluster object.
    pub fn of(cluster: &Cluster) -> Self {
        Self { namespace: cluster.namespace().unwrap_or_default(), name: cluster.name_any() }
    }
}

/// What a guest is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The Cluster object.
    pub key: ClusterKey,
    /// UID of the Cluster object.
    pub uid: String,
    /// Short id: eight characters that a label, a namespace and a device name can carry.
    pub id: String,
    /// The guest's namespace, `g8s-<id>`.
    pub namespace: String,
    /// UID of that namespace, once it is pinned: another one of the same name never held this guest's roots.
    pub namespace_uid: Option<String>,
}

impl Identity {
    /// The identity of a Cluster object.
    pub fn of(cluster: &Cluster) -> Self {
        let identity = Self::new(ClusterKey::of(cluster), cluster.meta().uid.clone().unwrap_or_default());
        Self { namespace_uid: cluster.status.as_ref().and_then(|status| status.namespace_uid.clone()), ..identity }
    }

    /// The identity of the Cluster with this key and UID.
    pub fn new(key: ClusterKey, uid: String) -> Self {
        let id = short_id(&uid);
        let namespace = names::guest_namespace(&id);
        Self { key, uid, id, namespace, namespace_uid: None }
    }

    /// The owner annotation of the guest's objects.
    pub fn owner(&self) -> Owner {
        Owner { annotation: names::OWNER_UID_ANNOTATION, uid: self.uid.clone() }
    }

    /// The reference that a claim holds.
    pub fn cluster_ref(&self) -> ClusterRef {
        ClusterRef { namespace: self.key.namespace.clone(), name: self.key.name.clone(), uid: self.uid.clone() }
    }

    /// Labels of every object of the guest.
    pub fn labels(&self) -> std::collections::BTreeMap<String, String> {
        [(names::CLUSTER_LABEL, self.id.as_str()), (names::MANAGED_BY_LABEL, names::MANAGER)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    /// What every object of the guest's namespace has, under this name.
    pub fn metadata(&self, name: impl Into<String>) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.into()),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels()),
            ..ObjectMeta::default()
        }
    }

    /// Selects the guest's objects by label.
    pub fn selector(&self) -> String {
        format!("{}={}", names::CLUSTER_LABEL, self.id)
    }

    /// A stable number derived from the UID, for whatever needs a starting point (such as the search for a VNI).
    pub fn seed(&self) -> u64 {
        let digest = Sha256::digest(self.uid.as_bytes());
        digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
    }
}

/// Eight characters of `a-z2-7`: 40 bits of the UID's SHA-256. It starts with a letter, as a DNS label must.
fn short_id(uid: &str) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(uid.as_bytes());
    let bits = digest.iter().take(5).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    (0..8_u32)
        .map(|place| {
            let five = (bits >> (35 - 5 * place)) & 31;
            let letter = if place == 0 { five % 26 } else { five };
            // `letter` is below 32 by the mask above.
            char::from(LETTERS[usize::try_from(letter).unwrap_or_default()])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_is_a_dns_label_and_stable(uid in ".{0,64}") {
            let id = short_id(&uid);
            prop_assert_eq!(id.len(), 8);
            prop_assert!(id.chars().all(|c| c.is_ascii_lowercase() || ('2'..='7').contains(&c)));
            prop_assert!(id.starts_with(|c: char| c.is_ascii_lowercase()));
            prop_assert_eq!(short_id(&uid), id);
        }
    }

    #[test]
    fn namesakes_with_another_uid_have_another_id() {
        let key = ClusterKey { namespace: "a".into(), name: "b".into() };
        let (one, two) = (Identity::new(key.clone(), "1".into()), Identity::new(key, "2".into()));
        assert_ne!(one.namespace, two.namespace);
    }
}
