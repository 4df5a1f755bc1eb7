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
const INTERFACES: &str = "/latest/meta-data/network/interfaces/macs/";
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

    /// Addresses of the subnet that an interface with this Ethernet address is in. It may take a while until one is known.
    ///
    /// # Errors
    /// [`MetadataError`]
    pub async fn subnet(&self, mac: &str) -> Result<String, MetadataError> {
        let path = format!("{INTERFACES}{mac}/subnet-ipv4-cidr-block");
        let token = self.token().await?;
        let text = String::from_utf8(self.get(&token, &path).await?).map_err(|_| MetadataError::Answer(path))?;
        Ok(text.trim().to_owned())
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Router, extract::State, response::IntoResponse as _, routing::put};

    use super::*;

    /// A metadata service that answers these paths, to who has a token, and notes what it was asked for.
    #[derive(Clone, Default)]
    struct Service {
        answers: Arc<Mutex<Vec<(String, String)>>>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Service {
        fn says(&self, path: &str, text: &str) {
            self.answers.lock().unwrap().retain(|(other, _)| other != path);
            self.answers.lock().unwrap().push((path.into(), text.into()));
        }

        async fn start(&self) -> Metadata {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let token = |State(service): State<Self>, request: axum::extract::Request| async move {
                service.asked.lock().unwrap().push("token".into());
                let seconds = request.headers()[SECONDS_HEADER].to_str().unwrap().parse::<u32>().unwrap();
                assert!((1..=21_600).contains(&seconds));
                "the-token"
            };
            let other = |State(service): State<Self>, request: axum::extract::Request| async move {
                let path = request.uri().path().to_owned();
                service.asked.lock().unwrap().push(path.clone());
                if request.headers().get(TOKEN_HEADER).is_none_or(|token| token != "the-token") {
                    return StatusCode::UNAUTHORIZED.into_response();
                }
                let answers = service.answers.lock().unwrap();
                match answers.iter().find(|(known, _)| *known == path) {
                    Some((_, text)) => text.clone().into_response(),
                    None => StatusCode::NOT_FOUND.into_response(),
                }
            };
            let routes = Router::new().route(TOKEN, put(token)).fallback(other).with_state(self.clone());
            tokio::spawn(async move { axum::serve(listener, routes).await });
            Metadata::new(&url).unwrap()
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    const KEYS: &str = r#"{"Code":"Success","LastUpdated":"2027-01-15T07:00:00Z","Type":"AWS-HMAC","AccessKeyId":"ASIAX",
        "SecretAccessKey":"s3cr3t","Token":"t0ken","Expiration":"2027-01-15T08:00:01Z"}"#;

    #[tokio::test]
    async fn it_is_asked_by_token_who_the_instance_is_and_for_its_roles_keys() {
        let service = Service::default();
        service
            .says(DOCUMENT, r#"{"instanceId":"i-0a","privateIp":"10.1.0.4","region":"eu-central-1","accountId":"1"}"#);
        service.says(ROLES, "a-role\n");
        service.says(&format!("{ROLES}a-role"), KEYS);
        let metadata = service.start().await;
        let instance = metadata.instance().await.unwrap();
        assert_eq!(
            instance,
            Instance { instance_id: "i-0a".into(), private_ip: [10, 1, 0, 4].into(), availability_zone: None }
        );
        let keys = metadata.keys(now()).await.unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.expose_secret()), ("ASIAX", "s3cr3t"));
        assert!(!format!("{keys:?}").contains("s3cr3t") && !format!("{keys:?}").contains("t0ken"));
        let asked = service.asked.lock().unwrap().clone();
        assert_eq!(asked, ["token", DOCUMENT, "token", ROLES, &format!("{ROLES}a-role")]);
    }

    #[tokio::test]
    async fn what_it_does_not_have_is_told_without_what_it_said() {
        let service = Service::default();
        let metadata = service.start().await;
        assert!(matches!(metadata.keys(now()).await, Err(MetadataError::NoRole)));
        assert!(matches!(metadata.instance().await, Err(MetadataError::Refused { status: 404, .. })));
        service.says(ROLES, "a-role");
        let path = format!("{ROLES}a-role");
        for (answer, expected) in [
            (KEYS.replace("08:00:01", "08:00:00"), "ended at 2027-01-15T08:00:00Z"),
            (r#"{"Code":"AssumeRoleUnauthorizedAccess"}"#.into(), "AssumeRoleUnauthorizedAccess"),
            (KEYS.replace("\"Code\"", "Code"), "cannot be read"),
        ] {
            service.says(&path, &answer);
            let error = metadata.keys(now()).await.unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("s3cr3t"), "{error}");
        }
        let nobody = Metadata::new("http://127.0.0.1:9").unwrap();
        assert!(matches!(nobody.instance().await, Err(MetadataError::Failed { .. })));
        assert!(Metadata::new("not a URL").is_err());
    }
}
