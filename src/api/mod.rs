//! What users write and read: the custom resources, their names, labels and conditions.
//!
//! Nothing here talks to a server. Defaults are methods (`*_or_default`), never written into a spec.

mod aws;
mod cluster;
mod cluster_access;
mod conditions;
pub mod fixed;
pub mod flags;
mod ingress_controller;
mod kubernetes;
mod machines;
pub mod names;
mod network_claim;
mod networks;
mod pki;
mod rules;
pub mod schema;
mod status;

pub use aws::{
    AwsApiAccessSpec, AwsControlPlaneSpec, AwsCredentialsSpec, AwsPoolSpec, AwsSpec, AwsStatus, DEFAULT_INSTANCE_TYPE,
    DEFAULT_NETWORK, NatGateways, SpotSpec, StackRecord,
};
pub use cluster::{Cluster, ClusterSpec};
pub use cluster_access::{AccessRights, AccessedCluster, ClusterAccess, ClusterAccessSpec, ClusterAccessStatus};
pub use conditions::{Condition, ConditionType, Conditions, Reason, Status};
pub use ingress_controller::{IngressControllerSpec, IngressService};
pub use kubernetes::{ApiServerSpec, AuditPolicy, AuditSpec, ComponentSpec, KubernetesSpec, OidcSpec};
pub use machines::{
    Accelerator, ControlPlaneSpec, EtcdMode, EtcdSpec, KvmSpec, MachineSpec, NodePoolSpec, ProviderSpec, StorageSpec,
    TaintEffect, TaintSpec,
};
pub use network_claim::{ClaimKind, ClusterRef, NetworkClaim, NetworkClaimSpec};
pub use networks::{CalicoSpec, ExposureSpec, ExposureType, NetworkSpec, OverlayBackend, OverlaySpec};
pub use pki::{
    ApiServerCertificateSpec, CaSpec, EncryptionKeySpec, ImportSpec, LeafSpec, PkiBackend, PkiSpec,
    ServiceAccountKeySpec,
};
pub use rules::{NEEDS_VAULT, NO_EXPOSURE, NO_FLANNEL, NO_INGRESS, POOL_ON_AWS, RESERVED};
pub use status::{ClusterStatus, NodeCounts, RotationStatus, VaultPlace};

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The CRD of [`Cluster`]; it is put together once.
pub fn cluster_crd() -> &'static CustomResourceDefinition {
    static CRD: LazyLock<CustomResourceDefinition> = LazyLock::new(|| {
        let mut crd = Cluster::crd();
        if let Some(root) = schema::of_mut(&mut crd) {
            root.x_kubernetes_validations.get_or_insert_default().extend(rules::of_cluster());
            if let Some(spec) = root.properties.get_or_insert_default().get_mut("spec") {
                spec.x_kubernetes_validations.get_or_insert_default().extend(rules::of_spec());
            }
        }
        finish(crd)
    });
    &CRD
}

fn cluster_access_crd() -> CustomResourceDefinition {
    let mut crd = ClusterAccess::crd();
    if let Some(root) = schema::of_mut(&mut crd) {
        root.x_kubernetes_validations.get_or_insert_default().push(rules::room_for_its_secret());
    }
    finish(crd)
}

fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    // Uninstalling the chart must not delete every Cluster.
    let annotations = crd.metadata.annotations.get_or_insert_default();
    annotations.insert("helm.sh/resource-policy".into(), "keep".into());
    if let Some(root) = schema::of_mut(&mut crd) {
        schema::forget_defaults(root);
    }
    crd
}

