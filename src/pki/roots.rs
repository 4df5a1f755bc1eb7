//! The roots of a guest: what is made once in its life, and how it lies in a Secret.
//!
//! All are in one: they are made and recorded together, so that none is ever seen without the others.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::{
    authority::Kept,
    embedded::{self, Pair},
    keys::Wishes,
    leaf::Authority,
    secrets::bytes,
};
use crate::api::names;

/// Name of the (immutable) Secret of their first generation.
pub const SECRET: &str = "roots-1";
const SECRET_PREFIX: &str = "roots-";

/// Name of the (immutable) Secret of a generation of them.
pub fn secret_of(generation: u32) -> String {
    format!("{SECRET_PREFIX}{generation}")
}

/// The generation whose Secret has this name.
pub fn generation_of(secret: &str) -> Option<u32> {
    let generation = secret.strip_prefix(SECRET_PREFIX)?.parse().ok()?;
    (secret_of(generation) == secret).then_some(generation)
}

const SERVICE_ACCOUNT_PUBLIC: &str = "service-account.pub";
const SERVICE_ACCOUNT: &str = "service-account.key";
const ENCRYPTION: &str = "encryption.yaml";
/// Which wish for other authorities they were made for, if there was one.
const ROTATED_FOR: &str = "rotated-for";

/// Something that is made once in a guest's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// A certificate authority.
    Ca(Authority),
    /// The key pair of service-account tokens.
    ServiceAccount,
    /// The key of encryption at rest.
    Encryption,
}

impl Root {
    /// All roots of a guest.
    pub const ALL: [Self; 5] = [
        Self::Ca(Authority::Kubernetes),
        Self::Ca(Authority::Etcd),
        Self::Ca(Authority::FrontProxy),
        Self::ServiceAccount,
        Self::Encryption,
    ];

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ca(Authority::Kubernetes) => "kubernetes",
            Self::Ca(Authority::Etcd) => "etcd",
            Self::Ca(Authority::FrontProxy) => "front-proxy",
            Self::ServiceAccount => "service-account",
            Self::Encryption => "encryption",
        }
    }

    /// Annotation of the roots' Secret with its fingerprint, and of the guest's namespace, which records it.
    pub fn record(self) -> String {
        format!("{}{}", names::CA_ANNOTATION_PREFIX, self.name())
    }

    /// Annotation of the guest's namespace, which records the fingerprint of what is to take its place.
    pub fn next_record(self) -> String {
        format!("{}{}", names::NEXT_CA_ANNOTATION_PREFIX, self.name())
    }
}

/// Fingerprints of roots among annotations, by [`Root::record`].
pub fn fingerprints(annotations: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let found = |root: Root| annotations?.get_key_value(&root.record());
    Root::ALL.into_iter().filter_map(found).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Fingerprints of roots that are to take the recorded ones' place, by [`Root::record`].
pub fn next_fingerprints(annotations: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let found = |root: Root| Some((root.record(), annotations?.get(&root.next_record())?.clone()));
    Root::ALL.into_iter().filter_map(found).collect()
}

/// Whether all roots were made, and are what is recorded of them so far.
pub fn agree(made: &BTreeMap<String, String>, records: &BTreeMap<String, String>) -> bool {
    Root::ALL.iter().all(|root| made.contains_key(&root.record()))
        && records.iter().all(|(root, record)| made.get(root) == Some(record))
}

/// All roots of a guest, as they are kept.
#[derive(Clone, Debug)]
pub struct Roots {
    /// [`Authority::Kubernetes`]
    pub kubernetes: Kept,
    /// [`Authority::Etcd`]
    pub etcd: Kept,
    /// [`Authority::FrontProxy`]
    pub front_proxy: Kept,
    /// The key pair of service-account tokens: the public key stands where a certificate would.
    pub service_account: Pair,
    /// The API server's `EncryptionConfiguration`.
    pub encryption: SecretString,
    /// The `spec.pki.ca.rotate` that they were made for.
    pub rotated_for: u32,
    /// How often keys had been asked to be rotated when they were made.
    pub keys_for: Wishes,
}

impl Roots {
    /// What a Secret holds, if that is all of them.
    pub fn of(secret: &Secret) -> Option<Self> {
        let text = |key: &str| {
            let value = secret.data.as_ref()?.get(key)?;
            String::from_utf8(value.0.clone()).ok().filter(|text| !text.is_empty())
        };
        let authority = |of| {
            let certificate = text(&certificate_of(of))?;
            Some(match text(&mount_of(of)) {
                Some(mount) => Kept::InVault { certificate, mount },
                None => Kept::Here(Pair { certificate, key: text(&key_of(of))?.into() }),
            })
        };
        Some(Self {
            kubernetes: authority(Authority::Kubernetes)?,
            etcd: authority(Authority::Etcd)?,
            front_proxy: authority(Authority::FrontProxy)?,
            service_account: Pair { certificate: text(SERVICE_ACCOUNT_PUBLIC)?, key: text(SERVICE_ACCOUNT)?.into() },
            encryption: text(ENCRYPTION)?.into(),
            rotated_for: text(ROTATED_FOR).map_or(Some(0), |count| count.parse().ok())?,
            keys_for: Wishes::held(text)?,
        })
    }

    /// What their Secret holds.
    pub fn data(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::from([
            (SERVICE_ACCOUNT_PUBLIC.to_owned(), bytes(&self.service_account.certificate)),
            (SERVICE_ACCOUNT.to_owned(), bytes(self.service_account.key.expose_secret())),
            (ENCRYPTION.to_owned(), bytes(self.encryption.expose_secret())),
        ]);
        if self.rotated_for > 0 {
            data.insert(ROTATED_FOR.to_owned(), bytes(&self.rotated_for.to_string()));
        }
        data.extend(self.keys_for.data());
        for of in Authority::ALL {
            let kept = self.authority(of);
            data.insert(certificate_of(of), bytes(kept.certificate()));
            match kept {
                Kept::Here(pair) => data.insert(key_of(of), bytes(pair.key.expose_secret())),
                Kept::InVault { mount, .. } => data.insert(mount_of(of), bytes(mount)),
            };
        }
        data
    }

    /// One of its authorities.
    pub fn authority(&self, of: Authority) -> &Kept {
        match of {
            Authority::Kubernetes => &self.kubernetes,
            Authority::Etcd => &self.etcd,
            Authority::FrontProxy => &self.front_proxy,
        }
    }

    /// What their Secret says of them.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = self.fingerprints();
        if self.rotated_for > 0 {
            annotations.insert(names::ROTATED_FOR_ANNOTATION.to_owned(), self.rotated_for.to_string());
        }
        annotations.extend(self.keys_for.annotations());
        annotations
    }

    /// What identifies each, by [`Root::record`].
    pub fn fingerprints(&self) -> BTreeMap<String, String> {
        let identifying = |root| match root {
            Root::Ca(of) => self.authority(of).certificate(),
            Root::ServiceAccount => &self.service_account.certificate,
            Root::Encryption => self.encryption.expose_secret(),
        };
        Root::ALL.into_iter().map(|root| (root.record(), embedded::fingerprint(identifying(root)))).collect()
    }
}

