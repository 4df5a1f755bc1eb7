//! Claims on VNIs: never shared, refused with a word, and at rest after they were given back.

use std::collections::BTreeSet;

use anyhow::ensure;
use futures::future::try_join_all;
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
        let _two = Manager::start(servers, "two", Options { lease: "two", ..Options::default() }).await;
        world.namespace("crowd").await.unwrap();
        let names: Vec<_> = (0..100).map(|number| format!("c{number:03}")).collect();
        try_join_all(names.iter().map(|name| world.create("crowd", name, json!({})))).await.unwrap();
        let took = world.all_converged(SECOND * 180, 100).await.unwrap();
        let claims = world.claims().await.unwrap();
        let holders: BTreeSet<_> = claims.iter().map(|claim| claim.spec.cluster_ref.uid.clone()).collect();
        assert_eq!((claims.len(), holders.len()), (100, 100), "a Cluster holds two claims, or none");
        let writes = one.proxy.writes();
        println!("    100 Clusters under two managers in {took:.1?}, {} writes by one of them", writes.len());
        assert!(!one.log_text().contains("panicked"));
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
