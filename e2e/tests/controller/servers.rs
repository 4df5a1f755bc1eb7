//! A real etcd, kube-apiserver and namespace controller on the loopback device: what a controller manager needs, and no node.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use lab::{command::Run, tools::Tools};

use crate::support::{
    apiserver::ApiServer,
    helm_template_of,
    processes::{Process, spawn, tied},
    root, tool,
};

/// The servers. Dropping them ends them and removes what they wrote.
pub struct Servers {
    // Dropped first: it is a client of the other.
    _controllers: Process,
    api: ApiServer,
}

/// What is put on record.
#[derive(Clone, Copy, Debug)]
pub enum Record {
    /// Everything but reads.
    Writes,
    /// Everything.
    All,
}

impl Record {
    fn policy(self) -> String {
        let reads = match self {
            Self::Writes => r#"{"level": "None", "verbs": ["get", "list", "watch"]}, "#,
            Self::All => "",
        };
        let kind = r#""apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]"#;
        format!(r#"{{{kind}, "rules": [{reads}{{"level": "Metadata"}}]}}"#)
    }
}

impl Servers {
    /// Starts the servers and installs the CustomResourceDefinitions.
    pub fn start(test: &str, record: Record) -> Result<Self> {
        let policy = std::env::temp_dir().join(format!("giantnetes-audit-{}.json", std::process::id()));
        std::fs::write(&policy, record.policy())?;
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
                    // The last one ends what an API server left half-deleted: of a pod without a host it marks first that it
                    // goes, and stops there if its client hangs up.
                    "--controllers=namespace-controller,persistentvolumeclaim-protection-controller,\
                     pod-garbage-collector-controller",
                    "--leader-elect=false",
                    "--secure-port=0",
                ]),
            &api.folder().join("controllers.log"),
        )?;
        api.install_crds()?;
        api.kubectl(&["create", "-f", "-"]).input(ingress_class("nginx", true)).output()?;
        Ok(Self { _controllers: controllers, api })
    }

    /// A scheduler, and what binds claims to volumes that are there. They end with the answer.
    pub fn scheduler(&self) -> Result<[Process; 2]> {
        let server = |name: &str, args: &[&str]| {
            let mut command = tied(Tools::locate()?.kubernetes.join(name));
            command.arg(format!("--kubeconfig={}", self.kubeconfig().display()));
            command.args(["--leader-elect=false", "--secure-port=0"]).args(args);
            spawn(&mut command, &self.folder().join(format!("{name}-of-pods.log")))
        };
        let binder = server("kube-controller-manager", &["--controllers=persistentvolume-binder-controller"])?;
        Ok([server("kube-scheduler", &[])?, binder])
    }

    /// Installs the kind of routes to a gateway, as the Gateway API's standard channel has it.
    pub fn install_routes(&self) -> Result<()> {
        let file = tool("gateway-api").join("share/config/crd/standard/gateway.networking.k8s.io_tlsroutes.yaml");
        self.api.install_kinds(&file, &["tlsroutes.gateway.networking.k8s.io"])
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

    /// A kubeconfig of a controller manager with the rights that the chart gives it, and no more. Its ServiceAccount is called
    /// like its lease.
    pub fn managers_kubeconfig(&self, lease: &str) -> PathBuf {
        let path = self.folder().join(format!("{lease}-rights.kubeconfig"));
        if path.exists() {
            return path;
        }
        self.give_rights(lease, chart_rights());
        let token = self.kubectl(&["create", "token", lease, "--duration=24h"]).output().unwrap();
        let mut kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        for user in &mut kubeconfig.auth_infos {
            user.auth_info = Some(AuthInfo { token: Some(token.trim().to_owned().into()), ..AuthInfo::default() });
        }
        std::fs::write(&path, serde_saphyr::to_string(&kubeconfig).unwrap()).unwrap();
        path
    }

    /// Gives the manager of a lease what a chart rendered for the release `core` gives it. Answers the names of the objects.
    pub fn give_rights(&self, lease: &str, rendered: &str) -> BTreeSet<String> {
        let account = "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: core, namespace: default}\n";
        let objects = format!("{rendered}{account}").replace("core", lease);
        let names = self.kubectl(&["apply", "-f", "-", "-o", "name"]).input(objects).output().unwrap();
        names.lines().map(str::to_owned).collect()
    }

    /// Installs the CustomResourceDefinitions of this tree's, as helm does it with a chart.
    pub fn install_crds_of(&self, tree: &Path) -> Result<()> {
        let file = tree.join("charts/giantnetes/files/crds.yaml");
        self.api.install_kinds(&file, &["clusters.giantnetes.io", "networkclaims.giantnetes.io"])
    }

    /// The administrator's client, straight to the API server.
    pub async fn client(&self) -> Client {
        client_of(&self.kubeconfig()).await
    }

    /// What the API server put on record.
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

/// An IngressClass, which may be the default one.
pub fn ingress_class(name: &str, default: bool) -> String {
    let annotations = serde_json::json!({"ingressclass.kubernetes.io/is-default-class": default.to_string()});
    serde_json::json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": name, "annotations": annotations}, "spec": {"controller": "example.com/nobody"},
    })
    .to_string()
}

/// A client as it is told by a kubeconfig.
pub async fn client_of(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    config.read_timeout = Some(Duration::from_secs(600));
    Client::try_from(config).unwrap()
}

/// The chart's RBAC, as helm renders it for a release called `core`.
fn chart_rights() -> &'static str {
    static RENDERED: OnceLock<String> = OnceLock::new();
    RENDERED.get_or_init(|| rights_of(&root()))
}

/// The same of the chart in this tree.
pub fn rights_of(tree: &Path) -> String {
    // All that the chart gives to any installation.
    let gateway = "settings.exposure.gateway.namespace=ingress,settings.exposure.gateway.name=public";
    let words = ["--namespace", "default", "--show-only", "templates/rbac.yaml", "--set", gateway];
    helm_template_of(tree, "core").args(words).output().unwrap()
}

/// A call as the API server put it on record.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audited {
    #[serde(default)]
    pub verb: String,
    #[serde(default)]
    pub user: serde_json::Value,
    #[serde(default)]
    pub object_ref: serde_json::Value,
    #[serde(default)]
    pub response_status: serde_json::Value,
    #[serde(rename = "requestURI")]
    pub uri: String,
    #[serde(default)]
    pub user_agent: String,
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: Timestamp,
}
