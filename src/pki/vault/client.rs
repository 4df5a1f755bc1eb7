//! Vault's HTTP API, as far as it is needed: logged in by itself, and written to only while this process leads.

use std::{path::Path, time::Duration};

use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request};
use http_body_util::BodyExt as _;
use kube::{Client, Config, client::Body};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::Instant};
use tracing::info;
use x509_parser::{error::PEMError, pem::Pem};

use super::breaker::Breaker;
use crate::{
    runtime::{
        CallFailure, call, chain,
        lease::Leadership,
        link::{self, Server},
    },
    settings::{VaultAuth, VaultSettings},
};

/// What is asked for here are single certificates and short lists.
const SERVER: Server = Server { name: "vault", connecting: Duration::from_secs(5), answer: 1 << 20 };

/// Why Vault did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The settings lead to no client.
    #[error("set up a client of Vault at {address}")]
    SetUp {
        /// Vault's URL.
        address: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What the controller manager logs in with cannot be read.
    #[error("read {path}, to log in to Vault")]
    Credentials {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What another logs in with cannot be had.
    #[error("get what it takes to log in to Vault")]
    Login(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Vault is sealed.
    #[error("Vault is sealed: unseal it")]
    Sealed,
    /// Vault was in trouble a moment ago, and is left alone.
    #[error("{0}")]
    Down(String),
    /// Vault says that there is no such right, or no such token.
    #[error("Vault refuses to {action} {path}: {said}; compare its policy with the one of the chart")]
    Denied {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: String,
        /// What Vault said.
        said: String,
    },
    /// A mount is gone.
    #[error("Vault has no PKI mount {0}: restore it, it is never made anew")]
    NoMount(String),
    /// Vault refuses for another reason.
    #[error("Vault: {action} {path}: {said} (HTTP {status})")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What Vault said.
        said: String,
    },
    /// Vault did not answer, or what answered is no Vault at work: a proxy, or a standby.
    #[error("Vault: {action} {path}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: String,
        /// Why it failed.
        #[source]
        source: Failure,
    },
    /// The answer is not what Vault's documentation says.
    #[error("Vault: the answer to {action} {path} has no {lacks}")]
    Answer {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: String,
        /// What is missing.
        lacks: &'static str,
    },
}

/// Why there is no answer of Vault's.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// None came.
    // Not transparent: whoever looks for the cause, as metrics do, must find it.
    #[error("{0}")]
    Call(#[from] CallFailure),
    /// One came that is not Vault's, or says that it cannot serve: its status, and Vault's words.
    #[error("{1}HTTP {0}")]
    Status(u16, String),
}

impl VaultError {
    /// What it says of Vault as a whole, whatever was asked for: nothing of whose it was.
    pub(super) fn of_vault(&self) -> Option<String> {
        match self {
            Self::Sealed => Some(self.to_string()),
            Self::Failed { source: Failure::Call(CallFailure::NotLeading(_)), .. } => None,
            Self::Failed { source, .. } => Some(format!("Vault does not serve: {}", chain(source))),
            _ => None,
        }
    }

    /// Whether Vault refused with this status, and words that begin so.
    pub(super) fn says(&self, wanted: u16, beginning: &str) -> bool {
        matches!(self, Self::Refused { status, said, .. } if *status == wanted && said.starts_with(beginning))
    }
}

/// What is asked of Vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read what is there.
    Read,
    /// List what is there.
    List,
    /// Write, or have something done.
    Write,
    /// Delete.
    Delete,
}

impl Action {
    /// What errors call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
            Self::Delete => "delete",
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Read | Self::List => Method::GET,
            Self::Write => Method::POST,
            Self::Delete => Method::DELETE,
        }
    }
}

/// What a login gave.
#[derive(Clone)]
struct Token {
    value: SecretString,
    /// When it is time for another: two thirds of its life are over.
    until: Instant,
}

