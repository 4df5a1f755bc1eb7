//! What hosts, scheduler and kubelet say of VM pods, on a real API server. No VM runs: the tests say it for them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use giantnetes::api::Cluster;
use k8s_openapi::api::{
    core::v1::Pod,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    config::Kubeconfig,
};
use lab::command::Run;
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    servers::Servers,
    support::giantnetes,
    world::{SECOND, World, eventually},
};

const KVM: &str = "giantnetes.io/kvm";

async fn host(world: &World, name: &str) {
    let room = json!({KVM: "110"});
    world.host(name, json!({"taints": null}), json!({"capacity": room, "allocatable": room})).await;
}

struct Master {
    pods: Api<Pod>,
}

impl Master {
    async fn of(world: &World, cluster: &Cluster) -> Self {
        let clusters = world.clusters("a");
        let id = async || {
            let status = clusters.get(&cluster.name_any()).await?.status;
            status.and_then(|status| status.id).context("no id yet")
        };
        let (id, _) = eventually(SECOND * 30, "an id", id).await.unwrap();
        Self { pods: Api::namespaced(world.client.clone(), &format!("g8s-{id}")) }
    }

    /// The VM pod that is not `but`: its UID, and whether it asks for KVM.
    async fn pod(&self, but: &str) -> (String, bool) {
        let look = async || -> Result<_> {
            let pod = self.pods.get("master-0").await?;
            let uid = pod.uid().context("no UID")?;
            ensure!(uid != but, "it is the old one");
            let container = &pod.spec.as_ref().context("no spec")?.containers[0];
            let limits = container.resources.clone().and_then(|resources| resources.limits).unwrap_or_default();
            Ok((uid, limits.contains_key(KVM)))
        };
        eventually(SECOND * 30, "a VM pod", look).await.unwrap().0
    }

    async fn say(&self, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        self.pods.patch_status("master-0", &PatchParams::default(), &patch).await.unwrap();
    }
}

fn unschedulable(message: &str) -> Value {
    json!({"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message},
    ]})
}

fn container(waiting: Value, ended: Option<&str>) -> Value {
    let ended = ended.map(|message| json!({"terminated": {"exitCode": 1, "reason": "Error", "message": message}}));
    json!({
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{
            "name": "vm", "image": "giantnetes/vm:nope", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"waiting": waiting}, "lastState": ended,
        }],
    })
}

/// What `giantnetes describe` draws for whom this kubeconfig is of.
fn described(kubeconfig: &Path, settings: Option<&Path>) -> String {
    let settings = settings.map(|file| format!("--settings={}", file.display()));
    let run = Run::new("env").arg(format!("KUBECONFIG={}", kubeconfig.display())).arg(giantnetes());
    run.args(["describe", "demo", "-n", "a"]).args(settings).timeout(SECOND * 30).output().unwrap()
}

/// A kubeconfig of somebody who may look at Clusters, and at nothing else.
pub async fn tenant(servers: &Servers, world: &World) -> PathBuf {
    let role = json!({
        "metadata": {"name": "tenant"},
        "rules": [{"apiGroups": ["giantnetes.io"], "resources": ["clusters"], "verbs": ["get"]}],
    });
    let binding = json!({
        "metadata": {"name": "tenant"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}],
    });
    let params = PostParams::default();
    let roles = Api::<Role>::namespaced(world.client.clone(), "a");
    roles.create(&params, &serde_json::from_value(role).unwrap()).await.unwrap();
    let bindings = Api::<RoleBinding>::namespaced(world.client.clone(), "a");
    bindings.create(&params, &serde_json::from_value(binding).unwrap()).await.unwrap();
    let mut kubeconfig = Kubeconfig::read_from(servers.kubeconfig()).unwrap();
    for user in &mut kubeconfig.auth_infos {
        user.auth_info.get_or_insert_default().impersonate = Some("ann".into());
    }
    let file = servers.folder().join("tenant.kubeconfig");
    std::fs::write(&file, serde_json::to_string(&kubeconfig).unwrap()).unwrap();
    file
}

