//! What is told: no key is in anything that people read who may not read Secrets.

use giantnetes::api::{Cluster, ClusterAccess};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Secret},
    events::v1::Event,
};
use kube::{Api, api::ListParams};
use serde_json::to_string;

use crate::{manager::Manager, support::traces::key_words, world::World};

/// Looks for the content of every Secret of ours in everything that others may read.
pub async fn no_key_is_told(world: &World, managers: &[&Manager]) {
    let told = told(world, managers).await;
    assert!(!told.contains("PRIVATE KEY"), "a private key was told");
    let ours = ListParams::default().labels("giantnetes.io/cluster");
    let secrets = Api::<Secret>::all(world.client.clone()).list(&ours).await.unwrap();
    let mut looked_for = 0;
    for (file, value) in secrets.into_iter().flat_map(|secret| secret.data.unwrap_or_default()) {
        if !file.ends_with(".key") && !file.starts_with("encryption") && file != "value" {
            continue;
        }
        // As an object that was logged whole would show it.
        let encoded = serde_json::to_value(&value).unwrap();
        assert!(!told.contains(encoded.as_str().unwrap()), "{file} was told as a Secret holds it");
        for word in key_words(&String::from_utf8_lossy(&value.0)) {
            looked_for += 1;
            assert!(!told.contains(word), "a word of {file} was told");
        }
    }
    assert!(looked_for >= 10, "only {looked_for} words of keys were looked for");
}

async fn told(world: &World, managers: &[&Manager]) -> String {
    let (all, client) = (ListParams::default(), || world.client.clone());
    let mut told = String::new();
    for manager in managers {
        assert!(!manager.log_text().is_empty());
        told.push_str(&manager.log_text());
        told.push_str(&manager.get("/metrics").await.unwrap());
    }
    told.push_str(&to_string(&Api::<Cluster>::all(client()).list(&all).await.unwrap()).unwrap());
    told.push_str(&to_string(&Api::<ClusterAccess>::all(client()).list(&all).await.unwrap()).unwrap());
    told.push_str(&to_string(&Api::<Event>::all(client()).list(&all).await.unwrap()).unwrap());
    told.push_str(&to_string(&Api::<Namespace>::all(client()).list(&all).await.unwrap()).unwrap());
    told.push_str(&to_string(&Api::<ConfigMap>::all(client()).list(&all).await.unwrap()).unwrap());
    told
}

#[test]
fn the_words_of_a_key_are_found_wherever_they_stand() {
    let word = "A".repeat(44);
    for text in [
        format!("-----BEGIN PRIVATE KEY-----\n{word}\n-----END PRIVATE KEY-----\n"),
        format!("      - {{name: key1, secret: {word}}}\n"),
        format!("    client-key-data: {word}\n    client-certificate-data: {}\n", "B".repeat(44)),
    ] {
        assert_eq!(key_words(&text), [word.as_str()], "{text}");
    }
}
