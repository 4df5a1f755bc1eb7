//! What kube's derived schemas lack or have too much of, and a strict look at a document through a schema.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::Value;

/// The schema of a CRD's only version.
pub(super) fn of_mut(crd: &mut CustomResourceDefinition) -> Option<&mut JSONSchemaProps> {
    crd.spec.versions.first_mut()?.schema.as_mut()?.open_api_v3_schema.as_mut()
}

/// Removes every `default` and `nullable` from a schema: the API server would write a default into the stored object, where
/// it can never change again, and in CEL a field that is null counts as given.
pub(super) fn forget_defaults(schema: &mut JSONSchemaProps) {
    schema.default = None;
    schema.nullable = None;
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        forget_defaults(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        forget_defaults(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        forget_defaults(values);
    }
}

/// What of a document's `spec` no field of the CRD is for, or has the wrong type: what a decoder lets pass, and a person
/// who mistyped a name wants to hear. Each entry begins with the path.
pub fn misfits(crd: &CustomResourceDefinition, document: &Value) -> Vec<String> {
    let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    let mut found = Vec::new();
    if let Some(schema) = schema {
        look(schema, document, "", &mut found);
    }
    found
}

fn look(schema: &JSONSchemaProps, value: &Value, path: &str, found: &mut Vec<String>) {
    let shown = if path.is_empty() { "the document" } else { path };
    let fits = match schema.type_.as_deref() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !fits {
        let type_ = schema.type_.as_deref().unwrap_or_default();
        found.push(format!("{shown}: must be of type {type_}, and is {}", kind(value)));
        return;
    }
    if let Some(allowed) = schema.enum_.as_ref().filter(|allowed| !allowed.iter().any(|one| one.0 == *value)) {
        let allowed: Vec<_> = allowed.iter().map(|one| one.0.as_str().unwrap_or_default()).collect();
        found.push(format!("{shown}: must be one of {}", allowed.join(", ")));
        return;
    }
    match value {
        Value::Object(fields) => {
            // `metadata` is declared as an object and nothing more; the API server knows its fields.
            let Some(properties) = schema.properties.as_ref() else {
                if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
                    fields.iter().for_each(|(key, value)| look(values, value, &format!("{path}[{key}]"), found));
                }
                return;
            };
            for (name, value) in fields {
                let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match properties.get(name) {
                    Some(property) => look(property, value, &place, found),
                    None if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) => {}
                    None => found.push(format!("{place}: unknown field")),
                }
            }
            for name in schema.required.iter().flatten().filter(|name| !fields.contains_key(*name)) {
                found.push(format!("{shown}: {name} is missing"));
            }
        }
        Value::Array(items) => {
            if let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items {
                items.iter().enumerate().for_each(|(n, item)| look(schema, item, &format!("{path}[{n}]"), found));
            }
        }
        _ => {}
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn misfits_of(spec: Value) -> Vec<String> {
        misfits(
            &super::super::crds()[0],
            &json!({"apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "x"}, "spec": spec}),
        )
    }

    #[test]
    fn every_misfit_is_named() {
        for (spec, expected) in [
            (json!({}), ""),
            (json!({"provider": {"kvm": {"accelerator": "TCG"}}, "nodePools": [{"name": "a"}]}), ""),
            (json!({"kubernets": {}}), "spec.kubernets: unknown field"),
            (json!({"nodePools": [{"name": "a", "sise": 1}]}), "spec.nodePools[0].sise: unknown field"),
            (json!({"nodePools": [{}]}), "spec.nodePools[0]: name is missing"),
            (json!({"etcd": {"mode": "Own"}}), "spec.etcd.mode: must be one of Stacked"),
            (
                json!({"controlPlane": {"machine": {"memory": 4}}}),
                "spec.controlPlane.machine.memory: must be of type string, and is a number",
            ),
            (
                json!({"kubernetes": {"featureGates": {"A": "true"}}}),
                "spec.kubernetes.featureGates[A]: must be of type boolean, and is a string",
            ),
            (json!({"kubernetes": {"podCIDR": null}}), "spec.kubernetes.podCIDR: must be of type string, and is null"),
        ] {
            assert_eq!(misfits_of(spec.clone()).join("; "), expected, "{spec}");
        }
    }
}
