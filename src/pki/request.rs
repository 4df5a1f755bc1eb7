//! What somebody inside a guest asks to have signed, and for what (PKCS#10). Pure.

use std::net::IpAddr;

use rcgen::{CertificateSigningRequestParams, SanType, SubjectPublicKeyInfo};
use x509_parser::{
    certification_request::X509CertificationRequest, prelude::FromDer as _, x509::AttributeTypeAndValue,
};

use super::{
    embedded,
    leaf::{Authority, Leaf, REQUESTED, Usage},
};

/// Beginning of the name that a kubelet has for its API server.
const NODE_USER: &str = "system:node:";
/// Group of kubelets.
const NODE_GROUP: &str = "system:nodes";
/// What a request is called in PEM (RFC 7468, 7).
const LABEL: &str = "CERTIFICATE REQUEST";
/// Group that no rule of RBAC holds: who is in it can be let out of it by nobody.
const MASTERS: &str = "system:masters";

/// For what a signer of Kubernetes signs. The rules are those of
/// <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// Clients of the API.
    Client,
    /// Kubelets as clients of the API.
    Kubelet,
    /// Kubelets as servers.
    KubeletServing,
}

impl Signer {
    /// The one of this name, if it is ours.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "kubernetes.io/kube-apiserver-client" => Some(Self::Client),
            "kubernetes.io/kube-apiserver-client-kubelet" => Some(Self::Kubelet),
            "kubernetes.io/kubelet-serving" => Some(Self::KubeletServing),
            _ => None,
        }
    }

    fn usage(self) -> Usage {
        match self {
            Self::Client | Self::Kubelet => Usage::Client,
            Self::KubeletServing => Usage::Server,
        }
    }

    /// What a certificate must be asked to be good for.
    fn purpose(self) -> &'static str {
        match self {
            Self::Client | Self::Kubelet => "client auth",
            Self::KubeletServing => "server auth",
        }
    }
}

/// A request that can be signed.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    /// The certificate that is asked for.
    pub leaf: Leaf,
    /// The request (PEM), and nothing beside it.
    pub pem: String,
    /// The public key.
    pub key: SubjectPublicKeyInfo,
}

/// Why a request is not signed, in words for who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is none.
    #[error("the request cannot be read: {0}")]
    Unread(String),
    /// Who asks does not show that he has the key.
    #[error("the request is not signed by its key, or an RSA key has not 2048 to 8192 bits")]
    Signature,
    /// A key that is not signed.
    #[error("keys may be ECDSA P-256 or P-384, Ed25519 or RSA")]
    Key,
    /// A name that nothing of ours asks for by.
    #[error("subject alternative names may be host names and addresses alone")]
    Name,
    /// A user or group that looks like another one.
    #[error("common name and organisations may not be empty, nor begin or end with a blank")]
    Blank,
    /// The authority takes no such names.
    #[error("the guest's authority signs no certificate with such names")]
    Authority,
    /// No user.
    #[error("the subject must have one common name")]
    CommonName,
    /// For something else than the signer's.
    #[error("usages must have {0:?}, a kubelet's \"digital signature\" too, and nothing else but \"key encipherment\"")]
    Usages(&'static str),
    /// The group that is above all rules.
    #[error("nobody gets a certificate of group {MASTERS}; bind cluster-admin to a group of yours")]
    Masters,
    /// Not a kubelet's name.
    #[error("a kubelet is {NODE_USER}NAME of group {NODE_GROUP}, and of no other")]
    Node,
    /// A client that is a server, too.
    #[error("a kubelet that is a client has no subject alternative names")]
    NamesOfClient,
    /// A server without a name.
    #[error("a server needs a host name or an address among its subject alternative names")]
    NamelessServer,
}

/// Reads a request (PEM) to this signer, for these usages.
///
/// # Errors
/// [`Unfit`]
pub fn read(signer: Signer, pem: &[u8], usages: &[String]) -> Result<SigningRequest, Unfit> {
    let der = decode(pem)?;
    let (common_name, organisations, key) = subject(&der)?;
    // That whoever asks has the key is looked at here.
    let asked = CertificateSigningRequestParams::from_der(&der.as_slice().into()).map_err(|error| match error {
        rcgen::Error::InvalidCertificationRequestSignature => Unfit::Signature,
        error => unread(&error),
    })?;
    let (dns, addresses) = names(&asked.params.subject_alt_names)?;
    let leaf = Leaf {
        name: REQUESTED,
        authority: Authority::Kubernetes,
        common_name,
        organisations,
        dns,
        addresses,
        usage: signer.usage(),
    };
    check_usages(signer, usages)?;
    check(signer, &leaf)?;
    Ok(SigningRequest { leaf, pem: embedded::encode(LABEL, der), key })
}

