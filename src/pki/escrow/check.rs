//! Whether a guest could live by roots that come from elsewhere. Who made them is not known: every part is looked at.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use x509_parser::{certificate::X509Certificate, pem::parse_x509_pem};

use super::super::{
    embedded::Pair,
    leaf::Authority,
    roots::{Root, Roots},
};

/// Why no guest could live by these roots. It never shows what they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A key is elsewhere.
    #[error("the key of the {0} authority is in Vault, and not among them")]
    InVault(&'static str),
    /// Something cannot be read.
    #[error("{what} of {root} cannot be read")]
    Unreadable {
        /// The part.
        what: &'static str,
        /// [`Root::name`]
        root: &'static str,
    },
    /// A certificate that signs nothing.
    #[error("the certificate of {0} is not that of a certificate authority which signed itself")]
    NoAuthority(&'static str),
    /// A key and a certificate of two pairs.
    #[error("the key of {0} does not belong to its certificate")]
    OtherKey(&'static str),
    /// It is over.
    #[error("the certificate of {root} expired at {at}")]
    Expired {
        /// [`Root::name`]
        root: &'static str,
        /// Then.
        at: Timestamp,
    },
    /// It has not begun.
    #[error("the certificate of {root} is not valid before {at}")]
    Early {
        /// [`Root::name`]
        root: &'static str,
        /// Then.
        at: Timestamp,
    },
}

/// Looks whether a guest could live by these roots from `now` on.
///
/// # Errors
/// The first [`Flaw`].
pub fn check(roots: &Roots, now: Timestamp) -> Result<(), Flaw> {
    for of in Authority::ALL {
        let name = Root::Ca(of).name();
        authority(name, roots.authority(of).pair().ok_or(Flaw::InVault(name))?, now)?;
    }
    service_account(Root::ServiceAccount.name(), &roots.service_account)?;
    encryption(roots.encryption.expose_secret())
        .ok_or(Flaw::Unreadable { what: "the configuration", root: Root::Encryption.name() })
}

fn authority(root: &'static str, pair: &Pair, now: Timestamp) -> Result<(), Flaw> {
    let unreadable = Flaw::Unreadable { what: "the certificate", root };
    // Programs of the guest trust every certificate of the file: there is one, and nothing beside it.
    let alone = pair.certificate.starts_with("-----BEGIN CERTIFICATE-----");
    let (rest, pem) = parse_x509_pem(pair.certificate.as_bytes()).map_err(|_| unreadable.clone())?;
    let certificate = pem.parse_x509().map_err(|_| unreadable.clone())?;
    if !alone || !rest.trim_ascii().is_empty() {
        return Err(unreadable);
    }
    if !signs(&certificate) {
        return Err(Flaw::NoAuthority(root));
    }
    if key(root, pair)?.subject_public_key_info() != certificate.public_key().raw {
        return Err(Flaw::OtherKey(root));
    }
    let time = |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp()).map_err(|_| unreadable.clone());
    let (begin, end) = (time(certificate.validity().not_before)?, time(certificate.validity().not_after)?);
    match (begin <= now, now < end) {
        (true, true) => Ok(()),
        (false, _) => Err(Flaw::Early { root, at: begin }),
        (_, false) => Err(Flaw::Expired { root, at: end }),
    }
}

/// Whether it is a root, and may sign certificates.
fn signs(certificate: &X509Certificate<'_>) -> bool {
    let usage = certificate.key_usage().ok().flatten();
    certificate.is_ca()
        && usage.is_none_or(|usage| usage.value.key_cert_sign())
        && certificate.subject() == certificate.issuer()
        && certificate.verify_signature(None).is_ok()
}

fn service_account(root: &'static str, pair: &Pair) -> Result<(), Flaw> {
    let same = key(root, pair)?.public_key_pem().trim() == pair.certificate.trim();
    if same { Ok(()) } else { Err(Flaw::OtherKey(root)) }
}

fn key(root: &'static str, pair: &Pair) -> Result<KeyPair, Flaw> {
    KeyPair::from_pem(pair.key.expose_secret()).map_err(|_| Flaw::Unreadable { what: "the key", root })
}

/// Whether it is an `EncryptionConfiguration` with a key of ours: 32 bytes, for secretbox.
fn encryption(text: &str) -> Option<()> {
    let config: Value = serde_saphyr::from_str(text).ok()?;
    (config["kind"] == "EncryptionConfiguration").then_some(())?;
    let secret = config.pointer("/resources/0/providers/0/secretbox/keys/0/secret")?.as_str()?;
    (STANDARD.decode(secret).ok()?.len() == 32).then_some(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        pki::{authority::Kept, embedded, leaf},
        testing::{NOW, roots},
    };

    const HOUR: Duration = Duration::from_secs(3600);

    /// What is found of roots of which somebody changed the pair of front-proxy.
    fn found(change: impl FnOnce(&mut Pair)) -> Result<(), Flaw> {
        let mut roots = roots();
        let mut pair = roots.front_proxy.pair().unwrap().clone();
        change(&mut pair);
        roots.front_proxy = Kept::Here(pair);
        check(&roots, NOW)
    }

    #[test]
    fn a_guest_can_live_by_what_one_was_made_with() {
        assert_eq!(found(|_| {}), Ok(()));
    }

    #[test]
    fn a_key_of_another_is_found_wherever_it_stands() {
        let other = || embedded::root("front-proxy", "b/other", NOW, HOUR).unwrap();
        assert_eq!(found(|pair| pair.key = other().key), Err(Flaw::OtherKey("front-proxy")));
        assert_eq!(found(|pair| pair.certificate = other().certificate), Err(Flaw::OtherKey("front-proxy")));
        assert_eq!(found(|pair| *pair = other()), Ok(()));
        let mut accounts = roots();
        accounts.service_account.key = embedded::key_pair().unwrap().key;
        assert_eq!(check(&accounts, NOW), Err(Flaw::OtherKey("service-account")));
    }

    #[test]
    fn a_root_counts_from_its_begin_to_its_end() {
        let (end, begin) = (NOW + HOUR, NOW - embedded::BACKDATE);
        let root = |pair: &mut Pair| *pair = embedded::root("front-proxy", "a/b", NOW, HOUR).unwrap();
        let mut roots = roots();
        let mut pair = roots.front_proxy.pair().unwrap().clone();
        root(&mut pair);
        roots.front_proxy = Kept::Here(pair);
        let one = Duration::from_secs(1);
        assert_eq!(check(&roots, end - one), Ok(()));
        assert_eq!(check(&roots, end), Err(Flaw::Expired { root: "front-proxy", at: end }));
        assert_eq!(check(&roots, begin - one).map_err(|flaw| matches!(flaw, Flaw::Early { .. })), Err(true));
    }

    #[test]
    fn what_signs_nothing_is_no_authority() {
        let root = roots().front_proxy.pair().unwrap().clone();
        let leaf = embedded::sign(&root, &leaf::administrator(), NOW, HOUR).unwrap();
        assert_eq!(found(|pair| *pair = leaf), Err(Flaw::NoAuthority("front-proxy")));
    }

    #[test]
    fn there_is_one_certificate_and_nothing_beside_it() {
        let unreadable = |what| Err(Flaw::Unreadable { what, root: "front-proxy" });
        let other = embedded::root("front-proxy", "b/other", NOW, HOUR).unwrap().certificate;
        assert_eq!(found(|pair| pair.certificate.push_str(&other)), unreadable("the certificate"));
        assert_eq!(found(|pair| pair.certificate.insert(0, 'x')), unreadable("the certificate"));
        assert_eq!(found(|pair| pair.certificate.truncate(100)), unreadable("the certificate"));
        assert_eq!(found(|pair| pair.key = "x".to_owned().into()), unreadable("the key"));
    }

    #[test]
    fn a_key_that_is_elsewhere_or_none_is_told() {
        let mut vault = roots();
        vault.etcd = Kept::InVault { certificate: vault.etcd.certificate().to_owned(), mount: "x".into() };
        assert_eq!(check(&vault, NOW), Err(Flaw::InVault("etcd")));
        for odd in ["", "kind: EncryptionConfiguration", "kind: Other", "- a: ["] {
            let mut roots = roots();
            roots.encryption = odd.to_owned().into();
            assert!(matches!(check(&roots, NOW), Err(Flaw::Unreadable { root: "encryption", .. })), "{odd}");
        }
    }
}
