//! Guests whose overlay is Flannel's: a real etcd, which the manager sets up, and what is written there of every guest. No VM
//! runs: the test plays kubelet, and flanneld where it takes its lease.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    path::PathBuf,
};

use anyhow::{Context as _, ensure};
use giantnetes::{
    api::Cluster,
    cluster::Identity,
    flannel::{
        etcd::{Client, Span, Target, auth},
        lease,
    },
    pki::{
        embedded::{self, Pair},
        leaf::{Authority, Leaf, Usage},
    },
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret, Service},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use lab::command::Run;
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    support::{
        processes::{Process, spawn, tied},
        tool,
    },
    world::{SECOND, World, condition, eventually},
};

const SYSTEM: &str = "giantnetes-system";
const SERVICE: &str = "giantnetes-flannel-etcd";
/// An address of the Services' range, which is given to the loopback device for as long as the test lasts.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 233, 250, 250);

/// Flannel's etcd, as the chart would run it: with the certificates that the manager makes.
struct Etcd {
    folder: PathBuf,
    process: Option<Process>,
}

impl Etcd {
    /// Makes its Service. It does not run yet: its certificates are to come.
    async fn expected(world: &World, name: &str) -> Self {
        // What a test that was killed left.
        let device = ["addr", "replace", &format!("{ADDRESS}/32"), "dev", "lo"];
        Run::new("ip").args(device).output().unwrap();
        let folder = std::env::temp_dir().join(format!("giantnetes-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        world.namespace(SYSTEM).await.unwrap();
        let service = json!({
            "metadata": {"name": SERVICE}, "spec": {"clusterIP": ADDRESS, "ports": [{"name": "client", "port": 2379}]},
        });
        let services = Api::<Service>::namespaced(world.client.clone(), SYSTEM);
        services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
        Self { folder, process: None }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Starts it, with what it wrote before.
    async fn start(&mut self, world: &World) {
        let (data, _) = eventually(SECOND * 30, "etcd's certificates", || async {
            let secret = world.secrets(SYSTEM).get(&format!("{SERVICE}-server")).await?;
            secret.data.context("it is empty")
        })
        .await
        .unwrap();
        for (name, ByteString(content)) in data {
            fs::write(self.folder.join(name), content).unwrap();
        }
        let (client, peer) = (format!("https://{ADDRESS}:2379"), "https://127.0.0.1:23800");
        let mut command = tied(tool("etcd").join("etcd"));
        command.args([
            "--name=m0".to_owned(),
            format!("--data-dir={}", self.file("data")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=m0={peer}"),
            "--client-cert-auth".into(),
            "--peer-client-cert-auth".into(),
            format!("--trusted-ca-file={}", self.file("ca.crt")),
            format!("--cert-file={}", self.file("tls.crt")),
            format!("--key-file={}", self.file("tls.key")),
            format!("--peer-trusted-ca-file={}", self.file("peer-ca.crt")),
            format!("--peer-cert-file={}", self.file("peer.crt")),
            format!("--peer-key-file={}", self.file("peer.key")),
            "--enable-grpc-gateway=false".into(),
            "--max-txn-ops=4096".into(),
            "--log-level=warn".into(),
        ]);
        self.process = Some(spawn(&mut command, &self.folder.join("log")).unwrap());
    }

    /// It is gone, with all that was in it.
    fn lose(&mut self) {
        self.process = None;
        fs::remove_dir_all(self.folder.join("data")).unwrap();
    }

    /// A client that may do everything: by the authority that the manager made.
    async fn root(&self, world: &World) -> Client {
        let data = world.secrets(SYSTEM).get(&format!("{SERVICE}-authorities")).await.unwrap().data.unwrap();
        let authority = Pair { certificate: text(&data, "clients.crt"), key: text(&data, "clients.key").into() };
        let leaf = Leaf {
            name: "root",
            authority: Authority::Etcd,
            common_name: auth::ROOT.into(),
            organisations: Vec::new(),
            dns: Vec::new(),
            addresses: Vec::new(),
            usage: Usage::Client,
        };
        let identity = embedded::sign(&authority, &leaf, Timestamp::now(), SECOND * 3600).unwrap();
        let endpoint = format!("https://{ADDRESS}:2379");
        let target = Target { endpoint: &endpoint, authority: &authority.certificate, identity: &identity };
        Client::new(&target, None).unwrap()
    }

    /// What flanneld does with the lease of its subnet, by the guest's own certificate: it writes what it found, with an etcd
    /// lease of a day.
    async fn take(&self, world: &World, home: &str, key: &str) {
        let secret = world.secrets(home).get("flannel").await.unwrap().data.unwrap();
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            fs::write(self.folder.join(format!("guest-{name}")), text(&secret, name)).unwrap();
        }
        let etcdctl = |words: &[&str]| {
            Run::new(tool("etcd").join("etcdctl"))
                .args([format!("--endpoints={}", text(&secret, "endpoint"))])
                .args([format!("--cacert={}", self.file("guest-ca.crt"))])
                .args([format!("--cert={}", self.file("guest-tls.crt"))])
                .args([format!("--key={}", self.file("guest-tls.key"))])
                .args(words.iter().copied())
                .output()
                .unwrap()
        };
        let granted = etcdctl(&["lease", "grant", "86400"]);
        let id = granted.split_whitespace().nth(1).unwrap();
        let value = etcdctl(&["get", "--print-value-only", key]);
        etcdctl(&["put", &format!("--lease={id}"), key, value.trim()]);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.process = None;
        let _ = Run::new("ip").args(["addr", "del", &format!("{ADDRESS}/32"), "dev", "lo"]).output();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn text(data: &BTreeMap<String, ByteString>, key: &str) -> String {
    String::from_utf8(data[key].0.clone()).unwrap()
}

fn options() -> Options {
    Options { flannel: Some(json!({"service": SERVICE, "members": 1})), ..Options::default() }
}

fn spec() -> Value {
    json!({"network": {"overlay": {"backend": "Flannel"}}, "nodePools": [{"name": "x", "replicas": 1}]})
}

/// A guest's keys, after their common beginning, with the address that each leads to.
async fn leases(root: &Client, id: &str) -> BTreeMap<String, String> {
    let read = root.read(&Span::prefix(&lease::prefix(id))).await.unwrap();
    let keys = read.entries.into_iter().map(|entry| {
        let key = String::from_utf8(entry.key).unwrap();
        let value: Value = serde_json::from_slice(&entry.value).unwrap();
        let address = value["PublicIP"].as_str().unwrap_or_default().to_owned();
        (key.trim_start_matches(&lease::prefix(id)).to_owned(), address)
    });
    keys.collect()
}

/// Waits until a guest has these keys, and no other.
async fn leased(root: &Client, id: &str, expected: &[(&str, &str)]) {
    let expected: BTreeMap<_, _> = [("config", ""), ("subnets/172.26.0.0-20", "0.0.0.0")]
        .iter()
        .chain(expected)
        .map(|(key, address)| ((*key).to_owned(), (*address).to_owned()))
        .collect();
    eventually(SECOND * 30, "the leases", || async {
        let found = leases(root, id).await;
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Says that a VM pod runs at this address.
async fn runs(world: &World, home: &str, node: &str, address: &str) {
    let pods = Api::<Pod>::namespaced(world.client.clone(), home);
    eventually(SECOND * 60, "a VM pod", || async {
        let pod = pods.get(node).await?;
        ensure!(pod.metadata.deletion_timestamp.is_none(), "the former one is there");
        Ok(())
    })
    .await
    .unwrap();
    let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
    pods.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn says(world: &World, name: &str, reason: &str, words: &str) {
    let (said, took) = eventually(SECOND * 40, &format!("NetworkReady of {name}: {reason}"), || async {
        let cluster = world.clusters("a").get(name).await?;
        let found = condition(&cluster, "NetworkReady").context("no condition yet")?;
        ensure!(found.1 == reason && found.2.contains(words), "{found:?}");
        Ok(found.2)
    })
    .await
    .unwrap();
    println!("    {name} after {took:.1?}: {reason} {said}");
}

fn identity(cluster: &Cluster) -> (String, String) {
    let identity = Identity::of(cluster);
    (identity.id, identity.namespace)
}

#[test]
fn a_guest_with_flannel_has_leases_for_its_vm_pods_and_for_nobody_else() {
    on_servers("flannel", async |servers, world| {
        let mut etcd = Etcd::expected(&world, "flannel").await;
        let manager = Manager::start(servers, "one", Options { kvm: true, ..options() }).await;
        world.namespace("a").await.unwrap();
        let cluster = world.create("a", "demo", spec()).await.unwrap();
        let (id, home) = identity(&cluster);
        // Others have nothing to do with it.
        world.create("a", "native", json!({})).await.unwrap();
        says(&world, "native", "AsExpected", "").await;
        says(&world, "demo", "FlannelUnavailable", &format!("{ADDRESS}")).await;
        let pods = Api::<Pod>::namespaced(world.client.clone(), &home);
        assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty(), "a VM without its overlay");

        etcd.start(&world).await;
        runs(&world, &home, "master-0", "10.1.1.5").await;
        let root = etcd.root(&world).await;
        leased(&root, &id, &[("subnets/172.26.0.40-30", "10.1.1.5")]).await;
        says(&world, "demo", "Waiting", "flanneld of VM pod master-0 to take its subnet").await;
        let master = lease::key(&id, "172.26.0.40/30".parse().unwrap());
        etcd.take(&world, &home, &master).await;
        says(&world, "demo", "AsExpected", "").await;
        runs(&world, &home, "x-0", "10.1.1.6").await;
        says(&world, "demo", "Waiting", "flanneld of VM pod x-0 to take its subnet").await;
        let worker = lease::key(&id, "172.26.1.0/30".parse().unwrap());
        etcd.take(&world, &home, &worker).await;
        says(&world, "demo", "AsExpected", "").await;
        has_what_flanneld_needs(&world, &home).await;

        pods_come_and_go(&world, &root, &etcd, (&id, &home)).await;
        nothing_is_written_when_nothing_changes(&root, &manager).await;
        what_is_lost_comes_back(&world, &mut etcd, (&id, &home)).await;

        let root = etcd.root(&world).await;
        world.delete("a", "demo").await.unwrap();
        world.gone(SECOND * 60, "a", "demo").await.unwrap();
        assert_eq!(auth::guests(&root).await.unwrap(), BTreeSet::new(), "the guest is gone, and not from etcd");
        assert!(!manager.log_text().contains("panicked"));
        assert!(!manager.log_text().contains("PRIVATE KEY"));
    });
}

/// The container, its certificate, and that nobody else mounts it.
async fn has_what_flanneld_needs(world: &World, home: &str) {
    let secret = world.secrets(home).get("flannel").await.unwrap();
    let keys: Vec<_> = secret.data.iter().flatten().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["ca.crt", "endpoint", "tls.crt", "tls.key"]);
    let pod = Api::<Pod>::namespaced(world.client.clone(), home).get("x-0").await.unwrap();
    assert_eq!(pod.labels()["giantnetes.io/overlay"], "Flannel");
    let spec = pod.spec.unwrap();
    let mounting = |containers: Vec<k8s_openapi::api::core::v1::Container>| -> Vec<String> {
        let mounts = |container: &k8s_openapi::api::core::v1::Container| {
            container.volume_mounts.iter().flatten().any(|mount| mount.name == "flannel")
        };
        containers.iter().filter(|container| mounts(container)).map(|container| container.name.clone()).collect()
    };
    assert_eq!(mounting(spec.init_containers.unwrap()), ["flannel"]);
    assert_eq!(mounting(spec.containers), Vec::<String>::new());
}

/// A pod that is deleted has no lease; one that inherits its address gets its own place's.
async fn pods_come_and_go(world: &World, root: &Client, etcd: &Etcd, (id, home): (&str, &str)) {
    let pods = Api::<Pod>::namespaced(world.client.clone(), home);
    // Nobody runs it, so nobody waits for its end.
    pods.delete("x-0", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    leased(root, id, &[("subnets/172.26.0.40-30", "10.1.1.5")]).await;
    runs(world, home, "x-0", "10.1.1.9").await;
    let both = [("subnets/172.26.0.40-30", "10.1.1.5"), ("subnets/172.26.1.0-30", "10.1.1.9")];
    leased(root, id, &both).await;
    etcd.take(world, home, &lease::key(id, "172.26.1.0/30".parse().unwrap())).await;
    says(world, "demo", "AsExpected", "").await;
    // Its own address goes to the control-plane node, which comes back.
    pods.delete("x-0", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    pods.delete("master-0", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    runs(world, home, "master-0", "10.1.1.9").await;
    leased(root, id, &[("subnets/172.26.0.40-30", "10.1.1.9")]).await;
    runs(world, home, "x-0", "10.1.1.5").await;
    let both = [("subnets/172.26.0.40-30", "10.1.1.9"), ("subnets/172.26.1.0-30", "10.1.1.5")];
    leased(root, id, &both).await;
    for subnet in ["172.26.0.40/30", "172.26.1.0/30"] {
        etcd.take(world, home, &lease::key(id, subnet.parse().unwrap())).await;
    }
    says(world, "demo", "AsExpected", "").await;
}

async fn nothing_is_written_when_nothing_changes(root: &Client, manager: &Manager) {
    manager.settled().await;
    let revisions = async || {
        let keys = root.read(&Span::key("none")).await.unwrap().revision;
        (keys, root.auth_status().await.unwrap().revision, manager.proxy.writes().len())
    };
    let before = revisions().await;
    // Longer than two looks at what waits for something.
    tokio::time::sleep(SECOND * 6).await;
    assert_eq!(revisions().await, before, "something was written");
}

/// An etcd that is away is told, and one that comes back empty has all of it again.
async fn what_is_lost_comes_back(world: &World, etcd: &mut Etcd, (id, home): (&str, &str)) {
    etcd.lose();
    etcd.start(world).await;
    let root = etcd.root(world).await;
    let both = [("subnets/172.26.0.40-30", "10.1.1.9"), ("subnets/172.26.1.0-30", "10.1.1.5")];
    // Nobody edits anything: the manager finds out by itself.
    eventually(SECOND * 90, "an etcd that asks for rights", || async {
        ensure!(root.auth_status().await?.enabled, "it does not yet");
        Ok(())
    })
    .await
    .unwrap();
    leased(&root, id, &both).await;
    for subnet in ["172.26.0.40/30", "172.26.1.0/30"] {
        etcd.take(world, home, &lease::key(id, subnet.parse().unwrap())).await;
    }
    says(world, "demo", "AsExpected", "").await;
}

/// Both VM pods of a guest run, and each flanneld takes its lease.
async fn nodes_take_their_leases(world: &World, etcd: &Etcd, (id, home): (&str, &str), number: usize) {
    let root = etcd.root(world).await;
    let mut expected = Vec::new();
    for (place, (node, key, subnet)) in
        [("master-0", "subnets/172.26.0.40-30", "172.26.0.40/30"), ("x-0", "subnets/172.26.1.0-30", "172.26.1.0/30")]
            .into_iter()
            .enumerate()
    {
        let address = format!("10.1.{number}.{}", place + 1);
        runs(world, home, node, &address).await;
        expected.push((key, address));
        let expected: Vec<_> = expected.iter().map(|(key, address)| (*key, address.as_str())).collect();
        leased(&root, id, &expected).await;
        etcd.take(world, home, &lease::key(id, subnet.parse().unwrap())).await;
    }
}

#[test]
fn guests_that_come_and_go_under_two_managers_leave_nothing_in_flannels_etcd() {
    on_servers("flannels", async |servers, world| {
        let mut etcd = Etcd::expected(&world, "flannels").await;
        // Of two leases, so both work at the same time.
        let managers = [
            Manager::start(servers, "one", Options { lease: "one", kvm: true, ..options() }).await,
            Manager::start(servers, "two", Options { lease: "two", kvm: true, ..options() }).await,
        ];
        etcd.start(&world).await;
        world.namespace("a").await.unwrap();
        let names: Vec<_> = (0..8).map(|number| format!("c{number}")).collect();
        for round in 0..2 {
            let mut guests = BTreeMap::new();
            for name in &names {
                let (id, home) = identity(&world.create("a", name, spec()).await.unwrap());
                guests.insert(id, home);
            }
            for (number, (id, home)) in guests.iter().enumerate() {
                nodes_take_their_leases(&world, &etcd, (id, home), number).await;
            }
            let root = etcd.root(&world).await;
            assert_eq!(auth::guests(&root).await.unwrap(), guests.into_keys().collect());
            for name in &names {
                world.delete("a", name).await.unwrap();
            }
            for name in &names {
                world.gone(SECOND * 60, "a", name).await.unwrap();
            }
            assert_eq!(auth::guests(&root).await.unwrap(), BTreeSet::new(), "in round {round}");
            assert_eq!(root.count(&Span::prefix(lease::ROOT)).await.unwrap(), 0);
        }
        eventually(SECOND * 30, "the claims to go", || async {
            let claims = world.claims().await?;
            ensure!(claims.is_empty(), "{claims:?}");
            Ok(())
        })
        .await
        .unwrap();
        let secrets =
            Api::<Secret>::namespaced(world.client.clone(), SYSTEM).list(&ListParams::default()).await.unwrap();
        let names: Vec<_> = secrets.iter().map(|secret| secret.name_any()).collect();
        assert_eq!(names, [format!("{SERVICE}-authorities"), format!("{SERVICE}-server")]);
        assert!(managers.iter().all(|manager| !manager.log_text().contains("panicked")));
    });
}

#[test]
fn what_flannel_cannot_do_is_told() {
    on_servers("unflannelled", async |servers, world| {
        let _manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "demo", spec()).await.unwrap();
        let invalid = ("Ready", "False", "InvalidSpec");
        let (message, _) = world.condition(SECOND * 30, ("a", "demo"), invalid).await.unwrap();
        assert!(message.contains("spec.network.overlay.backend") && message.contains("flannel.enabled"), "{message}");
        for (overlay, word) in [
            (json!({"backend": "Flannel", "cidr": "172.26.0.0/24"}), "/22"),
            (json!({"backend": "Flannel", "mtu": 1300}), "1330"),
        ] {
            let refused = world.create("a", "other", json!({"network": {"overlay": overlay}})).await.unwrap_err();
            assert!(format!("{refused:#}").contains(word), "{refused:#}");
        }
        world.delete("a", "demo").await.unwrap();
        world.gone(SECOND * 30, "a", "demo").await.unwrap();
    });
}
