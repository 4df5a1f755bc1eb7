//! The built-in authority: keys and certificates made here, by rcgen. ECDSA P-256 everywhere.

use std::{fmt::Display, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SigningKey as _,
};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use x509_parser::pem::parse_x509_pem;

use super::leaf::{Leaf, Usage};

/// Clocks of hosts and guests differ a little: certificates are valid from this long before they were made.
pub const BACKDATE: Duration = Duration::from_secs(300);

/// A certificate and its private key, as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: SecretString,
}

/// Why a key or certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// rcgen refused.
    #[error("make {what}")]
    Make {
        /// What was to be made.
        what: String,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// A time lies outside what X.509 can say.
    #[error("{0} is no time that a certificate can carry")]
    Time(Timestamp),
    /// A root's certificate cannot be read.
    #[error("read the root's certificate: {0}")]
    Root(String),
    /// A key cannot be read.
    #[error("read a key of the guest: {0}")]
    Key(String),
    /// A root's time is over, so that nothing is left to issue from it.
    #[error("the certificate authority expired at {0}, and with it the guest's certificates")]
    Expired(Timestamp),
    /// A certificate that rcgen made cannot be read, which would be a defect of ours.
    #[error("read a certificate that was just made")]
    Reread(#[source] yasna::ASN1Error),
    /// The system gives no random bytes.
    #[error("get random bytes from the system")]
    Random,
}

fn make<T>(what: impl Into<String>, result: Result<T, rcgen::Error>) -> Result<T, PkiError> {
    result.map_err(|source| PkiError::Make { what: what.into(), source })
}

/// Makes a root certificate. `owner` names the guest, for people who read certificates.
///
/// # Errors
/// [`PkiError`]
pub fn root(name: &str, owner: &str, now: Timestamp, ttl: Duration) -> Result<Pair, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&common_name_of_root(name, owner), &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now, end_of(now, ttl)?)?;
    let key = make(name, KeyPair::generate())?;
    let certificate = make(name, params.self_signed(&key))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem().into() })
}

/// Whether a root's certificate (PEM) has the name that [`root`] gives to one.
pub fn is_root_named(certificate: &str, name: &str, owner: &str) -> bool {
    let Ok((_, pem)) = parse_x509_pem(certificate.as_bytes()) else { return false };
    let Ok(parsed) = pem.parse_x509() else { return false };
    let names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    names.eq([common_name_of_root(name, owner).as_str()])
}

fn common_name_of_root(name: &str, owner: &str) -> String {
    format!("{name} CA of {owner}")
}

/// When a certificate (PEM) expires.
///
/// # Errors
/// [`PkiError::Root`] if it cannot be read.
pub fn expires(certificate: &str) -> Result<Timestamp, PkiError> {
    let unread = |error: &dyn Display| PkiError::Root(error.to_string());
    let (_, pem) = parse_x509_pem(certificate.as_bytes()).map_err(|error| unread(&error))?;
    let parsed = pem.parse_x509().map_err(|error| unread(&error))?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|error| unread(&error))
}

/// Makes a key and signs its leaf with a root. However long it is meant to live, it does not outlive the root.
///
/// # Errors
/// [`PkiError`]
pub fn sign(root: &Pair, leaf: &Leaf, now: Timestamp, ttl: Duration) -> Result<Pair, PkiError> {
    let key = make(leaf.name, KeyPair::generate())?;
    let certificate = certify(root, leaf, &key, now, ttl)?;
    Ok(Pair { certificate, key: key.serialize_pem().into() })
}

/// Signs a leaf (PEM) for a key with a root. However long it is meant to live, it does not outlive the root.
///
/// # Errors
/// [`PkiError`]
pub fn certify(
    root: &Pair,
    leaf: &Leaf,
    key: &impl PublicKeyData,
    now: Timestamp,
    ttl: Duration,
) -> Result<String, PkiError> {
    let roots_end = expires(&root.certificate)?;
    if roots_end <= now {
        return Err(PkiError::Expired(roots_end));
    }
    let ca_key = make("the root's key", KeyPair::from_pem(root.key.expose_secret()))?;
    let issuer = make("the root's certificate", Issuer::from_ca_cert_pem(&root.certificate, ca_key))?;
    let mut params = named(leaf)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match leaf.usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, end_of(now, ttl)?.min(roots_end))?;
    let made = make(leaf.name, params.signed_by(key, &issuer))?;
    match leaf.organisations.len() {
        0 | 1 => Ok(made.pem()),
        _ => with_every_organisation(made.der(), leaf, issuer.key()),
    }
}