#[test]
fn kvm_is_asked_for_where_a_host_offers_it_and_auto_settles_for_less() {
    on_servers("kvm", async |servers, world| {
        host(&world, "fast").await;
        let manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        let with = |accelerator| json!({"provider": {"kvm": {"accelerator": accelerator}}});
        for (name, spec, asks) in [("none", with("TCG"), false), ("all", with("KVM"), true), ("auto", json!({}), true)]
        {
            let master = Master::of(&world, &world.create("a", name, spec).await.unwrap()).await;
            let (uid, asked) = master.pod("").await;
            assert_eq!(asked, asks, "{name}");
            if name == "none" {
                continue;
            }
            master
                .say(unschedulable("0/2 nodes are available: 1 Insufficient memory, 1 Insufficient giantnetes.io/kvm."))
                .await;
            if name == "auto" {
                let (_, asked) = master.pod(&uid).await;
                assert!(!asked, "it asks again for what was not to be had");
            } else {
                let wanted = ("ControlPlaneReady", "False", "Unschedulable");
                world.condition(SECOND * 20, ("a", name), wanted).await.unwrap();
                assert_eq!(master.pod("").await.0, uid, "a Cluster that insists on KVM lost its pod");
            }
        }
        assert!(!manager.log_text().contains("panicked"));
    });
}

#[test]
fn what_somebody_must_mend_has_a_reason_and_its_cause_and_goes_with_it() {
    on_servers("causes", async |servers, world| {
        let manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        let other = world.create("a", "other", json!({})).await.unwrap();
        let master = Master::of(&world, &world.create("a", "demo", json!({})).await.unwrap()).await;
        let (uid, _) = master.pod("").await;
        Master::of(&world, &other).await.pod("").await;
        let waiting = |reason: &str, message: &str| json!({"reason": reason, "message": message});
        let pull =
            waiting("ImagePullBackOff", "Back-off pulling image \"giantnetes/vm:nope\": ErrImagePull: not found");
        let crash = waiting("CrashLoopBackOff", "back-off 10s restarting failed container=vm");
        let memory = "0/3 nodes are available: 3 Insufficient memory.";
        for (status, reason, cause) in [
            (unschedulable(memory), "Unschedulable", memory),
            (container(pull, None), "ImageNotFound", "cannot get the image giantnetes/vm:nope: not found"),
            (container(crash, Some("x\ngiantnetes: no /dev/net/tun\n")), "VMFails", "giantnetes: no /dev/net/tun"),
        ] {
            master.say(status).await;
            let wanted = ("ControlPlaneReady", "False", reason);
            let (message, took) = world.condition(SECOND * 30, ("a", "demo"), wanted).await.unwrap();
            assert!(message.contains("VM pod master-0") && message.contains(cause), "{message}");
            let degraded = ("Degraded", "True", reason);
            world.condition(SECOND * 10, ("a", "demo"), degraded).await.unwrap();
            println!("    {reason} after {took:.1?}");
            let drawn = described(&servers.kubeconfig(), Some(&servers.folder().join("one-settings.yaml")));
            assert!(drawn.contains("└─ master-0: not ready\n") && drawn.contains("NetworkClaim vni-"), "{drawn}");
            let waits = drawn.lines().find(|line| line.contains("└─ waits: ")).expect("nothing is waited for");
            assert!(waits.contains(cause), "{waits}");
            assert!(!drawn.contains("outdated") && !drawn.contains("not shown"), "{drawn}");
        }
        let drawn = described(&tenant(servers, &world).await, None);
        assert!(drawn.contains("ControlPlaneReady False (VMFails)") && !drawn.contains("─ master-0"), "{drawn}");
        for what in ["VM pods of g8s-", "NetworkClaims", "hosts", "Events of a"] {
            assert!(drawn.contains(&format!("─ list {what}")), "{what} in {drawn}");
        }
        world.condition(SECOND * 10, ("a", "other"), ("Degraded", "False", "AsExpected")).await.unwrap();
        master.say(container(waiting("ContainerCreating", ""), None)).await;
        world.condition(SECOND * 30, ("a", "demo"), ("ControlPlaneReady", "False", "Waiting")).await.unwrap();
        assert_eq!(master.pod("").await.0, uid, "the pod was made anew without need");
        assert!(!manager.log_text().contains("panicked"));
    });
}
