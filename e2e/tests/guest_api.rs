//! The API of guests, without VMs: etcd and kube-apiserver of two guests by the command lines that are rendered for their
//! control-plane nodes, each in a network namespace, with equal addresses. Who is let in by whom, and may what.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Result, bail, ensure};
use giantnetes::{
    cluster::Valid,
    guest::{plan, requests::answer},
    network::places::Place,
    node_config::{self, Blank, NodeConfig},
    pki::{
        embedded::{self, Pair},
        kubeconfig,
        leaf::{self, Leaf},
        request::SigningRequest,
    },
};
use k8s_openapi::{ByteString, jiff::Timestamp};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use lab::wait_for;
use secrecy::ExposeSecret as _;
use serde_json::json;
use support::{
    node::{Authorities, NodeHome, cluster, ip},
    processes::{Process, spawn, tied},
    requests::{self, EC, request},
};

/// How long etcd and the API server may take, on a machine that builds something at the same time.
const START: Duration = Duration::from_secs(120);

struct Guest {
    // Dropped before the namespace that they run in.
    _servers: Vec<Process>,
    authorities: Authorities,
    cluster: Valid,
    home: NodeHome,
}

impl Guest {
    fn start(name: &str) -> Self {
        let cluster = cluster(name, &json!({"nodePools": [{"name": "a"}]}));
        let home = NodeHome::new(&format!("guest-{name}-{}", std::process::id()));
        // Nobody else is on its overlay.
        ip(&format!("-n {} link add name overlay type bridge", home.namespace));
        ip(&format!("-n {} addr add 172.26.0.10/20 dev overlay", home.namespace));
        ip(&format!("-n {} link set overlay up", home.namespace));
        let authorities = Authorities::new(&format!("a/{name}"));
        home.keep_masters_keys(&cluster, 0, &authorities);
        let config = node_config::control_plane(&cluster, 0, Blank::Forms);
        for file in config.files.iter().filter(|file| file.path.starts_with("/etc/kubernetes/")) {
            fs::write(home.here(&file.path), home.here(&file.content)).unwrap();
        }
        let servers = ["etcd", "kube-apiserver"].map(|program| run(&home, &config, program)).into();
        let guest = Self { _servers: servers, authorities, cluster, home };
        wait_for(START, "the API to be ready", || {
            let answer = guest.ask(&guest.authorities.sign(&leaf::administrator()), &["get", "--raw", "/readyz"])?;
            ensure!(answer.trim() == "ok", "{answer}");
            Ok(())
        })
        .unwrap();
        guest
    }

    /// kubectl with this certificate.
    fn ask(&self, pair: &Pair, words: &[&str]) -> Result<String> {
        self.ask_trusting("pki/ca.crt", pair, words)
    }

