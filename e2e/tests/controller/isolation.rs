//! Guests that are kept apart, and such as are not. No VM runs: the test plays kubelet and supervisors.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, ensure};
use giantnetes::supervisor::path_mtu::Narrow;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    manager::{Manager, Options},
    on_servers,
    world::{SECOND, World, eventually},
};

/// What a pod's network lets through, and what its supervisor was asked to try.
#[derive(Clone, Default)]
struct Supervisor {
    reaches: Arc<Mutex<BTreeSet<SocketAddr>>>,
    asked: Arc<Mutex<BTreeSet<SocketAddr>>>,
    /// What it says of the ways to its peers; none: it is of a version that knows nothing of them.
    narrow: Arc<Mutex<Option<Vec<Narrow>>>>,
}

impl Supervisor {
    /// Serves at an address of the loopback device, as the manager expects it of a VM pod.
    async fn serve(address: IpAddr) -> Self {
        let (supervisor, listener) = (Self::default(), TcpListener::bind((address, 8080)).await.unwrap());
        let serves = supervisor.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let supervisor = serves.clone();
                tokio::spawn(async move { supervisor.answer(stream).await });
            }
        });
        supervisor
    }

    async fn answer(self, mut stream: TcpStream) -> anyhow::Result<()> {
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await?;
        let (status, body) = match line.split([' ', '=']).collect::<Vec<_>>()[..] {
            ["GET", "/isolation?to", to, ..] => {
                let asked: BTreeSet<SocketAddr> = to.split(',').map(|address| address.parse().unwrap()).collect();
                let reached: Vec<_> = self.reaches.lock().unwrap().intersection(&asked).copied().collect();
                self.asked.lock().unwrap().extend(asked);
                ("200 OK", serde_json::to_string(&reached)?)
            }
            ["GET", "/path-mtu", ..] => match &*self.narrow.lock().unwrap() {
                Some(narrow) => ("200 OK", serde_json::to_string(narrow)?),
                None => ("404 Not Found", String::new()),
            },
            _ => ("404 Not Found", String::new()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close",
            body.len()
        );
        Ok(stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await?)
    }

    fn lets_through(&self, addresses: &[SocketAddr]) {
        *self.reaches.lock().unwrap() = addresses.iter().copied().collect();
    }
}

/// Makes a Cluster, and says that its VM pod runs at this address, on this host.
async fn running(world: &World, name: &str, address: IpAddr, host: &str) -> String {
    let cluster = world.create("a", name, json!({})).await.unwrap();
    let home = giantnetes::cluster::Identity::of(&cluster).namespace;
    runs(world, &home, "master-0", address, host).await;
    home
}

/// Says that a VM pod runs at this address, on this host, as soon as it is there.
pub async fn runs(world: &World, home: &str, pod: &str, address: IpAddr, host: &str) {
    let pods = Api::<Pod>::namespaced(world.client.clone(), home);
    let status = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": host,
        "containerStatuses": [{
            "name": "vm", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }],
    }});
    eventually(SECOND * 30, "the VM pod", || async {
        Ok(pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(&status)).await?)
    })
    .await
    .unwrap();
}

/// Makes a pod beside a guest's, with its label. The manager leaves it alone, and asks it as it asks those that it made.
async fn sibling(world: &World, home: &str, name: &str) {
    let pod = json!({
        "metadata": {"name": name, "namespace": home, "labels": {"giantnetes.io/cluster": home.trim_start_matches("g8s-")}},
        "spec": {"containers": [{"name": "vm", "image": "x"}]},
    });
    let pods = Api::<Pod>::namespaced(world.client.clone(), home);
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
}

