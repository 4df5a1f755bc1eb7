//! Rotation of the keys of service-account tokens and of encryption at rest. No VM runs: the test plays the control-plane node and its
//! supervisor. The guest's API server and its etcd are real, and are started anew when the node's Secret asks for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, stream};
use giantnetes::{
    api::{RotationStatus, names},
    pki::roots,
    supervisor::{
        consumers::{Answer, Met},
        keys::{KEYS_PATH, NAMED, STORED_PATH, Stored},
    },
};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{TokenRequest, TokenReview},
        core::v1::{Namespace, Secret, Service, ServiceAccount},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use lab::{command::Run, tools::Tools};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    manager::{Manager, Options},
    on_servers,
    rollout::Guest,
    rotation::{Files, files, keep, pair, status, user},
    servers::Servers,
    support::processes::{Process, free_port, spawn, tied},
    world::{SECOND, World, eventually},
};

const ROTATION: &str = "giantnetes.io/rotation";
const NODE: &str = "master-0";
/// More than are named at a time.
const SECRETS: usize = NAMED + 100;

#[derive(Default)]
struct Running {
    files: Files,
    started: BTreeMap<String, String>,
    api: Option<Process>,
    starts: usize,
    /// Whether nobody says what etcd holds.
    etcd_is_silent: bool,
}

/// A control-plane node with a real API server and a real etcd.
#[derive(Clone)]
struct Node {
    running: Arc<Mutex<Running>>,
    address: IpAddr,
    folder: PathBuf,
    log: PathBuf,
    etcd: String,
    world: World,
}

/// What ends with the test.
struct Played {
    node: Node,
    _etcd: Process,
}

impl Drop for Played {
    fn drop(&mut self) {
        let _ = Run::new("ip").args(["addr", "del", &format!("{}/32", self.node.address), "dev", "lo"]).output();
        let _ = std::fs::remove_dir_all(&self.node.folder);
    }
}

