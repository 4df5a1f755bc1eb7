//! From the released manager to the one of now and back, with a guest that runs: nothing of it changes. No VM runs: the test plays
//! kubelets and supervisors, and a real API server with the guest's certificates stands for the guest's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use giantnetes::pki::kubeconfig::TLS_SERVER_NAME;
use k8s_openapi::{api::core::v1::Service, jiff::Timestamp};
use kube::{Api, api::PostParams};
use lab::command::Run;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::{
    isolation::runs,
    manager::{Manager, Options},
    on_servers,
    rollout::Guest,
    servers::{Servers, rights_of},
    support::{Release, apiserver::ApiServer, processes::free_port, root},
    world::{SECOND, World, eventually},
};

const NODES: [(&str, IpAddr); 2] =
    [("master-0", IpAddr::V4(Ipv4Addr::new(127, 78, 0, 1))), ("x-0", IpAddr::V4(Ipv4Addr::new(127, 78, 0, 2)))];
/// What the VM image carries, as far as the manager cares.
const ADD_ONS: &str = "{apiVersion: v1, kind: ConfigMap, \
     metadata: {name: played, namespace: kube-system, labels: {giantnetes.io/addon: 'true'}}, data: {a: b}}";

/// What may change although nobody asked for it: kind, path and reason. Everything else may not, and no object may be another one.
const EXCEPTIONS: [(&str, &str, &str); 3] = [
    ("Cluster", "/status", "what is told of a guest is no part of it, and moves with what is seen of it"),
    (
        "ConfigMap",
        "/data/user-data",
        "what the node's next machine is set up by; the one that runs was set up, and asks no more",
    ),
    ("ConfigMap", "/metadata/annotations/giantnetes.io/hash", "the hash of that"),
];

/// A guest's API server, at the address of its Service and with its certificates.
struct GuestApi {
    server: ApiServer,
    address: IpAddr,
    /// Its keys.
    folder: PathBuf,
}

impl GuestApi {
    async fn start(world: &World, home: &str) -> Self {
        let services = Api::<Service>::namespaced(world.client.clone(), home);
        let service = services.get("master").await.unwrap().spec.unwrap();
        let address: IpAddr = service.cluster_ip.unwrap().parse().unwrap();
        let (keys, _) = eventually(SECOND * 30, "the control plane's certificates", || async {
            world.secrets(home).get("master-0-pki").await?.data.context("it is empty")
        })
        .await
        .unwrap();
        let folder = std::env::temp_dir().join(format!("giantnetes-release-keys-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = |name: &str| folder.join(name).display().to_string();
        for name in ["apiserver.crt", "apiserver.key"] {
            fs::write(file(name), &keys[name].0).unwrap();
        }
        let args = [
            format!("--tls-sni-cert-key={},{}:{TLS_SERVER_NAME}", file("apiserver.crt"), file("apiserver.key")),
            // Service accounts are made by a controller that does not run here.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        let authority = String::from_utf8(keys["ca.crt"].0.clone()).unwrap();
        let args = args.each_ref().map(String::as_str);
        let server = ApiServer::start_at("release-guest", free_port().unwrap(), &authority, &args).unwrap();
        Run::new("ip").args(["addr", "replace", &format!("{address}/32"), "dev", "lo"]).output().unwrap();
        let listener = TcpListener::bind((address, 6443)).await.unwrap();
        let port: u16 = server.url().rsplit(':').next().unwrap().parse().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(("127.0.0.1", port)).await?;
                    copy_bidirectional(&mut stream, &mut to).await
                });
            }
        });
        Self { server, address, folder }
    }

    fn apply(&self, object: &Value) {
        self.server.kubectl(&["create", "-f", "-"]).input(object.to_string()).output().unwrap();
    }

    /// Plays kubelets that say that their nodes are ready, and the controller that makes service accounts.
    fn come_up(&self) {
        self.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}}));
        for (name, _) in NODES {
            self.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
            let now = Timestamp::now().to_string();
            let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now});
            let patch = json!({"status": {"conditions": [ready]}}).to_string();
            let words = ["patch", "node", name, "--subresource=status", "--type=merge", "-p", &patch];
            self.server.kubectl(&words).output().unwrap();
        }
    }
}

