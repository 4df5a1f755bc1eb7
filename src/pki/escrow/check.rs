//! Whether a guest could live by roots that come from elsewhere. Who made them is not known: every part is looked at, and encoded anew
//! as those are that are made here, so that equal ones are equal texts.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use x509_parser::{
    certificate::X509Certificate,
    extensions::ParsedExtension,
    pem::{Pem, parse_x509_pem},
    prelude::FromDer as _,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

use super::super::{
    authority::Kept,
    embedded::{self, Pair},
    leaf::Authority,
    roots::{Root, Roots},
};

/// Least bits of a key of RSA: what Go's TLS, and with it Kubernetes, takes by default is less.
const LEAST_RSA: usize = 2048;
/// Curves by their OIDs (RFC 5480, 2.1.1.1): P-256 and P-384.
const CURVES: [&str; 2] = ["1.2.840.10045.3.1.7", "1.3.132.0.34"];

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
    /// A field of a certificate says what no root of a guest may say.
    #[error("{field} of the certificate of {root} {wrong}")]
    Field {
        /// The field, as RFC 5280 calls it.
        field: &'static str,
        /// [`Root::name`]
        root: &'static str,
        /// What is wrong with it.
        wrong: &'static str,
    },
    /// A key and a certificate of two pairs.
    #[error("the key of {0} does not belong to its certificate")]
    OtherKey(&'static str),
    /// Others could find it out.
    #[error("the key of {root} is one of RSA with {bits} bits, and has to have {LEAST_RSA} at least")]
    Weak {
        /// [`Root::name`]
        root: &'static str,
        /// Its bits.
        bits: usize,
    },
    /// A sort that not everybody knows.
    #[error("the key of {0} is neither ECDSA P-256 or P-384, nor RSA")]
    Sort(&'static str),
    /// It is over.
    #[error("the certificate of {root} expired at {at} (notAfter)")]
    Expired {
        /// [`Root::name`]
        root: &'static str,
        /// Then.
        at: Timestamp,
    },
    /// It has not begun.
    #[error("the certificate of {root} is not valid before {at} (notBefore)")]
    Early {
        /// [`Root::name`]
        root: &'static str,
        /// Then.
        at: Timestamp,
    },
    /// Encryption at rest by something else than what guests are made with.
    #[error("the configuration of encryption is another than that of one key of secretbox for Secrets")]
    Encryption,
}

/// Looks whether a guest could live by these roots from `now` on. Answers them, encoded as those that are made here.
///
/// # Errors
/// The first [`Flaw`].
pub fn check(roots: &Roots, now: Timestamp) -> Result<Roots, Flaw> {
    let one = |of| -> Result<Kept, Flaw> {
        let name = Root::Ca(of).name();
        Ok(Kept::Here(authority(name, roots.authority(of).pair().ok_or(Flaw::InVault(name))?, now)?))
    };
    Ok(Roots {
        kubernetes: one(Authority::Kubernetes)?,
        etcd: one(Authority::Etcd)?,
        front_proxy: one(Authority::FrontProxy)?,
        service_account: service_account(Root::ServiceAccount.name(), &roots.service_account)?,
        encryption: encryption(roots.encryption.expose_secret())?,
        rotated_for: roots.rotated_for,
        keys_for: roots.keys_for,
    })
}

fn authority(root: &'static str, pair: &Pair, now: Timestamp) -> Result<Pair, Flaw> {
    let unreadable = Flaw::Unreadable { what: "the certificate", root };
    let pem = alone(&pair.certificate, "CERTIFICATE").ok_or_else(|| unreadable.clone())?;
    let read = X509Certificate::from_der(&pem.contents);
    let (rest, certificate) = read.map_err(|_| unreadable.clone())?;
    if !rest.is_empty() {
        return Err(unreadable);
    }
    is_strong(root, certificate.public_key())?;
    signs(&certificate).map_err(|(field, wrong)| Flaw::Field { field, root, wrong })?;
    let key = key(root, pair)?;
    if key.subject_public_key_info() != certificate.public_key().raw {
        return Err(Flaw::OtherKey(root));
    }
    let time = |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp()).map_err(|_| unreadable.clone());
    let (begin, end) = (time(certificate.validity().not_before)?, time(certificate.validity().not_after)?);
    match (begin <= now, now < end) {
        (true, true) => {}
        (false, _) => return Err(Flaw::Early { root, at: begin }),
        (_, false) => return Err(Flaw::Expired { root, at: end }),
    }
    Ok(Pair { certificate: embedded::encode("CERTIFICATE", pem.contents), key: key.serialize_pem().into() })
}

