//! What is so stays so: no write without a reason, edits undone, strangers left alone, neighbours not slowed down.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::future::try_join_all;
use k8s_openapi::api::{
    core::v1::{Namespace, Secret, Service},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    asked_for,
    manager::{Manager, Options},
    on_servers,
    world::{SECOND, World, condition, eventually},
};

pub async fn home(world: &World, name: &str) -> String {
    let status = world.clusters("a").get(name).await.unwrap().status.unwrap();
    format!("g8s-{}", status.id.unwrap())
}

#[test]
fn nothing_is_written_when_nothing_changes_and_edits_are_undone() {
    on_servers("steady", async |servers, world| {
        let mut manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "one", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        let home = home(&world, "one").await;

        // Deleted and edited children return.
        let services = Api::<Service>::namespaced(world.client.clone(), &home);
        let before = services.get("master").await.unwrap();
        services.delete("master", &DeleteParams::default()).await.unwrap();
        let (_, deleted) = eventually(SECOND * 15, "the deleted Service to return", || async {
            let there = services.get_opt("master").await?;
            ensure!(there.is_some_and(|there| there.uid() != before.uid()), "it is not there");
            Ok(())
        })
        .await
        .unwrap();
        let patch = json!({"spec": {"selector": {"giantnetes.io/role": "nobody"}}});
        services.patch("master", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        let (_, edited) = eventually(SECOND * 15, "the edit to be undone", || async {
            let selector = services.get("master").await?.spec.and_then(|spec| spec.selector).unwrap_or_default();
            ensure!(selector.get("giantnetes.io/role").is_some_and(|role| role == "control-plane"), "{selector:?}");
            Ok(())
        })
        .await
        .unwrap();
        // What others add to a policy or selector is taken away; what they take from a Secret returns.
        let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &home);
        let opened = json!({"spec": {"podSelector": {"matchLabels": {"nobody": "has-it"}}}});
        policies.patch("guest", &PatchParams::default(), &Patch::Merge(opened)).await.unwrap();
        let added = json!({"spec": {"selector": {"nobody": "has-it"}}});
        services.patch("master", &PatchParams::default(), &Patch::Merge(added)).await.unwrap();
        let spoiled = json!({"data": {"value": "AAAA"}});
        let (kubeconfig, patch) = (world.secrets("a"), PatchParams::default());
        kubeconfig.patch("one-kubeconfig", &patch, &Patch::Merge(spoiled)).await.unwrap();
        let unlabelled = json!({"metadata": {"labels": null}});
        world.secrets(&home).patch("master-0-pki", &patch, &Patch::Merge(unlabelled)).await.unwrap();
        eventually(SECOND * 15, "what others added or took to be put right", || async {
            let policy = policies.get("guest").await?.spec.and_then(|spec| spec.pod_selector).unwrap_or_default();
            ensure!(policy.match_labels.is_none(), "the policy selects {policy:?}");
            let selector = services.get("master").await?.spec.and_then(|spec| spec.selector).unwrap_or_default();
            ensure!(!selector.contains_key("nobody"), "the Service selects {selector:?}");
            let data = kubeconfig.get("one-kubeconfig").await?.data.unwrap_or_default();
            ensure!(data["value"].0.len() > 100, "the kubeconfig is spoiled");
            let labels = world.secrets(&home).get("master-0-pki").await?.metadata.labels.unwrap_or_default();
            ensure!(labels.contains_key("giantnetes.io/cluster"), "the node's Secret has no label");
            Ok(())
        })
        .await
        .unwrap();
        kubeconfig.delete("one-kubeconfig", &DeleteParams::default()).await.unwrap();
        let (_, secret) = eventually(SECOND * 15, "the deleted kubeconfig to return", || async {
            ensure!(kubeconfig.get_opt("one-kubeconfig").await?.is_some(), "it is not there");
            Ok(())
        })
        .await
        .unwrap();
        println!(
            "    back after: deleted Service {deleted:.1?}, edited Service {edited:.1?}, deleted Secret {secret:.1?}"
        );

        // A restart writes nothing either.
        manager.settled().await;
        let before = servers.audit().len();
        manager.restart();
        eventually(SECOND * 20, "the restarted manager to lead", || async {
            let metrics = manager.get("/metrics").await?;
            ensure!(metrics.contains("giantnetes_leading 1"), "it does not");
            Ok(())
        })
        .await
        .unwrap();
        let quiet = SECOND * if asked_for("all") { 120 } else { 20 };
        tokio::time::sleep(quiet).await;
        // By the server's own record: events count, only the lease does not.
        let writes = servers.audit().split_off(before);
        let writes: Vec<_> =
            writes.iter().filter(|write| write.user_agent == "one" && !write.uri.contains("/leases")).collect();
        println!("    {} writes in {quiet:?} and a restart, {} reads", writes.len(), manager.proxy.reads());
        assert!(writes.is_empty(), "{writes:?}");

        no_key_is_told(&world, &manager, &home).await;
    });
}

