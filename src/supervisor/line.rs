//! Lines to the guest's components: each proves itself by the guest's authority.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::{Client, Config, config::AuthInfo};

use super::paths;
use crate::node_config::paths::{certificate, key};

/// A line is made anew after this time: one that is kept says nothing of the certificate that others meet.
const AGE: Duration = Duration::from_secs(300);

/// Who is called, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Callee {
    /// Its TCP port.
    pub port: u16,
    /// The name that its certificate must have.
    pub server_name: String,
    /// File of the authority that signed its certificate.
    pub authority: &'static str,
    /// Whose certificate is shown to it; none: nobody's.
    pub identity: Option<&'static str>,
}

/// A line that is kept: a handshake every other second costs an emulated guest more than the answer.
#[derive(Default)]
pub(super) struct Line {
    /// What it was made with. The mount that this is read from is live.
    papers: Option<Papers>,
    client: Option<(Client, Instant)>,
}

#[derive(PartialEq, Eq)]
struct Papers {
    authority: Vec<u8>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Papers {
    async fn read(callee: &Callee) -> std::io::Result<Self> {
        let read = |file: String| tokio::fs::read(format!("{}/{file}", paths::PKI));
        let identity = match callee.identity {
            Some(leaf) => Some((read(certificate(leaf)).await?, read(key(leaf)).await?)),
            None => None,
        };
        Ok(Self { authority: read(callee.authority.to_owned()).await?, identity })
    }

    fn connect(&self, callee: &Callee, address: IpAddr) -> Option<Client> {
        let mut config = Config::new(format!("https://{}", SocketAddr::from((address, callee.port))).parse().ok()?);
        config.root_cert = Some(trusted(&self.authority)?);
        config.tls_server_name = Some(callee.server_name.clone());
        config.default_retry = false;
        if let Some((certificate, key)) = &self.identity {
            config.auth_info = AuthInfo {
                client_certificate_data: Some(STANDARD.encode(certificate)),
                client_key_data: Some(STANDARD.encode(key).into()),
                ..AuthInfo::default()
            };
        }
        Client::try_from(config).ok()
    }
}

impl Line {
    /// A client of `callee` at `address`. None if the files that it takes are not there, or are none.
    pub(super) async fn client(&mut self, callee: &Callee, address: IpAddr) -> Option<Client> {
        let papers = Papers::read(callee).await.ok()?;
        let fresh =
            self.client.as_ref().filter(|(_, made)| self.papers.as_ref() == Some(&papers) && made.elapsed() < AGE);
        if let Some((client, _)) = fresh {
            return Some(client.clone());
        }
        let client = papers.connect(callee, address)?;
        (self.papers, self.client) = (Some(papers), Some((client.clone(), Instant::now())));
        Some(client)
    }
}

/// The certificates (DER) of a file: while authorities are rotated there are two. None if there is none.
fn trusted(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let all: Result<Vec<_>, _> =
        x509_parser::pem::Pem::iter_from_buffer(file).map(|pem| pem.map(|pem| pem.contents)).collect();
    all.ok().filter(|all| !all.is_empty())
}
