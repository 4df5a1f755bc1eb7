//! Rotation of a guest's authorities. No VM runs: the test plays the nodes, their supervisors and the guest's controllers. The guest's
//! API is real, and is met by a handshake as a supervisor meets it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use giantnetes::{
    api::{RotationStatus, names},
    pki::{kubeconfig::TLS_SERVER_NAME, roots},
    supervisor::consumers::{Answer, Met, fingerprint, meet},
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use lab::{command::Run, tools::Tools};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use x509_parser::pem::Pem;

use crate::{
    manager::{Manager, Options},
    on_servers,
    rollout::Guest,
    servers::Servers,
    support::processes::{Process, free_port, spawn, tied},
    world::{SECOND, World, eventually},
};

const ROTATION: &str = "giantnetes.io/rotation";
/// Nothing that would have to run.
const ADD_ONS: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: add-on, namespace: kube-system}}";
const MARK: &str = "giantnetes.io/authorities";

pub type Files = BTreeMap<String, String>;

/// Names of the authorities in a bundle.
fn subjects(bundle: &str) -> BTreeSet<String> {
    let of = |pem: Pem| fingerprint(pem.parse_x509().unwrap().subject().as_raw());
    Pem::iter_from_buffer(bundle.as_bytes()).map(|pem| of(pem.unwrap())).collect()
}

fn signer(leaf: &str) -> String {
    let (_, pem) = x509_parser::pem::parse_x509_pem(leaf.as_bytes()).unwrap();
    fingerprint(pem.parse_x509().unwrap().issuer().as_raw())
}

/// A node as it runs.
#[derive(Default)]
struct Running {
    /// What its Secret held when it was last looked at.
    files: Files,
    /// What they held when etcd, and when everything else was started.
    etcd: Files,
    clients: Files,
    /// Units, and what they were started for.
    started: BTreeMap<String, String>,
    /// How often etcd was.
    turns: usize,
}

impl Running {
    /// Takes over what its Secret holds, and starts what is to be started.
    fn follow(&mut self, files: Files) {
        let turn: BTreeMap<String, String> =
            files.get("turn").into_iter().flat_map(|text| text.lines()).filter_map(pair).collect();
        if self.files.is_empty() {
            (self.etcd, self.clients, self.started) = (files.clone(), files.clone(), turn.clone());
        }
        self.files = files;
        if turn.get("etcd").is_some_and(|mark| self.started.get("etcd") != Some(mark)) {
            (self.etcd, self.turns) = (self.files.clone(), self.turns + 1);
        }
        if turn.get("kubelet").is_some_and(|mark| self.started.get("kubelet") != Some(mark)) {
            self.clients = self.files.clone();
        }
        if !turn.is_empty() {
            self.started = turn;
        }
    }

    fn answer(&self, node: &str, api: Option<Met>) -> Answer {
        let Self { files, etcd, clients, started, .. } = self;
        let met = |asks, leaf: &str| Met { asks, signer: signer(&files[leaf]), well: true };
        let mut all = BTreeMap::from([("kubelet".to_owned(), met(subjects(&clients["ca.crt"]), "kubelet-server.crt"))]);
        if node.starts_with("master-") {
            let asks = &subjects(&files["ca.crt"]) | &subjects(&files["front-proxy-ca.crt"]);
            let api = api.unwrap_or_else(|| met(asks, "apiserver.crt"));
            all.insert("kube-apiserver".into(), Met { well: true, ..api });
            all.insert("etcd".into(), met(subjects(&etcd["etcd-ca.crt"]), "etcd-server.crt"));
        }
        Answer { met: all, started: started.clone() }
    }
}

pub fn pair(line: &str) -> Option<(String, String)> {
    line.split_once('=').map(|(unit, mark)| (unit.to_owned(), mark.to_owned()))
}

