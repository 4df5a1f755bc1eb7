//! A real etcd, kube-apiserver and namespace controller on the loopback device: what a controller manager needs, and no node.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use lab::{command::Run, paths::Paths, pki, tools::Tools, wait_for};

/// Ends a process when it is dropped.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The servers. Dropping them ends them and removes what they wrote.
pub struct Servers {
    // Fields are dropped in this order: clients of the API server first.
    _controllers: Process,
    _apiserver: Process,
    _etcd: Process,
    pub folder: Folder,
}

/// A folder of its own, removed when it is dropped.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("    what the servers and managers wrote is kept in {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A port of the loopback address that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts a program; what it writes goes into a file.
pub fn spawn(command: &mut Command, log: &Path) -> Result<Process> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
    Ok(Process(child.with_context(|| format!("start {:?}", command.get_program()))?))
}

const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
    {"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}]}"#;

impl Servers {
    /// Starts the servers and installs the CustomResourceDefinitions.
    pub fn start(test: &str) -> Result<Self> {
        let state = std::env::temp_dir().join(format!("giantnetes-controller-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&state)?;
        let folder = Folder(state.clone());
        let paths = Paths { state: state.clone(), cache: state.clone() };
        pki::ensure(&paths)?;
        let tools = Tools::locate()?;
        let (clients, peers, port) = (free_port(), free_port(), free_port());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let etcd = spawn(
            Command::new(tools.etcd.join("etcd"))
                .arg("--name=core")
                .arg(format!("--data-dir={}", state.join("etcd").display()))
                .args([
                    format!("--listen-client-urls={}", url(clients)),
                    format!("--advertise-client-urls={}", url(clients)),
                ])
                .args([
                    format!("--listen-peer-urls={}", url(peers)),
                    format!("--initial-advertise-peer-urls={}", url(peers)),
                ])
                .arg(format!("--initial-cluster=core={}", url(peers)))
                .args(["--log-level=warn", "--unsafe-no-fsync"]),
            &state.join("etcd.log"),
        )?;
        std::fs::write(state.join("audit-policy.json"), AUDIT_POLICY)?;
        let file = |name: &str| paths.pki().join(name).display().to_string();
        let apiserver = spawn(
            Command::new(tools.kubernetes.join("kube-apiserver"))
                .arg(format!("--etcd-servers={}", url(clients)))
                .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
                .arg(format!("--secure-port={port}"))
                .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"])
                // Service accounts are made by a controller that does not run here.
                .arg("--disable-admission-plugins=ServiceAccount")
                .arg(format!("--client-ca-file={}", file("ca.crt")))
                .arg(format!("--tls-cert-file={}", file("apiserver.crt")))
                .arg(format!("--tls-private-key-file={}", file("apiserver.key")))
                .arg("--service-account-issuer=https://kubernetes.default.svc")
                .arg(format!("--service-account-key-file={}", file("service-accounts.pub")))
                .arg(format!("--service-account-signing-key-file={}", file("service-accounts.key")))
                .arg(format!("--audit-policy-file={}", state.join("audit-policy.json").display()))
                .arg(format!("--audit-log-path={}", state.join("audit.log").display()))
                .arg("--profiling=false"),
            &state.join("apiserver.log"),
        )?;
        let kubeconfig = state.join("admin.kubeconfig");
        pki::write_kubeconfig(&paths, "admin", &kubeconfig)?;
        let text = std::fs::read_to_string(&kubeconfig)?;
        let at = text.find("https://").context("a server in the kubeconfig")?;
        let end = at + text[at..].find('"').context("the end of the server's URL")?;
        std::fs::write(&kubeconfig, format!("{}https://127.0.0.1:{port}{}", &text[..at], &text[end..]))?;
        let kubectl = || {
            Run::new(tools.kubernetes.join("kubectl"))
                .args(["--kubeconfig".to_owned(), kubeconfig.display().to_string()])
        };
        wait_for(Duration::from_secs(90), "the API server to be ready", || {
            let answer = kubectl().args(["get", "--raw", "/readyz", "--request-timeout=5s"]).output()?;
            ensure!(answer.trim() == "ok", "{answer}");
            Ok(())
        })?;
        let controllers = spawn(
            Command::new(tools.kubernetes.join("kube-controller-manager"))
                .arg(format!("--kubeconfig={}", kubeconfig.display()))
                .args(["--controllers=namespace-controller", "--leader-elect=false", "--secure-port=0"]),
            &state.join("controllers.log"),
        )?;
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/crds/giantnetes.io.yaml");
        kubectl().args(["apply", "--server-side", "-f"]).arg(crds).output()?;
        kubectl().args(["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"]).output()?;
        Ok(Self { _controllers: controllers, _apiserver: apiserver, _etcd: etcd, folder })
    }

    /// The administrator's client, straight to the API server.
    pub async fn client(&self) -> Client {
        let file = self.folder.0.join("admin.kubeconfig");
        let kubeconfig = Kubeconfig::read_from(file).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        config.read_timeout = Some(Duration::from_secs(600));
        Client::try_from(config).unwrap()
    }

    /// Writes on record, but for reads.
    pub fn audit(&self) -> Vec<Audited> {
        let text = std::fs::read_to_string(self.folder.0.join("audit.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
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
    pub request_received_timestamp: String,
}
