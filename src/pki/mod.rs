//! Which keys and certificates must exist, and the authority that makes them.
//!
//! - [`plan`]: what is to be made, issued or renewed; pure
//! - [`leaf`]: subjects, names, usages of every certificate
//! - [`roots`]: what is made once in a guest's life, and the Secret of the guest's namespace that has it
//! - [`generations`]: the one or two generations of them, and what is handed out of each; pure
//! - [`rotation`]: how others take their place: who goes on when; pure
//! - [`keys`]: the same of the keys of service-account tokens and of encryption at rest; pure
//! - [`turnover`]: what is to be made, recorded and removed for that; pure
//! - [`embedded`]: the built-in authority: keys and certificates by rcgen
//! - [`vault`]: Vault as the authority: roots in PKI mounts of the guest's own
//! - [`authority`]: which of the two signs for a guest
//! - [`clients`]: who signs for clients of a guest's API, and whom they trust
//! - [`kubeconfig`]: the administrator's kubeconfig
//! - [`escrow`]: roots outside of a guest: sealed bundles, and what is checked of those that come back
//! - `import`: roots of a new guest that come from such a bundle
//! - [`request`]: what users and kubelets of a guest ask to have signed; pure
//! - `secrets`: how all of it lies in Secrets
//! - [`store`]: how they are stored, and looked at again
//! - `make`, `issue`, `rotate`, `rotate_keys`, [`reconcile`]: the effects
//!
//! A root that was ever recorded for a guest is never made a second time: without it the guest is `Degraded`.

pub mod authority;
pub mod clients;
pub mod embedded;
pub mod escrow;
pub mod generations;
mod import;
mod issue;
pub mod keys;
pub mod kubeconfig;
pub mod leaf;
mod make;
pub mod plan;
pub mod reconcile;
pub mod request;
pub mod roots;
mod rotate;
mod rotate_keys;
pub mod rotation;
pub(crate) mod secrets;
pub mod store;
pub mod turnover;
pub mod vault;

use std::collections::{BTreeMap, BTreeSet};

use self::{keys::Subject, rotation::Mark, turnover::Record};
use crate::api::{RotationStatus, VaultPlace, names};

/// What the pki operator tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PkiFacts {
    /// When (RFC 3339) the next certificate is renewed.
    pub renew_at: Option<String>,
    /// When (RFC 3339) the first certificate ends, if it is not renewed.
    pub end_at: Option<String>,
    /// Where the authorities are to be, if it is Vault.
    pub vault: Option<VaultPlace>,
    /// How authorities are rotated, if they were or are.
    pub rotation: Option<RotationFacts>,
}

/// What the pki operator tells of a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationFacts {
    /// For the Cluster's status.
    pub status: RotationStatus,
    /// What goes on, if something does.
    pub going: Option<Going>,
}

/// A rotation that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Going {
    /// The phase of the foremost node.
    pub mark: Mark,
    /// What is rotated.
    pub subject: Subject,
    /// Secrets of the guest (`namespace/name`) that its API servers are to store anew, since all of them encrypt with another key.
    pub rewrites: Vec<String>,
    /// The phase of the last: what is still trusted on some node is published by it.
    pub last: Mark,
    /// Certificates that extensions of the guest's API are to trust no more, as their SHA-256.
    pub kept_out: BTreeSet<String>,
    /// The control-plane node that turns.
    pub turning: Option<String>,
    /// Whether that is known: the nodes were looked at, or all had been before users' time began.
    pub is_known: bool,
}

/// Who of a guest's control plane starts etcd and its API server anew for other authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turning {
    /// Nobody.
    Nobody,
    /// This node.
    Node(String),
    /// Somebody may: a rotation is written down, and how far the nodes are is not known now.
    Unknown,
}

impl Turning {
    /// By the annotations of the guest's namespace, and by what the pki operator told last.
    pub fn of(noted: Option<&BTreeMap<String, String>>, facts: Option<&PkiFacts>) -> Self {
        let said = |name: &str| noted?.get(name);
        let generation = said(names::GENERATION_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or(1);
        // What cannot be read, or speaks of what was carried out, is no rotation.
        let record = said(names::ROTATION_ANNOTATION).and_then(|text| Record::read(text));
        let rotates =
            record.is_some_and(|record| record.generation > generation) || !roots::next_fingerprints(noted).is_empty();
        match facts.and_then(|facts| facts.rotation.as_ref()?.going.as_ref()) {
            Some(Going { turning: Some(node), .. }) => Self::Node(node.clone()),
            Some(going) if going.is_known => Self::Nobody,
            _ if rotates => Self::Unknown,
            _ => Self::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{rotation::Phase, *};

    #[test]
    fn where_a_rotation_is_written_down_nobody_turns_if_that_was_seen_and_only_then() {
        let facts = |going: Option<(Option<&str>, bool)>| {
            let going = going.map(|(turning, is_known)| Going {
                mark: Mark { generation: 2, phase: Phase::Trust },
                subject: Subject::Authorities,
                rewrites: Vec::new(),
                last: Mark { generation: 2, phase: Phase::Before },
                kept_out: BTreeSet::new(),
                turning: turning.map(Into::into),
                is_known,
            });
            let rotation = RotationFacts { status: RotationStatus::default(), going };
            PkiFacts { renew_at: None, end_at: None, vault: None, rotation: Some(rotation) }
        };
        let record = roots::Root::ALL[0].next_record();
        for noted in [names::ROTATION_ANNOTATION, record.as_str()] {
            let noted = BTreeMap::from([(noted.to_owned(), "2 Trust 2026-01-01T00:00:00Z".to_owned())]);
            let of = |facts: Option<PkiFacts>| Turning::of(Some(&noted), facts.as_ref());
            // It failed, lost a root, or stands in a pause.
            assert_eq!([of(None), of(Some(facts(None)))], [Turning::Unknown, Turning::Unknown]);
            assert_eq!(of(Some(facts(Some((None, false))))), Turning::Unknown);
            assert_eq!(of(Some(facts(Some((None, true))))), Turning::Nobody);
            assert_eq!(of(Some(facts(Some((Some("master-1"), false))))), Turning::Node("master-1".into()));
        }
        // What is left of one, or of a hand, keeps nobody from being replaced.
        for stale in ["2 Drop 2026-01-01T00:00:00Z", "1 Trust 2026-01-01T00:00:00Z", "?"] {
            let noted = [(names::ROTATION_ANNOTATION, stale), (names::GENERATION_ANNOTATION, "2")];
            let noted = noted.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
            assert_eq!(Turning::of(Some(&noted), Some(&facts(None))), Turning::Nobody, "{stale}");
        }
        assert_eq!(
            [Turning::of(None, None), Turning::of(None, Some(&facts(None)))],
            [Turning::Nobody, Turning::Nobody]
        );
    }
}
