//! Nodes that are replaced, on a real API server: one at a time, by intents that outlive a manager, off cordoned and dead
//! hosts. No VM runs: the test is the scheduler and the kubelets, and no guest's API answers.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    people::g8s,
    world::{SECOND, World, condition, eventually},
};

const LEAVING: &str = "giantnetes.io/leaving-since";

/// A guest `a/demo`, as the test plays its kubelets.
pub struct Guest<'a> {
    world: &'a World,
    pub pods: Api<Pod>,
    pub namespace: String,
}

type Uids = BTreeMap<String, String>;

impl<'a> Guest<'a> {
    /// One of one control-plane node and two workers, when its pods are there.
    async fn create(world: &'a World) -> Self {
        let spec = json!({"nodePools": [{"name": "x", "replicas": 2}]});
        Self::of(world, spec, &["master-0", "x-0", "x-1"]).await
    }

    /// Makes it and waits for its pods.
    pub async fn of(world: &'a World, spec: Value, nodes: &[&str]) -> Self {
        world.namespace("a").await.unwrap();
        world.create("a", "demo", spec).await.unwrap();
        let id = async || {
            let found = world.clusters("a").get("demo").await?.status.and_then(|status| status.id);
            found.context("no id yet")
        };
        let namespace = format!("g8s-{}", eventually(SECOND * 30, "an id", id).await.unwrap().0);
        let guest = Self { world, pods: Api::namespaced(world.client.clone(), &namespace), namespace };
        for node in nodes {
            guest.comes(node, "").await;
        }
        guest
    }

    pub async fn uids(&self) -> Result<Uids> {
        let pods = self.pods.list(&ListParams::default()).await?;
        Ok(pods.items.iter().map(|pod| (pod.name_any(), pod.uid().unwrap_or_default())).collect())
    }

    /// Waits for a pod of this name with another UID.
    pub async fn comes(&self, node: &str, before: &str) -> Pod {
        let look = async || {
            let pod = self.pods.get(node).await?;
            ensure!(pod.uid().as_deref() != Some(before), "it is the one before");
            Ok(pod)
        };
        eventually(SECOND * 30, &format!("a new pod {node}"), look).await.unwrap().0
    }

    /// Waits until a node is to leave.
    pub async fn leaves(&self, node: &str) -> String {
        let look = async || {
            let pod = self.pods.get(node).await?;
            ensure!(pod.annotations().contains_key(LEAVING), "nobody wants it to");
            Ok(pod.annotations()["giantnetes.io/leaving-for"].clone())
        };
        eventually(SECOND * 30, &format!("{node} to leave"), look).await.unwrap().0
    }