impl Node {
    async fn play(world: &World, servers: &Servers, guest: &Guest<'_>) -> Played {
        let services = Api::<Service>::namespaced(world.client.clone(), &guest.namespace);
        let service = services.get(names::MASTER_SERVICE).await.unwrap();
        let address: IpAddr = service.spec.unwrap().cluster_ip.unwrap().parse().unwrap();
        Run::new("ip").args(["addr", "add", &format!("{address}/32"), "dev", "lo"]).output().unwrap();
        let folder = servers.folder().join("guest");
        std::fs::create_dir_all(&folder).unwrap();
        let tools = Tools::locate().unwrap();
        let url = |port| format!("http://127.0.0.1:{port}");
        let (client, peer) = (url(free_port().unwrap()), url(free_port().unwrap()));
        let mut etcd = tied(tools.etcd.join("etcd"));
        etcd.args(["--name=guest", "--log-level=warn", "--unsafe-no-fsync"])
            .arg(format!("--data-dir={}", folder.join("etcd").display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=guest={peer}"));
        let etcd_process = spawn(&mut etcd, &servers.folder().join("guest-etcd.log")).unwrap();
        let log = servers.folder().join("guest-kube-apiserver.log");
        let (running, world) = (Arc::default(), world.clone());
        let node = Self { running, address, folder, log, etcd: client, world };
        let (follows, secrets) = (node.clone(), node.world.secrets(&guest.namespace));
        tokio::spawn(async move {
            loop {
                if let Ok(secret) = secrets.get(&names::node_secret(NODE)).await {
                    follows.follow(files(&secret)).await;
                }
                tokio::time::sleep(SECOND).await;
            }
        });
        let pod: IpAddr = [127, 78, 2, 1].into();
        let listener = TcpListener::bind((pod, names::SUPERVISOR_PORT)).await.unwrap();
        let answers = node.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let node = answers.clone();
                tokio::spawn(async move { node.answer(stream).await });
            }
        });
        let status = json!({"status": {
            "phase": "Running", "podIP": pod, "podIPs": [{"ip": pod}], "hostIP": "10.1.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "vm", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }],
        }});
        guest.pods.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        Played { node, _etcd: etcd_process }
    }

    /// Takes over what its Secret holds, and starts what is to be started anew.
    async fn follow(&self, files: Files) {
        let turn: BTreeMap<String, String> =
            files.get("turn").into_iter().flat_map(|text| text.lines()).filter_map(pair).collect();
        keep(&self.folder, &files);
        let starts = {
            let mut running = self.running.lock().unwrap();
            running.files = files;
            let wanted = turn.get("kube-apiserver");
            running.api.is_none() || wanted.is_some_and(|mark| running.started.get("kube-apiserver") != Some(mark))
        };
        if starts {
            let former = self.running.lock().unwrap().api.take();
            drop(former);
            let api = spawn(&mut self.api_server(), &self.log).unwrap();
            let mut running = self.running.lock().unwrap();
            (running.api, running.starts) = (Some(api), running.starts + 1);
        }
        // As a node says it of what has started.
        let served = eventually(SECOND * 120, "the guest's API", async || self.serves().await);
        if starts {
            served.await.unwrap();
        }
        self.running.lock().unwrap().started.extend(turn);
    }

    fn api_server(&self) -> std::process::Command {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut api = tied(Tools::locate().unwrap().kubernetes.join("kube-apiserver"));
        api.args([
            format!("--etcd-servers={}", self.etcd),
            format!("--bind-address={}", self.address),
            "--secure-port=6443".into(),
        ])
        .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"])
        .arg(format!("--client-ca-file={}", file("ca.crt")))
        .arg(format!("--tls-cert-file={}", file("apiserver.crt")))
        .arg(format!("--tls-private-key-file={}", file("apiserver.key")))
        .arg(format!("--encryption-provider-config={}", file("encryption.yaml")))
        .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
        .arg(format!("--service-account-key-file={}", file("sa.pub")))
        .arg(format!("--service-account-signing-key-file={}", file("sa.key")));
        api
    }

    async fn client(&self) -> Client {
        user(&self.world).await.1
    }

    async fn ask(&self, path: &str) -> Result<String> {
        let request = hyper::Request::get(path).body(Vec::new())?;
        Ok(self.client().await.request_text(request).await?)
    }

    /// With the rights of who asks there, which its manager has yet to bind at first: whoever is told that he may not was answered.
    async fn serves(&self) -> Result<()> {
        match self.ask("/readyz").await {
            Ok(_) => Ok(()),
            Err(error) => {
                let said = format!("{error:?}");
                ensure!(said.contains("403") || said.contains("orbidden"), "{said}");
                Ok(())
            }
        }
    }

    async fn answer(self, mut stream: TcpStream) -> Result<()> {
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await?;
        let asked = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (path, query) = asked.split_once('?').unwrap_or((&asked, ""));
        let body = match path {
            "/authorities" => {
                let well = self.serves().await.is_ok();
                let met = [("kube-apiserver", well), ("etcd", true), ("kubelet", true)];
                let met = met.map(|(name, well)| (name.to_owned(), Met { well, ..Met::default() })).into();
                let started = self.running.lock().unwrap().started.clone();
                serde_json::to_string(&Answer { met, started })?
            }
            KEYS_PATH => serde_json::to_string(&self.verifies().await?)?,
            STORED_PATH if !self.running.lock().unwrap().etcd_is_silent => {
                let key = query.strip_prefix("key=").context("no key is named")?;
                serde_json::to_string(&self.stored(key)?)?
            }
            "/isolation" => "[]".to_owned(),
            "/addons" => "{apiVersion: v1, kind: ConfigMap, metadata: {name: add-on, namespace: kube-system}}".into(),
            _ => String::new(),
        };
        let status = if body.is_empty() { "404 Not Found" } else { "200 OK" };
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
        Ok(stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n{body}").as_bytes()).await?)
    }

    async fn verifies(&self) -> Result<BTreeSet<String>> {
        let set: Value = serde_json::from_str(&self.ask("/openid/v1/jwks").await?)?;
        let keys = set["keys"].as_array().context("no keys")?.iter();
        Ok(keys.filter_map(|key| key["kid"].as_str().map(str::to_owned)).collect())
    }

    /// Secrets in etcd: what their values begin with, and how often they were written.
    fn held(&self) -> Result<BTreeMap<String, (String, u64)>> {
        let etcdctl = Tools::locate()?.etcd.join("etcdctl");
        let text = Run::new(etcdctl.display().to_string())
            .args([&format!("--endpoints={}", self.etcd), "get", "/registry/secrets/", "--prefix", "-w", "json"])
            .output()?;
        let found: Value = serde_json::from_str(&text)?;
        let each = found["kvs"].as_array().into_iter().flatten().map(|pair| {
            let decode = |field: &str| serde_json::from_value::<ByteString>(pair[field].clone()).map(|bytes| bytes.0);
            let value = decode("value")?;
            let begin = String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
            let name = String::from_utf8(decode("key")?)?.trim_start_matches("/registry/secrets/").to_owned();
            Ok((name, (begin, pair["version"].as_u64().unwrap_or_default())))
        });
        each.collect()
    }

    fn stored(&self, key: &str) -> Result<Stored> {
        let held = self.held()?;
        let begin = format!("k8s:enc:secretbox:v1:{key}:");
        let others: Vec<_> = held.iter().filter(|(_, (value, _))| !value.starts_with(&begin)).collect();
        let named = others.iter().take(NAMED).map(|(name, _)| (*name).clone()).collect();
        Ok(Stored { all: held.len(), others: others.len(), named })
    }
}