/// Looks for the content of every Secret of the guest in everything that others may read.
async fn no_key_is_told(world: &World, manager: &Manager, home: &str) {
    let mut told = manager.log_text();
    told.push_str(&manager.get("/metrics").await.unwrap());
    let clusters = world.clusters("a").list(&ListParams::default()).await.unwrap();
    told.push_str(&serde_json::to_string(&clusters).unwrap());
    let events = Api::<k8s_openapi::api::events::v1::Event>::all(world.client.clone());
    let events = events.list(&ListParams::default()).await.unwrap();
    assert!(!manager.log_text().is_empty());
    told.push_str(&serde_json::to_string(&events).unwrap());
    let namespaces = Api::<Namespace>::all(world.client.clone()).list(&ListParams::default()).await.unwrap();
    told.push_str(&serde_json::to_string(&namespaces).unwrap());
    assert!(!told.contains("PRIVATE KEY"), "a private key was told");
    let mut looked_for = 0;
    for namespace in [home, "a"] {
        for secret in world.secrets(namespace).list(&ListParams::default()).await.unwrap() {
            for (key, value) in secret.data.unwrap_or_default() {
                if !key.ends_with(".key") && !key.starts_with("encryption") && key != "value" {
                    continue;
                }
                // As an object that was logged whole would show it.
                let encoded = serde_json::to_value(&value).unwrap();
                assert!(!told.contains(encoded.as_str().unwrap()), "{key} was told as a Secret holds it");
                let text = String::from_utf8_lossy(&value.0).into_owned();
                let text = text.replace("client-key-data: ", "\n");
                // A line of the key itself: the first is the same in all.
                let lines = text.lines().map(str::trim).filter(|line| line.len() >= 40 && !line.starts_with("-----"));
                // What of a kubeconfig is no key everybody may know.
                for line in lines.filter(|line| !line.starts_with("cert") && !line.starts_with("client-cert")) {
                    looked_for += 1;
                    assert!(!told.contains(line), "a line of {key} was told");
                }
            }
        }
    }
    assert!(looked_for >= 10, "only {looked_for} lines of keys were looked for");
}

