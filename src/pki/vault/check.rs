//! Whether a certificate is the one that was asked for: a role that somebody changed signs another. Pure.

use k8s_openapi::jiff::Timestamp;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::parse_x509_pem};

use crate::pki::leaf::{Leaf, Usage};

/// What is wrong with a certificate of a root that was put in the place of ours.
pub const ANOTHER_ROOT: &str = "is signed by another root";

/// What is wrong with a certificate (PEM) for `leaf` and the public `key` (as in a SubjectPublicKeyInfo), that `root` (PEM) was
/// to sign, to be good until `end`.
pub fn problem(certificate: &str, root: &str, leaf: &Leaf, key: &[u8], end: Timestamp) -> Option<&'static str> {
    let [certificate, root] = [certificate, root].map(|pem| parse_x509_pem(pem.as_bytes()).ok().map(|(_, pem)| pem));
    let (Some(certificate), Some(root)) = (certificate, root) else { return Some("cannot be read") };
    let (Ok(certificate), Ok(root)) = (certificate.parse_x509(), root.parse_x509()) else {
        return Some("cannot be read");
    };
    if certificate.public_key().subject_public_key.data.as_ref() != key {
        return Some("is for another key");
    }
    if certificate.verify_signature(Some(root.public_key())).is_err() {
        return Some(ANOTHER_ROOT);
    }
    if !has_subject(&certificate, leaf) {
        return Some("has another subject");
    }
    if !has_names(&certificate, leaf) {
        return Some("has other names");
    }
    if !has_usage(&certificate, leaf.usage) {
        return Some("is good for something else");
    }
    (certificate.validity().not_after.timestamp() < end.as_second()).then_some("ends too early")
}

fn has_subject(certificate: &X509Certificate, leaf: &Leaf) -> bool {
    let subject = certificate.subject();
    let names: Vec<_> = subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    let mut groups: Vec<_> = subject.iter_organization().filter_map(|name| name.as_str().ok()).collect();
    let mut wanted: Vec<_> = leaf.organisations.iter().map(String::as_str).collect();
    groups.sort_unstable();
    wanted.sort_unstable();
    names == [leaf.common_name.as_str()] && groups == wanted && subject.iter_attributes().count() == 1 + groups.len()
}

fn has_names(certificate: &X509Certificate, leaf: &Leaf) -> bool {
    let Ok(found) = certificate.subject_alternative_name() else { return false };
    let found = found.map_or(&[][..], |names| &names.value.general_names);
    let mut found: Vec<_> = found.iter().map(name).collect();
    let addresses = leaf.addresses.iter().map(|address| match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    });
    let mut wanted: Vec<_> =
        leaf.dns.iter().map(|name| Some(name.as_bytes().to_vec())).chain(addresses.map(Some)).collect();
    for names in [&mut found, &mut wanted] {
        names.sort_unstable();
        names.dedup();
    }
    found == wanted
}

/// A host name or an address. None: something else, which nobody asks for.
fn name(name: &GeneralName) -> Option<Vec<u8>> {
    match name {
        GeneralName::DNSName(name) => Some(name.as_bytes().to_vec()),
        GeneralName::IPAddress(bytes) => Some(bytes.to_vec()),
        _ => None,
    }
}

fn has_usage(certificate: &X509Certificate, usage: Usage) -> bool {
    let Ok(Some(found)) = certificate.extended_key_usage() else { return false };
    let found = found.value;
    let wanted = (usage != Usage::Server, usage != Usage::Client);
    let more = found.any || found.code_signing || found.email_protection || !found.other.is_empty();
    (found.client_auth, found.server_auth) == wanted && !more && !certificate.is_ca()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::KeyPair;
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    use super::*;
    use crate::{
        cluster::valid::DEFAULT_CA_TTL,
        pki::{embedded, leaf},
        testing::valid,
    };

    #[test]
    fn every_difference_is_seen() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let [one, two] = ["one", "two"].map(|name| embedded::root(name, "a/b", now, DEFAULT_CA_TTL).unwrap());
        let day = Duration::from_secs(24 * 3600);
        let end = Timestamp::from_second(1_800_000_000 + 24 * 3600).unwrap();
        let leaves = leaf::of_master(&valid(json!({})), 0);
        for leaf in leaves.iter().chain([&leaf::user("alice", &["dev".into()]), &leaf::user("bob", &[])]) {
            let pair = embedded::sign(&one, leaf, now, day).unwrap();
            let key = KeyPair::from_pem(pair.key.expose_secret()).unwrap();
            let told = |leaf: &Leaf| problem(&pair.certificate, &one.certificate, leaf, key.public_key_raw(), end);
            assert_eq!(told(leaf), None, "{}", leaf.name);
            assert_eq!(told(&Leaf { common_name: "x".into(), ..leaf.clone() }), Some("has another subject"));
            assert_eq!(told(&Leaf { organisations: vec!["x".into()], ..leaf.clone() }), Some("has another subject"));
            assert_eq!(told(&Leaf { dns: vec!["x".into()], ..leaf.clone() }), Some("has other names"));
            assert_eq!(told(&Leaf { addresses: vec![[9, 9, 9, 9].into()], ..leaf.clone() }), Some("has other names"));
            let usage = if leaf.usage == Usage::Client { Usage::Both } else { Usage::Client };
            assert_eq!(told(&Leaf { usage, ..leaf.clone() }), Some("is good for something else"));
            let later = Timestamp::from_second(end.as_second() + 1).unwrap();
            let told =
                |root: &str, key: &KeyPair, end| problem(&pair.certificate, root, leaf, key.public_key_raw(), end);
            assert_eq!(told(&one.certificate, &key, later), Some("ends too early"));
            assert_eq!(told(&two.certificate, &key, end), Some(ANOTHER_ROOT));
            assert_eq!(told(&one.certificate, &KeyPair::generate().unwrap(), end), Some("is for another key"));
            assert_eq!(told("", &key, end), Some("cannot be read"));
        }
    }
}
