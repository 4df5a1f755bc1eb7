//! Claims on VNIs: never shared, refused with a word, and at rest after they were given back.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::networking::v1::Ingress;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    manager::{Manager, Options},
    on_servers,
    world::{SECOND, eventually},
};

#[test]
fn a_hundred_clusters_under_two_managers_share_no_vni() {
    on_servers("claims", async |servers, world| {
        // Of two leases, so both work at the same time.
        let one = Manager::start(servers, "one", Options { lease: "one", ..Options::default() }).await;
        let two = Manager::start(servers, "two", Options { lease: "two", ..Options::default() }).await;
        world.namespace("crowd").await.unwrap();
        let names: Vec<_> = (0..100).map(|number| format!("c{number:03}")).collect();
        try_join_all(names.iter().map(|name| world.create("crowd", name, json!({})))).await.unwrap();
        let took = world.all_converged(SECOND * 180, 100).await.unwrap();
        let claims = world.claims().await.unwrap();
        let holders: BTreeSet<_> = claims.iter().map(|claim| claim.spec.cluster_ref.uid.clone()).collect();
        assert_eq!((claims.len(), holders.len()), (100, 100), "a Cluster holds two claims, or none");
        let clusters = Api::<giantnetes::api::Cluster>::all(world.client.clone());
        let clusters = clusters.list(&ListParams::default()).await.unwrap();
        let told: BTreeSet<_> = clusters.iter().filter_map(|cluster| cluster.status.as_ref()?.vni).collect();
        let claimed: BTreeSet<_> = claims.iter().filter_map(|claim| claim.spec.value).collect();
        assert!(told.len() == 100 && told == claimed, "what is told is not what is claimed");
        let claimed_by = |name: &str| {
            let writes = servers.writes_of(name);
            writes.iter().filter(|write| write.uri.contains("/networkclaims")).count()
        };
        let each = [claimed_by("one"), claimed_by("two")];
        println!("    100 Clusters under two managers in {took:.1?}, which asked for {each:?} claims");
        assert!(each.iter().all(|asked| *asked > 10), "one manager did all the work: {each:?}");
        assert!([&one, &two].iter().all(|manager| !manager.log_text().contains("panicked")));
    });
}