/// Every CustomResourceDefinition of Giantnetes, in the order in which they are printed and installed.
pub fn crds() -> [CustomResourceDefinition; 3] {
    [cluster_crd().clone(), finish(NetworkClaim::crd()), cluster_access_crd()]
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
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    };

    use super::*;

    /// A field of a schema, and what a test looks at beside itself.
    struct Field<'a> {
        path: String,
        schema: &'a JSONSchemaProps,
        /// Description of the object that it is a field of.
        parent: &'a str,
        required: bool,
    }

    /// All fields below a schema. An item of a list and a value of a map count as one, too.
    fn fields<'a>(path: &str, schema: &'a JSONSchemaProps, found: &mut Vec<Field<'a>>) {
        let parent = schema.description.as_deref().unwrap_or_default();
        let mut add = |path: String, schema: &'a JSONSchemaProps, required: bool| {
            found.push(Field { path: path.clone(), schema, parent, required });
            fields(&path, schema, found);
        };
        for (name, property) in schema.properties.iter().flatten() {
            let required = schema.required.iter().flatten().any(|one| one == name);
            add(format!("{path}.{name}"), property, required);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            add(format!("{path}[]"), items, true);
        }
        if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
            add(format!("{path}{{}}"), values, true);
        }
    }

    fn spec_of(crd: &CustomResourceDefinition) -> &JSONSchemaProps {
        let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        &schema.properties.as_ref().unwrap()["spec"]
    }

    #[test]
    fn every_field_says_its_default_and_what_changing_it_does() {
        let mut found = Vec::new();
        fields("spec", spec_of(cluster_crd()), &mut found);
        let of_user = |field: &&Field<'_>| !field.path.ends_with(['}', ']']) && field.schema.properties.is_none();
        let leaves: Vec<_> = found.iter().filter(of_user).collect();
        assert!(leaves.len() > 40, "{}", leaves.len());
        let mut silent = Vec::new();
        for Field { path, schema, parent, required } in leaves {
            let own = schema.description.as_deref().unwrap_or_default();
            let changes = ["immutable", "in place", "rolls the"];
            if !changes.iter().any(|change| own.contains(change) || parent.contains(change)) {
                silent.push(format!("{path}: what does changing it do?"));
            }
            if !required && !own.to_lowercase().contains("default") {
                silent.push(format!("{path}: what is its default?"));
            }
        }
        assert!(silent.is_empty(), "{}", silent.join("\n"));
    }

    #[test]
    fn every_text_list_and_map_of_a_spec_is_bounded() {
        let mut boundless = Vec::new();
        for crd in crds() {
            let mut found = Vec::new();
            fields(&crd.spec.names.kind, spec_of(&crd), &mut found);
            boundless.extend(found.into_iter().filter_map(|Field { path, schema, .. }| {
                let bounded = match schema.type_.as_deref() {
                    Some("string") => schema.max_length.is_some() || schema.enum_.is_some() || schema.format.is_some(),
                    Some("array") => schema.max_items.is_some(),
                    Some("object") => schema.additional_properties.is_none() || schema.max_properties.is_some(),
                    _ => true,
                };
                (!bounded).then_some(path)
            }));
        }
        assert!(boundless.is_empty(), "{boundless:?}");
    }

    #[test]
    fn manifests_and_chart_hold_the_same_crds() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for path in ["manifests/crds/giantnetes.io.yaml", "charts/giantnetes/files/crds.yaml"] {
            let text = std::fs::read_to_string(root.join(path)).unwrap();
            assert!(text == crds_yaml().unwrap(), "{path} is stale: `make crds` writes it");
        }
    }

    /// A time without a word beside it passes for the end of the certificates.
    #[test]
    fn kubectl_get_shows_what_a_person_looks_for() {
        let columns = cluster_crd().spec.versions[0].additional_printer_columns.as_ref().unwrap();
        let shown = |wide: bool| {
            let of = columns.iter().filter(|column| (column.priority.unwrap_or_default() > 0) == wide);
            of.map(|column| column.name.to_uppercase()).collect::<Vec<_>>()
        };
        assert_eq!(shown(false), ["READY", "VERSION", "CP", "NODES", "PROVIDER", "PHASE", "AGE"]);
        assert_eq!(shown(true), ["ENDPOINT", "VNI", "CERTIFICATES END", "MESSAGE"]);
    }

    #[test]
    fn no_default_and_no_unknown_format_is_in_a_schema() {
        let yaml = crds_yaml().unwrap();
        for word in [" default:", "nullable:", "uint32", "uint64"] {
            assert!(!yaml.contains(word), "{word}");
        }
    }
}
