//! Control-plane nodes of one guest on different hosts, as a real scheduler places them. Hosts are objects without a kubelet, so
//! no VM runs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    servers::Servers,
    world::{SECOND, World, eventually},
};

const MASTERS: [&str; 3] = ["master-0", "master-1", "master-2"];

/// A host with so much memory that the scheduler would rather use than those of `shunned` ones.
async fn host(world: &World, name: &str, memory: &str, is_shunned: bool) {
    let taint = json!([{"key": "example.com/shun", "effect": "PreferNoSchedule"}]);
    let room = json!({"cpu": "64", "memory": memory, "ephemeral-storage": "1Ti", "pods": "110"});
    let ready = json!([{"type": "Ready", "status": "True"}]);
    let status = json!({"capacity": room, "allocatable": room, "conditions": ready});
    world.host(name, json!({"taints": is_shunned.then_some(taint)}), status).await;
}

/// Volumes that claims of class `static` are bound to.
fn offer_volumes(servers: &Servers, count: usize) {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "static"},
        "provisioner": "kubernetes.io/no-provisioner",
    });
    let volume = |number: usize| -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("volume-{number}")},
            "spec": {
                "storageClassName": "static", "capacity": {"storage": "8Gi"}, "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": "/nowhere"},
            },
        })
    };
    for object in std::iter::once(class).chain((0..count).map(volume)) {
        servers.kubectl(&["create", "-f", "-"]).input(object.to_string()).output().unwrap();
    }
}

/// The control plane of a new guest, when all of its VM pods are on hosts.
async fn placed(world: &World, name: &str) -> BTreeMap<String, Pod> {
    let spec = json!({"controlPlane": {"replicas": 3}, "etcd": {"storage": {"className": "static"}}});
    world.create("a", name, spec).await.unwrap();
    let look = async || -> Result<_> {
        let id = world.clusters("a").get(name).await?.status.and_then(|status| status.id).context("no id yet")?;
        let pods = Api::<Pod>::namespaced(world.client.clone(), &format!("g8s-{id}"));
        let pods = pods.list(&ListParams::default()).await?.items;
        let pods: BTreeMap<_, _> = pods.into_iter().map(|pod| (pod.name_any(), pod)).collect();
        let waiting: Vec<_> = MASTERS.iter().filter(|name| pods.get(**name).and_then(host_of).is_none()).collect();
        ensure!(waiting.is_empty(), "{waiting:?} are on no host: {:?}", pods.values().map(said).collect::<Vec<_>>());
        Ok(pods)
    };
    eventually(SECOND * 60, "all VM pods to have a host", look).await.unwrap().0
}

fn host_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn said(pod: &Pod) -> Option<String> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find_map(|condition| condition.message.clone())
}

#[test]
fn control_plane_nodes_share_a_host_only_where_no_other_has_room() {
    on_servers("apart", async |servers, world| {
        let _scheduler = servers.scheduler().unwrap();
        offer_volumes(servers, 2 * MASTERS.len());
        for (name, memory, is_shunned) in [("a", "1Ti", false), ("b", "16Gi", true), ("c", "16Gi", true)] {
            host(&world, name, memory, is_shunned).await;
        }
        let _manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        world.namespace("a").await.unwrap();

        let pods = placed(&world, "spread").await;
        let hosts: BTreeSet<_> = pods.values().filter_map(host_of).collect();
        assert_eq!(hosts, BTreeSet::from(["a", "b", "c"]));

        // What is left of it is too little for another VM.
        let little = Patch::Merge(json!({"status": {"allocatable": {"memory": "6Gi"}}}));
        let nodes = Api::<Node>::all(world.client.clone());
        nodes.patch_status("c", &PatchParams::default(), &little).await.unwrap();
        let pods = placed(&world, "crowded").await;
        let hosts: BTreeSet<_> = pods.values().filter_map(host_of).collect();
        assert_eq!(hosts, BTreeSet::from(["a", "b"]));
        let without = |pod: &Pod| pod.annotations().get("giantnetes.io/does-without").cloned();
        let without: Vec<_> = pods.values().filter_map(without).collect();
        assert_eq!(without, ["own-host"], "one shares a host, and says so");
    });
}