impl Drop for GuestApi {
    fn drop(&mut self) {
        let _ = Run::new("ip").args(["addr", "del", &format!("{}/32", self.address), "dev", "lo"]).output();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Serves as the supervisor of a VM pod, as far as the manager asks one.
async fn supervise(address: IpAddr) {
    let listener = TcpListener::bind((address, 8080)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line).await?;
    let path = line.split([' ', '?']).nth(1).unwrap_or_default();
    let (status, body) = match path {
        "/addons" => ("200 OK", ADD_ONS),
        "/isolation" | "/path-mtu" => ("200 OK", "[]"),
        _ => ("404 Not Found", ""),
    };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    Ok(stream.write_all(format!("{head}{body}").as_bytes()).await?)
}

/// Objects by kind and name.
type Objects = BTreeMap<String, Value>;

/// Everything of the guest: its namespace and all in it, what lies beside the Cluster, its claims, and what its API has.
fn everything(servers: &Servers, guest: &GuestApi, home: &str) -> Result<Objects> {
    let kinds = |scope: &str| -> Result<String> {
        let words = ["api-resources", "--verbs=list", scope, "-o", "name"];
        let all = servers.kubectl(&words).output()?;
        // What is no object that lasts.
        let passing = ["events", "events.events.k8s.io", "leases.coordination.k8s.io"];
        Ok(all.lines().filter(|kind| !passing.contains(kind)).collect::<Vec<_>>().join(","))
    };
    let namespaced = kinds("--namespaced=true")?;
    let rights = "clusterroles,clusterrolebindings,configmaps,nodes,serviceaccounts";
    let said = [
        servers.kubectl(&["get", &namespaced, "-n", home, "-o", "json"]).output()?,
        servers.kubectl(&["get", &namespaced, "-n", "a", "-o", "json"]).output()?,
        servers.kubectl(&["get", "namespaces,networkclaims", "-o", "json"]).output()?,
        guest.server.kubectl(&["get", rights, "-A", "-o", "json"]).output()?,
    ];
    let mut found = Objects::new();
    for (place, text) in ["guest's", "user's", "all", "inside"].iter().zip(said) {
        let list: Value = serde_json::from_str(&text)?;
        for object in list["items"].as_array().context("a list")? {
            let meta = &object["metadata"];
            let name =
                format!("{place} {} {}/{}", word(&object["kind"]), word(&meta["namespace"]), word(&meta["name"]));
            found.insert(name, object.clone());
        }
    }
    Ok(found)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Paths at which two objects differ, but for what every write moves.
fn differences(before: &Value, now: &Value, path: &str, found: &mut Vec<String>) {
    if before == now || ["/metadata/resourceVersion", "/metadata/managedFields"].contains(&path) {
        return;
    }
    match (before.as_object(), now.as_object()) {
        (Some(one), Some(other)) => {
            for key in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
                differences(&before[key], &now[key], &format!("{path}/{key}"), found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

/// What is another one, or another, than it was, and is no exception.
fn changes(before: &Objects, now: &Objects) -> Vec<String> {
    let mut changed = Vec::new();
    for name in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        let (Some(one), Some(other)) = (before.get(name), now.get(name)) else {
            changed.push(format!("{name} {}", if now.contains_key(name) { "came" } else { "went" }));
            continue;
        };
        if one["metadata"]["uid"] != other["metadata"]["uid"] {
            changed.push(format!("{name} is another one"));
            continue;
        }
        if one["metadata"]["resourceVersion"] == other["metadata"]["resourceVersion"] {
            continue;
        }
        let mut paths = Vec::new();
        differences(one, other, "", &mut paths);
        let kind = word(&one["kind"]);
        let excepted = |path: &String| EXCEPTIONS.iter().any(|(of, start, _)| *of == kind && path.starts_with(start));
        let others: Vec<_> = paths.iter().filter(|path| !excepted(path)).collect();
        // A write that changed nothing is one too many, as well.
        if paths.is_empty() || !others.is_empty() {
            changed.push(format!("{name} was written: {others:?}"));
        }
    }
    changed
}

/// As `helm upgrade` does it: kinds and rights first, then a manager beside the one that is there, which ends.
async fn takes_over(servers: &Servers, tree: &Path, name: &str, options: Options, mut old: Manager) -> Manager {
    let before = rights(servers, tree);
    servers.install_crds_of(tree).unwrap();
    let new = Manager::start(servers, name, options).await;
    old.signal("TERM");
    old.ended(SECOND * 20).unwrap();
    // What the other chart gave, and this one does not.
    let words: Vec<_> = before.iter().map(String::as_str).collect();
    if !words.is_empty() {
        servers.kubectl(&[&["delete", "-n", "default"], &words[..]].concat()).output().unwrap();
    }
    let has_looked = async || {
        let metrics = new.get("/metrics").await?;
        for operator in ["cluster", "network", "pki", "kvm", "guest", "isolation", "access"] {
            let line = format!("giantnetes_reconciles_total{{operator=\"{operator}\",result=\"ok\"}}");
            ensure!(metrics.lines().any(|metric| metric.starts_with(&line)), "{operator} has not looked yet");
        }
        Ok(())
    };
    eventually(SECOND * 60, "the new manager to have looked at everything", has_looked).await.unwrap();
    new.settled().await;
    new
}

/// Gives the rights of a tree's chart. Answers the names of those that only the other one gives.
fn rights(servers: &Servers, tree: &Path) -> BTreeSet<String> {
    let names = "roles,clusterroles,rolebindings,clusterrolebindings";
    let of_core = |text: String| -> BTreeSet<String> {
        text.lines().filter(|name| name.contains("/core")).map(str::to_owned).collect()
    };
    let there = of_core(servers.kubectl(&["get", names, "-n", "default", "-o", "name"]).output().unwrap());
    let given = servers.give_rights("core", &rights_of(tree));
    there.difference(&given).cloned().collect()
}

async fn is_ready(world: &World) -> Result<()> {
    let cluster = world.clusters("a").get("demo").await?;
    let status = cluster.status.context("no status")?;
    let told = status.conditions.iter().find(|condition| condition.type_ == "Ready").context("no condition")?;
    ensure!(told.status == "True", "{}: {}", told.reason, told.message);
    Ok(())
}

/// A Cluster with a worker, an Ingress and a user, and a guest's API that answers.
async fn ready_guest(world: &World) -> (String, GuestApi) {
    let spec = json!({
        "nodePools": [{"name": "x", "replicas": 1, "labels": {"tier": "web"}}],
        "exposure": {"type": "Ingress", "host": "demo.example.com"},
    });
    let nodes = NODES.map(|(name, _)| name);
    let guest = Guest::of(world, spec, &nodes).await;
    let access = serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "ClusterAccess", "metadata": {"name": "alice"},
        "spec": {"clusterRef": {"name": "demo"}, "user": "alice", "clusterRoles": ["edit"]},
    }));
    let accesses = Api::<giantnetes::api::ClusterAccess>::namespaced(world.client.clone(), "a");
    accesses.create(&PostParams::default(), &access.unwrap()).await.unwrap();
    let api = GuestApi::start(world, &guest.namespace).await;
    for (name, address) in NODES {
        supervise(address).await;
        runs(world, &guest.namespace, name, address, "10.1.0.1").await;
        guest.ready(name).await;
    }
    api.come_up();
    eventually(SECOND * 90, "the guest to be Ready", || is_ready(world)).await.unwrap();
    let has_access = async || Ok(world.secrets("a").get("alice-access").await.map(drop)?);
    eventually(SECOND * 20, "the user's access", has_access).await.unwrap();
    (guest.namespace, api)
}

#[test]
fn a_newer_manager_changes_nothing_of_a_guest_and_neither_does_the_way_back() {
    let release = Release::build().unwrap();
    on_servers("release", async |servers, world| {
        let released = || Options { kvm: true, program: Some(release.giantnetes()), ..Options::default() };
        // Rights of now are made with the kubeconfig; then they are those of then.
        servers.managers_kubeconfig("core");
        let later = rights(servers, &release.tree());
        for name in &later {
            servers.kubectl(&["delete", "-n", "default", name]).output().unwrap();
        }
        servers.install_crds_of(&release.tree()).unwrap();
        let old = Manager::start(servers, "old", released()).await;
        let (home, guest) = ready_guest(&world).await;
        old.settled().await;
        let before = everything(servers, &guest, &home).unwrap();
        let kinds: BTreeSet<_> = before.values().map(|object| word(&object["kind"])).collect();
        println!("    {} objects of {}: {kinds:?}", before.len(), release.version);
        for kind in
            ["Pod", "Secret", "ConfigMap", "Service", "PersistentVolumeClaim", "NetworkPolicy", "Ingress", "Node"]
        {
            assert!(kinds.contains(kind), "there is no {kind} to look at");
        }

        let now = Options { kvm: true, ..Options::default() };
        let new = takes_over(servers, &root(), "new", now, old).await;
        let upgraded = unchanged("the manager of now", servers, &world, &guest, &home, &before).await;
        let back = takes_over(servers, &release.tree(), "back", released(), new).await;
        unchanged("the released one again", servers, &world, &guest, &home, &upgraded).await;
        assert!(!back.log_text().contains("panicked"));
    });
}

/// Looks for longer than the pause between two looks at a guest that is well. Answers what is there.
async fn unchanged(
    who: &str,
    servers: &Servers,
    world: &World,
    guest: &GuestApi,
    home: &str,
    before: &Objects,
) -> Objects {
    tokio::time::sleep(SECOND * 20).await;
    is_ready(world).await.unwrap();
    let now = everything(servers, guest, home).unwrap();
    let moved = now.iter().filter(|(name, object)| before.get(*name) != Some(object)).map(|(name, _)| name);
    println!("    {who} has written: {:?}", moved.collect::<Vec<_>>());
    let changed = changes(before, &now);
    assert!(changed.is_empty(), "{who} has changed\n{}", changed.join("\n"));
    now
}

#[test]
fn what_changes_is_seen_unless_it_may() {
    let object = |version: &str, uid: &str, spec: Value, status: Value| {
        let meta = json!({"uid": uid, "resourceVersion": version});
        json!({"kind": "Cluster", "metadata": meta, "spec": spec, "status": status})
    };
    let found = |now: Value| {
        let before = Objects::from([("a".to_owned(), object("1", "u", json!({"b": 1}), json!(1)))]);
        changes(&before, &Objects::from([("a".to_owned(), now)]))
    };
    assert!(found(object("1", "u", json!({"b": 1}), json!(1))).is_empty());
    assert!(found(object("2", "u", json!({"b": 1}), json!(2))).is_empty(), "a status may move");
    assert_eq!(found(object("2", "u", json!({"b": 2}), json!(2))), ["a was written: [\"/spec/b\"]"]);
    assert_eq!(found(object("2", "u", json!({"b": 1}), json!(1))), ["a was written: []"]);
    assert_eq!(found(object("2", "other", json!({"b": 1}), json!(1))), ["a is another one"]);
    let gone = changes(&Objects::from([("a".to_owned(), json!({}))]), &Objects::new());
    assert_eq!(gone, ["a went"]);
}
