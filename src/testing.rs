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
