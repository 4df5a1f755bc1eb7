//! Flannel's etcd: what the chart renders of it, and that the real etcd serves by that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{command::Run, wait_for};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::helm::{Helm, chart};
use crate::support::{
    apiserver::ApiServer,
    image_ref,
    processes::{Process, free_port, spawn, tied},
    tool,
};
use crate::{PRIVILEGED, kind, name};

const NAME: &str = "giantnetes-flannel-etcd";

fn values(members: u32) -> String {
    json!({"flannel": {"enabled": true, "etcd": {"replicas": members}}, "networkPolicy": {"ports": [6443]}}).to_string()
}

fn find(objects: &[Value], wanted: &str) -> Value {
    objects.iter().find(|object| name(object) == wanted).unwrap_or_else(|| panic!("no {wanted}")).clone()
}

fn arguments(objects: &[Value]) -> Vec<String> {
    let set = find(objects, &format!("StatefulSet {NAME}"));
    let args = set["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
    args.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect()
}

fn value_of<'a>(arguments: &'a [String], flag: &str) -> &'a str {
    arguments.iter().find_map(|arg| arg.strip_prefix(&format!("--{flag}="))).unwrap_or_else(|| panic!("no --{flag}"))
}

#[test]
fn every_member_is_told_of_all() {
    let helm = Helm::new("flannel-members");
    for members in [1, 3] {
        let objects = helm.rendered(&values(members));
        let set = find(&objects, &format!("StatefulSet {NAME}"));
        assert_eq!(set["spec"]["replicas"], members);
        let url = |pod: &str, port: u16| format!("https://{pod}.{NAME}-peers.giantnetes-system.svc:{port}");
        let all: Vec<_> = (0..members).map(|index| format!("{NAME}-{index}")).collect();
        let all: Vec<_> = all.iter().map(|pod| format!("{pod}={}", url(pod, 2380))).collect();
        let arguments = arguments(&objects);
        assert_eq!(value_of(&arguments, "initial-cluster"), all.join(","));
        // What each says of itself is what the others were told.
        assert_eq!(value_of(&arguments, "name"), "$(POD_NAME)");
        assert_eq!(value_of(&arguments, "initial-advertise-peer-urls"), url("$(POD_NAME)", 2380));
        let peers = find(&objects, &format!("Service {NAME}-peers"));
        assert_eq!(
            (&set["spec"]["serviceName"], &peers["spec"]["clusterIP"]),
            (&peers["metadata"]["name"], &json!("None"))
        );
        assert_eq!(peers["spec"]["publishNotReadyAddresses"], true, "they find each other before they are ready");
        let budget = objects.iter().any(|object| name(object) == format!("PodDisruptionBudget {NAME}"));
        assert_eq!(budget, members > 1, "of one member a budget would hold up the drain of its host");
    }
    let off = helm.rendered("{}");
    assert!(!off.iter().any(|object| name(object).contains("flannel")));
}

#[test]
fn the_manager_is_told_of_it() {
    let helm = Helm::new("flannel-settings");
    let told = |values: &str| -> Value {
        let text = find(&helm.rendered(values), "ConfigMap giantnetes-settings")["data"]["settings.yaml"].take();
        serde_saphyr::from_str::<Value>(text.as_str().unwrap()).unwrap()["network"]["flannel"].take()
    };
    assert_eq!(told(&values(3)), json!({"service": NAME, "members": 3}));
    assert_eq!(told("{}"), Value::Null);
}