async fn host(world: &World, name: &str, address: &str) {
    let nodes = Api::<Node>::all(world.client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// Restarts the manager, and fails if Cluster `one` is written to by the time that the new process `has_asked` the supervisor.
async fn restarts_quietly(
    manager: &mut Manager,
    world: &World,
    supervisor: &Supervisor,
    has_asked: impl Fn(&BTreeSet<SocketAddr>) -> bool,
) {
    manager.settled().await;
    let version = async || world.clusters("a").get("one").await.unwrap().metadata.resource_version;
    let before = version().await;
    supervisor.asked.lock().unwrap().clear();
    manager.restart();
    let look = async || {
        let asked = supervisor.asked.lock().unwrap().clone();
        ensure!(has_asked(&asked), "it has asked for {asked:?}");
        Ok(())
    };
    eventually(SECOND * 30, "the restarted manager to have asked", look).await.unwrap();
    manager.settled().await;
    assert_eq!(version().await, before, "the status was written though nothing changed");
}

#[test]
fn a_leak_is_told_with_its_pair_and_goes_when_it_is_closed() {
    on_servers("isolation", async |servers, world| {
        let [one, two] = [[127, 77, 0, 1], [127, 77, 0, 2]].map(IpAddr::from);
        let (supervisor, _other) = (Supervisor::serve(one).await, Supervisor::serve(two).await);
        for (name, address) in [("h1", "10.1.0.1"), ("h2", "10.1.0.2"), ("h3", "10.1.0.3")] {
            host(&world, name, address).await;
        }
        let mut manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        let other = running(&world, "two", two, "10.1.0.2").await;
        running(&world, "one", one, "10.1.0.1").await;
        let isolated = ("NetworkIsolated", "True", "AsExpected");
        for name in ["one", "two"] {
            let (_, took) = world.condition(SECOND * 15, ("a", name), isolated).await.unwrap();
            println!("    {name} is seen to be apart after {took:.1?}");
        }
        let leak: SocketAddr = (two, 8080).into();
        eventually(SECOND * 90, "all to be tried", || async {
            let asked = supervisor.asked.lock().unwrap().clone();
            for address in ["169.254.169.254:80", "10.1.0.2:10250", "10.1.0.3:10250", "127.77.0.2:8080"] {
                ensure!(asked.contains(&address.parse()?), "{address} is missing among {asked:?}");
            }
            ensure!(!asked.contains(&(one, 8080).into()), "it is asked whether it reaches itself");
            ensure!(!asked.contains(&"10.1.0.1:10250".parse()?), "no policy keeps it from its own host");
            Ok(())
        })
        .await
        .unwrap();

        supervisor.lets_through(&[leak]);
        let leaking = ("NetworkIsolated", "False", "NotIsolated");
        let (message, took) = world.condition(SECOND * 180, ("a", "one"), leaking).await.unwrap();
        println!("    a leak is told after {took:.1?}: {message}");
        let pair = format!("VM pod master-0 reaches VM pod {other}/master-0 of another guest (127.77.0.2:8080)");
        assert!(message.contains(&pair), "{message}");
        world.condition(SECOND * 10, ("a", "one"), ("Degraded", "True", "NotIsolated")).await.unwrap();
        world.condition(SECOND, ("a", "two"), isolated).await.unwrap();

        // A new process knows no more than the object says, and says no less.
        restarts_quietly(&mut manager, &world, &supervisor, |asked| asked.contains(&leak)).await;

        supervisor.lets_through(&[]);
        let (_, took) = world.condition(SECOND * 180, ("a", "one"), isolated).await.unwrap();
        println!("    it is seen to be closed after {took:.1?}");
        let gone = async || {
            world.condition(SECOND, ("a", "one"), ("Degraded", "False", "AsExpected")).await.context("still degraded")
        };
        eventually(SECOND * 10, "the Cluster to be well", gone).await.unwrap();

        // Looks that bring nothing new write nothing.
        manager.settled().await;
        manager.proxy.forget();
        supervisor.asked.lock().unwrap().clear();
        eventually(SECOND * 90, "the next look", || async {
            ensure!(!supervisor.asked.lock().unwrap().is_empty(), "none yet");
            Ok(())
        })
        .await
        .unwrap();
        manager.settled().await;
        let writes = manager.proxy.writes();
        assert!(writes.is_empty(), "{writes:?}");
        assert!(!manager.log_text().contains("panicked"));
    });
}

#[test]
fn a_way_that_is_too_narrow_is_told_with_its_pair_and_sizes() {
    on_servers("narrow", async |servers, world| {
        let [one, two] = [[127, 77, 1, 1], [127, 77, 1, 2]].map(IpAddr::from);
        let (supervisor, _of_an_earlier_version) = (Supervisor::serve(one).await, Supervisor::serve(two).await);
        *supervisor.narrow.lock().unwrap() = Some(Vec::new());
        let mut manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        let home = running(&world, "one", one, "10.1.0.1").await;
        sibling(&world, &home, "other").await;
        runs(&world, &home, "other", two, "10.1.0.2").await;
        let well = ("NetworkReady", "True", "AsExpected");
        world.condition(SECOND * 30, ("a", "one"), well).await.unwrap();

        // A way to nobody, as a VM pod may say that has not heard yet who went.
        let gone = Narrow { peer: [127, 77, 1, 9].into(), size: 1500, passes: 1300 };
        let narrow = Narrow { peer: two, size: 1500, passes: 1400 };
        *supervisor.narrow.lock().unwrap() = Some(vec![narrow, gone]);
        let told = ("NetworkReady", "False", "PathMTUTooSmall");
        let (message, took) = world.condition(SECOND * 90, ("a", "one"), told).await.unwrap();
        println!("    a narrow way is told after {took:.1?}: {message}");
        let pair = "from VM pod master-0 to other packets of 1500 bytes do not pass whole, at most 1400; ";
        assert!(message.starts_with(pair) && message.ends_with("ask for 1350 at most"), "{message}");
        world.condition(SECOND * 10, ("a", "one"), ("Degraded", "True", "PathMTUTooSmall")).await.unwrap();
        // It is no leak.
        world.condition(SECOND * 10, ("a", "one"), ("NetworkIsolated", "True", "AsExpected")).await.unwrap();
        let metrics = manager.get("/metrics").await.unwrap();
        assert!(metrics.contains(r#"reason="PathMTUTooSmall""#), "no metric tells of it");

        // A new process says no less before it has heard anything, and writes nothing.
        restarts_quietly(&mut manager, &world, &supervisor, |asked| !asked.is_empty()).await;

        *supervisor.narrow.lock().unwrap() = Some(Vec::new());
        let (_, took) = world.condition(SECOND * 90, ("a", "one"), well).await.unwrap();
        println!("    it is seen to be wide after {took:.1?}");
        assert!(!manager.log_text().contains("panicked"));
    });
}
