//! Vault: how it is called, when it serves, and what is made in it so that the controller manager can keep the certificate
//! authorities of guests there.
//!
//! ```text
//!   data without a key on record: thrown away ─ start ─ initialisation, key on record ─ unsealing ─ policy ─ way in
//! ```
//! Its storage is sealed by one key, which lies beside it: a lab has nothing to hide from who raised it. The key is known
//! for the first time when Vault answers that it is initialised; a crash right then leaves data that nobody can ever open,
//! so data whose key is not on record are made anew.
//!
//! curl asks it: unlike the `vault` command, it takes no time to start, and no secret is among its arguments.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::command::Run;
use crate::paths::{Paths, write_whole};
use crate::pki::file;
use crate::process::{Server, stop};
use crate::tools::{Tools, repository};
use crate::topology::CONTROL;

const CURL: &str = "curl --disable --noproxy * --silent --show-error --max-time 10 --write-out \\n%{http_code}";

/// Where the lab's Vault listens in the control plane's room.
pub const PORT: u16 = 8200;
/// Name of the policy, and of the role by which its ServiceAccount logs the controller manager in.
pub const MANAGER: &str = "giantnetes";
/// Where the auth method is mounted that takes tokens of ServiceAccounts.
pub const LOGIN: &str = "kubernetes";
/// Namespace and name of the controller manager's ServiceAccount, as `make demo` and the tests install the chart.
pub const SERVICE_ACCOUNT: (&str, &str) = ("giantnetes-system", "giantnetes");

/// A Vault and how it is reached.
#[derive(Debug)]
pub struct Vault<'a> {
    /// The lab's folders.
    pub paths: &'a Paths,
    /// The lab's programs.
    pub tools: &'a Tools,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What Vault says of itself to everybody.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Seal {
    /// Whether it has made its key.
    pub initialized: bool,
    /// Whether it waits for its key.
    pub sealed: bool,
}

/// What opens the storage, and who may do everything. As Vault tells it once.
#[derive(Serialize, Deserialize)]
struct Keys {
    keys_base64: Vec<String>,
    root_token: String,
}

/// What Vault answers to one request.
#[derive(Debug)]
pub struct Answer {
    /// The status of HTTP.
    pub status: u16,
    /// What it says: nothing in most answers to writes, text where it is no JSON.
    pub body: Value,
}

