//! A real Vault on a free port of the loopback device: TLS, storage in files, initialised and unsealed.
//!
//! It leaves nothing behind: what it wrote lies in a temporary folder, and it dies with the thread that started it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use giantnetes::aws::identity;
use lab::{
    command::Run,
    paths::{Paths, write_whole},
    pki,
    vault::MANAGER,
    wait_for,
};
use serde_json::{Value, json};

use super::processes::{Process, free_port, spawn, tied};

/// What the signature of a node's login has to name.
pub const SERVER_ID: &str = "vault.giantnetes.test";
/// How long it may take to answer, on a machine that builds something at the same time.
const START: Duration = Duration::from_secs(60);

/// A running Vault. Dropping it ends it and removes its folder, unless the test failed.
pub struct VaultServer {
    paths: Paths,
    binary: PathBuf,
    port: u16,
    process: Option<Process>,
    root: String,
    key: String,
}

impl VaultServer {
    /// Starts it, with the policy of the chart and the AppRole auth method.
    ///
    /// # Errors
    /// If it does not come up in time.
    pub fn start(name: &str) -> Result<Self> {
        let binary = super::tool("vault").join("vault");
        ensure!(binary.is_file(), "{} is missing: `make tools` builds it", binary.display());
        let state = std::env::temp_dir().join(format!("giantnetes-vault-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&state);
        let paths = Paths { cache: state.clone(), state };
        pki::ensure(&paths)?;
        let port = free_port()?;
        let mut server = Self { paths, binary, port, process: None, root: String::new(), key: String::new() };
        server.run()?;
        let answer = server.cli(&["operator", "init", "-key-shares=1", "-key-threshold=1", "-format=json"]).output()?;
        let answer: Value = serde_json::from_str(&answer)?;
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned).context("init answers no key");
        (server.root, server.key) = (text(&answer["root_token"])?, text(&answer["unseal_keys_b64"][0])?);
        server.unseal()?;
        let policy = super::root().join("charts/giantnetes/files/vault-policy.hcl");
        server.root(&["policy", "write", MANAGER, &policy.display().to_string()])?;
        server.root(&["auth", "enable", "approle"])?;
        server.root(&[
            "write",
            &format!("auth/approle/role/{MANAGER}"),
            "token_policies=giantnetes",
            "token_ttl=1h",
        ])?;
        let id = server.root(&["read", "-field=role_id", &format!("auth/approle/role/{MANAGER}/role-id")])?;
        let secret =
            server.root(&["write", "-f", "-field=secret_id", &format!("auth/approle/role/{MANAGER}/secret-id")])?;
        write_whole(&server.file("role-id"), &id, 0o600)?;
        write_whole(&server.file("secret-id"), &secret, 0o600)?;
        Ok(server)
    }

    /// Lets ServiceAccount `default/giantnetes` of a cluster log in.
    ///
    /// # Errors
    /// If Vault refuses.
    pub fn trust(&self, url: &str, authority: &Path) -> Result<()> {
        self.root(&["auth", "enable", "kubernetes"])?;
        let authority = format!("kubernetes_ca_cert=@{}", authority.display());
        self.root(&["write", "auth/kubernetes/config", &format!("kubernetes_host={url}"), &authority])?;
        let role = [
            "bound_service_account_names=giantnetes",
            "bound_service_account_namespaces=default",
            "token_policies=giantnetes",
            "token_ttl=1h",
        ];
        let path = format!("auth/kubernetes/role/{MANAGER}");
        self.root(&[["write", path.as_str()].as_slice(), &role].concat()).map(drop)
    }

    /// What docs/vault.md says that an operator does once for nodes on AWS, with this STS.
    ///
    /// # Errors
    /// If Vault refuses.
    pub fn await_nodes(&self, sts: &str) -> Result<()> {
        const METHOD: &str = identity::METHOD;
        self.root(&["auth", "enable", &format!("-path={METHOD}"), "aws"])?;
        self.root(&["secrets", "enable", &format!("-path={}", identity::KEYS), "-version=1", "kv"])?;
        let id = format!("iam_server_id_header_value={SERVER_ID}");
        let (sts, client) = (format!("sts_endpoint={sts}"), format!("auth/{METHOD}/config/client"));
        self.root(&["write", &client, &id, &sts, "sts_region=eu-central-1", "max_retries=0"])?;
        let accessor = self.root(&["read", "-field=accessor", &format!("sys/auth/{METHOD}")])?;
        let folder = super::root().join("charts/giantnetes/files/aws");
        let shipped = |name: &str| std::fs::read_to_string(folder.join(name));
        for (name, text) in [
            (identity::POLICY, shipped("vault-nodes-policy.hcl")?.replace("ACCESSOR", &accessor)),
            (METHOD, shipped("vault-manager-policy.hcl")?),
        ] {
            let file = self.file(&format!("{name}.hcl"));
            std::fs::write(&file, text)?;
            self.root(&["policy", "write", name, &file.display().to_string()])?;
        }
        let policies = format!("token_policies={MANAGER},{METHOD}");
        self.root(&["write", &format!("auth/approle/role/{MANAGER}"), &policies, "token_ttl=1h"]).map(drop)
    }

    /// The port of the loopback address at which it is.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The chart's `settings.vault` for it, with this `auth`.
    pub fn settings(&self, auth: &Value) -> Value {
        let authority = std::fs::read_to_string(pki::file(&self.paths, "ca.crt")).unwrap();
        json!({"address": self.address(), "caCertificate": authority, "auth": auth})
    }

    /// How a controller manager logs in without an API server.
    pub fn app_role(&self) -> Value {
        json!({"appRole": {"roleIdFile": self.file("role-id"), "secretIdFile": self.file("secret-id")}})
    }

    fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Where it keeps its data; a test may write there, too.
    pub fn folder(&self) -> &Path {
        &self.paths.state
    }

    fn file(&self, name: &str) -> PathBuf {
        self.paths.state.join(name)
    }

    /// Vault's own client, with no token.
    fn cli(&self, args: &[&str]) -> Run {
        self.as_holder("", args)
    }

    /// Vault's own client, with a token.
    pub fn as_holder(&self, token: &str, args: &[&str]) -> Run {
        let authority = pki::file(&self.paths, "ca.crt");
        Run::new("env")
            .args(["-u", "VAULT_NAMESPACE"])
            .args([format!("VAULT_ADDR={}", self.address()), format!("VAULT_CACERT={authority}")])
            .args([format!("VAULT_TOKEN={token}"), format!("HOME={}", self.paths.state.display())])
            .arg(&self.binary)
            .args(args.iter().copied())
            .timeout(Duration::from_secs(30))
    }

    /// Vault's own client as root.
    ///
    /// # Errors
    /// What Vault says.
    pub fn root(&self, args: &[&str]) -> Result<String> {
        Ok(self.as_holder(&self.root, args).output()?.trim().to_owned())
    }

    /// A token of the controller manager's, as it gets one itself.
    ///
    /// # Errors
    /// What Vault says.
    pub fn managers_token(&self) -> Result<String> {
        let (id, secret) = (self.file("role-id"), self.file("secret-id"));
        let (id, secret) = (format!("role_id=@{}", id.display()), format!("secret_id=@{}", secret.display()));
        let token = self.cli(&["write", "-field=token", "auth/approle/login", &id, &secret]).output()?;
        Ok(token.trim().to_owned())
    }

    /// A token of an escrow officer's, with the policy of the chart and no other.
    ///
    /// # Errors
    /// What Vault says.
    pub fn officers_token(&self) -> Result<String> {
        let policy = super::root().join("charts/giantnetes/files/vault-escrow-policy.hcl");
        self.root(&["policy", "write", "giantnetes-escrow", &policy.display().to_string()])?;
        self.root(&["token", "create", "-policy=giantnetes-escrow", "-no-default-policy", "-field=token"])
    }

    /// What Vault's own client asks it by, as variables; the token among them.
    pub fn variables(&self, token: &str) -> [String; 3] {
        let authority = pki::file(&self.paths, "ca.crt");
        [format!("VAULT_ADDR={}", self.address()), format!("VAULT_CACERT={authority}"), format!("VAULT_TOKEN={token}")]
    }

    /// Mounts of guests that are there.
    ///
    /// # Errors
    /// What Vault says.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let all: Value = serde_json::from_str(&self.root(&["secrets", "list", "-format=json"])?)?;
        let all = all.as_object().context("a list of mounts")?;
        Ok(all.keys().filter(|path| path.starts_with("giantnetes/")).cloned().collect())
    }

