//! An instance's metadata service, version 2: who the instance is, and its role's keys.
//!
//! It is asked with a token that it gives for the asking, by PUT. The token's packet lives for one hop, so whoever is
//! behind a router of the node's, as pods are, gets none; and the agent has to run on the node itself.

use std::time::Duration;

use http::{HeaderName, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, Config, client::Body};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, de::DeserializeOwned};

use super::{config::Instance, sign::Keys};
use crate::runtime::{
    CallFailure, call_within,
    link::{self, Server},
};

/// What is asked for here are small documents.
const SERVER: Server = Server { name: "metadata", connecting: Duration::from_secs(2), answer: 64 << 10 };
/// Longest time that one question may take: the service is on the host itself.
const LIMIT: Duration = Duration::from_secs(5);
/// Seconds that a token is good for: it is used at once.
const TOKEN_SECONDS: &str = "60";

const TOKEN: &str = "/latest/api/token";
const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const SECONDS_HEADER: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");

/// Why the metadata service was of no help.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No client can be made.
    #[error("set up a client of the metadata service at {0}")]
    SetUp(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// It did not answer.
    #[error("ask the metadata service for {path}")]
    Failed {
        /// What was asked for.
        path: String,
        /// Why there is no answer.
        #[source]
        source: CallFailure,
    },
    /// It refuses.
    #[error("ask the metadata service for {path}: HTTP {status}")]
    Refused {
        /// What was asked for.
        path: String,
        /// What it answered.
        status: u16,
    },
    /// The instance has no role.
    #[error("the instance has no role: its launch template has to name an instance profile")]
    NoRole,
    /// The role's keys cannot be had.
    #[error("the metadata service has no keys of role {role}: {code}")]
    NoKeys {
        /// The role.
        role: String,
        /// What it says.
        code: String,
    },
    /// The role's keys have ended, and others did not come yet.
    #[error("the keys of role {role} ended at {at}")]
    Ended {
        /// The role.
        role: String,
        /// When.
        at: Timestamp,
    },
    /// The answer is not what AWS's documentation says.
    #[error("the metadata service's answer for {0} cannot be read")]
    Answer(String),
}

/// A metadata service.
pub struct Metadata {
    client: Client,
}

impl Metadata {
    /// The one at this URL.
    ///
    /// # Errors
    /// If the URL is none.
    pub fn new(url: &str) -> Result<Self, MetadataError> {
        let failed = |source| MetadataError::SetUp(url.to_owned(), source);
        let config = Config::new(url.parse().map_err(|error: http::uri::InvalidUri| failed(error.into()))?);
        let client = link::connect_to(SERVER, config, None).map_err(|error| failed(error.into()))?;
        Ok(Self { client })
    }

    /// Who the instance is.
    ///
    /// # Errors
    /// [`MetadataError`]
    pub async fn instance(&self) -> Result<Instance, MetadataError> {
        let token = self.token().await?;
        read(DOCUMENT, &self.get(&token, DOCUMENT).await?)
    }

    /// Keys of its role, which have not ended at `now`.
    ///
    /// # Errors
    /// [`MetadataError`]
    pub async fn keys(&self, now: Timestamp) -> Result<Keys, MetadataError> {
        let token = self.token().await?;
        let role = match self.get(&token, ROLES).await {
            Err(MetadataError::Refused { status: 404, .. }) => return Err(MetadataError::NoRole),
            answer => String::from_utf8(answer?).map_err(|_| MetadataError::Answer(ROLES.into()))?,
        };
        let role = role.trim();
        let path = format!("{ROLES}{role}");
        let found: Credentials = read(&path, &self.get(&token, &path).await?)?;
        found.keys(role, now)
    }

    async fn token(&self) -> Result<SecretString, MetadataError> {
        let request = Request::builder().method(Method::PUT).uri(TOKEN).header(SECONDS_HEADER, TOKEN_SECONDS);
        let token = self.ask(TOKEN, request).await?;
        String::from_utf8(token).map(SecretString::from).map_err(|_| MetadataError::Answer(TOKEN.into()))
    }

    async fn get(&self, token: &SecretString, path: &str) -> Result<Vec<u8>, MetadataError> {
        self.ask(path, Request::get(path).header(TOKEN_HEADER, token.expose_secret())).await
    }

    async fn ask(&self, path: &str, request: http::request::Builder) -> Result<Vec<u8>, MetadataError> {
        let ask = async {
            let request = request.body(Body::empty()).map_err(kube::Error::HttpError)?;
            let answer = self.client.send(request).await?;
            let status = answer.status();
            kube::Result::Ok((status, answer.into_body().collect().await?.to_bytes()))
        };
        let (status, bytes) = call_within(LIMIT, "ask", path, ask)
            .await
            .map_err(|error| MetadataError::Failed { path: path.to_owned(), source: error.source })?;
        match status {
            StatusCode::OK => Ok(bytes.to_vec()),
            _ => Err(MetadataError::Refused { path: path.to_owned(), status: status.as_u16() }),
        }
    }
}

/// Not the parser's error: it shows a part of the text, which may be a key.
fn read<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, MetadataError> {
    serde_json::from_slice(bytes).map_err(|_| MetadataError::Answer(path.to_owned()))
}

/// Keys as the service has them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials {
    code: String,
    #[serde(default)]
    access_key_id: String,
    #[serde(default)]
    secret_access_key: String,
    #[serde(default)]
    token: String,
    expiration: Option<Timestamp>,
}

impl Credentials {
    fn keys(self, role: &str, now: Timestamp) -> Result<Keys, MetadataError> {
        if self.code != "Success" {
            return Err(MetadataError::NoKeys { role: role.to_owned(), code: self.code });
        }
        match self.expiration {
            Some(at) if at <= now => Err(MetadataError::Ended { role: role.to_owned(), at }),
            _ => {
                let (secret, token) = (self.secret_access_key.into(), self.token.into());
                Ok(Keys { id: self.access_key_id, secret, token })
            }
        }
    }
}