#[test]
fn its_image_is_the_one_that_is_built_here() {
    let objects = Helm::new("flannel-image").rendered(&values(1));
    let container = &find(&objects, &format!("StatefulSet {NAME}"))["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], image_ref("etcd"));
}

/// The ports of each rule of a policy, and whom they are open to.
fn rules(policy: &Value, direction: &str, peers: &str) -> BTreeMap<String, Value> {
    let rules = policy["spec"][direction].as_array().unwrap().iter();
    rules
        .map(|rule| {
            // Without ports, every one.
            let ports = rule["ports"].as_array().into_iter().flatten();
            let ports = ports.map(|port| format!("{}{}", port["port"], port["protocol"].as_str().unwrap_or_default()));
            (ports.collect::<Vec<_>>().join(" "), rule[peers].clone())
        })
        .collect()
}

#[test]
fn it_is_open_to_the_manager_to_vm_pods_that_have_it_and_to_itself() {
    let helm = Helm::new("flannel-policies");
    let objects = helm.rendered(&values(3));
    let [etcd, manager] = [NAME, "giantnetes"].map(|app| find(&objects, &format!("NetworkPolicy {app}")));
    let app = |app: &str| json!({"app.kubernetes.io/name": app, "app.kubernetes.io/instance": "giantnetes"});
    let pods = |app: &Value| json!({"podSelector": {"matchLabels": app}});
    let of_guests = json!([{"key": "giantnetes.io/cluster", "operator": "Exists"}]);
    let vm_pods = json!({
        "namespaceSelector": {"matchExpressions": of_guests},
        "podSelector": {"matchLabels": {"giantnetes.io/overlay": "Flannel"}, "matchExpressions": of_guests},
    });
    let [itself, managers] = [app(NAME), app("giantnetes")];
    assert_eq!(etcd["spec"]["podSelector"]["matchLabels"], itself);
    assert_eq!(etcd["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    // Wherever it listens.
    let dns = json!([{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }]);
    let rule = |ports: &str, peers: Value| (ports.to_owned(), peers);
    assert_eq!(
        rules(&etcd, "ingress", "from"),
        BTreeMap::from([
            rule("2379", json!([pods(&managers), vm_pods])),
            rule("2380", json!([pods(&itself)])),
            // Metrics and probes, which nobody was named for.
            rule("2381", Value::Null),
        ])
    );
    assert_eq!(
        rules(&etcd, "egress", "to"),
        BTreeMap::from([rule("2380", json!([pods(&itself)])), rule("53 53UDP", Value::Null), rule("", dns.clone())])
    );
    assert_eq!(rules(&manager, "egress", "to")[""], dns);
    assert_eq!(rules(&manager, "egress", "to")["2379"], json!([pods(&itself)]));
    // They select what they mean.
    let set = find(&objects, &format!("StatefulSet {NAME}"));
    let labels = set["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
    assert!(itself.as_object().unwrap().iter().all(|(key, value)| labels.get(key) == Some(value)), "{labels:?}");
    for service in [NAME.to_owned(), format!("{NAME}-peers")] {
        assert_eq!(find(&objects, &format!("Service {service}"))["spec"]["selector"], itself);
    }

    let named = helm
        .rendered(&json!({"flannel": {"enabled": true}, "networkPolicy": {"from": [{"podSelector": {}}]}}).to_string());
    let etcd = find(&named, &format!("NetworkPolicy {NAME}"));
    assert_eq!(rules(&etcd, "ingress", "from")["2381"], json!([{"podSelector": {}}]));
    let open = helm.rendered(&json!({"flannel": {"enabled": true}, "networkPolicy": {"enabled": false}}).to_string());
    assert!(!open.iter().any(|object| kind(object) == "NetworkPolicy"));
}

#[test]
fn it_keeps_the_number_of_its_members_and_stays_while_it_is_used() {
    let (helm, server) = (Helm::new("flannel-upgrade"), ApiServer::start("flannel-upgrade", PRIVILEGED).unwrap());
    let install = |values: &str| {
        let words =
            ["upgrade", "--install", "giantnetes", &chart(), "--namespace", "giantnetes-system", "--create-namespace"];
        helm.run(&words).against(&server).values(values).output()
    };
    // Of no values at all helm makes those of the last time.
    let off = r#"{"flannel": {"enabled": false}}"#;
    let refused = |values: &str| format!("{:#}", install(values).unwrap_err());
    install(&values(1)).unwrap();
    install(&values(1)).unwrap();
    let said = refused(&values(3));
    assert!(said.contains("flannel.etcd.replicas cannot go from 1 to 3"), "{said}");
    let remedy = format!("kubectl delete statefulset -n giantnetes-system {NAME}");
    assert!(said.contains(&remedy), "{said}");
    server.shell(&remedy).unwrap();
    install(&values(3)).unwrap();

    let established = ["wait", "--for=condition=Established", "--timeout=25s", "crd", "clusters.giantnetes.io"];
    server.kubectl(&established).output().unwrap();
    // Whether or not the kind of now knows the backend.
    let backend = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/network/properties/overlay/properties/backend";
    let patch = json!([{"op": "replace", "path": format!("{backend}/enum"), "value": ["Native", "Flannel"]}]);
    let words = ["patch", "crd", "clusters.giantnetes.io", "--type=json", "--patch", &patch.to_string()];
    server.kubectl(&words).output().unwrap();
    let cluster = |name: &str, backend: &str| {
        json!({
            "apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster", "metadata": {"name": name, "namespace": "default"},
            "spec": {"network": {"overlay": {"backend": backend}}},
        })
        .to_string()
    };
    server.kubectl(&["create", "-f", "-"]).input(cluster("native", "Native")).output().unwrap();
    wait_for(Duration::from_secs(30), "the API server to know the backend", || {
        server.kubectl(&["create", "-f", "-"]).input(cluster("routed", "Flannel")).output()
    })
    .unwrap();
    let said = refused(off);
    assert!(said.contains("flannel.enabled cannot be false: Cluster default/routed has"), "{said}");
    server.kubectl(&["delete", "-n", "default", "clusters.giantnetes.io", "routed"]).output().unwrap();
    install(off).unwrap();
    assert!(!server.kubectl(&["-n", "giantnetes-system", "get", "statefulset", NAME]).succeeds());
}

/// An authority, and what it signs.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Writes `STEM.crt` and `STEM.key`.
    fn sign(&self, folder: &Path, stem: &str, names: &[&str]) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let (mut params, key) = (CertificateParams::new(names).unwrap(), KeyPair::generate().unwrap());
        params.distinguished_name.push(DnType::CommonName, stem);
        fs::write(folder.join(format!("{stem}.crt")), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(folder.join(format!("{stem}.key")), key.serialize_pem()).unwrap();
    }
}

/// The one member of an etcd, by the arguments that are rendered, but for ports and folders.
struct Member {
    _process: Process,
    folder: PathBuf,
    ports: BTreeMap<u16, u16>,
}

impl Member {
    fn start(arguments: &[String]) -> Self {
        let folder = std::env::temp_dir().join(format!("giantnetes-flannel-etcd-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let [clients, members] = [Authority::new(), Authority::new()];
        for (file, authority) in [("ca.crt", &clients), ("peer-ca.crt", &members)] {
            fs::write(folder.join(file), &authority.certificate).unwrap();
        }
        let own = format!("{NAME}-0.{NAME}-peers.giantnetes-system.svc");
        clients.sign(&folder, "tls", &["127.0.0.1", &own]);
        members.sign(&folder, "peer", &[&own]);
        clients.sign(&folder, "guest", &[]);
        members.sign(&folder, "stranger", &[]);

        let ports: BTreeMap<u16, u16> = [2379, 2380, 2381].map(|port| (port, free_port().unwrap())).into();
        let here = |arg: &String| {
            let mut arg = arg.replace("$(POD_NAME)", &format!("{NAME}-0")).replace("0.0.0.0", "127.0.0.1");
            for path in ["/etc/etcd/tls", "/var/lib/etcd"] {
                arg = arg.replace(path, &folder.display().to_string());
            }
            ports.iter().fold(arg, |arg, (port, free)| arg.replace(&format!(":{port}"), &format!(":{free}")))
        };
        let mut command = tied(tool("etcd").join("etcd"));
        let process = spawn(command.args(arguments.iter().map(here)), &folder.join("log")).unwrap();
        Self { _process: process, folder, ports }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Whether it is ready, by the path that its probe asks.
    fn ready(&self) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/readyz", self.ports[&2381]);
        ensure!(Run::new("curl").args(["-sf", "--max-time", "5", &url]).succeeds(), "{}", self.log());
        Ok(())
    }

    /// What etcdctl answers with this certificate, or without one.
    fn ask(&self, certificate: Option<&str>, words: &[&str]) -> Result<String> {
        let endpoint = format!("https://127.0.0.1:{}", self.ports[&2379]);
        let mut all = vec!["--endpoints".to_owned(), endpoint, "--cacert".into(), self.file("ca.crt")];
        all.extend(["--dial-timeout=5s".into(), "--command-timeout=5s".into()]);
        if let Some(stem) = certificate {
            all.extend(["--cert".into(), self.file(&format!("{stem}.crt"))]);
            all.extend(["--key".into(), self.file(&format!("{stem}.key"))]);
        }
        all.extend(words.iter().map(|word| (*word).to_owned()));
        Run::new(tool("etcd").join("etcdctl")).args(all).timeout(Duration::from_secs(30)).output()
    }

    /// The status of what is answered at a port to who shows this certificate.
    fn status(&self, port: u16, path: &str, stem: &str) -> Result<String> {
        let [certificate, key] = ["crt", "key"].map(|end| self.file(&format!("{stem}.{end}")));
        let url = format!("https://127.0.0.1:{}{path}", self.ports[&port]);
        // Peers speak no HTTP/2.
        let how = ["--http1.1", "-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}"];
        Run::new("curl").args(how).args(["--cert", &certificate, "--key", &key, &url]).output()
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

#[test]
fn the_real_etcd_serves_by_it_and_asks_who_comes() {
    let objects = Helm::new("flannel-etcd").rendered(&values(1));
    let member = Member::start(&arguments(&objects));
    wait_for(Duration::from_secs(60), "etcd to be ready", || member.ready()).unwrap();

    member.ask(Some("guest"), &["put", "a", "b"]).unwrap();
    assert!(member.ask(None, &["get", "a"]).is_err(), "who has no certificate");
    assert!(member.ask(Some("stranger"), &["get", "a"]).is_err(), "who has one of another authority");
    assert_eq!(member.status(2380, "/version", "peer").unwrap(), "200");
    assert!(member.status(2380, "/version", "guest").is_err(), "a guest is let in among the members");
    // The other way in, where nobody is asked who the certificate names.
    assert_eq!(member.status(2379, "/v3/kv/range", "guest").unwrap(), "404");

    let mounted = find(&objects, &format!("StatefulSet {NAME}"))["spec"]["template"]["spec"]["volumes"][0].take();
    assert_eq!(mounted["secret"]["secretName"], "giantnetes-flannel-etcd-server");
    let files = arguments(&objects);
    let files: BTreeSet<_> =
        files.iter().filter_map(|arg| arg.split_once("=/etc/etcd/tls/")).map(|(_, file)| file).collect();
    // The keys that the controller manager gives the Secret.
    assert_eq!(files, BTreeSet::from(["ca.crt", "tls.crt", "tls.key", "peer-ca.crt", "peer.crt", "peer.key"]));
}