impl Vault<'_> {
    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate of who signed Vault's.
    pub fn ca(&self) -> PathBuf {
        file(self.paths, "ca.crt").into()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.paths.room(&CONTROL).join("vault").join(name)
    }

    /// Writes what the server reads.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn configure(&self) -> Result<()> {
        let config = json!({
            "storage": {"file": {"path": self.file("data")}},
            "listener": {"tcp": {
                "address": self.address.to_string(),
                "tls_cert_file": file(self.paths, "vault-server.crt"),
                "tls_key_file": file(self.paths, "vault-server.key"),
            }},
            "api_addr": self.url(),
            // The machine may forbid it, and what the lab's memory holds lies on its disk, too.
            "disable_mlock": true,
        });
        write_whole(&self.file("config.json"), &format!("{config:#}\n"), 0o644)
    }

    /// The server.
    pub fn server(&self) -> Server {
        let config = self.file("config.json");
        let program = self.tools.vault.join("vault").display().to_string();
        let argv = vec![program, "server".into(), format!("-config={}", config.display())];
        Server { name: "vault".into(), room: CONTROL, argv, config: vec![config] }
    }

    /// Throws data away whose key is not on record, after ending the server that may have made it a moment ago.
    ///
    /// # Errors
    /// If the server does not end, or the data cannot be removed.
    pub fn drop_data_without_key(&self) -> Result<()> {
        if self.file("keys.json").exists() {
            return Ok(());
        }
        if let Some(record) = self.server().record(self.paths) {
            stop(&[record], Duration::from_secs(5))?;
        }
        let data = self.file("data");
        match std::fs::remove_dir_all(&data) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", data.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whether it was ever initialised, and whether it is sealed.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn seal_status(&self) -> Result<Seal> {
        serde_json::from_value(self.ask(None, "GET", "sys/seal-status", &Value::Null)?)
            .context("Vault does not say whether it is sealed")
    }

    /// Fails while the server does not answer, sealed or not.
    ///
    /// # Errors
    /// If it does not.
    pub fn check(&self) -> Result<()> {
        self.server().check(self.paths)?;
        self.seal_status().map(drop)
    }

    /// Has Vault make its key, unless it did, and writes that down.
    ///
    /// # Errors
    /// If Vault refuses, or the key cannot be written down.
    pub fn initialise(&self) -> Result<()> {
        if self.seal_status()?.initialized {
            return Ok(());
        }
        let one_share = json!({"secret_shares": 1, "secret_threshold": 1});
        let keys: Keys = serde_json::from_value(self.ask(None, "PUT", "sys/init", &one_share)?)
            .context("Vault tells no key when it is initialised")?;
        write_whole(&self.file("keys.json"), &serde_json::to_string(&keys)?, 0o600)
    }

    /// Gives Vault its key, unless it is open.
    ///
    /// # Errors
    /// If the key is not on record, or Vault stays sealed.
    pub fn unseal(&self) -> Result<()> {
        if !self.seal_status()?.sealed {
            return Ok(());
        }
        let keys = self.keys()?;
        let key = keys.keys_base64.first().context("there is no key in the record of Vault's keys")?;
        self.ask(None, "PUT", "sys/unseal", &json!({"key": key}))?;
        if self.seal_status()?.sealed {
            bail!("Vault takes its key and stays sealed");
        }
        Ok(())
    }

    /// Makes Vault forget its key: it runs and says only that it is sealed.
    ///
    /// # Errors
    /// If Vault refuses, for example because it is sealed already.
    pub fn seal(&self) -> Result<()> {
        self.ask(Some(&self.root_token()?), "PUT", "sys/seal", &Value::Null).map(drop)
    }

    /// Writes the chart's policy, the rights of the controller manager.
    ///
    /// # Errors
    /// If it cannot be read, or Vault refuses it.
    pub fn write_policy(&self) -> Result<()> {
        let file = repository().join("charts/giantnetes/files/vault-policy.hcl");
        let policy = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let path = format!("sys/policies/acl/{MANAGER}");
        self.ask(Some(&self.root_token()?), "PUT", &path, &json!({"policy": policy})).map(drop)
    }

    /// Lets the controller manager in by a token of its ServiceAccount, which Vault has the API server judge: at this URL,
    /// as who has the reviewer's token.
    ///
    /// # Errors
    /// If Vault refuses.
    pub fn admit_manager(&self, api: &str, reviewer: &str) -> Result<()> {
        let root = self.root_token()?;
        let methods = self.ask(Some(&root), "GET", "sys/auth", &Value::Null)?;
        if methods["data"].get(format!("{LOGIN}/")).is_none() {
            self.ask(Some(&root), "PUT", &format!("sys/auth/{LOGIN}"), &json!({"type": "kubernetes"}))?;
        }
        let ca = self.ca();
        let ca = std::fs::read_to_string(&ca).with_context(|| format!("cannot read {}", ca.display()))?;
        let config = json!({
            "kubernetes_host": api, "kubernetes_ca_cert": ca, "token_reviewer_jwt": reviewer,
            // It is no pod, and has no files of a pod's ServiceAccount.
            "disable_local_ca_jwt": true,
        });
        self.ask(Some(&root), "PUT", &format!("auth/{LOGIN}/config"), &config)?;
        let (namespace, name) = SERVICE_ACCOUNT;
        let role = json!({
            "bound_service_account_namespaces": [namespace], "bound_service_account_names": [name],
            "token_policies": [MANAGER],
            // Short, so that whoever is in for longer is seen to renew his token, and to log in again.
            "token_ttl": "10m", "token_max_ttl": "1h",
        });
        self.ask(Some(&root), "PUT", &format!("auth/{LOGIN}/role/{MANAGER}"), &role).map(drop)
    }

    /// The token of who may do everything.
    ///
    /// # Errors
    /// If Vault was not initialised yet.
    pub fn root_token(&self) -> Result<String> {
        Ok(self.keys()?.root_token)
    }

    fn keys(&self) -> Result<Keys> {
        let file = self.file("keys.json");
        let text = std::fs::read_to_string(&file);
        let text = text.with_context(|| format!("cannot read Vault's key ({}); `lab up` makes one", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} holds no key of Vault", file.display()))
    }

    /// As [`request`](Self::request); what is refused is an error.
    ///
    /// # Errors
    /// If nothing answers, or Vault refuses.
    pub fn ask(&self, token: Option<&str>, method: &str, path: &str, body: &Value) -> Result<Value> {
        let Answer { status, body } = self.request(token, method, path, body)?;
        if !(200..300).contains(&status) {
            bail!("Vault answers {status} to {method} {path}: {body}");
        }
        Ok(body)
    }

    /// Asks Vault something: a path below `/v1/`, as who has this token, or as nobody.
    ///
    /// # Errors
    /// If nothing answers, or not in HTTP.
    pub fn request(&self, token: Option<&str>, method: &str, path: &str, body: &Value) -> Result<Answer> {
        let output = Run::line(CURL)
            .arg("--cacert")
            .arg(self.ca())
            .args(["--request", method, "--config", "-", &format!("{}/v1/{path}", self.url())])
            .timeout(Duration::from_secs(15))
            .input(secret_arguments(token, body)?)
            .output()?;
        read_answer(&output).with_context(|| format!("{method} {path} at {}", self.url()))
    }
}