fn certificate_of(authority: Authority) -> String {
    format!("{}.crt", Root::Ca(authority).name())
}

fn key_of(authority: Authority) -> String {
    format!("{}.key", Root::Ca(authority).name())
}

/// Instead of a key: the mount in Vault that has it.
fn mount_of(authority: Authority) -> String {
    format!("{}.vault-mount", Root::Ca(authority).name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> Pair {
        Pair { certificate: format!("{name} certificate"), key: format!("{name} key").into() }
    }

    fn roots() -> Roots {
        Roots {
            kubernetes: Kept::Here(pair("kubernetes")),
            etcd: Kept::InVault { certificate: "etcd certificate".into(), mount: "guests/a/etcd".into() },
            front_proxy: Kept::Here(pair("front-proxy")),
            service_account: pair("service-account"),
            encryption: "encryption".to_owned().into(),
            rotated_for: 3,
            keys_for: Wishes { service_account: 1, encryption: 2 },
        }
    }

    #[test]
    fn what_a_secret_holds_are_the_roots_that_were_put_into_it() {
        let secret = Secret { data: Some(roots().data()), ..Secret::default() };
        let read = Roots::of(&secret).unwrap();
        assert_eq!(read.data(), roots().data());
        assert_eq!(read.fingerprints(), roots().fingerprints());
        assert_eq!(read.annotations(), roots().annotations());
        assert_eq!(read.etcd.in_vault().map(|etcd| etcd.mount), Some("guests/a/etcd"));
        assert!(!secret.data.unwrap().contains_key("etcd.key"));
    }

    #[test]
    fn a_secret_that_lacks_anything_holds_no_roots() {
        for key in roots().data().keys().filter(|key| !key.ends_with("rotated-for")) {
            let (mut lacking, mut empty) = (roots().data(), roots().data());
            lacking.remove(key);
            empty.insert(key.clone(), bytes(""));
            for data in [lacking, empty] {
                assert!(Roots::of(&Secret { data: Some(data), ..Secret::default() }).is_none(), "{key}");
            }
        }
        assert!(Roots::of(&Secret::default()).is_none());
    }

    #[test]
    fn every_root_has_a_fingerprint_of_its_own() {
        let all = roots().fingerprints();
        assert_eq!(all.len(), Root::ALL.len());
        assert_eq!(all.values().collect::<std::collections::BTreeSet<_>>().len(), Root::ALL.len());
        let mut other = roots();
        other.encryption = "another".to_owned().into();
        let differing: Vec<_> = other.fingerprints().into_iter().filter(|(name, value)| all[name] != *value).collect();
        assert!(matches!(&differing[..], [(name, _)] if *name == Root::Encryption.record()), "{differing:?}");
    }

    #[test]
    fn a_generation_has_one_name_and_what_was_made_for_no_wish_says_nothing_of_one() {
        assert_eq!(secret_of(1), SECRET);
        for generation in [1, 2, 17] {
            assert_eq!(generation_of(&secret_of(generation)), Some(generation));
        }
        for name in ["roots-", "roots-x", "roots-01", "roots-+1", "other-1"] {
            assert_eq!(generation_of(name), None, "{name}");
        }
        let plain = Roots { rotated_for: 0, keys_for: Wishes::default(), ..roots() };
        assert!(
            !plain.data().keys().any(|key| key.ends_with("rotated-for")) && plain.annotations() == plain.fingerprints()
        );
        let read = Roots::of(&Secret { data: Some(plain.data()), ..Secret::default() }).unwrap();
        assert_eq!((read.rotated_for, read.keys_for), (0, Wishes::default()));
    }

    #[test]
    fn what_is_to_take_their_place_is_recorded_beside_them() {
        let recorded: BTreeMap<_, _> =
            Root::ALL.into_iter().map(|root| (root.next_record(), root.name().into())).collect();
        assert!(fingerprints(Some(&recorded)).is_empty());
        let read = next_fingerprints(Some(&recorded));
        assert_eq!(read.get(&Root::Encryption.record()).map(String::as_str), Some("encryption"));
        assert_eq!(read.len(), Root::ALL.len());
    }
}