#[test]
fn a_vni_in_use_is_told_and_rests_after_its_guest() {
    on_servers("quarantine", async |servers, world| {
        let _manager = Manager::start(servers, "one", Options { quarantine: "15s", ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        let spec = json!({"network": {"overlay": {"vni": 4242}}});
        world.create("a", "first", spec.clone()).await.unwrap();
        world.converged(SECOND * 30, "a", "first").await.unwrap();
        world.create("a", "second", spec).await.unwrap();
        let in_use = ("NetworkReady", "False", "VNIInUse");
        let (message, _) = world.condition(SECOND * 15, ("a", "second"), in_use).await.unwrap();
        assert!(message.contains("4242 belongs to another Cluster"), "{message}");

        world.delete("a", "first").await.unwrap();
        world.gone(SECOND * 30, "a", "first").await.unwrap();
        let claim = world.claims().await.unwrap().pop().unwrap();
        assert!(claim.spec.released_at.is_some(), "{claim:?}");
        // An edit is what makes the operator look again.
        world.annotate(&world.clusters("a"), "second", "look", "again").await.unwrap();
        eventually(SECOND * 10, "the quarantine to be told", || async {
            let (message, _) = world.condition(SECOND, ("a", "second"), in_use).await?;
            ensure!(message.contains("in quarantine until"), "{message}");
            Ok(())
        })
        .await
        .unwrap();
        let took = world.converged(SECOND * 60, "a", "second").await.unwrap();
        let freed = claim.spec.released_at.unwrap().0;
        let taken = world.claims().await.unwrap().pop().unwrap().metadata.creation_timestamp.unwrap().0;
        // Creation times are whole seconds.
        assert!(taken.duration_since(freed).as_secs() >= 14, "taken at {taken}, given back at {freed}");
        println!("    the VNI was taken {:.0?} after it was asked for, 15 s of quarantine before", took);
    });
}

#[test]
fn a_host_name_has_one_guest_and_follows_its_cluster() {
    on_servers("host", async |servers, world| {
        let _manager = Manager::start(servers, "one", Options { quarantine: "15s", ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        world.namespace("b").await.unwrap();
        let spec = |host: &str| json!({"exposure": {"type": "Ingress", "host": host}});
        world.create("a", "first", spec("api.example.com")).await.unwrap();
        world.converged(SECOND * 30, "a", "first").await.unwrap();
        world.create("b", "second", spec("api.example.com")).await.unwrap();
        let in_use = ("NetworkReady", "False", "HostInUse");
        let (message, took) = world.condition(SECOND * 30, ("b", "second"), in_use).await.unwrap();
        assert!(message.contains("api.example.com belongs to another Cluster"), "{message}");
        println!("    a taken host name is told after {took:.1?}");
        let ingresses = Api::<Ingress>::all(world.client.clone());
        let hosts = async || -> Vec<String> {
            let found = ingresses.list(&ListParams::default()).await.unwrap();
            let rules = found.into_iter().flat_map(|ingress| ingress.spec.unwrap().rules.unwrap());
            rules.filter_map(|rule| rule.host).collect()
        };
        assert_eq!(hosts().await, ["api.example.com"]);
        let kubeconfig = world.secrets("b").get_opt("second-kubeconfig").await.unwrap();
        assert!(kubeconfig.is_none(), "a kubeconfig leads to somebody else's guest");

        // The first moves away; after the quarantine its old name is the second's.
        let moved = json!({"spec": spec("other.example.com")});
        world.clusters("a").patch("first", &PatchParams::default(), &Patch::Merge(moved)).await.unwrap();
        let rests = eventually(SECOND * 15, "the old name to be given back", || async {
            let mut claims = world.claims().await?;
            claims.retain(|claim| claim.spec.released_at.is_some());
            claims.pop().context("no claim rests")
        });
        let (old, _) = rests.await.unwrap();
        world.converged(SECOND * 90, "b", "second").await.unwrap();
        let claims = world.claims().await.unwrap();
        let new = claims.iter().find(|claim| claim.metadata.name == old.metadata.name).unwrap();
        let (freed, taken) = (old.spec.released_at.unwrap().0, new.metadata.creation_timestamp.clone().unwrap().0);
        // Creation times are whole seconds.
        assert!(taken.duration_since(freed).as_secs() >= 14, "taken at {taken}, given back at {freed}");
        world.converged(SECOND * 30, "a", "first").await.unwrap();
        let mut both = hosts().await;
        both.sort();
        assert_eq!(both, ["api.example.com", "other.example.com"]);
        let kubeconfig = world.secrets("a").get("first-kubeconfig").await.unwrap().data.unwrap()["value"].clone();
        let text = String::from_utf8(kubeconfig.0).unwrap();
        assert!(text.contains("server: https://other.example.com"), "the kubeconfig did not follow");

        let closed = json!({"spec": {"exposure": null}});
        world.clusters("a").patch("first", &PatchParams::default(), &Patch::Merge(closed)).await.unwrap();
        eventually(SECOND * 15, "the Ingress to go", || async {
            let left = hosts().await;
            ensure!(left == ["api.example.com"], "{left:?}");
            Ok(())
        })
        .await
        .unwrap();
        for (namespace, name) in [("a", "first"), ("b", "second")] {
            world.delete(namespace, name).await.unwrap();
            world.gone(SECOND * 30, namespace, name).await.unwrap();
        }
        eventually(SECOND * 60, "the claims' quarantine to end", || async {
            let left = world.claims().await?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
        .unwrap();
    });
}
