//! Overlays that would cover what VM pods have to reach: refused, with both ranges, and nothing is made.

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;

use crate::{
    manager::{Manager, Options},
    on_servers,
    world::{SECOND, World},
};

const INVALID: (&str, &str, &str) = ("Ready", "False", "InvalidSpec");

/// Nothing is there of any guest but those that were made on purpose.
async fn only(world: &World, made: &[&str]) {
    let mut holders: Vec<_> =
        world.claims().await.unwrap().iter().map(|claim| claim.spec.cluster_ref.name.clone()).collect();
    holders.sort();
    assert_eq!(holders, made);
    let ours = ListParams::default().labels("giantnetes.io/cluster");
    let namespaces = Api::<Namespace>::all(world.client.clone()).list(&ours).await.unwrap();
    let names: Vec<_> = namespaces.iter().map(|namespace| namespace.name_any()).collect();
    assert_eq!(names.len(), made.len(), "{names:?}");
}

#[test]
fn an_overlay_that_covers_the_management_cluster_is_refused() {
    on_servers("ranges", async |servers, world| {
        let address = json!([{"type": "InternalIP", "address": "10.60.1.1"}]);
        let pods = json!({"podCIDR": "10.61.1.0/24", "podCIDRs": ["10.61.1.0/24"]});
        world.host("h1", pods, json!({"addresses": address})).await;
        let mut manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        let overlay = |cidr: &str| json!({"network": {"overlay": {"cidr": cidr}}});

        // What is seen without a setting.
        for (name, cidr, clash) in [
            ("host", "10.60.0.0/16", "10.60.0.0/16 overlaps 10.60.1.1/32, the address of host h1"),
            ("pods", "10.61.0.0/20", "10.61.0.0/20 overlaps 10.61.1.0/24, the pods of host h1"),
        ] {
            world.create("a", name, overlay(cidr)).await.unwrap();
            let (message, _) = world.condition(SECOND * 30, ("a", name), INVALID).await.unwrap();
            assert!(message.starts_with(&format!("spec.network.overlay.cidr: {clash}")), "{message}");
        }
        // The ranges of pods and Services are the guest's own affair.
        let same = json!({"kubernetes": {"podCIDR": "10.61.0.0/16", "serviceCIDR": "10.60.0.0/16"}});
        world.create("a", "same", same).await.unwrap();
        world.converged(SECOND * 30, "a", "same").await.unwrap();
        manager.settled().await;
        only(&world, &["same"]).await;

        // What the operator says counts for those that are not made yet.
        let text = std::fs::read_to_string(&manager.settings).unwrap();
        let told = text.replace("network: {", "network: {podCIDRs: [172.26.0.0/16, 'fd00::/56'], ");
        assert_ne!(told, text);
        std::fs::write(&manager.settings, told).unwrap();
        manager.restart();
        world.create("a", "late", json!({})).await.unwrap();
        let (message, _) = world.condition(SECOND * 30, ("a", "late"), INVALID).await.unwrap();
        let clash = "spec.network.overlay.cidr: 172.26.0.0/20 overlaps 172.26.0.0/16, ";
        assert!(message.starts_with(clash) && message.contains("settings.network.podCIDRs"), "{message}");
        world.create("a", "beside", overlay("172.27.0.0/20")).await.unwrap();
        world.converged(SECOND * 30, "a", "beside").await.unwrap();
        manager.settled().await;
        world.converged(SECOND, "a", "same").await.unwrap();
        only(&world, &["beside", "same"]).await;

        for name in ["host", "pods", "late"] {
            world.delete("a", name).await.unwrap();
            world.gone(SECOND * 30, "a", name).await.unwrap();
        }
        assert!(!manager.log_text().contains("panicked"));
    });
}
