//! `/authorities`: what the guest's components show of their authorities, and whose certificates they want. The manager asks while
//! authorities are rotated.
//!
//! Each is met in a handshake that goes no further: what it shows and whom it names as issuers of its clients is its own word, read
//! from the process that serves and not from any file. Which units were started anew for it the node says on its console.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, routing::get};
use futures::future::join_all;
use kube::client::Body;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    line::{Callee, Line},
    scrape::ETCD_PORT,
};
use crate::{
    api::names,
    node_config::{
        TURN_LINE,
        paths::{CA, ETCD_CA},
    },
    pki::{kubeconfig::TLS_SERVER_NAME, leaf},
};

/// Path on the supervisor's port.
pub const PATH: &str = "/authorities";
/// How long a component may take for a handshake, and to say that it is well: an emulated one under load takes seconds.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most units that a node says it started, and the longest word it says of one.
const MOST: usize = 16;
const LONGEST: usize = 32;

/// What was seen of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    /// Components that were met, by name.
    pub met: BTreeMap<String, Met>,
    /// Units that were started anew, and what for, as the node says.
    pub started: BTreeMap<String, String>,
}

/// What a component shows. Names are told as the SHA-256 of their DER.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Met {
    /// Names of the authorities whose clients it wants.
    pub asks: BTreeSet<String>,
    /// Name of the authority that signed the certificate that it shows.
    pub signer: String,
    /// Whether it says of itself that it is well; of a kubelet, whether it is there.
    pub well: bool,
}

/// What a node says that it started. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Started(Arc<Mutex<BTreeMap<String, String>>>);

impl Started {
    /// Takes note of a line of the console, if it is one that says so.
    pub(super) fn read(&self, line: &str) {
        let Some((_, said)) = line.split_once(TURN_LINE) else { return };
        let is_word = |word: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
            !word.is_empty() && word.len() <= LONGEST && word.chars().all(plain)
        };
        let words = said.split_whitespace().filter_map(|word| word.split_once('='));
        let words = words.filter(|(unit, mark)| is_word(unit) && is_word(mark));
        let said = words.take(MOST).map(|(unit, mark)| (unit.to_owned(), mark.to_owned())).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = said;
    }

    fn all(&self) -> BTreeMap<String, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A component that is met.
struct Component {
    name: &'static str,
    callee: Callee,
    /// Where it says that it is well, and what it says then. None: whoever shakes hands is.
    health: Option<(&'static str, &'static str)>,
    line: tokio::sync::Mutex<Line>,
}

struct Node {
    address: IpAddr,
    components: Vec<Component>,
    started: Started,
}

/// The route of a node's supervisor.
pub(super) fn routes(node: &str, is_worker: bool, address: IpAddr, started: Started) -> Router {
    let component = |name, port, server_name: &str, authority, identity, health| Component {
        name,
        callee: Callee { port, server_name: server_name.to_owned(), authority, identity },
        health,
        line: tokio::sync::Mutex::default(),
    };
    let mut components = vec![component("kubelet", names::KUBELET_PORT, node, CA, None, None)];
    if !is_worker {
        let api = Some(("/readyz", "ok"));
        components.push(component("kube-apiserver", names::API_PORT, TLS_SERVER_NAME, CA, None, api));
        let etcd = Some(("/health", "\"health\":\"true\""));
        components.push(component("etcd", ETCD_PORT, node, ETCD_CA, Some(leaf::ETCD_CLIENT), etcd));
    }
    Router::new().route(PATH, get(meet_all)).with_state(Arc::new(Node { address, components, started }))
}

async fn meet_all(State(node): State<Arc<Node>>) -> Json<Answer> {
    let met = node.components.iter().map(|component| async {
        let address = SocketAddr::from((node.address, component.callee.port));
        let name = component.callee.server_name.clone();
        // The handshake blocks a thread of those that are for it, for a bounded time.
        let met = tokio::task::spawn_blocking(move || meet(address, &name)).await.ok().flatten()?;
        let well = component.is_well(node.address).await;
        Some((component.name.to_owned(), Met { well, ..met }))
    });
    let met = join_all(met).await.into_iter().flatten().collect();
    Json(Answer { met, started: node.started.all() })
}

impl Component {
    async fn is_well(&self, address: IpAddr) -> bool {
        let Some((path, well)) = self.health else { return true };
        let ask = async {
            let client = self.line.lock().await.client(&self.callee, address).await?;
            let request = ::http::Request::get(path).body(Body::empty()).ok()?;
            let answer = client.send(request).await.ok()?;
            let is_ok = answer.status() == ::http::StatusCode::OK;
            Some(
                is_ok
                    && super::health::read(answer.into_body())
                        .await?
                        .windows(well.len())
                        .any(|at| at == well.as_bytes()),
            )
        };
        matches!(tokio::time::timeout(TIMEOUT, ask).await, Ok(Some(true)))
    }
}

/// Shakes hands with whoever is there, which blocks for some seconds at most. None: nobody showed a certificate. Whether it is well is
/// another question.
pub fn meet(address: SocketAddr, server_name: &str) -> Option<Met> {
    meet_within(TIMEOUT, address, server_name)
}