/// A Vault, and by what its certificate is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Address {
    /// Its URL, such as `https://vault.example.com:8200`.
    pub address: String,
    /// Certificates (PEM) of the authorities that its own may be of; public.
    pub ca_certificate: String,
    /// Its namespace, where it has some (Vault Enterprise, HCP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl From<&VaultSettings> for Address {
    fn from(settings: &VaultSettings) -> Self {
        let VaultSettings { address, ca_certificate, namespace, .. } = settings.clone();
        Self { address, ca_certificate, namespace }
    }
}

/// What a token is asked for with.
pub struct Credentials {
    /// Path of the auth method.
    pub mount: String,
    /// What its `login` is sent. Secret.
    pub body: Value,
}

/// What a login waits for.
pub type Asked<'a> = BoxFuture<'a, Result<Credentials, VaultError>>;

/// How somebody logs in to Vault.
pub trait Login: Send + Sync {
    /// What a token is asked for with now.
    fn credentials(&self) -> Asked<'_>;
}

/// The controller manager.
impl Login for VaultAuth {
    fn credentials(&self) -> Asked<'_> {
        Box::pin(async move {
            let (mount, body) = match self {
                Self::Kubernetes { mount, role, token_file } => {
                    (mount, json!({"role": role, "jwt": read(token_file).await?}))
                }
                Self::AppRole { mount, role_id_file, secret_id_file } => {
                    (mount, json!({"role_id": read(role_id_file).await?, "secret_id": read(secret_id_file).await?}))
                }
            };
            Ok(Credentials { mount: mount.clone(), body })
        })
    }
}

/// Somebody who was given a token.
struct NoLogin;

impl Login for NoLogin {
    fn credentials(&self) -> Asked<'_> {
        Box::pin(async { Err(VaultError::Login("the token is not known to Vault, or over".into())) })
    }
}

/// A connection to Vault.
pub struct Connection {
    client: Client,
    namespace: Option<String>,
    login: Box<dyn Login>,
    /// Held while logging in, so that many who need a token log in once.
    token: Mutex<Option<Token>>,
    breaker: Breaker,
}

impl Connection {
    /// A connection by which `login` is told from others. With `leadership`, nothing is written but while this process leads.
    ///
    /// # Errors
    /// If no client can be made for this address.
    pub fn new(at: Address, login: Box<dyn Login>, leadership: Option<Leadership>) -> Result<Self, VaultError> {
        let client =
            connect(&at, leadership).map_err(|source| VaultError::SetUp { address: at.address.clone(), source })?;
        Ok(Self { client, namespace: at.namespace, login, token: Mutex::default(), breaker: Breaker::default() })
    }

    /// A connection of somebody who has a token, and gets no other.
    ///
    /// # Errors
    /// If no client can be made for this address.
    pub fn with_token(at: Address, token: SecretString) -> Result<Self, VaultError> {
        let mut connection = Self::new(at, Box::new(NoLogin), None)?;
        let until = Instant::now() + Duration::from_secs(24 * 3600);
        *connection.token.get_mut() = Some(Token { value: token, until });
        Ok(connection)
    }

    /// Asks Vault. A token that it does not know, revoked or lost in a restore, is given up for a new one.
    ///
    /// # Errors
    /// [`VaultError`]
    pub async fn ask(&self, action: Action, path: &str, body: Value) -> Result<Value, VaultError> {
        let token = self.token(None).await?;
        match self.send(action, path, &body, Some(&token)).await {
            Err(VaultError::Denied { said, .. }) if said.contains("invalid token") => {
                let token = self.token(Some(&token)).await?;
                self.send(action, path, &body, Some(&token)).await
            }
            answer => answer,
        }
    }

