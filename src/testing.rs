//! Fixtures of the unit tests: objects go through the real parsing and validation.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    api::Cluster,
    cluster::Valid,
    pki::{authority::Kept, embedded, keys::Wishes, roots::Roots},
    settings::Settings,
};

/// When [`roots`] were made.
pub(crate) const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

/// Settings with one version.
pub(crate) fn settings() -> Settings {
    serde_saphyr::from_str("kubernetes: {defaultVersion: v1.36.3, images: {v1.36.3: \"giantnetes/vm:v1.36.3\"}}\nexposure: {hostTemplate: \"{name}.{namespace}.guests.example.com\"}")
        .unwrap()
}

/// The Cluster `team-a/demo` with this spec.
pub(crate) fn cluster(spec: Value) -> Cluster {
    serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1",
        "kind": "Cluster",
        "metadata": {
            "name": "demo", "namespace": "team-a", "generation": 1, "resourceVersion": "1",
            "uid": "9f2c6a50-6f3e-4a39-9e0b-0d9f4c1f7a11",
        },
        "spec": spec,
    }))
    .unwrap()
}

/// The same, validated.
pub(crate) fn valid(spec: Value) -> Valid {
    Valid::new(&cluster(spec), &settings()).unwrap()
}

/// A Cluster on AWS with this spec beside what such a one needs.
#[cfg(feature = "aws")]
pub(crate) fn on_aws(mut spec: Value) -> Valid {
    let aws = &mut spec["provider"]["aws"];
    for (key, value) in [
        ("region", json!("eu-central-1")),
        ("zones", json!(["eu-central-1a"])),
        ("image", json!("ami-0123456789abcdef0")),
        ("credentials", json!({"secretName": "aws"})),
    ] {
        if aws.get(key).is_none() {
            aws[key] = value;
        }
    }
    spec["pki"]["backend"] = json!("Vault");
    let mut settings = settings();
    settings.vault = serde_json::from_value(json!({
        "address": "https://vault.example.com:8200",
        "caCertificate": certificate(),
        "auth": {"kubernetes": {"role": "giantnetes"}},
    }))
    .unwrap();
    Valid::new(&cluster(spec), &settings).unwrap()
}

/// An example of manifests/examples, validated, as `team-a/demo` of these settings.
pub(crate) fn example(file: &str) -> Valid {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/examples").join(file);
    let parsed: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    valid(parsed["spec"].clone())
}

/// A certificate (PEM) of an authority that nobody knows.
pub(crate) fn certificate() -> String {
    embedded::root("test", "nobody", NOW, Duration::from_secs(3600)).unwrap().certificate
}

/// Roots as a guest is made with, made anew at each call.
pub(crate) fn roots() -> Roots {
    let authority =
        |name| Kept::Here(embedded::root(name, "team-a/demo", NOW, crate::cluster::valid::DEFAULT_CA_TTL).unwrap());
    Roots {
        kubernetes: authority("kubernetes"),
        etcd: authority("etcd"),
        front_proxy: authority("front-proxy"),
        service_account: embedded::key_pair().unwrap(),
        encryption: embedded::encryption_config("key1").unwrap(),
        rotated_for: 0,
        keys_for: Wishes::default(),
    }
}
