//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler: how they are called, and when they are ready.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use crate::command::Run;
use crate::network::netns_file;
use crate::paths::{Paths, write_whole};
use crate::pki::{file, write_kubeconfig};
use crate::process::Server;
use crate::tools::Tools;
use crate::topology::{CONTROL, SERVICE_RANGE};

/// The servers of the control plane.
#[derive(Debug)]
pub struct ControlPlane<'a> {
    /// The lab's folders.
    pub paths: &'a Paths,
    /// The lab's programs.
    pub tools: &'a Tools,
}

impl ControlPlane<'_> {
    /// Writes what the servers read.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn configure(&self) -> Result<()> {
        for name in ["controller-manager", "scheduler"] {
            write_kubeconfig(self.paths, name, &self.file(&format!("{name}.kubeconfig")))?;
        }
        write_kubeconfig(self.paths, "admin", &self.paths.kubeconfig())?;
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [
                // Reading is most of the traffic and of no interest; leases and events are most of the writing.
                {"level": "None", "verbs": ["get", "list", "watch"]},
                {"level": "None", "resources": [{"group": "coordination.k8s.io"}, {"resources": ["events"]}, {"group": "events.k8s.io"}]},
                {"level": "Metadata"},
            ],
        });
        write_whole(&self.file("audit-policy.json"), &policy.to_string(), 0o644)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.paths.room(&CONTROL).join(name)
    }

    fn server(&self, name: &str, program: PathBuf, args: Vec<String>, config: &[&str]) -> Server {
        let argv = std::iter::once(program.display().to_string()).chain(args).collect();
        Server { name: name.into(), room: CONTROL, argv, config: config.iter().map(|name| self.file(name)).collect() }
    }

    /// etcd. It listens on the loopback device of its network namespace, so no pod can reach it.
    pub fn etcd(&self) -> Server {
        let args = vec![
            "--name=lab".into(),
            format!("--data-dir={}", self.file("etcd").display()),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
            "--initial-cluster=lab=http://127.0.0.1:2380".into(),
            "--log-level=warn".into(),
            // The data is thrown away with the lab, so it need not survive a power cut.
            "--unsafe-no-fsync".into(),
        ];
        self.server("etcd", self.tools.etcd.join("etcd"), args, &[])
    }

    /// kube-apiserver, with the Node authorizer, RBAC, and an audit log of writes.
    pub fn apiserver(&self) -> Server {
        let pki = |name: &str| file(self.paths, name);
        let args = vec![
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--bind-address={}", CONTROL.address),
            format!("--advertise-address={}", CONTROL.address),
            "--secure-port=6443".into(),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--allow-privileged=true".into(),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--kubelet-certificate-authority={}", pki("ca.crt")),
            format!("--kubelet-client-certificate={}", pki("apiserver-kubelet.crt")),
            format!("--kubelet-client-key={}", pki("apiserver-kubelet.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            format!("--service-account-key-file={}", pki("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
            // The same CA signs all clients, so the front proxy is told from them by its name.
            format!("--requestheader-client-ca-file={}", pki("ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".into(),
            "--requestheader-username-headers=X-Remote-User".into(),
            "--requestheader-group-headers=X-Remote-Group".into(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            format!("--proxy-client-cert-file={}", pki("front-proxy.crt")),
            format!("--proxy-client-key-file={}", pki("front-proxy.key")),
            format!("--audit-policy-file={}", self.file("audit-policy.json").display()),
            format!("--audit-log-path={}", self.paths.logs().join("audit.log").display()),
            "--audit-log-maxsize=50".into(),
            "--audit-log-maxbackup=9".into(),
            "--profiling=false".into(),
        ];
        self.server("kube-apiserver", self.tools.kubernetes.join("kube-apiserver"), args, &["audit-policy.json"])
    }

    /// kube-controller-manager, which also provides volumes (in /tmp/hostpath_pv) for StorageClass `standard`.
    pub fn controller_manager(&self) -> Server {
        let mut args = self.client_args("controller-manager");
        args.extend([
            "--use-service-account-credentials=true".into(),
            format!("--service-account-private-key-file={}", file(self.paths, "service-accounts.key")),
            format!("--root-ca-file={}", file(self.paths, "ca.crt")),
            format!("--cluster-signing-cert-file={}", file(self.paths, "ca.crt")),
            format!("--cluster-signing-key-file={}", file(self.paths, "ca.key")),
            "--enable-hostpath-provisioner=true".into(),
            // The default of 50 s is long for a test to wait for; kubelets answer every ten.
            "--node-monitor-grace-period=20s".into(),
        ]);
        let program = self.tools.kubernetes.join("kube-controller-manager");
        self.server("kube-controller-manager", program, args, &["controller-manager.kubeconfig"])
    }

    /// kube-scheduler.
    pub fn scheduler(&self) -> Server {
        let args = self.client_args("scheduler");
        self.server("kube-scheduler", self.tools.kubernetes.join("kube-scheduler"), args, &["scheduler.kubeconfig"])
    }

    /// What controller manager and scheduler have in common.
    fn client_args(&self, name: &str) -> Vec<String> {
        let kubeconfig = self.file(&format!("{name}.kubeconfig")).display().to_string();
        vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--bind-address={}", CONTROL.address),
            format!("--tls-cert-file={}", file(self.paths, &format!("{name}-server.crt"))),
            format!("--tls-private-key-file={}", file(self.paths, &format!("{name}-server.key"))),
            // There is one of each: an election would only write every two seconds.
            "--leader-elect=false".into(),
            "--profiling=false".into(),
        ]
    }

    /// Fails while etcd does not answer.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_etcd(&self) -> Result<()> {
        self.etcd().check(self.paths)?;
        let netns = format!("--net={}", netns_file(&CONTROL).display());
        let etcdctl = self.tools.etcd.join("etcdctl");
        Run::new("nsenter").args([netns, "--".into()]).arg(etcdctl).args(["endpoint", "health"]).output().map(drop)
    }

    /// Fails while the API server is not ready.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_apiserver(&self) -> Result<()> {
        self.apiserver().check(self.paths)?;
        self.healthy(6443, "/readyz")
    }

    /// Fails while the controller manager does not answer.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_controller_manager(&self) -> Result<()> {
        self.controller_manager().check(self.paths)?;
        self.healthy(10257, "/healthz")
    }

    /// Fails while the scheduler does not answer.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_scheduler(&self) -> Result<()> {
        self.scheduler().check(self.paths)?;
        self.healthy(10259, "/readyz")
    }

    /// Asks a health endpoint, with kubectl as the HTTPS client.
    fn healthy(&self, port: u16, path: &str) -> Result<()> {
        let server = format!("--server=https://{}:{port}", CONTROL.address);
        let answer = self.kubectl(&["get", "--raw", path, &server]).timeout(Duration::from_secs(5)).output()?;
        if answer.trim() == "ok" { Ok(()) } else { bail!("port {port} answers {answer}") }
    }

    /// kubectl as the administrator; its cache of the API lies in the state folder.
    pub fn kubectl(&self, args: &[&str]) -> Run {
        let cache = self.paths.state.join("kubectl-cache");
        Run::new(self.tools.kubernetes.join("kubectl"))
            .args([
                format!("--kubeconfig={}", self.paths.kubeconfig().display()),
                format!("--cache-dir={}", cache.display()),
            ])
            .args(args.iter().copied())
            .timeout(Duration::from_secs(30))
    }

    /// What every cluster of ours has: the default StorageClass, and the API server's right to ask kubelets.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn apply_objects(&self) -> Result<()> {
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
                "metadata": {
                    "name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
                },
                "provisioner": "kubernetes.io/host-path",
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": "lab-apiserver-kubelet"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:kubelet-api-admin",
                },
                "subjects": [{
                    "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "kube-apiserver-kubelet-client",
                }],
            },
        ]});
        let apply = ["apply", "--server-side", "--field-manager=lab", "-f", "-"];
        self.kubectl(&apply).input(objects.to_string()).output().map(drop)
    }
}