    /// A token; one that is `refused` is not taken.
    async fn token(&self, refused: Option<&SecretString>) -> Result<SecretString, VaultError> {
        let mut held = self.token.lock().await;
        let is_refused = |token: &Token| refused.is_some_and(|no| no.expose_secret() == token.value.expose_secret());
        if let Some(token) = held.as_ref().filter(|token| token.until > Instant::now() && !is_refused(token)) {
            return Ok(token.value.clone());
        }
        *held = None;
        let token = self.log_in().await?;
        Ok(held.insert(token).value.clone())
    }

    async fn log_in(&self) -> Result<Token, VaultError> {
        let Credentials { mount, body } = self.login.credentials().await?;
        let path = format!("auth/{mount}/login");
        let answer = self.send(Action::Write, &path, &body, None).await?;
        let lacks = |lacks| VaultError::Answer { action: Action::Write.name(), path: path.clone(), lacks };
        let token = answer["auth"]["client_token"].as_str().ok_or_else(|| lacks("token"))?;
        let life = answer["auth"]["lease_duration"].as_u64().ok_or_else(|| lacks("lease"))?;
        info!(seconds = life, "logged in to Vault");
        // Zero is for ever.
        let until = Duration::from_secs(if life == 0 { 24 * 3600 } else { life * 2 / 3 });
        Ok(Token { value: token.into(), until: Instant::now() + until })
    }

    /// Sends a request, unless Vault was in trouble a moment ago.
    async fn send(
        &self,
        action: Action,
        path: &str,
        body: &Value,
        token: Option<&SecretString>,
    ) -> Result<Value, VaultError> {
        self.breaker.admit().map_err(VaultError::Down)?;
        let answer = self.exchange(action, path, body, token).await;
        self.breaker.note(answer.as_ref().err());
        answer
    }

    async fn exchange(
        &self,
        action: Action,
        path: &str,
        body: &Value,
        token: Option<&SecretString>,
    ) -> Result<Value, VaultError> {
        let query = if action == Action::List { "?list=true" } else { "" };
        let mut request = Request::builder().method(action.method()).uri(format!("/v1/{path}{query}"));
        if let Some(token) = token {
            let value = HeaderValue::from_str(token.expose_secret()).map(|mut value| {
                value.set_sensitive(true);
                value
            });
            let lacks = |_| VaultError::Answer { action: action.name(), path: path.into(), lacks: "usable token" };
            request = request.header("X-Vault-Token", value.map_err(lacks)?);
        }
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        let bytes = if action == Action::Write { body.to_string().into_bytes() } else { Vec::new() };
        // Not kube's own reading of answers: whatever JSON an error has would be taken for a Status that says nothing.
        let ask = async {
            let request = request.body(Body::from(bytes)).map_err(kube::Error::HttpError)?;
            let answer = self.client.send(request).await?;
            let status = answer.status().as_u16();
            kube::Result::Ok((status, answer.into_body().collect().await?.to_bytes()))
        };
        let (status, bytes) = call(action.name(), path, ask).await.map_err(|error| VaultError::Failed {
            action: action.name(),
            path: path.into(),
            source: error.source.into(),
        })?;
        understand(action, path, status, &bytes)
    }
}

/// What an answer means.
fn understand(action: Action, path: &str, status: u16, bytes: &[u8]) -> Result<Value, VaultError> {
    let (action, path) = (action.name(), path.to_owned());
    let answer = serde_json::from_slice::<Value>(bytes);
    if (200..300).contains(&status) {
        // Not the error of the parser: it shows a part of the text, which may be a token.
        return match answer {
            Ok(answer) => Ok(answer),
            Err(_) if bytes.trim_ascii().is_empty() => Ok(Value::Null),
            Err(_) => Err(VaultError::Answer { action, path, lacks: "JSON" }),
        };
    }
    let errors = answer.ok().and_then(|answer| answer["errors"].as_array().cloned());
    let Some(errors) = errors else {
        return Err(VaultError::Failed { action, path, source: Failure::Status(status, String::new()) });
    };
    let words = errors.iter().filter_map(Value::as_str).flat_map(str::split_whitespace);
    let said = words.collect::<Vec<_>>().join(" ");
    Err(match status {
        403 => VaultError::Denied { action, path, said },
        503 if said.contains("sealed") => VaultError::Sealed,
        404 if said.contains("no handler for route") => VaultError::NoMount(mount_of(&path)),
        // 429 and 5xx: it is overloaded, a standby, or broken.
        429 | 500.. => VaultError::Failed { action, path, source: Failure::Status(status, format!("{said}, ")) },
        status => VaultError::Refused { action, path, status, said },
    })
}