    /// Says as its kubelet that the VM in a pod answers.
    pub async fn ready(&self, node: &str) {
        let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        self.pods.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    async fn bind(&self, node: &str, host: &str) {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": node},
            "target": {"apiVersion": "v1", "kind": "Node", "name": host},
        });
        let _: Value = self.pods.create_subresource("binding", node, &PostParams::default(), &binding).await.unwrap();
    }

    /// Waits until a pod is being deleted, and ends it as its host's kubelet does.
    async fn powered_off(&self, node: &str) {
        let look = async || {
            let pod = self.pods.get(node).await?;
            ensure!(pod.metadata.deletion_timestamp.is_some(), "nobody deletes it");
            Ok(())
        };
        eventually(SECOND * 30, &format!("{node} to be powered off"), look).await.unwrap();
        self.pods.delete(node, &DeleteParams::default().grace_period(0)).await.unwrap();
    }

    pub async fn change(&self, spec: Value) {
        let patch = json!({"spec": spec});
        self.world.clusters("a").patch("demo", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// Waits until a condition's message has these words.
    pub async fn says(&self, type_: &str, words: &str) -> String {
        let look = async || {
            let found = condition(&self.world.clusters("a").get("demo").await?, type_).context("no condition yet")?;
            ensure!(found.2.contains(words), "it says {found:?}");
            Ok(found.2)
        };
        eventually(SECOND * 20, &format!("{type_} to say {words}"), look).await.unwrap().0
    }

    /// Checks for a while that no pod but `others` is another one, and that none of the rest is to leave.
    pub async fn nobody_else_moves(&self, before: &Uids, others: &[&str]) {
        for _ in 0..6 {
            tokio::time::sleep(SECOND / 2).await;
            for pod in self.pods.list(&ListParams::default()).await.unwrap() {
                let name = pod.name_any();
                if !others.contains(&name.as_str()) {
                    assert_eq!(before.get(&name), pod.uid().as_ref(), "{name} was replaced");
                    assert!(!pod.annotations().contains_key(LEAVING), "{name} leaves");
                }
            }
        }
    }

    /// Waits until the status tells this version, and this phase.
    async fn is_pinned(&self, version: &str, phase: Option<&str>) {
        let look = async || {
            let status = self.world.clusters("a").get("demo").await?.status.context("no status")?;
            let (found, told) = (status.version.as_deref(), status.phase.as_deref());
            ensure!(found == Some(version) && phase.is_none_or(|phase| told == Some(phase)), "{found:?} {told:?}");
            Ok(())
        };
        eventually(SECOND * 20, &format!("version {version} to be told"), look).await.unwrap();
    }
}

/// A host, or how one is from now on.
async fn host(world: &World, name: &str, ready: &str, spec: Value) {
    let long_ago = "2026-01-01T00:00:00Z";
    let condition =
        json!({"type": "Ready", "status": ready, "lastTransitionTime": long_ago, "lastHeartbeatTime": long_ago});
    world.host(name, spec, json!({"conditions": [condition]})).await;
}

fn options(drain_timeout: &'static str) -> Options {
    Options { kvm: true, drain_timeout, host_timeout: "2s", ..Options::default() }
}

fn image(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default()
}

#[test]
fn another_version_replaces_one_node_at_a_time_and_the_control_plane_first() {
    on_servers("version", async |servers, world| {
        // Longer than a status waits that has other words alone: what is said meanwhile is looked for.
        let manager = Manager::start(servers, "one", options("8s")).await;
        let guest = Guest::create(&world).await;
        for node in ["master-0", "x-0", "x-1"] {
            guest.ready(node).await;
        }
        let first = guest.uids().await.unwrap();
        guest.change(json!({"kubernetes": {"version": "v1.36.4"}})).await;
        let master = guest.comes("master-0", &first["master-0"]).await;
        assert_eq!(image(&master), "giantnetes/vm:v1.36.4");
        guest.nobody_else_moves(&first, &["master-0"]).await;
        guest.is_pinned("v1.36.3", Some("Updating")).await;

        guest.ready("master-0").await;
        assert_eq!(guest.leaves("x-0").await, "it is outdated");
        println!("    {}", guest.says("Progressing", "node x-0: being replaced (it is outdated)").await);
        let worker = guest.comes("x-0", &first["x-0"]).await;
        assert_eq!(image(&worker), "giantnetes/vm:v1.36.4");
        guest.nobody_else_moves(&first, &["master-0", "x-0"]).await;
        println!("    {}", guest.says("NodePoolsReady", "node x-0 to be ready, then node x-1").await);
        guest.ready("x-0").await;
        guest.comes("x-1", &first["x-1"]).await;
        guest.ready("x-1").await;
        guest.is_pinned("v1.36.4", None).await;
        let events = Api::<k8s_openapi::api::events::v1::Event>::namespaced(world.client.clone(), "a");
        let events = events.list(&ListParams::default()).await.unwrap();
        let said = |reason: &str| events.iter().filter(|event| event.reason.as_deref() == Some(reason)).count();
        assert_eq!((said("NodeLeaves"), said("DrainTimedOut")), (3, 2));
        assert!(!manager.log_text().contains("panicked"));
    });
}

#[test]
fn another_rendering_replaces_nobody_and_a_roll_does_though_the_manager_dies() {
    on_servers("roll", async |servers, world| {
        let mut manager = Manager::start(servers, "one", options("4s")).await;
        let guest = Guest::create(&world).await;
        for node in ["master-0", "x-0", "x-1"] {
            guest.ready(node).await;
        }
        manager.settled().await;
        let first = guest.uids().await.unwrap();
        // As if a newer manager rendered something else, and one pod were from before there were wishes.
        world.annotate(&guest.pods, "x-0", "giantnetes.io/node-hash", "other").await.unwrap();
        let wish = guest.pods.get("x-1").await.unwrap().annotations()["giantnetes.io/node-wish"].clone();
        let patch = json!({"metadata": {"annotations": {"giantnetes.io/node-wish": null}}});
        guest.pods.patch("x-1", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        guest.nobody_else_moves(&first, &[]).await;
        let adopted = guest.pods.get("x-1").await.unwrap().annotations().get("giantnetes.io/node-wish").cloned();
        assert_eq!(adopted, Some(wish));

        g8s(&servers.kubeconfig(), &["roll", "demo", "-n", "a"]).output().unwrap();
        guest.comes("master-0", &first["master-0"]).await;
        guest.ready("master-0").await;
        guest.leaves("x-0").await;
        manager.restart();
        guest.nobody_else_moves(&first, &["master-0", "x-0"]).await;
        guest.comes("x-0", &first["x-0"]).await;
        guest.ready("x-0").await;
        guest.comes("x-1", &first["x-1"]).await;
        guest.ready("x-1").await;
        manager.settled().await;
        let last = guest.uids().await.unwrap();
        guest.nobody_else_moves(&last, &[]).await;
    });
}

#[test]
fn a_cordoned_host_is_left_by_one_node_after_the_other() {
    on_servers("cordon", async |servers, world| {
        let manager = Manager::start(servers, "one", options("1s")).await;
        for name in ["h1", "h2"] {
            host(&world, name, "True", json!({})).await;
        }
        let guest = Guest::create(&world).await;
        for (node, host) in [("master-0", "h1"), ("x-0", "h1"), ("x-1", "h2")] {
            guest.bind(node, host).await;
            guest.ready(node).await;
        }
        let budget = Api::<PodDisruptionBudget>::namespaced(world.client.clone(), &guest.namespace);
        let least = async || {
            let budgets = budget.list(&ListParams::default()).await?.items;
            let spec = budgets.first().and_then(|budget| budget.spec.clone()).context("no budget")?;
            ensure!(budgets.len() == 1, "{} budgets", budgets.len());
            Ok(serde_json::to_value(spec)?)
        };
        assert_eq!(least().await.unwrap()["minAvailable"], 3);
        manager.settled().await;
        let first = guest.uids().await.unwrap();

        host(&world, "h1", "True", json!({"unschedulable": true})).await;
        let began = std::time::Instant::now();
        guest.powered_off("master-0").await;
        guest.comes("master-0", &first["master-0"]).await;
        guest.nobody_else_moves(&first, &["master-0"]).await;
        guest.bind("master-0", "h2").await;
        guest.ready("master-0").await;
        assert_eq!(guest.leaves("x-0").await, "its host h1 is cordoned");
        guest.powered_off("x-0").await;
        guest.comes("x-0", &first["x-0"]).await;
        guest.bind("x-0", "h2").await;
        guest.ready("x-0").await;
        println!("    h1 is empty after {:.1?}", began.elapsed());
        let second = guest.uids().await.unwrap();
        assert_eq!(second["x-1"], first["x-1"]);
        guest.nobody_else_moves(&second, &[]).await;

        guest.change(json!({"nodePools": [{"name": "x", "replicas": 1}]})).await;
        let fewer = async || {
            let least = least().await?["minAvailable"].clone();
            ensure!(least == 2, "{least}");
            Ok(())
        };
        eventually(SECOND * 10, "the budget to follow", fewer).await.unwrap();
        assert_eq!(guest.leaves("x-1").await, "it is wanted no more");
        guest.powered_off("x-1").await;
        let gone = async || {
            let there = guest.uids().await?.contains_key("x-1");
            ensure!(!there, "x-1 is there");
            Ok(())
        };
        eventually(SECOND * 10, "x-1 to be gone", gone).await.unwrap();
    });
}

#[test]
fn a_dead_hosts_worker_has_a_successor_and_never_returns() {
    on_servers("dead", async |servers, world| {
        let manager = Manager::start(servers, "one", options("1s")).await;
        for name in ["h1", "h2"] {
            host(&world, name, "True", json!({})).await;
        }
        let guest = Guest::create(&world).await;
        for (node, host) in [("master-0", "h2"), ("x-0", "h1"), ("x-1", "h2")] {
            guest.bind(node, host).await;
            guest.ready(node).await;
        }
        manager.settled().await;
        let first = guest.uids().await.unwrap();
        let maps = Api::<ConfigMap>::namespaced(world.client.clone(), &guest.namespace);
        host(&world, "h1", "Unknown", json!({})).await;
        guest.comes("x-2", "").await;
        let lost = maps.get("x-0-config").await.unwrap();
        assert_eq!(lost.annotations()["giantnetes.io/lost-with"], "h1");
        assert!(guest.pods.get("x-0").await.unwrap().metadata.deletion_timestamp.is_some());
        guest.bind("x-2", "h2").await;
        guest.ready("x-2").await;
        manager.settled().await;

        // It is back: what it had is powered off, and nobody else is bothered.
        host(&world, "h1", "True", json!({})).await;
        guest.powered_off("x-0").await;
        let gone = async || {
            let left = [
                maps.get_opt("x-0-config").await?.is_some(),
                world.secrets(&guest.namespace).get_opt("x-0-pki").await?.is_some(),
            ];
            ensure!(left == [false, false], "configuration and Secret of x-0: {left:?}");
            Ok(())
        };
        eventually(SECOND * 20, "x-0 to be gone", gone).await.unwrap();
        let last = guest.uids().await.unwrap();
        assert_eq!(last.keys().map(String::as_str).collect::<Vec<_>>(), ["master-0", "x-1", "x-2"]);
        assert_eq!((&last["master-0"], &last["x-1"]), (&first["master-0"], &first["x-1"]));
        guest.nobody_else_moves(&last, &[]).await;
        let said = async || {
            let found = condition(&world.clusters("a").get("demo").await?, "NodePoolsReady");
            ensure!(found.as_ref().is_some_and(|found| found.0 == "True"), "{found:?}");
            Ok(())
        };
        eventually(SECOND * 10, "the pools to be ready", said).await.unwrap();
    });
}

#[test]
fn a_dead_hosts_control_plane_waits_for_the_word_that_the_host_is_off() {
    on_servers("out-of-service", async |servers, world| {
        let manager = Manager::start(servers, "one", options("1s")).await;
        for name in ["h1", "h2"] {
            host(&world, name, "True", json!({})).await;
        }
        let guest = Guest::create(&world).await;
        for (node, host) in [("master-0", "h1"), ("x-0", "h2"), ("x-1", "h2")] {
            guest.bind(node, host).await;
            guest.ready(node).await;
        }
        manager.settled().await;
        let first = guest.uids().await.unwrap();
        host(&world, "h1", "Unknown", json!({})).await;
        println!("    {}", guest.says("ControlPlaneReady", "node.kubernetes.io/out-of-service").await);
        guest.says("ControlPlaneReady", "host h1").await;
        guest.nobody_else_moves(&first, &[]).await;
        assert!(guest.pods.get("master-0").await.unwrap().metadata.deletion_timestamp.is_none());
        // As the management cluster's own controllers do it after a while.
        guest.pods.delete("master-0", &DeleteParams::default()).await.unwrap();
        guest.nobody_else_moves(&first, &[]).await;

        let taint = json!([{"key": "node.kubernetes.io/out-of-service", "value": "off", "effect": "NoExecute"}]);
        host(&world, "h1", "Unknown", json!({"taints": taint})).await;
        guest.comes("master-0", &first["master-0"]).await;
        guest.bind("master-0", "h2").await;
        guest.ready("master-0").await;
        let limit = Duration::from_secs(20);
        world.condition(limit, ("a", "demo"), ("ControlPlaneReady", "True", "AsExpected")).await.unwrap();
        assert_eq!(guest.uids().await.unwrap()["x-0"], first["x-0"]);
        assert!(!manager.log_text().contains("panicked"));
    });
}
