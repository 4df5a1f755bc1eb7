//! A real kube-apiserver over a real etcd on free ports of the loopback device, for tests that need no lab.
//!
//! It needs no root and leaves nothing behind: data and certificates lie in a temporary folder, and both servers die with
//! the thread that started them (so start it in the test that uses it, never in a `static`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::command::Run;
use lab::paths::Paths;
use lab::tools::Tools;
use lab::{pki, wait_for};
use serde_json::json;

use super::processes::{Process, free_port, spawn, tied};

/// How long a server may take to be ready, on a machine that builds something at the same time.
const START: Duration = Duration::from_secs(90);

/// The file of authorities whose clients are let in.
const CLIENTS: &str = "clients.crt";

/// A running API server. Dropping it ends it, and etcd, and removes the folder, unless the test failed.
pub struct ApiServer {
    paths: Paths,
    tools: Tools,
    port: u16,
    etcd_port: u16,
    args: Vec<String>,
    etcd: Option<Process>,
    apiserver: Option<Process>,
}

impl ApiServer {
    /// Starts both servers and waits until the API is ready. `args` are given to kube-apiserver beside what it needs.
    ///
    /// # Errors
    /// If one of them does not come up in time; the end of its log is in the message.
    pub fn start(name: &str, args: &[&str]) -> Result<Self> {
        Self::start_at(name, free_port()?, "", args)
    }