/// The nodes of a guest, and what became of their marks.
#[derive(Clone, Default)]
struct Nodes {
    all: Arc<Mutex<BTreeMap<String, Running>>>,
    /// Who does not answer.
    silent: Arc<Mutex<BTreeSet<String>>>,
    /// The guest's real API.
    api: Arc<Mutex<Option<SocketAddr>>>,
}

impl Nodes {
    /// Plays a node: its Secret is followed, and its supervisor answers at an address of the loopback device.
    async fn play(&self, world: &World, guest: &Guest<'_>, node: &str, address: IpAddr) {
        let (nodes, name, secrets) = (self.clone(), node.to_owned(), world.secrets(&guest.namespace));
        let listener = TcpListener::bind((address, names::SUPERVISOR_PORT)).await.unwrap();
        nodes.all.lock().unwrap().insert(name.clone(), Running::default());
        tokio::spawn(async move {
            loop {
                if let Ok(secret) = secrets.get(&names::node_secret(&name)).await {
                    nodes.all.lock().unwrap().get_mut(&name).unwrap().follow(files(&secret));
                }
                // A volume and a timer take their time, too.
                tokio::time::sleep(SECOND).await;
            }
        });
        let (nodes, name) = (self.clone(), node.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (nodes, name) = (nodes.clone(), name.clone());
                tokio::spawn(async move { nodes.answer(&name, stream).await });
            }
        });
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "10.1.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "vm", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }],
        }});
        guest.pods.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    async fn answer(self, node: &str, mut stream: TcpStream) -> Result<()> {
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await?;
        let silent = self.silent.lock().unwrap().contains(node);
        let (status, body) = match line.split([' ', '?']).nth(1) {
            Some("/authorities") if !silent => {
                // One of them is met; the others are played.
                let address = self.api.lock().unwrap().filter(|_| node == "master-0");
                let api = match address {
                    Some(address) => tokio::task::spawn_blocking(move || meet(address, TLS_SERVER_NAME)).await?,
                    None => None,
                };
                let answer = self.all.lock().unwrap()[node].answer(node, api);
                ("200 OK", serde_json::to_string(&answer)?)
            }
            Some("/isolation") => ("200 OK", "[]".to_owned()),
            Some("/addons") => ("200 OK", ADD_ONS.to_owned()),
            _ => ("404 Not Found", String::new()),
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
        Ok(stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n{body}").as_bytes()).await?)
    }

    fn turns(&self, node: &str) -> usize {
        self.all.lock().unwrap()[node].turns
    }
}

pub fn files(secret: &Secret) -> Files {
    let data = secret.data.iter().flatten();
    data.map(|(name, text)| (name.clone(), String::from_utf8(text.0.clone()).unwrap())).collect()
}

/// The guest's real API, at the address of its Service, with the keys of its first control-plane node.
struct GuestApi {
    address: IpAddr,
    folder: PathBuf,
    _servers: Vec<Process>,
}

impl GuestApi {
    async fn start(world: &World, servers: &Servers, guest: &Guest<'_>, nodes: &Nodes) -> Self {
        let services = Api::<Service>::namespaced(world.client.clone(), &guest.namespace);
        let service = services.get(names::MASTER_SERVICE).await.unwrap();
        let address: IpAddr = service.spec.unwrap().cluster_ip.unwrap().parse().unwrap();
        Run::new("ip").args(["addr", "add", &format!("{address}/32"), "dev", "lo"]).output().unwrap();
        let folder = servers.folder().join("guest");
        std::fs::create_dir_all(&folder).unwrap();
        let (secrets, keys) = (world.secrets(&guest.namespace), folder.clone());
        keep(&keys, &files(&secrets.get("master-0-pki").await.unwrap()));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(300)).await;
                if let Ok(secret) = secrets.get("master-0-pki").await {
                    keep(&keys, &files(&secret));
                }
            }
        });
        let tools = Tools::locate().unwrap();
        let (client, peer) = (free_port().unwrap(), free_port().unwrap());
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut etcd = tied(tools.etcd.join("etcd"));
        etcd.args(["--name=guest", "--log-level=warn", "--unsafe-no-fsync"])
            .arg(format!("--data-dir={}", folder.join("etcd").display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=guest={peer}"));
        let file = |name: &str| folder.join(name).display().to_string();
        let mut api = tied(tools.kubernetes.join("kube-apiserver"));
        api.args([
            format!("--etcd-servers={client}"),
            format!("--bind-address={address}"),
            "--secure-port=6443".into(),
        ])
        .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"])
        .arg(format!("--client-ca-file={}", file("ca.crt")))
        .arg(format!("--requestheader-client-ca-file={}", file("front-proxy-ca.crt")))
        .args(["--requestheader-allowed-names=front-proxy-client", "--requestheader-username-headers=X-Remote-User"])
        .arg(format!("--tls-cert-file={}", file("apiserver.crt")))
        .arg(format!("--tls-private-key-file={}", file("apiserver.key")))
        .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
        .arg(format!("--service-account-key-file={}", file("sa.pub")))
        .arg(format!("--service-account-signing-key-file={}", file("sa.key")));
        let logs = ["etcd", "kube-apiserver"].map(|name| servers.folder().join(format!("guest-{name}.log")));
        let servers = vec![spawn(&mut etcd, &logs[0]).unwrap(), spawn(&mut api, &logs[1]).unwrap()];
        *nodes.api.lock().unwrap() = Some((address, names::API_PORT).into());
        Self { address, folder, _servers: servers }
    }

    /// What its controllers do: they publish whom they trusted when they started.
    fn publish(&self, world: &World, nodes: &Nodes) {
        let (nodes, secrets) = (nodes.clone(), world.secrets("a"));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                // They read their certificate anew, too.
                let Ok(kubeconfig) = secrets.get("demo-kubeconfig").await else { continue };
                let maps = Api::<ConfigMap>::namespaced(client_of(&files(&kubeconfig)["value"]).await, "kube-system");
                let ca = nodes.all.lock().unwrap()["master-0"].clients.get("ca.crt").cloned();
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"},
                    "data": {"ca.crt": ca}});
                let params = PatchParams::apply("controllers").force();
                let _ = maps.patch("kube-root-ca.crt", &params, &Patch::Apply(map)).await;
            }
        });
    }
}