    pub fn seal(&self) -> Result<()> {
        self.root(&["operator", "seal"]).map(drop)
    }

    pub fn unseal(&self) -> Result<()> {
        self.cli(&["operator", "unseal", &self.key]).output()?;
        // Sealed no more, it still has to become active.
        wait_for(START, "Vault to be active", || self.root(&["token", "lookup"]).map(drop))
    }

    /// Kills it, as nothing but `kill -9` does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it, at the same address; sealed, as it is whenever it starts.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn run(&mut self) -> Result<()> {
        let config = json!({
            "storage": {"file": {"path": self.file("data")}},
            "listener": {"tcp": {
                "address": format!("127.0.0.1:{}", self.port),
                "tls_cert_file": pki::file(&self.paths, "apiserver.crt"),
                "tls_key_file": pki::file(&self.paths, "apiserver.key"),
            }},
            "api_addr": self.address(),
            // It may not lock memory everywhere, and holds nothing of worth.
            "disable_mlock": true,
        });
        write_whole(&self.file("vault.json"), &config.to_string(), 0o600)?;
        let mut command = tied(&self.binary);
        command.args(["server", "-config"]).arg(self.file("vault.json"));
        self.process = Some(spawn(&mut command, &self.file("vault.log"))?);
        wait_for(START, "Vault to answer", || {
            let ended = self.process.as_mut().and_then(|process| process.0.try_wait().ok().flatten());
            ensure!(ended.is_none(), "it ended: {}", std::fs::read_to_string(self.file("vault.log"))?);
            match self.cli(&["status"]).output() {
                // It answers that it is sealed.
                Err(error) if error.to_string().contains("ended with status 2:") => Ok(()),
                answer => answer.map(drop),
            }
        })
    }
}

impl Drop for VaultServer {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            println!("    what Vault wrote is kept in {}", self.paths.state.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.paths.state);
        }
    }
}