    /// As [`Self::start`], at this port of the loopback address, for clients of a further authority (PEM), too.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_at(name: &str, port: u16, authority: &str, args: &[&str]) -> Result<Self> {
        let tools = Tools::locate()?;
        for program in [tools.etcd.join("etcd"), tools.kubernetes.join("kube-apiserver")] {
            ensure!(program.is_file(), "{} is missing: `make tools` builds it", program.display());
        }
        let state = std::env::temp_dir().join(format!("giantnetes-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&state);
        let paths = Paths { cache: state.clone(), state };
        pki::ensure(&paths)?;
        let authorities = std::fs::read_to_string(pki::file(&paths, "ca.crt"))? + authority;
        std::fs::write(paths.state.join(CLIENTS), authorities)?;
        let mut server = Self {
            paths,
            tools,
            port,
            etcd_port: free_port()?,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            etcd: None,
            apiserver: None,
        };
        server.write_kubeconfig()?;
        server.start_etcd()?;
        server.start_apiserver()?;
        Ok(server)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.paths.kubeconfig()
    }

    /// URL of the API.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Folder of the servers' data, certificates and logs.
    pub fn folder(&self) -> &Path {
        &self.paths.state
    }

    /// Process id of kube-apiserver, if it runs.
    pub fn apiserver_pid(&self) -> Option<u32> {
        self.apiserver.as_ref().map(Process::id)
    }

    /// Process ids of both servers.
    pub fn pids(&self) -> Vec<u32> {
        [&self.etcd, &self.apiserver].into_iter().flatten().map(Process::id).collect()
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self, args: &[&str]) -> Run {
        Run::new(self.tools.kubernetes.join("kubectl"))
            .args([
                format!("--kubeconfig={}", self.kubeconfig().display()),
                format!("--cache-dir={}", self.folder().join("kubectl-cache").display()),
                "--request-timeout=20s".into(),
            ])
            .args(args.iter().copied())
            .timeout(Duration::from_secs(30))
    }

    /// A line of a shell, whose kubectl is the administrator's.
    ///
    /// # Errors
    /// If it fails.
    pub fn shell(&self, line: &str) -> Result<String> {
        let path = format!("PATH={}:{}", self.tools.kubernetes.display(), std::env::var("PATH")?);
        let cache = format!("KUBECACHEDIR={}", self.folder().join("kubectl-cache").display());
        Run::new("env")
            .args([path, cache, format!("KUBECONFIG={}", self.kubeconfig().display())])
            .args(["bash", "-c", line])
            .timeout(Duration::from_secs(30))
            .output()
    }

    /// Installs our CustomResourceDefinitions and waits until they are served.
    ///
    /// # Errors
    /// If the API server refuses them.
    pub fn install_crds(&self) -> Result<()> {
        let crds = super::root().join("manifests/crds/giantnetes.io.yaml");
        self.install_kinds(&crds, &["clusters.giantnetes.io", "networkclaims.giantnetes.io"])
    }

    /// Installs the CustomResourceDefinitions of a file and waits until these of them are served.
    ///
    /// # Errors
    /// If the API server refuses one.
    pub fn install_kinds(&self, file: &Path, crds: &[&str]) -> Result<()> {
        self.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()]).output()?;
        for crd in crds {
            self.kubectl(&["wait", "--for=condition=Established", "--timeout=25s", "crd", crd]).output()?;
        }
        Ok(())
    }

    /// Kills kube-apiserver, as nothing but `kill -9` does.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_apiserver(&mut self) -> Result<()> {
        self.apiserver.take().map(drop).context("kube-apiserver does not run")
    }

    /// Starts kube-apiserver again, at the same address, and waits until it is ready.
    ///
    /// # Errors
    /// If it is not in time.
    pub fn start_apiserver(&mut self) -> Result<()> {
        let pki = |name: &str| pki::file(&self.paths, name);
        let mut args = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={}", self.port),
            // Room for the Services of a thousand guests.
            "--service-cluster-ip-range=10.233.0.0/16".into(),
            "--authorization-mode=RBAC".into(),
            format!("--client-ca-file={}", self.folder().join(CLIENTS).display()),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            format!("--service-account-key-file={}", pki("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
            "--profiling=false".into(),
        ];
        args.extend(self.args.iter().cloned());
        self.apiserver = Some(self.spawn("kube-apiserver", &self.tools.kubernetes, &args)?);
        wait_for(START, "kube-apiserver to be ready", || {
            alive(self.apiserver.as_mut(), &self.paths, "kube-apiserver")?;
            let answer = self.kubectl(&["get", "--raw", "/readyz"]).timeout(Duration::from_secs(5)).output()?;
            ensure!(answer.trim() == "ok", "it answers {answer}");
            Ok(())
        })
    }

    fn start_etcd(&mut self) -> Result<()> {
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let client = format!("http://127.0.0.1:{}", self.etcd_port);
        let args = [
            "--name=test".into(),
            format!("--data-dir={}", self.folder().join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=test={peer}"),
            "--log-level=warn".into(),
            // The data is thrown away with the test, so it need not survive a power cut.
            "--unsafe-no-fsync".into(),
        ];
        self.etcd = Some(self.spawn("etcd", &self.tools.etcd, &args)?);
        let etcdctl = self.tools.etcd.join("etcdctl");
        wait_for(START, "etcd to be healthy", || {
            alive(self.etcd.as_mut(), &self.paths, "etcd")?;
            let endpoint = format!("--endpoints={client}");
            Run::new(&etcdctl).args([endpoint.as_str(), "endpoint", "health"]).output().map(drop)
        })
    }

    fn spawn(&self, name: &str, folder: &Path, args: &[String]) -> Result<Process> {
        let mut command = tied(folder.join(name));
        spawn(command.args(args).current_dir(self.folder()), &self.folder().join(format!("{name}.log")))
    }

    fn write_kubeconfig(&self) -> Result<()> {
        let pki = |name: &str| pki::file(&self.paths, name);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url(), "certificate-authority": pki("ca.crt")}}],
            "users": [{"name": "admin", "user": {"client-certificate": pki("admin.crt"), "client-key": pki("admin.key")}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        });
        lab::paths::write_whole(&self.kubeconfig(), &config.to_string(), 0o600)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.apiserver = None;
        self.etcd = None;
        if std::thread::panicking() {
            println!("    what the servers wrote is kept in {}", self.folder().display());
        } else {
            let _ = std::fs::remove_dir_all(self.folder());
        }
    }
}

fn alive(process: Option<&mut Process>, paths: &Paths, name: &str) -> Result<()> {
    let Some(status) = process.context("it was not started")?.0.try_wait()? else { return Ok(()) };
    let log = std::fs::read_to_string(paths.state.join(format!("{name}.log"))).unwrap_or_default();
    let lines: Vec<_> = log.lines().rev().take(5).collect();
    bail!("{name} ended with {status}: {}", lines.join("\n"))
}