/// Waits for a stage of a subject; none: until nothing is rotated.
async fn stage(world: &World, wanted: Option<(&str, &[&str])>) -> RotationStatus {
    let look = async || {
        let told = status(world).await?;
        let is = |(subject, stages): (&str, &[&str])| {
            let stage = told.stage.as_deref();
            told.subject.as_deref() == Some(subject) && stage.is_some_and(|stage| stages.contains(&stage))
        };
        ensure!(wanted.map_or(told.stage.is_none(), is), "{told:?}");
        Ok(told)
    };
    let (told, took) = eventually(SECOND * 180, &format!("stage {wanted:?}"), look).await.unwrap();
    println!("    {:?} {} after {took:.1?}", told.subject, told.stage.as_deref().unwrap_or("over"));
    told
}

async fn ask(world: &World, pki: Value) {
    let patch = Patch::Merge(json!({"spec": {"pki": pki}}));
    world.clusters("a").patch("demo", &PatchParams::default(), &patch).await.unwrap();
}

/// A token of a service account of the guest, for ten hours.
async fn token(client: &Client) -> String {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
    let request: TokenRequest =
        serde_json::from_value(json!({"spec": {"audiences": [], "expirationSeconds": 36_000}})).unwrap();
    let ask = async || {
        let answer = accounts.create_token_request("robot", &PostParams::default(), &request).await?;
        answer.status.and_then(|status| status.token).context("no token")
    };
    eventually(SECOND * 60, "a token", ask).await.unwrap().0
}

async fn is_good(client: &Client, token: &str) -> bool {
    let review: TokenReview = serde_json::from_value(json!({"spec": {"token": token}})).unwrap();
    // One that has started a moment ago knows of no rights yet.
    let ask = async || {
        let answer = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
        answer.status.context("no answer")
    };
    let (answer, _) = eventually(SECOND * 60, "a token to be judged", ask).await.unwrap();
    answer.authenticated.unwrap_or_default()
}

async fn populate(client: &Client) {
    let secrets = Api::<Secret>::namespaced(client.clone(), "default");
    let made = stream::iter(0..SECRETS).map(|number| {
        let secrets = secrets.clone();
        async move {
            let secret = json!({"metadata": {"name": format!("s{number}")}, "immutable": number % 2 == 0,
                "stringData": {"word": format!("word {number}")}});
            secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
        }
    });
    made.buffer_unordered(20).collect::<Vec<_>>().await;
    let account = json!({"metadata": {"name": "robot"}});
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
    accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
}

/// All Secrets are read through the API, and hold what was written.
async fn all_are_readable(client: &Client) -> Result<()> {
    let secrets = Api::<Secret>::namespaced(client.clone(), "default").list(&ListParams::default()).await?;
    ensure!(secrets.items.len() == SECRETS, "{} Secrets", secrets.items.len());
    for secret in &secrets.items {
        let (name, word) = (secret.name_any(), &secret.data.as_ref().context("no data")?["word"].0);
        ensure!(*word == format!("word {}", &name[1..]).into_bytes(), "{name} holds something else");
    }
    Ok(())
}