/// The one block of a text. Programs of the guest trust every certificate of a file: there is one, and nothing beside it.
fn alone(text: &str, label: &str) -> Option<Pem> {
    text.starts_with(&format!("-----BEGIN {label}-----")).then_some(())?;
    let (rest, pem) = parse_x509_pem(text.as_bytes()).ok()?;
    rest.trim_ascii().is_empty().then_some(pem)
}

/// Whether it is a root that signs a guest's certificates and no authorities, as those are that are made here. If not, which field says
/// so, and what it says.
fn signs(certificate: &X509Certificate<'_>) -> Result<(), (&'static str, &'static str)> {
    let constraints = certificate.basic_constraints().ok().flatten();
    match constraints.map(|constraints| (constraints.value.ca, constraints.value.path_len_constraint)) {
        Some((true, Some(0))) => {}
        Some((true, _)) => {
            return Err((
                "basicConstraints",
                "does not say pathLenConstraint 0: authorities below it could let others into the guest",
            ));
        }
        _ => return Err(("basicConstraints", "does not say that it is a certificate authority")),
    }
    let usage = certificate.key_usage().map_err(|_| ("keyUsage", "cannot be read"))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(("keyUsage", "does not allow to sign certificates (keyCertSign)"));
    }
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::ExtendedKeyUsage(_) => return Err(("extendedKeyUsage", "narrows what it signs for")),
            ParsedExtension::NameConstraints(_) => return Err(("nameConstraints", "narrows whom it signs for")),
            ParsedExtension::UnsupportedExtension { .. } | ParsedExtension::ParseError { .. } if extension.critical => {
                return Err(("extensions", "has a critical one that is not known"));
            }
            _ => {}
        }
    }
    if certificate.subject() != certificate.issuer() {
        return Err(("issuer", "is another authority: only roots are imported, which signed themselves"));
    }
    certificate.verify_signature(None).map_err(|_| ("signature", "is not its own key's"))
}

/// Whether a public key is of a sort that every program of a guest knows, and large enough.
fn is_strong(root: &'static str, key: &SubjectPublicKeyInfo<'_>) -> Result<(), Flaw> {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => match rsa.key_size() {
            bits if bits < LEAST_RSA => Err(Flaw::Weak { root, bits }),
            _ => Ok(()),
        },
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            let known = curve.is_some_and(|curve| CURVES.contains(&curve.to_id_string().as_str()));
            if known { Ok(()) } else { Err(Flaw::Sort(root)) }
        }
        _ => Err(Flaw::Sort(root)),
    }
}

fn service_account(root: &'static str, pair: &Pair) -> Result<Pair, Flaw> {
    let unreadable = Flaw::Unreadable { what: "the public key", root };
    let pem = alone(&pair.certificate, "PUBLIC KEY").ok_or_else(|| unreadable.clone())?;
    let (_, public) = SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|_| unreadable)?;
    is_strong(root, &public)?;
    let key = key(root, pair)?;
    if key.subject_public_key_info() != pem.contents {
        return Err(Flaw::OtherKey(root));
    }
    Ok(Pair { certificate: key.public_key_pem(), key: key.serialize_pem().into() })
}

fn key(root: &'static str, pair: &Pair) -> Result<KeyPair, Flaw> {
    KeyPair::from_pem(pair.key.expose_secret()).map_err(|_| Flaw::Unreadable { what: "the key", root })
}