/// The mount of a path: its first three segments.
fn mount_of(path: &str) -> String {
    path.split('/').take(3).collect::<Vec<_>>().join("/")
}

fn connect(at: &Address, leadership: Option<Leadership>) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let mut config = Config::new(at.address.parse()?);
    let authorities = Pem::iter_from_buffer(at.ca_certificate.as_bytes());
    config.root_cert = Some(authorities.map(|pem| Ok(pem?.contents)).collect::<Result<_, PEMError>>()?);
    Ok(link::connect_to(SERVER, config, leadership)?)
}

async fn read(path: &Path) -> Result<String, VaultError> {
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|source| VaultError::Credentials { path: path.display().to_string(), source })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{is_not_leading, link::NotLeading, reason};

    #[test]
    fn what_a_call_came_to_is_found_in_its_error() {
        let of = |source: CallFailure| {
            let path = "g/id/etcd/sign/a".into();
            VaultError::Failed { action: Action::Write.name(), path, source: source.into() }
        };
        assert!(is_not_leading(&of(CallFailure::NotLeading(NotLeading))));
        let silent = of(CallFailure::TimedOut(Duration::from_secs(1)));
        assert_eq!((reason(&silent), is_not_leading(&silent)), ("timeout", false));
        assert_eq!(chain(&silent), "Vault: write g/id/etcd/sign/a: no answer in 1 s");
    }

    #[test]
    fn an_answer_is_understood_by_its_status_and_vaults_words() {
        let of = |status, body: &str| understand(Action::Write, "g/id/etcd/sign/a", status, body.as_bytes());
        assert_eq!(of(200, r#"{"data":{"a":1}}"#).unwrap()["data"]["a"], 1);
        assert_eq!(of(204, "").unwrap(), Value::Null);
        assert!(matches!(of(200, "<html>"), Err(VaultError::Answer { .. })));
        assert!(matches!(of(503, r#"{"errors":["Vault is sealed"]}"#), Err(VaultError::Sealed)));
        let gone = of(404, r#"{"errors":["no handler for route \"g/id/etcd/sign/a\". route entry not found."]}"#);
        assert!(matches!(gone, Err(VaultError::NoMount(mount)) if mount == "g/id/etcd"));
        let denied =
            of(403, "{\"errors\":[\"1 error occurred:\\n\\t* permission denied\\n\\n\"]}").unwrap_err().to_string();
        assert!(denied.contains("write g/id/etcd/sign/a: 1 error occurred: * permission denied;"), "{denied}");
        let refused = of(400, r#"{"errors":["No secret engine mount at g/id/etcd/"]}"#).unwrap_err();
        assert!(refused.says(400, "No secret engine mount at") && refused.of_vault().is_none());
        assert!(of(404, r#"{"errors":[]}"#).unwrap_err().says(404, ""));
        // What is no answer of Vault's at work must not be taken for one: a proxy's, a standby's that sends elsewhere.
        for (status, body) in
            [(404, "<html>"), (400, "bad request"), (307, ""), (502, ""), (500, r#"{"errors":["x"]}"#)]
        {
            let error = of(status, body).unwrap_err();
            let of_vault = error.of_vault().unwrap();
            assert!(of_vault.ends_with(&format!("HTTP {status}")) && !of_vault.contains("g/id"), "{of_vault}");
        }
    }
}