#[test]
fn keys_are_rotated_and_no_secret_is_lost_and_no_token_refused_too_early() {
    on_servers("key-rotation", async |servers, world| {
        let mut manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        let guest = Guest::of(&world, json!({"controlPlane": {"replicas": 1}}), &[NODE]).await;
        let played = Node::play(&world, servers, &guest).await;
        let node = &played.node;
        let reads = async || {
            let namespaces = Api::<Namespace>::all(node.client().await);
            Ok(namespaces.get("default").await?)
        };
        eventually(SECOND * 120, "the guest's API", reads).await.unwrap();
        let client = node.client().await;
        populate(&client).await;
        let former = token(&client).await;
        assert!(is_good(&client, &former).await);
        let versions = node.held().unwrap();
        assert!(versions.len() >= SECRETS && node.stored("key1").unwrap().others == 0);
        assert!(status(&world).await.is_err(), "something is told of a rotation that nobody asked for");

        // Both at once: one after the other. A process that ends in any stage is followed by one that goes on.
        let asked = json!({"serviceAccountKey": {"rotate": 1, "overlap": "1h"}, "encryptionKey": {"rotate": 1}});
        ask(&world, asked).await;
        let key = "ServiceAccountKey";
        stage(&world, Some((key, &["Trust", "Sign", "Overlap"]))).await;
        manager.restart();
        stage(&world, Some((key, &["Sign", "Overlap"]))).await;
        manager.restart();
        let told = stage(&world, Some((key, &["Overlap"]))).await;
        assert_eq!((told.queued, told.generation, told.until.is_some()), (vec!["EncryptionKey".to_owned()], 2, true));
        assert_eq!(node.running.lock().unwrap().starts, 3, "once at first, and once a phase");
        let renewed = token(&client).await;
        assert!(is_good(&client, &renewed).await && is_good(&client, &former).await);
        let (ids, _) = eventually(SECOND * 60, "the keys", async || node.verifies().await).await.unwrap();
        assert_eq!(ids.len(), 2, "{ids:?}");
        manager.restart();
        tokio::time::sleep(SECOND * 4).await;
        assert_eq!(status(&world).await.unwrap().stage.as_deref(), Some("Overlap"), "tokens had no time");

        // The time passes: what is noted of it is set back.
        node.running.lock().unwrap().etcd_is_silent = true;
        let namespaces = Api::<Namespace>::all(world.client.clone());
        let noted = namespaces.get(&guest.namespace).await.unwrap().annotations()[ROTATION].clone();
        let mut words: Vec<_> = noted.split(' ').map(str::to_owned).collect();
        words[2] = (words[2].parse::<Timestamp>().unwrap() - Duration::from_secs(3601)).to_string();
        world.annotate(&namespaces, &guest.namespace, ROTATION, &words.join(" ")).await.unwrap();
        let dropped = async || {
            let told = status(&world).await?;
            ensure!(told.service_account_key_carried_out == 1, "{told:?}");
            Ok(())
        };
        eventually(SECOND * 120, "the former key to be dropped", dropped).await.unwrap();
        assert!(is_good(&client, &renewed).await && !is_good(&client, &former).await);

        // What is stored is not known: nobody goes on, whoever leads.
        let key = "EncryptionKey";
        stage(&world, Some((key, &["Read", "Write", "Rewrite"]))).await;
        manager.restart();
        stage(&world, Some((key, &["Write", "Rewrite"]))).await;
        let told = async || {
            let told = status(&world).await?;
            ensure!(told.stage.as_deref() == Some("Rewrite"), "{told:?}");
            ensure!(told.waits_for.as_deref().is_some_and(|what| what.starts_with("etcd to say")), "{told:?}");
            Ok(told)
        };
        eventually(SECOND * 120, "the rewrite", told).await.unwrap();
        manager.restart();
        tokio::time::sleep(SECOND * 12).await;
        let secrets = world.secrets(&guest.namespace);
        let held = files(&secrets.get(&names::node_secret(NODE)).await.unwrap());
        assert!(held["encryption.yaml"].contains("\"key1\"") && held["encryption.yaml"].contains("\"key3\""));
        eventually(SECOND * 60, "all Secrets", async || all_are_readable(&client).await).await.unwrap();
        node.running.lock().unwrap().etcd_is_silent = false;
        stage(&world, Some((key, &["Rewrite", "Drop"]))).await;
        manager.restart();
        let over = stage(&world, None).await;
        assert_eq!((over.generation, over.encryption_key_carried_out, over.carried_out), (3, 1, 0));
        eventually(SECOND * 60, "all Secrets", async || all_are_readable(&client).await).await.unwrap();
        let after = node.held().unwrap();
        for (name, (begin, times)) in &after {
            assert!(begin.starts_with("k8s:enc:secretbox:v1:key3:"), "{name} is stored as {begin}");
            let before = versions.get(name).map(|(_, times)| *times);
            assert!(before.is_none_or(|before| *times == before + 1), "{name} was written {times} times");
        }
        assert_eq!(after.len(), versions.len());
        // And by one that knows the new key alone.
        let held = files(&secrets.get(&names::node_secret(NODE)).await.unwrap());
        assert!(!held["encryption.yaml"].contains("key1") && !held.contains_key("turn"));
        assert_eq!(node.running.lock().unwrap().starts, 7, "once at first, and once a phase");
        let made: Vec<_> =
            secrets.list(&ListParams::default()).await.unwrap().items.iter().map(|secret| secret.name_any()).collect();
        let roots: Vec<_> = made.iter().filter(|name| name.starts_with("roots-")).collect();
        assert_eq!(roots, [&roots::secret_of(3)]);

        // A guest that goes in the midst of it leaves nothing.
        ask(&world, json!({"encryptionKey": {"rotate": 7}})).await;
        stage(&world, Some((key, &["Read", "Write", "Rewrite", "Drop"]))).await;
        world.delete("a", "demo").await.unwrap();
        world.gone(SECOND * 60, "a", "demo").await.unwrap();
        let log = manager.log_text();
        assert!(!log.contains("panicked") && !log.contains("PRIVATE KEY") && !log.contains("secretbox"));
    });
}