    fn ask_trusting(&self, authority: &str, pair: &Pair, words: &[&str]) -> Result<String> {
        let file = |name: &str| self.home.path(name);
        fs::write(file("client.crt"), &pair.certificate)?;
        fs::write(file("client.key"), pair.key.expose_secret())?;
        let mut command = self.home.command("kubectl");
        command
            .args(["--server=https://127.0.0.1:6443", "--request-timeout=20s"])
            .arg(format!("--certificate-authority={}", file(authority).display()))
            .arg(format!("--client-certificate={}", file("client.crt").display()))
            .arg(format!("--client-key={}", file("client.key").display()))
            .arg(format!("--cache-dir={}", file("kubectl-cache").display()))
            .env_remove("KUBECONFIG")
            .args(words);
        let output = command.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What etcd has of the object `default/kept` of this kind.
    fn stored(&self, kind: &str) -> String {
        let mut command = self.home.etcdctl("127.0.0.1");
        command.args(["get", &format!("/registry/{kind}/default/kept"), "--print-value-only"]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn refuses(&self, pair: &Pair, words: &[&str], why: &str) {
        let said = self.ask(pair, words).expect_err(&words.join(" ")).to_string();
        assert!(said.contains(why), "{words:?}: {said}");
    }

    /// What the controller manager does with requests for certificates. It comes from outside, as to every guest.
    fn answers(&self) {
        // A device's name has 15 characters at most.
        let (namespace, outside) = (&self.home.namespace, format!("csr-{}", std::process::id()));
        ip(&format!("link add {outside} type veth peer name outside netns {namespace}"));
        ip(&format!("-n {namespace} addr add 169.254.77.2/30 dev outside"));
        ip(&format!("-n {namespace} link set outside up"));
        ip(&format!("addr add 169.254.77.1/30 dev {outside}"));
        ip(&format!("link set {outside} up"));
        let (ca, client) = (&self.authorities.kubernetes, self.authorities.sign(&leaf::bootstrapper()));
        let text = kubeconfig::render("guest", "manager", "https://169.254.77.2:6443", &ca.certificate, &client);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let kubeconfig = Kubeconfig::from_yaml(text.expose_secret()).unwrap();
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
            let client = Client::try_from(config).unwrap();
            let sign = |request: SigningRequest, ttl| async move {
                Ok(embedded::certify(ca, &request.leaf, &request.key, Timestamp::now(), ttl)?)
            };
            answer(&client, Duration::from_secs(7200), sign).await.unwrap();
        });
        ip(&format!("link del {outside}"));
    }

    /// A certificate of this guest's, by its name among those of a control-plane node.
    fn of_master(&self, name: &str) -> Pair {
        let leaves = leaf::of_master(&self.cluster, 0);
        self.authorities.sign(leaves.iter().find(|leaf| leaf.name == name).unwrap())
    }

    fn of_worker(&self, node: &str, name: &str) -> Pair {
        let leaves = leaf::of_worker(&self.cluster, node, Place(64));
        self.authorities.sign(leaves.iter().find(|leaf| leaf.name == name).unwrap())
    }
}

/// Starts a component as its unit says.
fn run(home: &NodeHome, config: &NodeConfig, program: &str) -> Process {
    let argv: Vec<_> = config.argv(program).unwrap().iter().map(|word| home.here(word)).collect();
    let mut command = tied("ip");
    command.args(["netns", "exec", &home.namespace]).args(argv).current_dir(home.path(""));
    spawn(&mut command, &home.path(&format!("{program}.log"))).unwrap()
}

fn node(name: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}).to_string()
}