/// The `EncryptionConfiguration` with a key of ours (32 bytes, for secretbox), if it says nothing else.
fn encryption(text: &str) -> Result<SecretString, Flaw> {
    let unreadable = || Flaw::Unreadable { what: "the configuration", root: Root::Encryption.name() };
    let read = |text: &str| serde_saphyr::from_str::<Value>(text).map_err(|_| unreadable());
    let config = read(text)?;
    let of = |what: &str| {
        config.pointer(&format!("/resources/0/providers/0/secretbox/keys/0/{what}")).and_then(Value::as_str)
    };
    // What is stored begins with the name, so it stays. Ours are `key1` and the like.
    let name = of("name")
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'))
        .ok_or_else(unreadable)?;
    let key = of("secret").and_then(|secret| STANDARD.decode(secret).ok()?.try_into().ok()).ok_or_else(unreadable)?;
    let ours = embedded::encryption_config_of(name, &key);
    if read(ours.expose_secret())? == config { Ok(ours) } else { Err(Flaw::Encryption) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
        NameConstraints, PKCS_ED25519,
    };

    use super::*;
    use crate::{
        pki::leaf,
        testing::{NOW, roots},
    };

    const HOUR: Duration = Duration::from_secs(3600);
    /// Of `openssl req -x509 -newkey rsa:1024 -days 36500 -subj /CN=weak -addext basicConstraints=critical,CA:TRUE,pathlen:0`; the key
    /// is thrown away.
    const WEAK: &str = "\
-----BEGIN CERTIFICATE-----
MIIB/zCCAWigAwIBAgIUGLOPxtGcutaHkQMpodOx6Q58F4AwDQYJKoZIhvcNAQEL
BQAwDzENMAsGA1UEAwwEd2VhazAgFw0yNjExMjgxMTI0NDlaGA8yMTI2MTEwNDEx
MjQ0OVowDzENMAsGA1UEAwwEd2VhazCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkC
gYEA4AMwi8VjeQXYuqn2xj03fxLMBbTFz22G5PRf6mnsODDj0hiqpWNfEaAR3SpR
T0xlKXvU6mdKVmlwfXNlzP0ftg4ofIWHCo6EvjSHSFDcV1rYYmS+OWKdqmnLOOhS
9PbZUZpLx7hiEoAYm1mWEj1BpVuGmiqE5aowpI0TG/LsFjUCAwEAAaNWMFQwHQYD
VR0OBBYEFG4Pz+rMeBep1o6QkDXfnsQFcs6aMB8GA1UdIwQYMBaAFG4Pz+rMeBep
1o6QkDXfnsQFcs6aMBIGA1UdEwEB/wQIMAYBAf8CAQAwDQYJKoZIhvcNAQELBQAD
gYEAWZgYxYo94s56uvFD4Tc799FLigkJwk5cHw3VwmfLpJLwusjobHPAAjx/26qg
pkEwMq+sy7HPj+kT3XY0Q8bO+LjisvMbuvvjiVTuUOpu7L1bkin28r/Vpap9aD86
be7Z5ND0ymud9iU+Vgz99YVlNubrSNYi1mVrmpHvE/Y5zAY=
-----END CERTIFICATE-----
";
    const WEAK_KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDgAzCLxWN5Bdi6qfbGPTd/EswF
tMXPbYbk9F/qaew4MOPSGKqlY18RoBHdKlFPTGUpe9TqZ0pWaXB9c2XM/R+2Dih8
hYcKjoS+NIdIUNxXWthiZL45Yp2qacs46FL09tlRmkvHuGISgBibWZYSPUGlW4aa
KoTlqjCkjRMb8uwWNQIDAQAB
-----END PUBLIC KEY-----
";

    /// What is found of roots of which somebody changed the pair of front-proxy.
    fn found(change: impl FnOnce(&mut Pair)) -> Result<(), Flaw> {
        let mut roots = roots();
        let mut pair = roots.front_proxy.pair().unwrap().clone();
        change(&mut pair);
        roots.front_proxy = Kept::Here(pair);
        check(&roots, NOW).map(drop)
    }

    /// A root as ours are, but for what is changed of it.
    fn odd(key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Result<(), Flaw> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap().pem();
        found(|pair| *pair = Pair { certificate, key: key.serialize_pem().into() })
    }

    #[test]
    fn a_guest_can_live_by_what_one_was_made_with_as_it_is() {
        let roots = roots();
        assert!(check(&roots, NOW).unwrap().data() == roots.data(), "they are encoded as ours are");
        assert_eq!(odd(KeyPair::generate().unwrap(), |_| {}), Ok(()));
    }

    #[test]
    fn the_same_roots_in_another_form_are_the_same() {
        let roots = roots();
        let crlf = |text: &str| text.replace('\n', "\r\n");
        let long = |text: &str| {
            let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
            let lines: Vec<_> = text.lines().collect();
            format!("{}\n{body}\n{}\n\n", lines[0], lines[lines.len() - 1])
        };
        for form in [&crlf as &dyn Fn(&str) -> String, &long] {
            let pair =
                |pair: &Pair| Pair { certificate: form(&pair.certificate), key: form(pair.key.expose_secret()).into() };
            let kept = |kept: &Kept| Kept::Here(pair(kept.pair().unwrap()));
            let other = Roots {
                kubernetes: kept(&roots.kubernetes),
                etcd: kept(&roots.etcd),
                front_proxy: kept(&roots.front_proxy),
                service_account: pair(&roots.service_account),
                encryption: format!("# a comment\n{}", roots.encryption.expose_secret()).into(),
                rotated_for: 0,
                keys_for: crate::pki::keys::Wishes::default(),
            };
            assert!(other.fingerprints().values().all(|one| !roots.fingerprints().values().any(|two| one == two)));
            assert_eq!(check(&other, NOW).unwrap().fingerprints(), roots.fingerprints());
        }
    }

    #[test]
    fn a_key_of_another_is_found_wherever_it_stands() {
        let other = || embedded::root("front-proxy", "b/other", NOW, HOUR).unwrap();
        assert_eq!(found(|pair| pair.key = other().key), Err(Flaw::OtherKey("front-proxy")));
        assert_eq!(found(|pair| pair.certificate = other().certificate), Err(Flaw::OtherKey("front-proxy")));
        assert_eq!(found(|pair| *pair = other()), Ok(()));
        let mut accounts = roots();
        accounts.service_account.key = embedded::key_pair().unwrap().key;
        assert_eq!(check(&accounts, NOW).unwrap_err(), Flaw::OtherKey("service-account"));
    }

    #[test]
    fn a_root_counts_from_its_begin_to_its_end() {
        let (end, begin) = (NOW + HOUR, NOW - embedded::BACKDATE);
        let mut roots = roots();
        roots.front_proxy = Kept::Here(embedded::root("front-proxy", "a/b", NOW, HOUR).unwrap());
        let check = |now| check(&roots, now).map(drop);
        let one = Duration::from_secs(1);
        assert_eq!(check(end - one), Ok(()));
        assert_eq!(check(end), Err(Flaw::Expired { root: "front-proxy", at: end }));
        assert_eq!(check(begin - one).map_err(|flaw| matches!(flaw, Flaw::Early { .. })), Err(true));
    }

    #[test]
    fn a_root_that_is_odd_is_refused_with_the_field() {
        let field = |found: Result<(), Flaw>| match found.unwrap_err() {
            Flaw::Field { field, root: "front-proxy", .. } => field,
            other => panic!("{other}"),
        };
        let new = || KeyPair::generate().unwrap();
        assert_eq!(field(odd(new(), |params| params.is_ca = IsCa::ExplicitNoCa)), "basicConstraints");
        assert_eq!(field(odd(new(), |params| params.is_ca = IsCa::NoCa)), "basicConstraints");
        for constraints in [BasicConstraints::Unconstrained, BasicConstraints::Constrained(1)] {
            let found = odd(new(), |params| params.is_ca = IsCa::Ca(constraints));
            assert!(found.as_ref().unwrap_err().to_string().contains("pathLenConstraint"));
            assert_eq!(field(found), "basicConstraints");
        }
        assert_eq!(field(odd(new(), |params| params.key_usages = vec![KeyUsagePurpose::CrlSign])), "keyUsage");
        assert_eq!(odd(new(), |params| params.key_usages.clear()), Ok(()));
        let client = vec![ExtendedKeyUsagePurpose::ClientAuth];
        assert_eq!(field(odd(new(), |params| params.extended_key_usages = client)), "extendedKeyUsage");
        let narrow = NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.com".into())],
            excluded_subtrees: vec![],
        };
        assert_eq!(field(odd(new(), |params| params.name_constraints = Some(narrow))), "nameConstraints");
        let critical = |critical| {
            let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            unknown.set_criticality(critical);
            odd(new(), |params| params.custom_extensions.push(unknown))
        };
        assert_eq!((field(critical(true)), critical(false)), ("extensions", Ok(())));
        let root = roots().front_proxy.pair().unwrap().clone();
        let leaf = embedded::sign(&root, &leaf::administrator(), NOW, HOUR).unwrap();
        assert_eq!(field(found(|pair| *pair = leaf)), "basicConstraints");
        // An authority below another one, and one whose signature somebody touched.
        let above =
            rcgen::Issuer::from_ca_cert_pem(&root.certificate, KeyPair::from_pem(root.key.expose_secret()).unwrap());
        let (key, mut params) = (new(), CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let below = params.signed_by(&key, &above.unwrap()).unwrap().pem();
        assert_eq!(field(found(|pair| *pair = Pair { certificate: below, key: key.serialize_pem().into() })), "issuer");
        let mut touched = alone(&root.certificate, "CERTIFICATE").unwrap().contents;
        *touched.last_mut().unwrap() ^= 1;
        let touched = embedded::encode("CERTIFICATE", touched);
        assert_eq!(field(found(|pair| *pair = Pair { certificate: touched, ..root })), "signature");
    }

    #[test]
    fn a_key_that_is_weak_or_of_a_sort_of_its_own_is_refused() {
        let sort = Err(Flaw::Sort("front-proxy"));
        assert_eq!(odd(KeyPair::generate_for(&PKCS_ED25519).unwrap(), |_| {}), sort);
        assert_eq!(odd(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(), |_| {}), Ok(()));
        let weak = found(|pair| pair.certificate = WEAK.into());
        assert_eq!(weak, Err(Flaw::Weak { root: "front-proxy", bits: 1024 }));
        let mut accounts = roots();
        accounts.service_account.certificate = WEAK_KEY.into();
        assert_eq!(check(&accounts, NOW).unwrap_err(), Flaw::Weak { root: "service-account", bits: 1024 });
    }

    #[test]
    fn there_is_one_certificate_and_nothing_beside_it() {
        let unreadable = |what| Err(Flaw::Unreadable { what, root: "front-proxy" });
        let other = embedded::root("front-proxy", "b/other", NOW, HOUR).unwrap().certificate;
        assert_eq!(found(|pair| pair.certificate.push_str(&other)), unreadable("the certificate"));
        assert_eq!(found(|pair| pair.certificate.insert(0, 'x')), unreadable("the certificate"));
        assert_eq!(found(|pair| pair.certificate.truncate(100)), unreadable("the certificate"));
        assert_eq!(found(|pair| pair.key = "x".to_owned().into()), unreadable("the key"));
        // Nor in its block.
        let mut longer = alone(&other, "CERTIFICATE").unwrap().contents;
        longer.push(0);
        assert_eq!(
            found(|pair| pair.certificate = embedded::encode("CERTIFICATE", longer)),
            unreadable("the certificate")
        );
    }

    #[test]
    fn a_key_that_is_elsewhere_or_none_is_told() {
        let mut vault = roots();
        vault.etcd = Kept::InVault { certificate: vault.etcd.certificate().to_owned(), mount: "x".into() };
        assert_eq!(check(&vault, NOW).unwrap_err(), Flaw::InVault("etcd"));
        let with = |text: &str| check(&Roots { encryption: text.to_owned().into(), ..roots() }, NOW).unwrap_err();
        for odd in ["", "kind: EncryptionConfiguration", "kind: Other", "- a: ["] {
            assert!(matches!(with(odd), Flaw::Unreadable { root: "encryption", .. }), "{odd}");
        }
        let ours = roots().encryption.expose_secret().to_owned();
        assert_eq!(with(&ours.replace("[secrets]", "[configmaps]")), Flaw::Encryption);
        assert!(matches!(with(&ours.replace("key1", "key_1")), Flaw::Unreadable { root: "encryption", .. }));
        // A key that was rotated has another name, which is what etcd knows it by.
        let rotated = Roots { encryption: ours.replace("key1", "key2").into(), ..roots() };
        assert_eq!(check(&rotated, NOW).unwrap().encryption.expose_secret(), rotated.encryption.expose_secret());
    }
}
