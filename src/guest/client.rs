//! A connection to a guest's API, with a certificate that lives ten minutes and is kept in memory only.

use std::{net::IpAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::{Client, Config, config::AuthInfo};
use secrecy::ExposeSecret as _;

use crate::{
    api::names,
    cluster::Identity,
    context::Context,
    pki::{self, kubeconfig::TLS_SERVER_NAME},
    runtime::{
        CallError,
        link::{self, Server},
    },
    supervisor::{addons, client::Question},
};

/// An emulated API server that starts takes longer for a handshake than others do, and one that was given up has to be begun
/// anew. Whoever is root in a guest's control plane can answer as long as he likes, and this process serves all guests; the
/// list of 500 Nodes is shorter than that.
const SERVER: Server = Server { name: "guest", connecting: Duration::from_secs(15), answer: 16 << 20 };
/// Bytes that the manifests of add-ons may have; Calico's alone have 300,000.
const MANIFESTS: usize = 4 << 20;
const MANIFESTS_TIMEOUT: Duration = Duration::from_secs(15);
/// Lifetime of the certificate.
pub const TTL: Duration = Duration::from_secs(600);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No credentials.
    #[error("get credentials for the guest's API")]
    Credentials(#[source] pki::reconcile::Error),
    /// The URL or the certificates are unusable.
    #[error("set up a client of the guest's API at {endpoint}")]
    Client {
        /// URL of the API.
        endpoint: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Connects to a guest's API at `address`.
///
/// # Errors
/// [`ConnectError`]
pub async fn connect(context: &Context, identity: &Identity, address: IpAddr) -> Result<Client, ConnectError> {
    let (ca, client) =
        pki::clients::bootstrap_credentials(context, identity, TTL).await.map_err(ConnectError::Credentials)?;
    let endpoint = format!("https://{address}:{}", names::API_PORT);
    let failed =
        |source: Box<dyn std::error::Error + Send + Sync>| ConnectError::Client { endpoint: endpoint.clone(), source };
    let mut config = Config::new(endpoint.parse().map_err(|error: http::uri::InvalidUri| failed(error.into()))?);
    config.root_cert = Some(ders(&ca).map_err(failed)?);
    config.tls_server_name = Some(TLS_SERVER_NAME.into());
    config.auth_info = AuthInfo {
        client_certificate_data: Some(STANDARD.encode(&client.certificate)),
        client_key_data: Some(STANDARD.encode(client.key.expose_secret()).into()),
        ..AuthInfo::default()
    };
    // Writes inside a guest are the leader's, too.
    link::connect_to(SERVER, config, Some(context.leadership.clone())).map_err(|error| failed(error.into()))
}

/// The manifests of add-ons that the VM image of the VM pod at `address` carries.
///
/// # Errors
/// If the supervisor does not answer, or has none.
pub async fn manifests(address: IpAddr) -> Result<String, CallError> {
    Question { address, path: addons::PATH, answer: MANIFESTS, timeout: MANIFESTS_TIMEOUT }.text().await
}

/// The certificates of a bundle: there are two while authorities are rotated.
fn ders(bundle: &str) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
    let all = x509_parser::pem::Pem::iter_from_buffer(bundle.as_bytes());
    Ok(all.map(|pem| pem.map(|pem| pem.contents)).collect::<Result<_, _>>()?)
}