#[test]
fn strangers_are_left_alone_and_malformed_objects_do_not_spread() {
    on_servers("strangers", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        // A Secret of the name that the kubeconfig will have, of somebody else.
        let stranger: Secret = serde_json::from_value(json!({
            "metadata": {"name": "one-kubeconfig", "namespace": "a", "labels": {"giantnetes.io/cluster": "mine"}},
            "stringData": {"value": "precious"},
        }))
        .unwrap();
        let stranger = world.secrets("a").create(&PostParams::default(), &stranger).await.unwrap();
        world.create("a", "one", json!({})).await.unwrap();
        let foreign = ("PKIReady", "False", "ForeignObject");
        let (message, took) = world.condition(SECOND * 30, ("a", "one"), foreign).await.unwrap();
        assert!(message.contains("one-kubeconfig"), "{message}");
        println!("    told after {took:.1?}: {message}");
        let after = world.secrets("a").get("one-kubeconfig").await.unwrap();
        assert_eq!(after.metadata.resource_version, stranger.metadata.resource_version, "it was touched");
        // Out of the way: work goes on.
        world.secrets("a").delete("one-kubeconfig", &DeleteParams::default()).await.unwrap();
        world.converged(SECOND * 90, "a", "one").await.unwrap();

        // A Cluster as a newer version might store it: rules off for the moment of writing.
        malformed(&world).await;
        world.create("a", "after", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "after").await.unwrap();
        eventually(SECOND * 10, "the malformed object to be told", || async {
            ensure!(manager.log_text().contains("cannot be read"), "it is not");
            Ok(())
        })
        .await
        .unwrap();
        // And after a fresh list, too.
        let mut manager = manager;
        manager.restart();
        world.create("a", "later", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "later").await.unwrap();
        assert!(!manager.log_text().contains("panicked"));
    });
}

/// Stores a Cluster whose spec is not of the shape that the manager knows.
async fn malformed(world: &World) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    let crds = Api::<CustomResourceDefinition>::all(world.client.clone());
    let name = "clusters.giantnetes.io";
    let real = crds.get(name).await.unwrap();
    let mut open = real.clone();
    for version in &mut open.spec.versions {
        let schema = version.schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
        *schema =
            serde_json::from_value(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})).unwrap();
    }
    open.metadata.managed_fields = None;
    crds.replace(name, &PostParams::default(), &open).await.unwrap();
    let resource = kube::core::ApiResource::erase::<giantnetes::api::Cluster>(&());
    let clusters = Api::<kube::core::DynamicObject>::namespaced_with(world.client.clone(), "a", &resource);
    let bad: kube::core::DynamicObject = serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster",
        "metadata": {"name": "malformed", "namespace": "a"}, "spec": {"kubernetes": "none"},
    }))
    .unwrap();
    eventually(SECOND * 30, "the malformed Cluster to be stored", || async {
        clusters.create(&PostParams::default(), &bad).await?;
        Ok(())
    })
    .await
    .unwrap();
    let mut back = real;
    back.metadata.managed_fields = None;
    back.metadata.resource_version = crds.get(name).await.unwrap().metadata.resource_version;
    crds.replace(name, &PostParams::default(), &back).await.unwrap();
}

#[test]
fn a_namespace_of_failing_clusters_slows_another_at_most_twice() {
    on_servers("fair", async |servers, world| {
        let manager = Manager::start(servers, "one", Options { log: "warn", ..Options::default() }).await;
        world.namespace("calm").await.unwrap();
        world.namespace("crowd").await.unwrap();
        let alone = rounds(&world, "alone").await;
        // Each of them fails for ever: its kubeconfig's name is taken.
        let crowd = if asked_for("all") { 500 } else { 100 };
        let names: Vec<_> = (0..crowd).map(|number| format!("c{number}")).collect();
        for chunk in names.chunks(50) {
            let world = &world;
            try_join_all(chunk.iter().map(async |name| {
                let taken: Secret = serde_json::from_value(json!({
                    "metadata": {"name": format!("{name}-kubeconfig"), "labels": {"giantnetes.io/cluster": "mine"}},
                }))?;
                world.secrets("crowd").create(&PostParams::default(), &taken).await?;
                world.create("crowd", name, json!({})).await
            }))
            .await
            .unwrap();
        }
        eventually(SECOND * 300, "the crowd to fail", || async {
            let all = world.clusters("crowd").list(&ListParams::default()).await?;
            let failing =
                all.iter().filter(|cluster| condition(cluster, "Degraded").is_some_and(|found| found.0 == "True"));
            let failing = failing.count();
            ensure!(failing == crowd, "{failing} fail");
            Ok(())
        })
        .await
        .unwrap();
        // And is kept busy: every one of them changes all the time.
        let busy = async {
            for round in 0_u64.. {
                let name = &names[usize::try_from(round).unwrap() % names.len()];
                let _ = world.annotate(&world.clusters("crowd"), name, "round", &round.to_string()).await;
            }
        };
        let crowded = tokio::select! {
            () = busy => unreachable!("it never ends"),
            took = rounds(&world, "crowded") => took,
        };
        let ratio = crowded.as_secs_f64() / alone.as_secs_f64();
        println!("    alone {alone:.2?}, beside {crowd} failing Clusters {crowded:.2?}: {ratio:.1} times");
        assert!(ratio <= 2.0 * 3.0, "{ratio:.1} times as slow");
        assert!(!manager.log_text().contains("panicked"));
    });
}