/// The one request of a text. Readers of PEM differ in which of several blocks they take, and in what they take for one: what is
/// signed must be what its approver was shown.
fn decode(text: &[u8]) -> Result<Vec<u8>, Unfit> {
    let text = std::str::from_utf8(text).map_err(|error| unread(&error))?;
    let is_one = |mark: &str| text.matches(mark).count() == 1;
    let has_line = |mark: &str| text.lines().any(|line| line.trim_end() == format!("-----{mark} {LABEL}-----"));
    if !(["BEGIN", "END"].into_iter().all(has_line) && is_one("-----BEGIN") && is_one("-----END")) {
        return Err(unread(&format!("it is not one PEM block {LABEL}")));
    }
    let block = pem::parse(text).map_err(|error| unread(&error))?;
    if block.tag() != LABEL || block.headers().iter().next().is_some() {
        return Err(unread(&format!("it is not a bare PEM block {LABEL}")));
    }
    Ok(block.into_contents())
}

fn unread(error: &dyn std::fmt::Display) -> Unfit {
    Unfit::Unread(error.to_string())
}

/// User, groups and key. Of groups, rcgen reads the last alone, and takes the sort of the key from the signature's digest.
fn subject(der: &[u8]) -> Result<(String, Vec<String>, SubjectPublicKeyInfo), Unfit> {
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|error| unread(&error))?;
    if !rest.is_empty() {
        return Err(unread(&"something follows the request"));
    }
    let info = &request.certification_request_info;
    let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| Unfit::Key)?;
    let text = |value: &AttributeTypeAndValue<'_>| match value.as_str() {
        // Vault leaves out blanks at the ends, and what is empty then.
        Ok(text) if text.is_empty() || text != text.trim() => Err(Unfit::Blank),
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(unread(&error)),
    };
    let mut users = info.subject.iter_common_name();
    let (Some(user), None) = (users.next(), users.next()) else { return Err(Unfit::CommonName) };
    let user = text(user)?;
    let mut groups: Vec<_> = info.subject.iter_organization().map(text).collect::<Result<_, _>>()?;
    groups.sort();
    groups.dedup();
    Ok((user, groups, key))
}

fn names(asked: &[SanType]) -> Result<(Vec<String>, Vec<IpAddr>), Unfit> {
    let (mut dns, mut addresses) = (Vec::new(), Vec::new());
    for name in asked {
        match name {
            SanType::DnsName(name) => dns.push(name.to_string()),
            SanType::IpAddress(address) => addresses.push(address.to_canonical()),
            _ => return Err(Unfit::Name),
        }
    }
    dns.sort();
    dns.dedup();
    addresses.sort();
    addresses.dedup();
    Ok((dns, addresses))
}

fn check_usages(signer: Signer, usages: &[String]) -> Result<(), Unfit> {
    let purpose = signer.purpose();
    let is_fit = |usage: &String| ["digital signature", "key encipherment", purpose].contains(&usage.as_str());
    let has = |wanted: &str| usages.iter().any(|usage| usage == wanted);
    let signs = signer == Signer::Client || has("digital signature");
    if has(purpose) && signs && usages.iter().all(is_fit) { Ok(()) } else { Err(Unfit::Usages(purpose)) }
}

