//! What users write and read: the custom resources, their names, labels and conditions.
//!
//! Nothing here talks to a server. Defaults are methods (`*_or_default`), never written into a spec.

mod cluster;
mod conditions;
pub mod names;
mod network_claim;

pub use cluster::{
    Accelerator, Cluster, ClusterSpec, ClusterStatus, ControlPlaneSpec, EtcdSpec, KubernetesSpec, KvmSpec, MachineSpec,
    NetworkSpec, NodeCounts, OverlaySpec, ProviderSpec, StorageSpec,
};
pub use conditions::{Condition, ConditionType, Conditions, Reason, Status};
pub use network_claim::{ClaimKind, ClusterRef, NetworkClaim, NetworkClaimSpec};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

/// Every CustomResourceDefinition of Giantnetes, in the order in which they are printed and installed.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![Cluster::crd(), NetworkClaim::crd()];
    for crd in &mut crds {
        // Uninstalling the chart must not delete every Cluster.
        let annotations = crd.metadata.annotations.get_or_insert_default();
        annotations.insert("helm.sh/resource-policy".into(), "keep".into());
    }
    for schema in crds.iter_mut().flat_map(|crd| &mut crd.spec.versions).filter_map(|version| version.schema.as_mut()) {
        if let Some(root) = &mut schema.open_api_v3_schema {
            forget_defaults(root);
        }
    }
    crds
}

/// Removes every `default` from a schema: the API server would write it into the stored object, and a default that is
/// written down can never change again.
fn forget_defaults(schema: &mut JSONSchemaProps) {
    schema.default = None;
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        forget_defaults(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        forget_defaults(items);
    }
}

/// The CRDs as one YAML stream: what `giantnetes crds` prints, and the bytes of `manifests/crds/` and the chart.
///
/// # Errors
/// Only if a schema cannot be written as YAML, which would be a defect of ours.
pub fn crds_yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut out = String::new();
    for crd in crds() {
        out.push_str("---\n");
        out.push_str(&serde_saphyr::to_string(&crd)?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_and_chart_hold_the_same_crds() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for path in ["manifests/crds/giantnetes.io.yaml", "charts/giantnetes/files/crds.yaml"] {
            let text = std::fs::read_to_string(root.join(path)).unwrap();
            assert!(text == crds_yaml().unwrap(), "{path} is stale: `make crds` writes it");
        }
    }

    #[test]
    fn no_default_and_no_unknown_format_is_in_a_schema() {
        let yaml = crds_yaml().unwrap();
        for word in [" default:", "uint32", "uint64"] {
            assert!(!yaml.contains(word), "{word}");
        }
    }
}
