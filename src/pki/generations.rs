//! The one or two generations of a guest's authorities, and what is handed out of them. Pure.

use std::collections::BTreeMap;

use x509_parser::pem::parse_x509_pem;

use super::{
    authority::Kept,
    embedded::PkiError,
    keys::{self, Subject},
    leaf::{Authority, Leaf},
    roots::Roots,
    rotation::{self, Both, Mark, Phase, Told, Trusted, signs_new, trusted, users_get_new},
};
use crate::supervisor::consumers::fingerprint;

/// Where a node is in a rotation, which decides on what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How far it is.
    pub mark: Mark,
    /// What is rotated.
    pub subject: Subject,
    /// Whether it is of the control plane.
    pub control_plane: bool,
    /// Whether the control plane is one node.
    pub alone: bool,
}

impl Standing {
    /// What it has to have started anew, as its file says it: `UNIT=MARK` a line.
    pub fn turns(self) -> String {
        let turns = match self.subject {
            Subject::Authorities => rotation::turns(self.mark, self.control_plane, self.alone),
            subject => keys::turns(subject, self.mark),
        };
        turns.into_iter().map(|(unit, mark)| format!("{unit}={mark}\n")).collect()
    }
}

/// The authorities of a guest.
#[derive(Clone, Debug)]
pub struct Generations {
    /// The recorded ones.
    pub current: Roots,
    /// Those that take their place, once they are recorded, too.
    pub next: Option<Roots>,
}

impl Generations {
    /// Whom to trust, as a file: certificates (PEM), the newer generation first.
    pub fn bundle(&self, of: Authority, standing: Option<Standing>) -> String {
        let trusted = standing.map_or(Trusted::Old, |standing| trusted(of, standing.mark.phase, standing.alone));
        self.certificates(of, trusted)
    }

    /// Who signs a leaf of a node.
    pub fn signer(&self, leaf: &Leaf, standing: Option<Standing>) -> &Kept {
        let new = standing.is_some_and(|standing| signs_new(leaf, standing.mark.phase));
        self.of(new).authority(leaf.authority)
    }

    /// Whom users and other clients trust and who signs for them, where the foremost node is in this phase.
    pub fn for_users(self, front: Phase) -> Clients {
        let new = self.other(Authority::Kubernetes).is_some() && users_get_new(front);
        let bundle = self.certificates(Authority::Kubernetes, if new { Trusted::Both } else { Trusted::Old });
        let all = self.certificates(Authority::Kubernetes, Trusted::Both);
        let signer = self.of(new).kubernetes.clone();
        Clients { signer, bundle, all }
    }

    fn of(&self, new: bool) -> &Roots {
        self.next.as_ref().filter(|_| new).unwrap_or(&self.current)
    }

    /// Those that take the recorded ones' place, if they have another such authority: where keys are rotated it is the same one.
    fn other(&self, of: Authority) -> Option<&Roots> {
        let current = self.current.authority(of).certificate();
        self.next.as_ref().filter(|next| next.authority(of).certificate() != current)
    }

    fn certificates(&self, of: Authority, trusted: Trusted) -> String {
        let other = self.other(of);
        let (old, new) = (trusted.holds_old() || other.is_none(), other.filter(|_| trusted.holds_new()));
        let roots = new.into_iter().chain(Some(&self.current).filter(|_| old));
        roots.map(|roots| lines(roots.authority(of).certificate())).collect()
    }

    /// How both are told on the wire, if there are two.
    ///
    /// # Errors
    /// [`PkiError::Root`] if a certificate cannot be read.
    pub fn told(&self) -> Result<Option<Both>, PkiError> {
        let Some(next) = &self.next else { return Ok(None) };
        Ok(Some(Both { old: told(&self.current)?, new: told(next)? }))
    }
}

/// What clients of a guest's API are given.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Who signs.
    pub signer: Kept,
    /// Whom they trust (PEM).
    pub bundle: String,
    /// Whom we trust ourselves (PEM): whoever may sign for the API.
    pub all: String,
}

fn told(roots: &Roots) -> Result<Told, PkiError> {
    let (mut names, mut certificates) = (BTreeMap::new(), BTreeMap::new());
    for of in Authority::ALL {
        let unread = |error: &dyn std::fmt::Display| PkiError::Root(error.to_string());
        let pem = roots.authority(of).certificate();
        let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| unread(&error))?;
        let parsed = pem.parse_x509().map_err(|error| unread(&error))?;
        names.insert(of, fingerprint(parsed.subject().as_raw()));
        certificates.insert(of, fingerprint(&pem.contents));
    }
    Ok(Told { names, certificates })
}

/// A text whose last line is ended.
fn lines(text: &str) -> String {
    if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::pki::{embedded, keys::Wishes, leaf, roots::Root};

    fn roots(suffix: &str) -> Roots {
        let make = |of| {
            let name = format!("{}{suffix}", Root::Ca(of).name());
            Kept::Here(embedded::root(&name, "a/b", Timestamp::now(), Duration::from_secs(3600)).unwrap())
        };
        Roots {
            kubernetes: make(Authority::Kubernetes),
            etcd: make(Authority::Etcd),
            front_proxy: make(Authority::FrontProxy),
            service_account: embedded::key_pair().unwrap(),
            encryption: embedded::encryption_config("key1").unwrap(),
            rotated_for: 0,
            keys_for: Wishes::default(),
        }
    }

    #[test]
    fn without_a_second_generation_everything_is_the_first_ones() {
        let one = Generations { current: roots(""), next: None };
        let mark = Mark { generation: 2, phase: Phase::Drop };
        let standing = Standing { mark, subject: Subject::Authorities, control_plane: true, alone: true };
        for standing in [None, Some(standing)] {
            assert_eq!(one.bundle(Authority::Etcd, standing), one.current.etcd.certificate());
            let signer = one.signer(&leaf::administrator(), standing).certificate();
            assert_eq!(signer, one.current.kubernetes.certificate());
        }
        assert_eq!(one.told().unwrap(), None);
        let users = one.clone().for_users(Phase::Drop);
        assert_eq!(
            (users.bundle.as_str(), users.all.as_str()),
            (one.current.kubernetes.certificate(), users.bundle.as_str())
        );
    }

    #[test]
    fn users_get_what_both_trust_as_soon_as_everybody_trusts_it() {
        let two = Generations { current: roots(""), next: Some(roots("-2")) };
        let (old, new) = (two.current.kubernetes.certificate(), two.next.as_ref().unwrap().kubernetes.certificate());
        let before = two.clone().for_users(Phase::Trust);
        assert_eq!((before.signer.certificate(), before.bundle.as_str()), (old, old));
        assert_eq!(before.all, format!("{new}{old}"));
        let after = two.clone().for_users(Phase::Reissue);
        assert_eq!((after.signer.certificate(), after.bundle), (new, format!("{new}{old}")));
        let told = two.told().unwrap().unwrap();
        let all = [&told.old, &told.new].map(|told| told.names.values().chain(told.certificates.values()).cloned());
        let distinct: std::collections::BTreeSet<String> = all.into_iter().flatten().collect();
        assert_eq!(distinct.len(), 12, "no two are told alike");
    }
}