/// A certificate (PEM) as it was made, but for its subject, and signed anew: rcgen keeps one organisation of a subject.
fn with_every_organisation(made: &[u8], leaf: &Leaf, signer: &KeyPair) -> Result<String, PkiError> {
    // RFC 5280, 4.1: a certificate is what is signed, the algorithm and the signature. What is signed begins with version,
    // serial number, algorithm, issuer, validity and subject; then come the public key and the extensions, which all of ours
    // have.
    const PARTS: usize = 8;
    const SUBJECT: usize = 5;
    let read = yasna::parse_der(made, |reader| {
        reader.read_sequence(|reader| {
            let parts = reader
                .next()
                .read_sequence(|reader| (0..PARTS).map(|_| reader.next().read_der()).collect::<Result<Vec<_>, _>>())?;
            let algorithm = reader.next().read_der()?;
            reader.next().read_der()?;
            Ok((parts, algorithm))
        })
    });
    let (mut parts, algorithm) = read.map_err(PkiError::Reread)?;
    parts[SUBJECT] = subject_der(leaf);
    let signed = sequence(&parts);
    let signature = make(leaf.name, signer.sign(&signed))?;
    let certificate = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_der(&signed);
            writer.next().write_der(&algorithm);
            writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
        });
    });
    Ok(encode("CERTIFICATE", certificate))
}

/// A block of PEM, its lines ended as all of ours.
pub(super) fn encode(label: &str, der: Vec<u8>) -> String {
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), lines)
}

/// The organisations of a leaf, in order, and its common name.
fn subject_der(leaf: &Leaf) -> Vec<u8> {
    // RFC 5280, appendix A.1.
    const COMMON_NAME: [u64; 4] = [2, 5, 4, 3];
    const ORGANISATION: [u64; 4] = [2, 5, 4, 10];
    let organisations = leaf.organisations.iter().map(|name| (ORGANISATION, name));
    let names = organisations.chain([(COMMON_NAME, &leaf.common_name)]).map(|(kind, name)| {
        yasna::construct_der(|writer| {
            writer.write_set(|writer| {
                writer.next().write_sequence(|writer| {
                    writer.next().write_oid(&yasna::models::ObjectIdentifier::from_slice(&kind));
                    writer.next().write_utf8_string(name);
                });
            });
        })
    });
    sequence(&names.collect::<Vec<_>>())
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| parts.iter().for_each(|part| writer.next().write_der(part)))
    })
}

/// Makes a key and asks for its certificate: the request (PEM, PKCS#10) and the key. Who signs
/// decides on organisations, usages and lifetime.
///
/// # Errors
/// [`PkiError`]
pub fn request(leaf: &Leaf) -> Result<(String, KeyPair), PkiError> {
    let key = make(leaf.name, KeyPair::generate())?;
    let request = make(leaf.name, named(leaf)?.serialize_request(&key).and_then(|request| request.pem()))?;
    Ok((request, key))
}

/// A leaf's subject and names.
fn named(leaf: &Leaf) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&leaf.common_name, &leaf.organisations);
    for name in &leaf.dns {
        let name = make(leaf.name, name.as_str().try_into())?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.subject_alt_names.extend(leaf.addresses.iter().map(|address| SanType::IpAddress(*address)));
    Ok(params)
}

/// Makes a key pair for service-account tokens: the public key stands where a certificate would.
///
/// # Errors
/// [`PkiError`]
pub fn key_pair() -> Result<Pair, PkiError> {
    let key = make("the service-account key", KeyPair::generate())?;
    Ok(Pair { certificate: key.public_key_pem(), key: key.serialize_pem().into() })
}

/// Makes the API server's `EncryptionConfiguration` with a fresh key of this name for Secrets. What is stored begins with the name.
///
/// # Errors
/// [`PkiError`]
pub fn encryption_config(name: &str) -> Result<SecretString, PkiError> {
    let mut key = [0_u8; 32];
    rustls::crypto::ring::default_provider().secure_random.fill(&mut key).map_err(|_| PkiError::Random)?;
    Ok(encryption_config_of(name, &key))
}

/// The API server's `EncryptionConfiguration` with this key under this name.
pub fn encryption_config_of(name: &str, key: &[u8; 32]) -> SecretString {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - secretbox:\n      keys:\n      - {{name: {name}, secret: {}}}\n  - identity: {{}}\n",
        STANDARD.encode(key)
    )
    .into()
}