fn meet_within(timeout: Duration, address: SocketAddr, server_name: &str) -> Option<Met> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let witness = Arc::new(Witness { provider: provider.clone(), seen: Mutex::default() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_client_cert_resolver(witness.clone());
    config.resumption = rustls::client::Resumption::disabled();
    let name = ServerName::try_from(server_name.to_owned()).ok()?;
    let mut connection = ClientConnection::new(Arc::new(config), name).ok()?;
    let mut stream = TcpStream::connect_timeout(&address, timeout).ok()?;
    stream.set_write_timeout(Some(timeout)).ok()?;
    let deadline = Instant::now() + timeout;
    // Who wants a certificate refuses us, after it has said all that was to be heard. One read or write at a time, since whoever sends
    // a byte now and then would hold this thread for ever.
    while connection.is_handshaking() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            break;
        }
        let done = if connection.wants_write() {
            connection.write_tls(&mut stream).is_ok()
        } else {
            let read = connection.read_tls(&mut stream).is_ok_and(|read| read > 0);
            read && connection.process_new_packets().is_ok()
        };
        if !done {
            break;
        }
    }
    let seen = witness.seen.lock().unwrap_or_else(PoisonError::into_inner);
    let signer = seen.signer.clone()?;
    Some(Met { asks: seen.asks.clone(), signer, well: false })
}

/// Takes note of what is shown to it, believes everybody and shows nothing. Nothing is ever sent after such a handshake.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    asks: BTreeSet<String>,
    signer: Option<String>,
}

/// How a name is told.
pub fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unread = |_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding);
        let (_, certificate) = x509_parser::parse_x509_certificate(end_entity).map_err(unread)?;
        let signer = fingerprint(certificate.issuer().as_raw());
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).signer = Some(signer);
        Ok(ServerCertVerified::assertion())
    }

    // That who shows a certificate has its key is checked: a copy of one is not met.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Witness {
    fn resolve(&self, issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let asks = issuers.iter().map(|name| fingerprint(name)).collect();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).asks = asks;
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net::TcpListener, thread};

    use k8s_openapi::jiff::Timestamp;
    use rustls::{
        RootCertStore, ServerConfig, ServerConnection,
        pki_types::{PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    };
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::pki::{
        embedded::{self, Pair},
        leaf::{Authority, Leaf, Usage},
    };

    fn root(name: &str) -> Pair {
        embedded::root(name, "a/b", Timestamp::now(), Duration::from_secs(3600)).unwrap()
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn name_of(root: &Pair) -> String {
        let der = der(&root.certificate);
        fingerprint(x509_parser::parse_x509_certificate(&der).unwrap().1.subject().as_raw())
    }

    /// A server that shows a leaf of `signer` and wants clients of `trusted`.
    fn serve(signer: &Pair, trusted: &[&Pair], versions: &[&'static rustls::SupportedProtocolVersion]) -> SocketAddr {
        let leaf = Leaf {
            name: "server",
            authority: Authority::Etcd,
            common_name: "server".into(),
            organisations: Vec::new(),
            dns: vec!["localhost".into()],
            addresses: Vec::new(),
            usage: Usage::Both,
        };
        let pair = embedded::sign(signer, &leaf, Timestamp::now(), Duration::from_secs(600)).unwrap();
        let mut roots = RootCertStore::empty();
        trusted.iter().for_each(|root| roots.add(der(&root.certificate)).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let key = PrivateKeyDer::from_pem_slice(pair.key.expose_secret().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![der(&pair.certificate)], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
            // It refuses who shows nothing.
            while connection.is_handshaking() && connection.complete_io(&mut stream).is_ok() {}
        });
        address
    }

    #[test]
    fn who_drips_bytes_holds_a_thread_for_a_bounded_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // A record of a handshake whose end does not come.
            let mut next = stream.write_all(&[0x16, 3, 3, 0x3f, 0xff]);
            while next.is_ok() {
                thread::sleep(Duration::from_millis(20));
                next = stream.write_all(&[2]);
            }
        });
        let began = Instant::now();
        assert!(meet_within(Duration::from_millis(300), address, "localhost").is_none());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[test]
    fn whoever_wants_a_certificate_is_met_and_says_whose() {
        let (old, new) = (root("etcd"), root("etcd-2"));
        for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
            let met = meet(serve(&old, &[&old, &new], versions), "localhost").unwrap();
            assert_eq!(met.signer, name_of(&old));
            assert_eq!(met.asks, [name_of(&old), name_of(&new)].into());
            let met = meet(serve(&new, &[&new], versions), "localhost").unwrap();
            assert_eq!((met.signer, met.asks), (name_of(&new), [name_of(&new)].into()));
        }
    }

    #[test]
    fn nobody_is_met_where_nobody_is_or_who_is_there_speaks_no_tls() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(meet(closed, "localhost"), None);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ended = thread::spawn(move || drop(listener.accept().unwrap()));
        assert_eq!(meet(address, "localhost"), None);
        ended.join().unwrap();
    }

    #[test]
    fn what_the_node_says_last_counts_and_nonsense_does_not() {
        let started = Started::default();
        started.read("[   12.3] something else");
        assert!(started.all().is_empty());
        started.read(&format!("[  12.3] {TURN_LINE}etcd=2.trust kubelet=2.trust"));
        assert_eq!(started.all().len(), 2);
        started.read(&format!("{TURN_LINE}etcd=2.drop kube\u{1}let=2 a= =b c=<x> {}=1 nonsense", "x".repeat(40)));
        assert_eq!(started.all(), BTreeMap::from([("etcd".into(), "2.drop".into())]));
        let many: String = (0..100).map(|n| format!("u{n}=1 ")).collect();
        started.read(&format!("{TURN_LINE}{many}"));
        assert_eq!(started.all().len(), MOST);
    }
}
