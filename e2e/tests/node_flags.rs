//! What is rendered for a node, tried on the programs themselves: a misspelt flag or field must not reach a VM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use giantnetes::{
    cluster::Valid,
    node_config::{self, Blank, NodeConfig},
    settings::Settings,
};
use lab::{command::Run, tools::Tools};
use serde_json::{Value, json};
use support::apiserver::ApiServer;

const COMPONENTS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];

/// A control-plane node of a Cluster with this spec.
fn node(spec: &Value) -> NodeConfig {
    let settings: Settings =
        serde_saphyr::from_str("kubernetes: {defaultVersion: v1.36.3, images: {v1.36.3: a}}").unwrap();
    let cluster = serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster", "spec": spec,
        "metadata": {"name": "demo", "namespace": "a", "uid": "9f2c6a50-6f3e-4a39-9e0b-0d9f4c1f7a11"},
    }))
    .unwrap();
    node_config::control_plane(&Valid::new(&cluster, &settings).unwrap(), 0, Blank::Forms)
}

/// The spec of an example.
fn example(name: &str) -> Value {
    let text = std::fs::read_to_string(support::root().join("manifests/examples").join(name)).unwrap();
    serde_saphyr::from_str::<Value>(&text).unwrap()["spec"].take()
}

/// The maximal example without flags for kube-proxy: then it reads a file.
fn with_proxy_file() -> Value {
    let mut spec = example("maximal.yaml");
    spec["kubernetes"]["proxy"] = json!({});
    spec
}

fn program(tools: &Tools, component: &str) -> PathBuf {
    let program = if component == "etcd" { tools.etcd.join("etcd") } else { tools.kubernetes.join(component) };
    assert!(program.is_file(), "{} is missing: `make tools` builds it", program.display());
    program
}

fn run(tools: &Tools, component: &str, arguments: &[String]) -> Run {
    Run::new(program(tools, component)).args(arguments).timeout(Duration::from_secs(30))
}

/// Names of the flags that a program says it has.
fn flags(tools: &Tools, component: &str) -> BTreeSet<String> {
    let help = run(tools, component, &["--help".into()]).output().unwrap();
    let words = help.lines().flat_map(|line| line.trim_start().split(&[' ', ',', '=', '[']).take(3));
    words.filter_map(|word| word.strip_prefix("--")).map(str::to_owned).collect()
}