impl Drop for GuestApi {
    fn drop(&mut self) {
        let _ = Run::new("ip").args(["addr", "del", &format!("{}/32", self.address), "dev", "lo"]).output();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Puts files where the API server reads them, by rename, as nodes do.
pub fn keep(folder: &Path, files: &Files) {
    for (name, text) in files {
        let (file, new) = (folder.join(name), folder.join(format!(".{name}.new")));
        if std::fs::read_to_string(&file).ok().as_ref() != Some(text) {
            // The folder goes with the test.
            let _ = std::fs::write(&new, text);
            let _ = std::fs::rename(&new, &file);
        }
    }
}

pub async fn status(world: &World) -> Result<RotationStatus> {
    let status = world.clusters("a").get("demo").await?.status.context("no status")?;
    status.rotation.context("nothing is told of a rotation")
}

/// Waits for one of these stages; none: until nothing is rotated.
async fn stage(world: &World, limit: Duration, wanted: &[&str]) -> RotationStatus {
    let look = async || {
        let told = status(world).await?;
        let is_wanted = told.stage.as_deref().map_or(wanted.is_empty(), |stage| wanted.contains(&stage));
        ensure!(is_wanted, "{told:?}");
        Ok(told)
    };
    let (told, took) = eventually(limit, &format!("stage {wanted:?}"), look).await.unwrap();
    println!("    {} after {took:.1?}", told.stage.as_deref().unwrap_or("over"));
    told
}

async fn ask(world: &World, rotate: i32) {
    let patch = Patch::Merge(json!({"spec": {"pki": {"ca": {"rotate": rotate, "overlap": "10m"}}}}));
    world.clusters("a").patch("demo", &PatchParams::default(), &patch).await.unwrap();
}

/// A client of the guest's API by the administrator's kubeconfig, which is kept as a user keeps his.
pub async fn user(world: &World) -> (String, Client) {
    let look = async || Ok(world.secrets("a").get("demo-kubeconfig").await?);
    let (secret, _) = eventually(SECOND * 30, "the kubeconfig", look).await.unwrap();
    let text = files(&secret)["value"].clone();
    (text.clone(), client_of(&text).await)
}

async fn client_of(kubeconfig: &str) -> Client {
    let config = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    config.connect_timeout = Some(SECOND * 5);
    Client::try_from(config).unwrap()
}

/// Whether a kubeconfig opens the guest, by a connection of its own.
async fn opens(kubeconfig: &str) -> bool {
    let maps = Api::<ConfigMap>::namespaced(client_of(kubeconfig).await, "kube-system");
    maps.get_opt("kube-root-ca.crt").await.is_ok()
}

/// Lets the time pass that users have: what is noted of it is set back.
async fn pass_the_overlap(world: &World, guest: &Guest<'_>) {
    let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(world.client.clone());
    let noted = namespaces.get(&guest.namespace).await.unwrap().annotations()[ROTATION].clone();
    let words: Vec<_> = noted.split(' ').collect();
    let since: k8s_openapi::jiff::Timestamp = words[2].parse().unwrap();
    let before = k8s_openapi::jiff::Timestamp::from_second(since.as_second() - 601).unwrap();
    let note = [&[words[0], words[1], &before.to_string()], &words[3..]].concat().join(" ");
    world.annotate(&namespaces, &guest.namespace, ROTATION, &note).await.unwrap();
}

/// Watches that at most one control-plane node is on its way at a time in the stages in which etcd is started anew.
fn watch_turns(world: &World, namespace: &str, nodes: &Nodes) -> Arc<Mutex<Vec<String>>> {
    let broken: Arc<Mutex<Vec<String>>> = Arc::default();
    let (told, secrets, nodes) = (broken.clone(), world.secrets(namespace), nodes.clone());
    tokio::spawn(async move {
        loop {
            let mut turning = Vec::new();
            let masters: Vec<String> =
                nodes.all.lock().unwrap().keys().filter(|name| name.starts_with("master-")).cloned().collect();
            for node in masters {
                let Ok(secret) = secrets.get(&names::node_secret(&node)).await else { continue };
                let asked = files(&secret)
                    .get("turn")
                    .and_then(|text| text.lines().filter_map(pair).find(|(unit, _)| unit == "etcd"));
                let has = nodes.all.lock().unwrap()[&node].started.get("etcd").cloned();
                if asked.as_ref().is_some_and(|(_, mark)| has.as_ref() != Some(mark)) {
                    turning.push(node);
                }
            }
            if turning.len() > 1 {
                told.lock().unwrap().push(format!("{turning:?} turn at once"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    broken
}

#[test]
fn authorities_are_rotated_hands_off_and_whoever_held_a_kubeconfig_has_time() {
    on_servers("rotation", async |servers, world| {
        let mut manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        let members = ["master-0", "x-0"];
        let guest = Guest::of(&world, json!({"nodePools": [{"name": "x", "replicas": 1}]}), &members).await;
        let nodes = Nodes::default();
        for (number, node) in (1..).zip(members) {
            nodes.play(&world, &guest, node, [127, 78, 0, number].into()).await;
        }
        let api = GuestApi::start(&world, servers, &guest, &nodes).await;
        let (former, _) = user(&world).await;
        api.publish(&world, &nodes);
        eventually(SECOND * 90, "the guest's API", async || {
            ensure!(opens(&former).await, "it does not answer");
            Ok(())
        })
        .await
        .unwrap();
        let broken = watch_turns(&world, &guest.namespace, &nodes);
        let before = world.roots().await.unwrap();
        assert!(status(&world).await.is_err(), "something is told of a rotation that nobody asked for");

        // Whoever does not answer holds it up, and is named.
        nodes.silent.lock().unwrap().insert("x-0".into());
        ask(&world, 1).await;
        let waits = async || {
            let told = status(&world).await?;
            ensure!(told.waits_for.as_deref().is_some_and(|what| what.starts_with("x-0: its VM pod")), "{told:?}");
            Ok(told)
        };
        let (told, _) = eventually(SECOND * 60, "it to be told who is waited for", waits).await.unwrap();
        assert_eq!((told.carried_out, told.generation, told.stage.as_deref()), (0, 2, Some("Trust")));
        assert_eq!(world.roots().await.unwrap(), before);
        nodes.silent.lock().unwrap().clear();

        // A process that ends at any moment is followed by one that goes on.
        manager.restart();
        stage(&world, SECOND * 60, &["Reissue", "Overlap"]).await;
        manager.restart();
        // What the object says of its phase is taken away: it is read from what it holds.
        let secrets = world.secrets(&guest.namespace);
        let unmarked = Patch::Merge(json!({"metadata": {"annotations": {MARK: null}}}));
        secrets.patch("master-0-pki", &PatchParams::default(), &unmarked).await.unwrap();
        let told = stage(&world, SECOND * 60, &["Overlap"]).await;
        assert!(
            told.until.is_some() && told.waits_for.as_deref().is_some_and(|what| what.starts_with("users to renew"))
        );
        assert_eq!(nodes.turns("master-0"), 1, "a lone one is started anew once");
        let (renewed, _) = user(&world).await;
        assert_ne!(former, renewed);
        assert!(opens(&former).await, "a user who held a kubeconfig is cut off");
        assert!(opens(&renewed).await, "a user who fetched his anew is not let in");
        let both = files(&secrets.get("master-0-pki").await.unwrap());
        assert_eq!((subjects(&both["ca.crt"]).len(), subjects(&both["etcd-ca.crt"]).len()), (2, 1));

        // A wish that comes meanwhile waits for its turn; a node that is issued anew keeps its phase.
        ask(&world, 2).await;
        let names = json!({"spec": {"pki": {"apiServer": {"altNames": ["api.example.com"]}}}});
        world.clusters("a").patch("demo", &PatchParams::default(), &Patch::Merge(names)).await.unwrap();
        let named = async || {
            let secret = secrets.get("master-0-pki").await?;
            let mark = secret.annotations().get(MARK).cloned();
            ensure!(mark.as_deref() == Some("2.reissue"), "its mark is {mark:?}");
            Ok(())
        };
        eventually(SECOND * 30, "the node to be issued anew in its phase", named).await.unwrap();
        manager.settled().await;
        assert_eq!((nodes.turns("master-0"), status(&world).await.unwrap().stage.as_deref()), (1, Some("Overlap")));

        pass_the_overlap(&world, &guest).await;
        stage(&world, SECOND * 60, &["Serve", "Drop"]).await;
        manager.restart();
        let gone = async || {
            let told = status(&world).await?;
            ensure!(told.carried_out == 1 || told.generation == 3, "{told:?}");
            Ok(())
        };
        let (_, took) = eventually(SECOND * 60, "the former ones to be dropped", gone).await.unwrap();
        println!("    dropped after {took:.1?}");
        let removed = async || {
            ensure!(secrets.get_opt(roots::SECRET).await?.is_none(), "the former roots are there");
            Ok(())
        };
        eventually(SECOND * 60, "the former roots to be removed", removed).await.unwrap();
        assert!(!opens(&former).await, "the former authority opens the guest");
        let (last, client) = user(&world).await;
        assert!(opens(&last).await);
        let maps = Api::<ConfigMap>::namespaced(client, "kube-system");
        let published = maps.get("extension-apiserver-authentication").await.unwrap().data.unwrap();
        let old = subjects(&both["ca.crt"]).into_iter().find(|name| *name != signer(&both["kubelet.crt"])).unwrap();
        assert!(!subjects(&published["client-ca-file"]).contains(&old), "extensions trust the former authority");

        // The wish that waited is carried out now, and a guest that goes in the midst of it leaves nothing.
        let third = async || {
            let told = status(&world).await?;
            ensure!((told.generation, told.stage.is_some()) == (3, true), "{told:?}");
            Ok(())
        };
        eventually(SECOND * 120, "the next rotation", third).await.unwrap();
        world.delete("a", "demo").await.unwrap();
        world.gone(SECOND * 60, "a", "demo").await.unwrap();
        assert!(world.secrets("a").get_opt("demo-kubeconfig").await.unwrap().is_none());
        assert_eq!(*broken.lock().unwrap(), Vec::<String>::new());
        assert!(!manager.log_text().contains("panicked"));
        assert!(!manager.log_text().contains("PRIVATE KEY"));
    });
}

#[test]
fn members_of_etcd_are_started_anew_one_after_the_other() {
    on_servers("rotation-of-three", async |servers, world| {
        let mut manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        let members = ["master-0", "master-1", "master-2"];
        let guest = Guest::of(&world, json!({"controlPlane": {"replicas": 3}}), &members).await;
        let nodes = Nodes::default();
        for (number, node) in (1..).zip(members) {
            nodes.play(&world, &guest, node, [127, 78, 1, number].into()).await;
        }
        let api = GuestApi::start(&world, servers, &guest, &nodes).await;
        let (former, _) = user(&world).await;
        api.publish(&world, &nodes);
        let broken = watch_turns(&world, &guest.namespace, &nodes);
        ask(&world, 1).await;
        // One that does not come back holds the others, whatever else changes.
        let secrets = world.secrets(&guest.namespace);
        let marks = async || {
            let mut marks = Vec::new();
            for node in members {
                let secret = secrets.get(&names::node_secret(node)).await?;
                marks.push(secret.annotations().get(MARK).cloned());
            }
            anyhow::Ok(marks)
        };
        let first = async || {
            let marks = marks().await?;
            ensure!(marks.iter().any(Option::is_some), "nobody has begun");
            Ok(marks)
        };
        nodes.silent.lock().unwrap().insert("master-0".into());
        tokio::time::sleep(SECOND * 8).await;
        assert_eq!(marks().await.unwrap(), [None, None, None], "they begin though one does not answer");
        nodes.silent.lock().unwrap().clear();
        let (begun, _) = eventually(SECOND * 120, "the first to turn", first).await.unwrap();
        assert_eq!(begun.iter().flatten().count(), 1, "{begun:?}");
        nodes.silent.lock().unwrap().extend(members.map(str::to_owned));
        let names = json!({"spec": {"pki": {"apiServer": {"altNames": ["api.example.com"]}}}});
        world.clusters("a").patch("demo", &PatchParams::default(), &Patch::Merge(names)).await.unwrap();
        manager.restart();
        tokio::time::sleep(SECOND * 8).await;
        let held = marks().await.unwrap().iter().flatten().count();
        assert!(held <= 2, "{held} were sent on though nobody answers");
        nodes.silent.lock().unwrap().clear();

        stage(&world, SECOND * 120, &["Overlap"]).await;
        assert!(opens(&former).await);
        pass_the_overlap(&world, &guest).await;
        let over = stage(&world, SECOND * 120, &[]).await;
        assert_eq!((over.carried_out, over.generation), (1, 2));
        for node in members {
            assert_eq!(nodes.turns(node), 2, "{node}");
            let files = files(&secrets.get(&names::node_secret(node)).await.unwrap());
            assert!(!files.contains_key("turn") && subjects(&files["etcd-ca.crt"]).len() == 1, "{node}");
        }
        assert_eq!(*broken.lock().unwrap(), Vec::<String>::new());
        world.delete("a", "demo").await.unwrap();
        world.gone(SECOND * 60, "a", "demo").await.unwrap();
        assert!(!manager.log_text().contains("panicked"));
    });
}
