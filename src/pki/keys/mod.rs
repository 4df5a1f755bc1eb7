//! Rotation of a guest's keys: the one that signs service-account tokens, and the one that its Secrets are encrypted with. Pure.
//!
//! ```text
//!  ServiceAccountKey   Trust ──► Sign ───► Overlap ──► Drop ──► the former one is deleted
//!                      both      the new   tokens of   the new
//!                      verify    signs     the former  alone
//!                                          are renewed verifies
//!
//!  EncryptionKey       Read ───► Write ──► Rewrite ──► Drop ──► the former one is deleted
//!                      both      the new   what is     the new
//!                      read      writes    stored is   alone
//!                                          rewritten   reads
//! ```
//!
//! A key is one of the guest's roots, and a rotation leads from one generation of these to the next, as that of authorities does
//! ([`super::turnover`]); which root differs in the next one tells what is rotated. API servers read both keys at their start only,
//! so each phase is a turn of one control-plane node after the other. Workers hold neither key, and have no part in it.
//!
//! What a former encryption key wrote cannot be read without it: nobody drops it before a look into etcd itself, later than the last
//! word of every API server that it writes with the new one, saw nothing of any other; nor is it deleted before another such look.
//!
//! - here: what is rotated, and whose wish comes first
//! - [`files`]: what a node holds in each phase
//! - [`decide`]: who goes on when

pub mod decide;
pub mod files;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use serde::Serialize;

use super::{
    leaf::Authority,
    plan::SecretMeta,
    roots::Root,
    rotation::{Mark, Phase, Stage},
    secrets::bytes,
};
use crate::{
    api::{PkiBackend, names},
    cluster::Valid,
};

/// What of a guest's roots is rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Subject {
    /// Its authorities.
    #[default]
    #[serde(rename = "CA")]
    Authorities,
    /// The key pair of service-account tokens.
    ServiceAccountKey,
    /// The key of encryption at rest.
    EncryptionKey,
}

impl Subject {
    /// All of them, in the order in which wishes are carried out.
    pub const ALL: [Self; 3] = [Self::Authorities, Self::ServiceAccountKey, Self::EncryptionKey];

    /// Its name in a Cluster's status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Authorities => "CA",
            Self::ServiceAccountKey => "ServiceAccountKey",
            Self::EncryptionKey => "EncryptionKey",
        }
    }

    /// What a rotation leads to, by fingerprints of roots. Whoever changes an authority rotates authorities, whatever else differs.
    pub fn of(current: &BTreeMap<String, String>, next: &BTreeMap<String, String>) -> Self {
        let differs = |root: Root| current.get(&root.record()) != next.get(&root.record());
        match () {
            () if Authority::ALL.into_iter().any(|of| differs(Root::Ca(of))) => Self::Authorities,
            () if differs(Root::ServiceAccount) => Self::ServiceAccountKey,
            () if differs(Root::Encryption) => Self::EncryptionKey,
            () => Self::Authorities,
        }
    }

    /// A stage's name in a Cluster's status.
    pub fn stage(self, stage: Stage) -> &'static str {
        match (self, stage) {
            (Self::ServiceAccountKey, Stage::Reissue) => "Sign",
            (Self::EncryptionKey, Stage::Trust) => "Read",
            (Self::EncryptionKey, Stage::Reissue) => "Write",
            (Self::EncryptionKey, Stage::Overlap) => "Rewrite",
            _ => stage.name(),
        }
    }
}

/// How often keys were asked to be rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `spec.pki.serviceAccountKey.rotate`
    pub service_account: u32,
    /// `spec.pki.encryptionKey.rotate`
    pub encryption: u32,
}

/// Keys of the roots' Secret that say which wishes they were made for, if there were some; and its annotations.
const SERVICE_ACCOUNT: (&str, &str) =
    ("service-account-rotated-for", names::SERVICE_ACCOUNT_KEY_ROTATED_FOR_ANNOTATION);
const ENCRYPTION: (&str, &str) = ("encryption-rotated-for", names::ENCRYPTION_KEY_ROTATED_FOR_ANNOTATION);

impl Wishes {
    fn each(self) -> impl Iterator<Item = ((&'static str, &'static str), u32)> {
        let all = [(SERVICE_ACCOUNT, self.service_account), (ENCRYPTION, self.encryption)];
        // What was made for no wish says nothing of one, as before there were any.
        all.into_iter().filter(|(_, count)| *count > 0)
    }

    /// Whether one of them was asked for more often.
    pub fn is_later_than(self, other: Self) -> bool {
        self.service_account > other.service_account || self.encryption > other.encryption
    }

    /// What the roots' Secret holds of them.
    pub fn data(self) -> impl Iterator<Item = (String, ByteString)> {
        self.each().map(|((key, _), count)| (key.to_owned(), bytes(&count.to_string())))
    }

    /// What it says of them.
    pub fn annotations(self) -> impl Iterator<Item = (String, String)> {
        self.each().map(|((_, annotation), count)| (annotation.to_owned(), count.to_string()))
    }

    /// What a Secret holds. None: it is no number.
    pub fn held(text: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |key: &str| text(key).map_or(Some(0), |count| count.parse().ok());
        Some(Self { service_account: number(SERVICE_ACCOUNT.0)?, encryption: number(ENCRYPTION.0)? })
    }

    /// What annotations say.
    pub fn noted(annotation: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| annotation(name).and_then(|count| count.parse().ok()).unwrap_or_default();
        Self { service_account: number(SERVICE_ACCOUNT.1), encryption: number(ENCRYPTION.1) }
    }
}

/// What is asked for and was not carried out, in the order in which it is.
pub fn asked(cluster: &Valid, roots: Option<&SecretMeta>) -> Vec<Subject> {
    let carried_out = roots.map_or((0, Wishes::default()), |roots| (roots.rotated_for, roots.keys_for));
    let (ca, keys) = (cluster.pki.rotate, cluster.pki.keys);
    Subject::ALL
        .into_iter()
        .filter(|subject| match subject {
            Subject::Authorities => ca > carried_out.0 && cluster.pki.backend == PkiBackend::Embedded,
            Subject::ServiceAccountKey => keys.service_account > carried_out.1.service_account,
            Subject::EncryptionKey => keys.encryption > carried_out.1.encryption,
        })
        .collect()
}

/// The phase after one. There is none in which servers alone change.
pub fn next(phase: Phase) -> Option<Phase> {
    match phase.next() {
        Some(Phase::Serve) => Some(Phase::Drop),
        next => next,
    }
}

/// What a control-plane node starts anew for a phase: units, each with the mark of the phase that it has to have been started for.
pub fn turns(subject: Subject, mark: Mark) -> BTreeMap<&'static str, String> {
    let phase = if mark.phase == Phase::Serve { Phase::Reissue } else { mark.phase };
    let mut turns = BTreeMap::new();
    if phase > Phase::Before {
        turns.insert("kube-apiserver", Mark { phase, ..mark }.to_string());
    }
    // It signs the tokens that lie in Secrets, and verifies none.
    if subject == Subject::ServiceAccountKey && phase >= Phase::Reissue {
        turns.insert("kube-controller-manager", Mark { phase: Phase::Reissue, ..mark }.to_string());
    }
    turns
}