/// SHA-256 of what identifies a root: its certificate, its public key, or (for a bare key) the key itself.
pub fn fingerprint(identifying: &str) -> String {
    Sha256::digest(identifying.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn subject(common_name: &str, organisations: &[String]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organisation in organisations {
        name.push(DnType::OrganizationName, organisation.as_str());
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn end_of(now: Timestamp, ttl: Duration) -> Result<Timestamp, PkiError> {
    now.checked_add(ttl).map_err(|_| PkiError::Time(now))
}

fn validity(params: &mut CertificateParams, now: Timestamp, end: Timestamp) -> Result<(), PkiError> {
    params.not_before = certificate_time(now.checked_sub(BACKDATE).map_err(|_| PkiError::Time(now))?)?;
    params.not_after = certificate_time(end)?;
    Ok(())
}

fn certificate_time(at: Timestamp) -> Result<time::OffsetDateTime, PkiError> {
    time::OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| PkiError::Time(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::valid::{DEFAULT_CA_TTL, DEFAULT_LEAF_TTL},
        pki::leaf,
    };

    #[test]
    fn a_leaf_carries_what_was_planned_and_its_root_verifies_it() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let root = root("kubernetes", "team-a/demo", now, DEFAULT_CA_TTL).unwrap();
        let (_, root_pem) = parse_x509_pem(root.certificate.as_bytes()).unwrap();
        let root_certificate = root_pem.parse_x509().unwrap();
        assert!(root_certificate.is_ca());
        let cluster = crate::testing::valid(serde_json::json!({}));
        for leaf in leaf::of_master(&cluster, 0) {
            let pair = sign(&root, &leaf, now, DEFAULT_LEAF_TTL).unwrap();
            let (_, pem) = parse_x509_pem(pair.certificate.as_bytes()).unwrap();
            let certificate = pem.parse_x509().unwrap();
            certificate.verify_signature(Some(root_certificate.public_key())).unwrap();
            let cn = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap();
            assert_eq!(cn, leaf.common_name);
            let organisations: Vec<_> =
                certificate.subject().iter_organization().map(|o| o.as_str().unwrap()).collect();
            assert_eq!(organisations, leaf.organisations);
            let names = certificate.subject_alternative_name().unwrap().map_or(0, |s| s.value.general_names.len());
            assert_eq!(names, leaf.dns.len() + leaf.addresses.len());
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert_eq!(usage.client_auth, leaf.usage != Usage::Server);
            assert_eq!(usage.server_auth, leaf.usage != Usage::Client);
            let life = certificate.validity();
            assert_eq!(life.not_after.timestamp(), 1_800_000_000 + 90 * 24 * 3600);
            assert_eq!(life.not_before.timestamp(), 1_800_000_000 - 300);
            assert!(!certificate.is_ca());
        }
    }

    #[test]
    fn a_request_names_what_the_certificate_is_to_name() {
        let cluster = crate::testing::valid(serde_json::json!({}));
        for leaf in leaf::of_master(&cluster, 0) {
            let (request, _) = request(&leaf).unwrap();
            let request = rcgen::CertificateSigningRequestParams::from_pem(&request).unwrap();
            assert_eq!(request.params.subject_alt_names.len(), leaf.dns.len() + leaf.addresses.len());
            let name = request.params.distinguished_name.get(&DnType::CommonName);
            assert_eq!(name, Some(&rcgen::DnValue::Utf8String(leaf.common_name)));
        }
    }

    #[test]
    fn every_group_is_in_a_users_certificate() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let root = root("kubernetes", "team-a/demo", now, DEFAULT_CA_TTL).unwrap();
        let groups = ["ops".to_owned(), "dev".to_owned(), "Prüfung".to_owned()];
        for count in 0..=3 {
            let pair = sign(&root, &leaf::user("alice", &groups[..count]), now, DEFAULT_LEAF_TTL).unwrap();
            let (_, pem) = parse_x509_pem(pair.certificate.as_bytes()).unwrap();
            let certificate = pem.parse_x509().unwrap();
            let subject = certificate.subject();
            let found: Vec<_> = subject.iter_organization().map(|name| name.as_str().unwrap()).collect();
            assert_eq!(found, groups[..count]);
            assert_eq!(subject.iter_common_name().next().unwrap().as_str().unwrap(), "alice");
            let (_, root) = parse_x509_pem(root.certificate.as_bytes()).unwrap();
            let signer = root.parse_x509().unwrap();
            certificate.verify_signature(Some(signer.public_key())).unwrap();
            assert_eq!(certificate.issuer(), signer.subject());
        }
    }

    #[test]
    fn no_leaf_outlives_its_root() {
        let made = Timestamp::from_second(1_800_000_000).unwrap();
        let (day, hour) = (Duration::from_secs(24 * 3600), Duration::from_secs(3600));
        let root = root("kubernetes", "team-a/demo", made, day).unwrap();
        let end = made + day;
        assert_eq!(expires(&root.certificate).unwrap(), end);
        let lasts =
            |now| sign(&root, &leaf::administrator(), now, 2 * hour).map(|leaf| expires(&leaf.certificate).unwrap());
        assert_eq!(lasts(end - 3 * hour).unwrap(), end - hour);
        assert_eq!(lasts(end - 2 * hour).unwrap(), end);
        assert_eq!(lasts(end - hour).unwrap(), end);
        assert!(matches!(lasts(end), Err(PkiError::Expired(at)) if at == end));
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let pair = key_pair().unwrap();
        let shown = format!("{pair:?}");
        assert!(!shown.contains("PRIVATE"), "{shown}");
        assert!(pair.certificate.contains("PUBLIC KEY"));
        let made = || encryption_config("key1").unwrap();
        assert_ne!(made().expose_secret(), made().expose_secret());
    }
}