/// Median of the time that a Cluster in the calm namespace takes to converge.
async fn rounds(world: &World, name: &str) -> Duration {
    let mut took = Vec::new();
    for round in 0..9 {
        let name = format!("{name}{round}");
        let began = Instant::now();
        world.create("calm", &name, json!({})).await.unwrap();
        world.converged(SECOND * 60, "calm", &name).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

#[test]
fn a_lost_root_is_told_and_never_made_anew() {
    on_servers("lost", async |servers, world| {
        let mut manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "one", json!({})).await.unwrap();
        world.create("a", "two", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        let home = home(&world, "one").await;
        let roots = world.secrets(&home);
        let root = roots.get("ca-kubernetes-1").await.unwrap();
        roots.delete("ca-kubernetes-1", &DeleteParams::default()).await.unwrap();
        let lost = ("PKIReady", "False", "CALost");
        let (message, took) = world.condition(SECOND * 15, ("a", "one"), lost).await.unwrap();
        assert!(message.contains("ca-kubernetes-1") && message.contains("restore it from a backup"), "{message}");
        println!("    told after {took:.1?}: {message}");
        // A new process knows no more than the objects say.
        manager.restart();
        world.create("a", "three", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "three").await.unwrap();
        world.converged(SECOND * 30, "a", "two").await.unwrap();
        assert!(roots.get_opt("ca-kubernetes-1").await.unwrap().is_none(), "it was made anew");
        // Another root in its place is not it.
        let mut other = world.secrets(&self::home(&world, "two").await).get("ca-kubernetes-1").await.unwrap();
        other.metadata = kube::api::ObjectMeta {
            name: other.metadata.name,
            labels: root.metadata.labels.clone(),
            annotations: root.metadata.annotations.clone().map(|mut annotations| {
                let foreign = other.metadata.annotations.as_ref().unwrap()["giantnetes.io/fingerprint"].clone();
                annotations.insert("giantnetes.io/fingerprint".into(), foreign);
                annotations
            }),
            ..Default::default()
        };
        roots.create(&PostParams::default(), &other).await.unwrap();
        manager.settled().await;
        world.condition(SECOND * 5, ("a", "one"), lost).await.unwrap();
        // The backup is restored: all is well again.
        roots.delete("ca-kubernetes-1", &DeleteParams::default()).await.unwrap();
        let mut backup = root;
        (backup.metadata.uid, backup.metadata.resource_version) = (None, None);
        roots.create(&PostParams::default(), &backup).await.unwrap();
        world.converged(SECOND * 90, "a", "one").await.unwrap();
    });
}

#[test]
fn the_log_level_changes_while_it_runs() {
    on_servers("loglevel", async |servers, world| {
        let manager = Manager::start(servers, "one", Options { log: "warn", ..Options::default() }).await;
        eventually(SECOND * 20, "the manager to be ready", || async { manager.get("/readyz").await }).await.unwrap();
        assert!(manager.put("/loglevel", "info,giantnetes=debug").await.is_ok());
        assert!(manager.put("/loglevel", "giantnetes=loud").await.is_err());
        world.namespace("a").await.unwrap();
        world.create("a", "one", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        assert!(manager.log_text().contains("claimed"), "nothing of level info was logged");
    });
}