fn check(signer: Signer, leaf: &Leaf) -> Result<(), Unfit> {
    let is_nameless = leaf.dns.is_empty() && leaf.addresses.is_empty();
    let is_node = leaf.common_name.strip_prefix(NODE_USER).is_some_and(|node| !node.is_empty())
        && leaf.organisations == [NODE_GROUP];
    match signer {
        _ if leaf.organisations.iter().any(|group| group == MASTERS) => Err(Unfit::Masters),
        Signer::Client => Ok(()),
        Signer::Kubelet | Signer::KubeletServing if !is_node => Err(Unfit::Node),
        Signer::Kubelet if !is_nameless => Err(Unfit::NamesOfClient),
        Signer::KubeletServing if is_nameless => Err(Unfit::NamelessServer),
        Signer::Kubelet | Signer::KubeletServing => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData as _};

    use super::*;

    fn leaf(user: &str, groups: &[&str], dns: &[&str]) -> Leaf {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        Leaf { dns: owned(dns), ..crate::pki::leaf::user(user, &owned(groups)) }
    }

    fn told(signer: Signer, leaf: &Leaf, usages: &[&str]) -> Result<Leaf, Unfit> {
        let (pem, _) = embedded::request(leaf).unwrap();
        let usages: Vec<_> = usages.iter().map(|usage| (*usage).to_owned()).collect();
        read(signer, pem.as_bytes(), &usages).map(|request| request.leaf)
    }

    #[test]
    fn each_signer_signs_what_kubernetes_says_that_it_does() {
        use Signer::{Client, Kubelet, KubeletServing};
        let (client, server) = (["client auth", "digital signature"], ["server auth", "digital signature"]);
        let node = |names| leaf("system:node:a-0", &["system:nodes"], names);
        let alice = told(Client, &leaf("alice", &["dev"], &[]), &["digital signature", "client auth"]).unwrap();
        assert_eq!(
            (alice.common_name.as_str(), alice.organisations, alice.usage),
            ("alice", vec!["dev".into()], Usage::Client)
        );
        assert_eq!(told(Kubelet, &node(&[]), &client).unwrap().usage, Usage::Client);
        let serving = told(KubeletServing, &node(&["a-0"]), &server).unwrap();
        assert_eq!((serving.dns, serving.usage), (vec!["a-0".to_owned()], Usage::Server));

        let refused = |signer, leaf: &Leaf, usages: &[&str]| told(signer, leaf, usages).unwrap_err();
        for blank in [leaf("", &[], &[]), leaf("a ", &[], &[]), leaf("a", &[" b"], &[])] {
            assert_eq!(refused(Client, &blank, &client), Unfit::Blank, "{blank:?}");
        }
        assert_eq!(told(Client, &leaf("a", &[], &[]), &["client auth"]).unwrap().usage, Usage::Client);
        assert_eq!(refused(Kubelet, &node(&[]), &["client auth"]), Unfit::Usages("client auth"));
        assert_eq!(refused(Client, &leaf("a", &["system:masters"], &[]), &client), Unfit::Masters);
        for usages in [
            &[][..],
            &["server auth"],
            &["client auth", "server auth"],
            &["digital signature"],
            &["cert sign", "client auth"],
        ] {
            assert_eq!(refused(Client, &leaf("a", &[], &[]), usages), Unfit::Usages("client auth"), "{usages:?}");
        }
        assert_eq!(refused(KubeletServing, &node(&["a-0"]), &client), Unfit::Usages("server auth"));
        for wrong in [
            leaf("alice", &["system:nodes"], &[]),
            leaf("system:node:", &["system:nodes"], &[]),
            leaf("system:node:a", &[], &[]),
        ] {
            assert_eq!(refused(Kubelet, &wrong, &client), Unfit::Node, "{wrong:?}");
            assert_eq!(refused(KubeletServing, &wrong, &server), Unfit::Node, "{wrong:?}");
        }
        assert_eq!(refused(Kubelet, &node(&["a-0"]), &client), Unfit::NamesOfClient);
        assert_eq!(refused(KubeletServing, &node(&[]), &server), Unfit::NamelessServer);
    }

    #[test]
    fn keys_of_other_sorts_are_taken_and_what_is_no_request_is_told() {
        let usages = ["client auth".to_owned()];
        for sort in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(sort).unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, "alice");
            let pem = params.serialize_request(&key).unwrap().pem().unwrap();
            let request = read(Signer::Client, pem.as_bytes(), &usages).unwrap();
            assert_eq!(request.key.der_bytes(), key.public_key_raw());
            params.subject_alt_names.push(SanType::Rfc822Name("a@b.c".try_into().unwrap()));
            let pem = params.serialize_request(&key).unwrap().pem().unwrap();
            assert_eq!(read(Signer::Client, pem.as_bytes(), &usages).unwrap_err(), Unfit::Name);
        }
        let (pem, _) = embedded::request(&leaf("alice", &[], &[])).unwrap();
        let broken = pem.replacen("MI", "MJ", 1);
        for text in [
            &b""[..],
            b"\xff",
            broken.as_bytes(),
            b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ] {
            assert!(matches!(read(Signer::Client, text, &usages), Err(Unfit::Unread(_))), "{text:?}");
        }
    }

    /// What other readers of PEM take for the request, whoever approves is shown that.
    #[test]
    fn beside_a_request_there_is_nothing() {
        let [shown, hidden] = [&["a-0"], &["kubernetes"]]
            .map(|names| embedded::request(&leaf("system:node:a-0", &["system:nodes"], names)).unwrap().0);
        let usages = ["server auth".to_owned(), "digital signature".to_owned()];
        let read = |text: &str| read(Signer::KubeletServing, text.as_bytes(), &usages);
        assert_eq!(read(&shown).unwrap().leaf.dns, ["a-0"]);
        let other = hidden.replace("BEGIN CERTIFICATE REQUEST", "BEGIN X").replace("END CERTIFICATE REQUEST", "END Y");
        let header = shown.replacen("-----\n", "-----\nProc-Type: 4\n\n", 1);
        for text in [
            format!("{hidden}{shown}"),
            format!("x{hidden}{shown}"),
            format!("{other}{shown}"),
            format!("x{hidden}{other}{shown}"),
            format!("x{shown}"),
            shown.replace("END CERTIFICATE REQUEST", "END X"),
            shown.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
            header,
        ] {
            assert!(matches!(read(&text), Err(Unfit::Unread(_))), "{text}");
        }
        assert_eq!(read(&format!("words\n{shown}words\n")).unwrap().pem, shown.replace("\r\n", "\n"));
    }

    #[test]
    fn who_does_not_have_the_key_gets_nothing() {
        let (pem, _) = embedded::request(&leaf("alice", &[], &[])).unwrap();
        let mut forged = decode(pem.as_bytes()).unwrap();
        let place = forged.windows(5).position(|bytes| bytes == b"alice").unwrap();
        forged[place..place + 5].copy_from_slice(b"admin");
        let forged = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", forged));
        let usages = ["client auth".to_owned()];
        assert_eq!(read(Signer::Client, forged.as_bytes(), &usages).unwrap_err(), Unfit::Signature);
    }
}