#[test]
fn a_certificate_opens_the_guest_that_it_is_of_and_nothing_else() {
    let (one, two) = (Guest::start("one"), Guest::start("two"));
    let who = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"];
    let user: Leaf = leaf::user("alice", &["dev".to_owned(), "ops".to_owned()]);
    let alice = one.authorities.sign(&user);
    assert_eq!(one.ask(&alice, &who).unwrap(), r#"alice ["dev","ops","system:authenticated"]"#);
    two.refuses(&alice, &who, "Unauthorized");

    // Of whatever sort: that of another guest, and what another authority of the same guest has signed.
    for name in ["apiserver-kubelet-client", "controller-manager", "scheduler", "kubelet", "kube-proxy"] {
        one.ask(&one.of_master(name), &who).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        two.refuses(&one.of_master(name), &who, "Unauthorized");
    }
    let administrator = one.authorities.sign(&leaf::administrator());
    assert!(one.ask(&administrator, &who).unwrap().contains("giantnetes:cluster-admins"));
    two.refuses(&administrator, &who, "Unauthorized");
    two.refuses(&one.authorities.sign(&leaf::bootstrapper()), &who, "Unauthorized");
    for name in ["front-proxy-client", "etcd-peer", "etcd-server", "apiserver-etcd-client"] {
        one.refuses(&one.of_master(name), &who, "Unauthorized");
    }
    // A server's certificate is none of a client.
    one.refuses(&one.of_master("apiserver"), &who, "Unauthorized");

    // Nor does a client of one guest take the other for its own.
    fs::write(two.home.path("others-ca.crt"), &one.authorities.kubernetes.certificate).unwrap();
    let said = two.ask_trusting("others-ca.crt", &alice, &who).unwrap_err().to_string();
    assert!(said.contains("certificate signed by unknown authority"), "{said}");

    // etcd lets in who etcd's own authority says, and no user of the API.
    let endpoint = "--endpoints=https://127.0.0.1:2379";
    let etcd = |pair: &Pair| {
        let file = |name: &str| one.home.path(name);
        fs::write(file("client.crt"), &pair.certificate).unwrap();
        fs::write(file("client.key"), pair.key.expose_secret()).unwrap();
        let mut command = one.home.command("etcdctl");
        command.args([endpoint, "--command-timeout=3s", "endpoint", "health"]);
        command.arg(format!("--cacert={}", file("pki/etcd-ca.crt").display()));
        command.arg(format!("--cert={}", file("client.crt").display()));
        command.arg(format!("--key={}", file("client.key").display()));
        command.stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap().success()
    };
    assert!(etcd(&one.of_master("apiserver-etcd-client")));
    assert!(!etcd(&administrator) && !etcd(&two.of_master("apiserver-etcd-client")));
}

#[test]
fn a_kubelet_acts_for_its_node_alone() {
    let guest = Guest::start("kubelets");
    let administrator = guest.authorities.sign(&leaf::bootstrapper());
    let file = |name: &str| guest.home.path(name).display().to_string();
    for name in ["a-0", "a-1", "master-0"] {
        fs::write(file(name), node(name)).unwrap();
    }
    let (own, other) = (guest.of_worker("a-0", "kubelet"), guest.of_worker("a-1", "kubelet"));
    guest.ask(&own, &["create", "-f", &file("a-0")]).unwrap();
    guest.refuses(&own, &["create", "-f", &file("a-1")], "is not allowed to modify node");
    guest.ask(&other, &["create", "-f", &file("a-1")]).unwrap();
    guest.ask(&administrator, &["create", "-f", &file("master-0")]).unwrap();

    let patch = r#"{"metadata": {"annotations": {"example.com/seen": "now"}}}"#;
    guest.ask(&own, &["patch", "node", "a-0", "--type=merge", "-p", patch]).unwrap();
    for (node, url) in [("a-1", "/api/v1/nodes/a-1"), ("master-0", "/api/v1/nodes/master-0")] {
        guest.refuses(&own, &["get", "node", node], "only its own Node object");
        guest.refuses(&own, &["replace", "--raw", url, "-f", &file(node)], "is not allowed to modify node");
    }
    guest.refuses(&own, &["label", "node", "a-0", "node-role.kubernetes.io/control-plane="], "is not allowed to");
    guest.refuses(&own, &["delete", "node", "a-1"], "forbidden");

    guest.ask(&administrator, &["create", "secret", "generic", "hidden", "--from-literal=a=b"]).unwrap();
    guest.refuses(&own, &["get", "secret", "hidden"], "no relationship found between node");
    guest.refuses(&own, &["get", "secrets", "-A"], "forbidden");
    guest.refuses(&guest.of_worker("a-0", "kube-proxy"), &["get", "secrets", "-A"], "forbidden");
}

#[test]
fn who_has_etcd_reads_no_secret() {
    let guest = Guest::start("encryption");
    let administrator = guest.authorities.sign(&leaf::bootstrapper());
    for kind in ["secret generic", "configmap"] {
        let create = format!("create {kind} kept --from-literal=word=precious");
        guest.ask(&administrator, &create.split(' ').collect::<Vec<_>>()).unwrap();
    }
    // A ConfigMap is read, so the same of a Secret proves something.
    let (plain, hidden) = (guest.stored("configmaps"), guest.stored("secrets"));
    assert!(plain.contains("precious"), "{plain}");
    assert!(hidden.starts_with("k8s:enc:secretbox:v1:key1:") && !hidden.contains("precious"), "{hidden}");
}

#[test]
fn who_scrapes_does_nothing_else() {
    let guest = Guest::start("metrics");
    let administrator = guest.authorities.sign(&leaf::bootstrapper());
    let rights = plan::roles().map(|role| serde_json::to_string(&role).unwrap()).into_iter();
    for right in rights.chain(plan::bindings().map(|binding| serde_json::to_string(&binding).unwrap())) {
        fs::write(guest.home.path("right.json"), right).unwrap();
        guest.ask(&administrator, &["create", "-f", &guest.home.path("right.json").display().to_string()]).unwrap();
    }
    let (of_master, of_worker) = (guest.of_master(leaf::METRICS), guest.of_worker("a-0", leaf::METRICS));
    wait_for(Duration::from_secs(20), "the rights to count", || {
        guest.ask(&of_worker, &["auth", "can-i", "get", "nodes", "--subresource=metrics"])
    })
    .unwrap();
    assert!(guest.ask(&of_master, &["get", "--raw", "/metrics"]).unwrap().contains("\napiserver_request_total{"));
    guest.refuses(&of_worker, &["get", "--raw", "/metrics"], "forbidden");
    // kubectl says nothing but `no`, and ends with a failure.
    let may_not = |pair: &Pair, words: &[&str]| {
        let said = guest.ask(pair, &[&["auth", "can-i"], words].concat()).expect_err(&words.join(" ")).to_string();
        assert!(said.lines().all(|line| line.trim().is_empty() || line.starts_with("Warning: ")), "{words:?}: {said}");
    };
    for pair in [&of_master, &of_worker] {
        for verb in ["get", "list", "watch", "create", "update", "patch", "delete", "impersonate"] {
            for resource in ["secrets", "nodes", "pods", "users", "clusterroles.rbac.authorization.k8s.io"] {
                may_not(pair, &[verb, resource, "-A"]);
            }
        }
        for subresource in ["proxy", "stats", "log", "pods", "healthz", "configz"] {
            may_not(pair, &["get", "nodes", &format!("--subresource={subresource}")]);
        }
        may_not(pair, &["create", "nodes", "--subresource=metrics"]);
    }
}

/// The guest has no key of its authority: who asks inside it is answered by the controller manager.
#[test]
fn what_is_asked_for_and_approved_inside_a_guest_is_signed() {
    let guest = Guest::start("requests");
    let administrator = guest.authorities.sign(&leaf::bootstrapper());
    let ask = |words: &[&str]| guest.ask(&administrator, words);
    let (client, serving) = ("kube-apiserver-client", "kubelet-serving");
    let rsa = ["-newkey", "rsa:2048"];
    let node = "/O=system:nodes/CN=system:node:a-0";
    for (name, key, subject, extension, signer, usages) in [
        ("alice", rsa.as_slice(), "/O=dev/O=ops/CN=alice", None, client, ["client auth", "digital signature"]),
        ("waits", &EC, "/CN=bob", None, client, ["client auth", "digital signature"]),
        ("mail", &EC, "/CN=carol", Some("subjectAltName=email:a@b.c"), client, ["client auth", "digital signature"]),
        ("serving", &EC, node, Some("subjectAltName=DNS:a-0"), serving, ["server auth", "digital signature"]),
        ("nameless", &EC, node, None, serving, ["server auth", "digital signature"]),
    ] {
        let (csr, _) = request(&guest.home.path(""), name, key, subject, extension).unwrap();
        let object = requests::object(name, &csr, signer, &usages, (name == "alice").then_some(900)).unwrap();
        fs::write(guest.home.path("object.json"), object).unwrap();
        ask(&["create", "-f", &guest.home.path("object.json").display().to_string()]).unwrap();
        if name != "waits" {
            ask(&["certificate", "approve", name]).unwrap();
        }
    }
    guest.answers();
    let status =
        |name: &str, path: &str| ask(&["get", "csr", name, "-o", &format!("jsonpath={{.status.{path}}}")]).unwrap();
    for (name, why) in [("mail", "host names and addresses alone"), ("nameless", "a server needs a host name")] {
        let said = status(name, r#"conditions[?(@.type=="Failed")].message"#);
        assert!(said.contains(why) && status(name, "certificate").is_empty(), "{name}: {said}");
    }
    assert_eq!(status("waits", "certificate") + &status("waits", "conditions"), "");
    let certificate = |name: &str| {
        let text: ByteString = serde_json::from_value(status(name, "certificate").into()).unwrap();
        String::from_utf8(text.0).unwrap()
    };
    let life = |pem: &str| embedded::expires(pem).unwrap().as_second() - Timestamp::now().as_second();
    assert!((600..=900).contains(&life(&certificate("alice"))), "fifteen minutes were asked for");
    assert!(life(&certificate("serving")) > 3600);

    let key = fs::read_to_string(guest.home.path("alice.key")).unwrap();
    let alice = Pair { certificate: certificate("alice"), key: key.into() };
    let who = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"];
    assert_eq!(guest.ask(&alice, &who).unwrap(), r#"alice ["dev","ops","system:authenticated"]"#);

    // What was answered is not answered again.
    let versions = || ask(&["get", "csr", "-o", "jsonpath={.items[*].metadata.resourceVersion}"]).unwrap();
    let before = versions();
    guest.answers();
    assert_eq!(versions(), before);
}
