//! A real etcd, kube-apiserver and namespace controller on the loopback device: what a controller manager needs, and no node.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use lab::{command::Run, tools::Tools};

use crate::support::{
    apiserver::ApiServer,
    processes::{Process, spawn, tied},
};

/// The servers. Dropping them ends them and removes what they wrote.
pub struct Servers {
    // Dropped first: it is a client of the other.
    _controllers: Process,
    api: ApiServer,
}

const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
    {"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}]}"#;

impl Servers {
    /// Starts the servers and installs the CustomResourceDefinitions.
    pub fn start(test: &str) -> Result<Self> {
        let policy = std::env::temp_dir().join(format!("giantnetes-audit-{}.json", std::process::id()));
        std::fs::write(&policy, AUDIT_POLICY)?;
        let args = [
            // Service accounts are made by a controller that does not run here.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            format!("--audit-policy-file={}", policy.display()),
            // In the folder of its data, where it is started.
            "--audit-log-path=audit.log".to_owned(),
        ];
        let api = ApiServer::start(&format!("controller-{test}"), &args.each_ref().map(String::as_str));
        let _ = std::fs::remove_file(&policy);
        let api = api?;
        let controllers = spawn(
            tied(Tools::locate()?.kubernetes.join("kube-controller-manager"))
                .arg(format!("--kubeconfig={}", api.kubeconfig().display()))
                .args([
                    "--controllers=namespace-controller,persistentvolumeclaim-protection-controller",
                    "--leader-elect=false",
                    "--secure-port=0",
                ]),
            &api.folder().join("controllers.log"),
        )?;
        api.install_crds()?;
        Ok(Self { _controllers: controllers, api })
    }

    /// Where the servers and the managers write.
    pub fn folder(&self) -> &Path {
        self.api.folder()
    }

    /// Process ids of etcd and the API server.
    pub fn pids(&self) -> Vec<u32> {
        self.api.pids()
    }

    /// The administrator's kubeconfig, straight to the API server.
    pub fn kubeconfig(&self) -> PathBuf {
        self.api.kubeconfig()
    }

    /// URL of the API.
    pub fn url(&self) -> String {
        self.api.url()
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self, args: &[&str]) -> Run {
        self.api.kubectl(args)
    }

    /// The administrator's client, straight to the API server.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        config.read_timeout = Some(Duration::from_secs(600));
        Client::try_from(config).unwrap()
    }

    /// What the API server put on record: everything but reads.
    pub fn audit(&self) -> Vec<Audited> {
        let text = std::fs::read_to_string(self.folder().join("audit.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Of what is on record, what managers whose names begin so wrote, but for leases and events, as it was received.
    pub fn writes_of(&self, names: &str) -> Vec<Audited> {
        let counts = |write: &Audited| !write.uri.contains("/leases") && !write.uri.contains("/events");
        let mut found = self.audit();
        found.retain(|write| write.user_agent.starts_with(names) && counts(write));
        found.sort_by_key(|write| write.received);
        found
    }
}

/// A write as the API server put it on record.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audited {
    #[serde(rename = "requestURI")]
    pub uri: String,
    #[serde(default)]
    pub user_agent: String,
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: Timestamp,
}