/// What of a request is not for everybody's eyes, in the words of curl's configuration. Its quotes are JSON's.
fn secret_arguments(token: Option<&str>, body: &Value) -> Result<String> {
    let mut lines = String::new();
    if let Some(token) = token {
        lines += &format!("header = {}\n", serde_json::to_string(&format!("X-Vault-Token: {token}"))?);
    }
    if !body.is_null() {
        lines += &format!("data-binary = {}\n", serde_json::to_string(&body.to_string())?);
    }
    Ok(lines)
}

/// Reads what curl prints: the answer's body, then its status on a line of its own.
fn read_answer(output: &str) -> Result<Answer> {
    let (body, status) = output.rsplit_once('\n').context("curl tells no status")?;
    let status = status.parse().with_context(|| format!("curl tells the status {status:?}"))?;
    let body = match body.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    };
    Ok(Answer { status, body })
}

/// Makes the ServiceAccount as which Vault asks the API server whose a token is, and a token of it.
///
/// # Errors
/// If the API server refuses.
pub fn reviewer(kubectl: impl Fn(&[&str]) -> Run) -> Result<String> {
    let (namespace, name) = ("kube-system", "vault");
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "lab-vault"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator",
            },
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    ]});
    kubectl(&["apply", "--server-side", "--field-manager=lab", "-f", "-"]).input(objects.to_string()).output()?;
    // Ten years: longer than any lab lives.
    let token = kubectl(&["create", "token", name, "--namespace", namespace, "--duration=87600h"]).output()?;
    Ok(token.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_answer_is_a_body_and_a_status() {
        let answer = read_answer("{\"errors\":[\"permission denied\"]}\n\n403").unwrap();
        assert_eq!((answer.status, answer.body["errors"][0].as_str()), (403, Some("permission denied")));
        let answer = read_answer("\n204").unwrap();
        assert_eq!((answer.status, answer.body), (204, Value::Null));
        assert_eq!(read_answer("-----BEGIN\n-----END\n200").unwrap().body, "-----BEGIN\n-----END");
        assert!(read_answer("").is_err());
    }

    #[test]
    fn a_request_passes_curls_quotes_unchanged() {
        let body = json!({"policy": "path \"a\" {\n  x = \"\\\"\n}\t%é"});
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let sent = body.to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let (mut request, mut part) = (Vec::new(), [0; 4096]);
            while !request.ends_with(sent.as_bytes()) {
                let length = stream.read(&mut part).expect("the body arrives as it was sent");
                request.extend_from_slice(&part[..length]);
            }
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
            String::from_utf8(request).unwrap()
        });
        let arguments = secret_arguments(Some("s.token"), &body).unwrap();
        Run::line("curl --disable --noproxy * --silent --config -").args([url]).input(arguments).output().unwrap();
        assert!(server.join().unwrap().contains("\r\nX-Vault-Token: s.token\r\n"));
    }
}
