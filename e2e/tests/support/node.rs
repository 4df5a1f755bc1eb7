//! What is rendered for a node, run without a VM: in a network namespace of its own, with a folder in the place of the VM's
//! paths.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use giantnetes::{
    cluster::Valid,
    pki::{
        embedded::{self, Pair},
        leaf::{self, Authority, Leaf},
    },
    settings::Settings,
};
use k8s_openapi::jiff::Timestamp;
use lab::{command::Run, tools::Tools};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A Cluster of this name and spec.
pub fn cluster(name: &str, spec: &Value) -> Valid {
    let settings: Settings =
        serde_saphyr::from_str("kubernetes: {defaultVersion: v1.36.3, images: {v1.36.3: a}}").unwrap();
    let cluster = serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster", "spec": spec,
        "metadata": {"name": name, "namespace": "a", "uid": format!("9f2c6a50-6f3e-4a39-9e0b-{name:0>12}")},
    }))
    .unwrap();
    Valid::new(&cluster, &settings).unwrap()
}

/// The authorities of a guest, made here.
pub struct Authorities {
    pub kubernetes: Pair,
    pub etcd: Pair,
    pub front_proxy: Pair,
}

impl Authorities {
    pub fn new(owner: &str) -> Self {
        let root = |name: &str| embedded::root(name, owner, Timestamp::now(), 10 * DAY).unwrap();
        Self { kubernetes: root("kubernetes"), etcd: root("etcd"), front_proxy: root("front-proxy") }
    }

    pub fn sign(&self, leaf: &Leaf) -> Pair {
        let root = match leaf.authority {
            Authority::Kubernetes => &self.kubernetes,
            Authority::Etcd => &self.etcd,
            Authority::FrontProxy => &self.front_proxy,
        };
        embedded::sign(root, leaf, Timestamp::now(), DAY).unwrap()
    }
}

/// A node's namespace and folder. Both go when this is dropped.
pub struct NodeHome {
    pub namespace: String,
    folder: PathBuf,
    tools: Tools,
}

impl NodeHome {
    /// Makes them; `name` is unique among all of the machine.
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("giantnetes-{name}"));
        fs::create_dir_all(folder.join("pki")).unwrap();
        let home = Self { namespace: name.to_owned(), folder, tools: Tools::locate().unwrap() };
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Puts a certificate and its key where nodes have them.
    pub fn keep(&self, name: &str, pair: &Pair) {
        fs::write(self.path("pki").join(format!("{name}.crt")), &pair.certificate).unwrap();
        fs::write(self.path("pki").join(format!("{name}.key")), pair.key.expose_secret()).unwrap();
    }

    /// Puts everything there that a control-plane node gets.
    pub fn keep_masters_keys(&self, cluster: &Valid, index: u32, authorities: &Authorities) {
        let pki = self.path("pki");
        let roots = [
            ("ca.crt", &authorities.kubernetes),
            ("etcd-ca.crt", &authorities.etcd),
            ("front-proxy-ca.crt", &authorities.front_proxy),
        ];
        for (file, root) in roots {
            fs::write(pki.join(file), &root.certificate).unwrap();
        }
        for leaf in leaf::of_master(cluster, index) {
            self.keep(leaf.name, &authorities.sign(&leaf));
        }
        let service_accounts = embedded::key_pair().unwrap();
        fs::write(pki.join("sa.pub"), service_accounts.certificate).unwrap();
        fs::write(pki.join("sa.key"), service_accounts.key.expose_secret()).unwrap();
        fs::write(pki.join("encryption.yaml"), embedded::encryption_config("key1").unwrap().expose_secret()).unwrap();
    }

    /// What is rendered, with this folder in the place of a VM's paths.
    pub fn here(&self, text: &str) -> String {
        let of = |name: &str| self.path(name).display().to_string();
        text.replace("/etc/kubernetes", &self.folder.display().to_string())
            .replace("/var/lib/etcd/data", &of("data"))
            .replace("/var/log/kubernetes", &self.folder.display().to_string())
            .replace("/run/giantnetes-etcd-place", &of("environment"))
            .replace("/usr/local/bin/etcd", &self.tools.etcd.join("etcd").display().to_string())
            .replace("/usr/local/bin/", &format!("{}/", self.tools.kubernetes.display()))
    }

    /// etcdctl, asking the member at `address` with the API server's certificate.
    pub fn etcdctl(&self, address: &str) -> Command {
        let pki = |file: &str| self.path("pki").join(file).display().to_string();
        let mut command = self.command("etcdctl");
        command.arg(format!("--endpoints=https://{address}:2379"));
        command.arg(format!("--cacert={}", pki("etcd-ca.crt")));
        command.arg(format!("--cert={}", pki("apiserver-etcd-client.crt")));
        command.arg(format!("--key={}", pki("apiserver-etcd-client.key")));
        command.arg("--command-timeout=10s");
        command
    }

    /// A program in this namespace, which ends with this test. It finds those of nodes by their names.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "setpriv", "--pdeathsig", "KILL", "--"]);
        let (etcd, kubernetes) = (self.tools.etcd.display(), self.tools.kubernetes.display());
        let path = format!("{etcd}:{kubernetes}:{}", std::env::var("PATH").unwrap());
        command.arg(program.as_ref()).env("PATH", path);
        command
    }
}

impl Drop for NodeHome {
    fn drop(&mut self) {
        let _ = Run::new("ip").args(["netns", "del", &self.namespace]).output();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Runs `ip` with these words.
pub fn ip(words: &str) {
    Run::new("ip").args(words.split(' ')).output().unwrap();
}