/// A folder of a test, removed when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("giantnetes-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file of a node and answers where.
    fn take(&self, config: &NodeConfig, path: &str) -> String {
        let to = self.path(path.rsplit('/').next().unwrap());
        std::fs::write(&to, &config.file(path).unwrap().content).unwrap();
        to
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_flag_of_a_node_is_one_of_its_program_and_its_value_is_understood() {
    let tools = Tools::locate().unwrap();
    let nodes = [example("minimal.yaml"), example("maximal.yaml"), with_proxy_file()].map(|spec| node(&spec));
    for component in COMPONENTS {
        let known = flags(&tools, component);
        let mut checked = BTreeSet::new();
        for node in &nodes {
            let argv = node.argv(component).unwrap();
            for argument in &argv[1..] {
                let flag = argument.strip_prefix("--").unwrap_or_else(|| panic!("{component} gets {argument}"));
                let flag = flag.split('=').next().unwrap();
                assert!(known.contains(flag), "{component} has no flag --{flag}");
                checked.insert(flag.to_owned());
            }
            // The program reads all of them before it says its version and ends.
            let with = |more: &[&str]| [&argv[1..], &more.iter().map(|m| (*m).to_owned()).collect::<Vec<_>>()].concat();
            run(&tools, component, &with(&["--version"])).output().unwrap();
            assert!(!run(&tools, component, &with(&["--no-such-flag=1", "--version"])).succeeds());
        }
        println!("    {component}: {} of its {} flags are set", checked.len(), known.len());
    }
}

#[test]
fn kube_proxy_understands_its_file_and_heeds_flags_of_users() {
    let tools = Tools::locate().unwrap();
    let folder = Folder::new("kube-proxy");
    let out = folder.path("out.yaml");
    let written = |arguments: Vec<String>| -> Value {
        let arguments: Vec<_> = arguments.into_iter().chain([format!("--write-config-to={out}")]).collect();
        run(&tools, "kube-proxy", &arguments).output().unwrap();
        serde_saphyr::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap()
    };
    let file = folder.take(&node(&with_proxy_file()), "/etc/kubernetes/kube-proxy.yaml");
    let by_file = written(vec![format!("--config={file}")]);
    let mut spec = example("maximal.yaml");
    spec["kubernetes"]["proxy"] = json!({"extraArgs": {"conntrack-max-per-core": "7"}});
    let mut by_flags = written(node(&spec).argv("kube-proxy").unwrap()[1..].to_vec());
    assert_eq!(by_flags["conntrack"]["maxPerCore"], 7);
    assert_eq!(by_flags["featureGates"], json!({"HPAScaleToZero": true}));
    // It makes no difference but that of the user's flag.
    by_flags["conntrack"]["maxPerCore"] = by_file["conntrack"]["maxPerCore"].clone();
    assert_eq!(by_flags, by_file);
}

#[test]
fn kubelet_understands_its_file() {
    let tools = Tools::locate().unwrap();
    let folder = Folder::new("kubelet");
    let config = node(&example("maximal.yaml"));
    let file = folder.take(&config, "/etc/kubernetes/kubelet.yaml");
    let said = |file: &str| {
        let arguments = [
            format!("--config={file}"),
            // It ends here, after all of the file was checked and before anything is done.
            format!("--kubeconfig={}", folder.path("missing")),
            format!("--root-dir={}", folder.path("root")),
            // Machines that run this test may be older than nodes are.
            "--fail-cgroupv1=false".into(),
            "--max-pods=60".into(),
        ];
        run(&tools, "kubelet", &arguments).output().unwrap_err().to_string()
    };
    let fine = said(&file);
    assert!(fine.contains("invalid kubeconfig") && !fine.contains("strict decoding failed"), "{fine}");
    let good = std::fs::read_to_string(&file).unwrap();
    // An unknown gate ends it; an unknown field is told and left out.
    for (part, bad, told) in [
        ("HPAScaleToZero", "NoSuchGate", "unrecognized feature gate: NoSuchGate"),
        ("clusterDomain", "clusterDomian", "strict decoding failed"),
    ] {
        std::fs::write(&file, good.replace(part, bad)).unwrap();
        let said = said(&file);
        assert!(said.contains(told) && said.contains(bad), "{said}");
    }
}

#[test]
fn the_api_server_starts_with_an_issuer_and_logs_no_secrets() {
    let folder = Folder::new("issuer");
    let mut spec = example("maximal.yaml");
    let authority = rcgen::generate_simple_self_signed(vec!["login.example.com".into()]).unwrap().cert.pem();
    spec["kubernetes"]["apiServer"]["oidc"]["caBundle"] = json!(authority);
    let config = node(&spec);
    let (policy, authentication) = (
        folder.take(&config, "/etc/kubernetes/audit-policy.yaml"),
        folder.take(&config, "/etc/kubernetes/authentication.yaml"),
    );
    let log = folder.path("audit.log");
    let argv = config.argv("kube-apiserver").unwrap();
    let users: Vec<_> = argv
        .iter()
        .filter(|argument| ["--feature-gates=", "--max-requests"].iter().any(|begin| argument.starts_with(begin)))
        .cloned()
        .collect();
    assert_eq!(users.len(), 2, "{argv:?}");
    let own = [
        format!("--audit-policy-file={policy}"),
        format!("--audit-log-path={log}"),
        format!("--authentication-config={authentication}"),
    ];
    let all: Vec<_> = own.iter().chain(&users).map(String::as_str).collect();
    let server = ApiServer::start("node-flags", &all).unwrap();

    let literal = "--from-literal=word=xyzzy-plugh";
    server.kubectl(&["create", "secret", "generic", "hidden", literal]).output().unwrap();
    server.kubectl(&["create", "configmap", "hidden", literal]).output().unwrap();
    server.kubectl(&["create", "serviceaccount", "plain"]).output().unwrap();
    let token = server.kubectl(&["create", "token", "plain"]).output().unwrap();
    let logged = std::fs::read_to_string(&log).unwrap();
    assert!(!logged.contains("xyzzy-plugh") && !logged.contains("eHl6enktcGx1Z2g"), "a secret is in the log");
    assert!(!logged.contains(token.trim()), "a token is in the log");
    let entry = |resource: &str| -> Value {
        let found = logged.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|entry| {
            let object = &entry["objectRef"];
            entry["verb"] == "create"
                && object["resource"] == resource
                && object["namespace"] == "default"
                && entry["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kubectl"))
        });
        found.unwrap_or_else(|| panic!("nothing was logged of {resource}"))
    };
    assert_eq!(entry("serviceaccounts")["requestObject"]["metadata"]["name"], "plain");
    assert_eq!(
        (entry("secrets")["level"].as_str(), entry("configmaps")["level"].as_str()),
        (Some("Metadata"), Some("Metadata"))
    );

    assert_eq!(anonymously(&server, "/readyz").unwrap(), "ok");
    let refused = anonymously(&server, "/version").unwrap_err().to_string();
    assert!(refused.contains("Unauthorized"), "{refused}");
}

/// What somebody without a certificate or token is answered. (kubectl would ask for a password.)
fn anonymously(server: &ApiServer, path: &str) -> Result<String, kube::Error> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = kube::Config::new(server.url().parse().unwrap());
    config.accept_invalid_certs = true;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let request = hyper::Request::get(path).body(Vec::new()).unwrap();
        kube::Client::try_from(config)?.request_text(request).await
    })
}
