//! The real controller manager, as a process, behind a proxy of its own.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, ensure};
use lab::{command::Run, wait_for};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    proxy::Proxy,
    servers::{Servers, client_of},
    support::{
        giantnetes,
        processes::{Process, free_port, spawn},
    },
    world::{SECOND, eventually},
};

/// How a controller manager is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the lease; managers of one lease take turns.
    pub lease: &'static str,
    pub lease_duration: &'static str,
    pub call_timeout: &'static str,
    /// How long a released VNI rests.
    pub quarantine: &'static str,
    pub log: &'static str,
    pub log_format: &'static str,
    /// Without the proxy between it and the API server.
    pub direct: bool,
    /// With VM pods, which nobody runs.
    pub kvm: bool,
    /// How long pods of a worker that goes have to find another one.
    pub drain_timeout: &'static str,
    /// How long a host may be silent.
    pub host_timeout: &'static str,
    /// Whether guests may have routes at Gateway `ingress/public`, port 10443.
    pub gateway: bool,
    /// `settings.vault`.
    pub vault: Option<serde_json::Value>,
    /// `settings.network.flannel`.
    pub flannel: Option<serde_json::Value>,
    /// `settings.aws`.
    pub aws: Option<serde_json::Value>,
    /// Another program than the one of now.
    pub program: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lease: "core",
            lease_duration: "2s",
            call_timeout: "5s",
            quarantine: "1s",
            log: "info,giantnetes=debug",
            log_format: "text",
            direct: false,
            kvm: false,
            drain_timeout: "10m",
            host_timeout: "5m",
            gateway: false,
            vault: None,
            flannel: None,
            aws: None,
            program: None,
        }
    }
}

/// Details of statuses are written some seconds after they were seen.
fn holds_nothing_back(metrics: &str) -> Result<()> {
    let held = metrics.lines().find_map(|line| line.strip_prefix("giantnetes_cluster_statuses_held_back "));
    ensure!(held.is_none_or(|count| count == "0"), "it holds back the statuses of {held:?} Clusters");
    Ok(())
}

pub struct Manager {
    pub process: Process,
    pub proxy: Proxy,
    pub listen: u16,
    pub log: PathBuf,
    /// The operator's settings.
    pub settings: PathBuf,
    command: Command,
}

