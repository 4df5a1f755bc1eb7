//! Fixtures of the unit tests: objects go through the real parsing and validation.

use serde_json::{Value, json};

use crate::{api::Cluster, cluster::Valid, settings::Settings};

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

/// An example of manifests/examples, validated, as `team-a/demo` of these settings.
pub(crate) fn example(file: &str) -> Valid {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/examples").join(file);
    let parsed: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    valid(parsed["spec"].clone())
}

/// A certificate (PEM) of an authority that nobody knows.
pub(crate) fn certificate() -> String {
    let now = k8s_openapi::jiff::Timestamp::from_second(1_800_000_000).unwrap();
    crate::pki::embedded::root("test", "nobody", now, std::time::Duration::from_secs(3600)).unwrap().certificate
}
