//! A host: containerd, kubelet and kube-proxy, in namespaces and a cgroup of its own. Its CNI comes as pods: Calico.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::command::Run;
use crate::paths::{Paths, write_whole};
use crate::pki::{file, write_kubeconfig};
use crate::process::Server;
use crate::tools::{Tools, find_command};
use crate::topology::{CGROUP, DNS_SERVICE, GATEWAY, HOSTS, Host, POD_RANGE};
use crate::{facts, http};

const PROXY_HEALTH_PORT: u16 = 10256;

/// The servers of one host.
#[derive(Debug)]
pub struct HostServers<'a> {
    /// The lab's folders.
    pub paths: &'a Paths,
    /// The lab's programs.
    pub tools: &'a Tools,
    /// The host.
    pub host: &'a Host,
    /// Reference of the image of pods' sandboxes.
    pub pause: &'a str,
}

impl HostServers<'_> {
    /// Writes what the servers read.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn configure(&self) -> Result<()> {
        self.forget_earlier_boot()?;
        write_whole(&self.file("containerd.toml"), &self.containerd_config(), 0o644)?;
        write_whole(&self.file("kubelet.json"), &self.kubelet_config().to_string(), 0o644)?;
        write_whole(&self.file("kube-proxy.json"), &self.proxy_config().to_string(), 0o644)?;
        write_whole(
            &self.file("resolv.conf"),
            &format!("nameserver {GATEWAY}\noptions timeout:1 attempts:1\n"),
            0o644,
        )?;
        write_kubeconfig(self.paths, &self.kubelet_name(), &self.file("kubelet.kubeconfig"))?;
        write_kubeconfig(self.paths, "proxy", &self.file("kube-proxy.kubeconfig"))
    }

    /// What is in /run does not outlive a machine's restart; neither may the lab's stand-in for it.
    fn forget_earlier_boot(&self) -> Result<()> {
        let (file, boot) = (self.file("boot"), boot_id()?);
        match std::fs::read_to_string(&file) {
            Ok(known) if known == boot => return Ok(()),
            Ok(_) => {
                let run = self.file("run");
                let entries = std::fs::read_dir(&run).into_iter().flatten().flatten();
                for entry in entries.filter(|entry| entry.path().is_dir()) {
                    std::fs::remove_dir_all(entry.path())?;
                }
                let _ = std::fs::remove_file(self.file("purged"));
            }
            Err(_) => {}
        }
        write_whole(&file, &boot, 0o644)
    }

    fn kubelet_name(&self) -> String {
        format!("{}-kubelet", self.host.name())
    }

    /// A file of this host.
    pub fn file(&self, name: &str) -> PathBuf {
        self.paths.room(&self.host.room).join(name)
    }

    fn server(&self, name: &str, program: PathBuf, args: Vec<String>, config: &[&str]) -> Server {
        let argv = std::iter::once(program.display().to_string()).chain(args).collect();
        let config = config.iter().map(|name| self.file(name)).collect();
        Server { name: format!("{}-{name}", self.host.name()), room: self.host.room, argv, config }
    }

    /// containerd, Debian's.
    ///
    /// # Errors
    /// If it is not installed.
    pub fn containerd(&self) -> Result<Server> {
        let args = vec!["--config".into(), self.file("containerd.toml").display().to_string()];
        Ok(self.server("containerd", find_command("containerd")?, args, &["containerd.toml"]))
    }

    /// kubelet.
    pub fn kubelet(&self) -> Server {
        let args = vec![
            format!("--config={}", self.file("kubelet.json").display()),
            format!("--kubeconfig={}", self.file("kubelet.kubeconfig").display()),
            format!("--hostname-override={}", self.host.name()),
            format!("--node-ip={}", self.host.room.address),
            format!("--node-labels=giantnetes.io/zone={}", self.host.zone),
            // cAdvisor's default, every 10 s, is a good part of an idle kubelet's work.
            "--housekeeping-interval=30s".into(),
        ];
        let config = ["kubelet.json", "kubelet.kubeconfig"];
        self.server("kubelet", self.tools.kubernetes.join("kubelet"), args, &config)
    }

    /// kube-proxy.
    pub fn proxy(&self) -> Server {
        let args = vec![
            format!("--config={}", self.file("kube-proxy.json").display()),
            format!("--hostname-override={}", self.host.name()),
        ];
        let config = ["kube-proxy.json", "kube-proxy.kubeconfig"];
        self.server("kube-proxy", self.tools.kubernetes.join("kube-proxy"), args, &config)
    }

    fn containerd_config(&self) -> String {
        // restrict_oom_score_adj: without CAP_SYS_RESOURCE (as in many sandboxes) a score cannot be lowered, and every
        // pod sandbox would fail. The paths are containerd's defaults: the host's own folders lie over them.
        format!(
            r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
            pause = self.pause
        )
    }

    fn kubelet_config(&self) -> Value {
        let pki = |name: &str| file(self.paths, name);
        let server = format!("{}-server", self.kubelet_name());
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": pki(&format!("{server}.crt")),
            "tlsPrivateKeyFile": pki(&format!("{server}.key")),
            "tlsMinVersion": "VersionTLS12",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{CGROUP}/{}", self.host.name()),
            "failCgroupV1": false,
            "failSwapOn": false,
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": self.file("resolv.conf"),
            "maxPods": 110,
            // Every host sees the whole machine's memory: it keeps back what is the others'.
            "systemReserved": {"memory": format!("{}Mi", reserved_memory() >> 20)},
            // Lowering it takes CAP_SYS_RESOURCE.
            "oomScoreAdj": 0,
            // A developer's disk is often nearly full, and that is not this lab's business: only the last hundredth is.
            "evictionHard": {
                "memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
                "imagefs.available": "1%", "imagefs.inodesFree": "1%",
            },
            // No registry could bring a collected image back.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "imageMinimumGCAge": "8760h",
        })
    }

    fn proxy_config(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": POD_RANGE,
            "clientConnection": {"kubeconfig": self.file("kube-proxy.kubeconfig")},
            "healthzBindAddress": format!("{}:{PROXY_HEALTH_PORT}", self.host.room.address),
            "metricsBindAddress": "127.0.0.1:10249",
            "oomScoreAdj": 0,
            // The table's size is the machine's, not a network namespace's: hands off.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        })
    }

    /// `ctr` on this host's containerd, in Kubernetes' namespace.
    pub fn ctr(&self) -> Run {
        let socket = self.paths.containerd_socket(self.host);
        Run::new("ctr").arg("--address").arg(socket).args(["--namespace", "k8s.io"])
    }

    /// Fails while containerd does not answer.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_containerd(&self) -> Result<()> {
        self.containerd()?.check(self.paths)?;
        self.ctr().args(["--connect-timeout", "2s", "version"]).timeout(Duration::from_secs(5)).output().map(drop)
    }

    /// Fails while kube-proxy has not written its rules.
    ///
    /// # Errors
    /// If it does not answer or has not.
    pub fn check_proxy(&self) -> Result<()> {
        self.proxy().check(self.paths)?;
        let address = SocketAddr::from((self.host.room.address, PROXY_HEALTH_PORT));
        match http::status(address, "/healthz")? {
            200 => Ok(()),
            status => bail!("kube-proxy answers {status}"),
        }
    }
}

/// Bytes of the machine's memory that are not for one host's pods.
fn reserved_memory() -> u64 {
    let total = facts::memory("MemTotal").unwrap_or_default();
    total - total / HOSTS.len() as u64
}

/// Changes with every start of the machine.
///
/// # Errors
/// If the kernel does not tell.
pub fn boot_id() -> Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the kernel's boot id")
}