impl Manager {
    /// Starts a manager called `name`.
    pub async fn start(servers: &Servers, name: &str, options: Options) -> Self {
        let folder = servers.folder();
        let rights = servers.managers_kubeconfig(options.lease);
        let proxy = Proxy::start(name, client_of(&rights).await);
        let settings = folder.join(format!("{name}-settings.yaml"));
        // Its guests find each other by DNS, which nobody asks here.
        let flannel = options.flannel.map(|flannel| format!(", clusterDNS: 10.96.0.10, flannel: {flannel}"));
        let flannel = flannel.unwrap_or_default();
        let text = format!(
            "kubernetes: {{defaultVersion: v1.36.3, images: {{v1.36.3: 'giantnetes/vm:v1.36.3', v1.36.4: 'giantnetes/vm:v1.36.4'}}}}\n\
             network: {{quarantine: {}{}}}\nkvm: {{enabled: {}, hostTimeout: {}}}\nrollout: {{drainTimeout: {}}}\n",
            options.quarantine, flannel, options.kvm, options.host_timeout, options.drain_timeout
        );
        let vault = options.vault.map(|vault| format!("vault: {vault}\n")).unwrap_or_default();
        let vault = vault + &options.aws.map(|aws| format!("aws: {aws}\n")).unwrap_or_default();
        let gateway = "exposure: {gateway: {namespace: ingress, name: public, port: 10443}}\n";
        std::fs::write(&settings, text + &vault + if options.gateway { gateway } else { "" }).unwrap();
        let kubeconfig = folder.join(format!("{name}.kubeconfig"));
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "core",
            "clusters": [{"name": "core", "cluster": {"server": format!("http://127.0.0.1:{}", proxy.port)}}],
            "contexts": [{"name": "core", "context": {"cluster": "core", "user": "", "namespace": "default"}}],
        });
        if options.direct {
            std::fs::copy(&rights, &kubeconfig).unwrap();
        } else {
            std::fs::write(&kubeconfig, config.to_string()).unwrap();
        }
        let (listen, log) = (free_port().unwrap(), folder.join(format!("{name}.log")));
        let mut command = Command::new(options.program.unwrap_or_else(giantnetes));
        command
            .env("KUBECONFIG", &kubeconfig)
            // As the chart has it.
            .env("MALLOC_ARENA_MAX", "2")
            .args(["--log", options.log, "--log-format", options.log_format])
            .args(["run", "--lease", options.lease, "--lease-duration", options.lease_duration])
            .args(["--call-timeout", options.call_timeout, "--replica", name])
            .args(["--listen", &format!("127.0.0.1:{listen}"), "--settings", &settings.display().to_string()]);
        let process = spawn(&mut command, &log).unwrap();
        Self { process, proxy, listen, log, settings, command }
    }

    /// Starts it again after it ended.
    pub fn restart(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        self.process = spawn(&mut self.command, &self.log).unwrap();
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    pub fn signal(&self, name: &str) {
        Run::new("kill").args([format!("-{name}"), self.id().to_string()]).output().unwrap();
    }

    /// Waits until nothing was written for a second, and nothing is held back: conditions follow what they tell of.
    pub async fn settled(&self) {
        let quiet = || async {
            let before = self.proxy.writes().len();
            tokio::time::sleep(SECOND).await;
            ensure!(self.proxy.writes().len() == before, "it still writes");
            holds_nothing_back(&self.get("/metrics").await?)
        };
        eventually(SECOND * 30, "the manager to have nothing left to write", quiet).await.unwrap();
    }

    /// The same, by its own count of requests.
    pub async fn settled_by_metrics(&self) -> Result<()> {
        let writes = async || -> Result<Vec<String>> {
            let text = self.get("/metrics").await?;
            let requests = text.lines().filter(|line| line.starts_with("giantnetes_api_requests_total"));
            Ok(requests
                .filter(|line| !line.contains("verb=\"get\"") && !line.contains("watch"))
                .map(Into::into)
                .collect())
        };
        eventually(SECOND * 60, "the manager to have nothing left to write", || async {
            let before = writes().await?;
            tokio::time::sleep(SECOND).await;
            ensure!(writes().await? == before, "it still writes");
            holds_nothing_back(&self.get("/metrics").await?)
        })
        .await?;
        Ok(())
    }

    /// Waits until it has ended by itself. Answers how it ended.
    pub fn ended(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        wait_for(limit, "the manager to end", || {
            let status = self.process.0.try_wait()?;
            ensure!(status.is_some(), "it runs");
            Ok(status.unwrap())
        })
    }

    /// What `giantnetes plan --live` says, with this manager's settings, of the Cluster `name` in `a` with this spec.
    pub fn live_plan(&self, servers: &Servers, name: &str, spec: &serde_json::Value) -> String {
        let file = servers.folder().join(format!("{name}-planned.json"));
        let cluster = serde_json::json!({
            "apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster",
            "metadata": {"name": name, "namespace": "a"}, "spec": spec,
        });
        std::fs::write(&file, cluster.to_string()).unwrap();
        Run::new("env")
            .arg(format!("KUBECONFIG={}", servers.kubeconfig().display()))
            .arg(giantnetes())
            .args(["plan", "--live", "--format", "summary", "--settings"])
            .arg(&self.settings)
            .arg("-f")
            .arg(&file)
            .timeout(SECOND * 60)
            .output()
            .unwrap()
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it answers at a path.
    pub async fn get(&self, path: &str) -> Result<String> {
        self.request("GET", path, "").await
    }

    pub async fn put(&self, path: &str, body: &str) -> Result<String> {
        self.request("PUT", path, body).await
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.listen)).await?;
            let length = body.len();
            let head =
                format!("{method} {path} HTTP/1.0\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(format!("{head}{body}").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), exchange).await??;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(status == "200", "{answer}");
        Ok(answer)
    }
}
