//! docs/fields.md: every field of every kind, from the CustomResourceDefinitions.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use super::Table;
use crate::api;

const HEAD: &str = "# Fields

Every field of every kind, as `kubectl explain` shows them. This page is what `giantnetes reference` prints; `make docs` writes
it. What follows from what, and why, is in [api.md](api.md).
";

/// The whole page.
pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    for crd in api::crds() {
        let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
        let mut rows = Vec::new();
        for part in ["spec", "status"] {
            let of_kind = schema.and_then(|schema| schema.properties.as_ref()?.get(part));
            if let Some(schema) = of_kind {
                walk(part, schema, &mut rows);
            }
        }
        let table = Table { head: &["Field", "Type", "What it says"], rows };
        let about = crd.spec.names.kind.clone();
        page += &format!("\n## {about}\n\n{}", table.markdown());
    }
    page
}

/// Adds all fields below one.
fn walk(path: &str, schema: &JSONSchemaProps, rows: &mut Vec<Vec<String>>) {
    for (name, field) in schema.properties.iter().flatten() {
        let required = schema.required.iter().flatten().any(|one| one == name);
        add(&format!("{path}.{name}"), field, required, rows);
    }
}

fn add(path: &str, field: &JSONSchemaProps, required: bool, rows: &mut Vec<Vec<String>>) {
    let said = field.description.as_deref().unwrap_or_default();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;");
    let needed = if required { ", required" } else { "" };
    rows.push(vec![format!("`{path}`"), format!("{}{needed}", type_of(field)), said]);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &field.items {
        walk(&format!("{path}[]"), items, rows);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &field.additional_properties {
        walk(&format!("{path}.<name>"), values, rows);
    }
    walk(path, field, rows);
}

/// Type and bounds.
fn type_of(field: &JSONSchemaProps) -> String {
    let type_ = field.type_.as_deref().unwrap_or("any");
    let kind = match (&field.items, &field.additional_properties) {
        (Some(JSONSchemaPropsOrArray::Schema(items)), _) => format!("list of {}", type_of(items)),
        (_, Some(JSONSchemaPropsOrBool::Schema(values))) => format!("map of {}", type_of(values)),
        _ => field.format.clone().filter(|_| type_ == "string").unwrap_or_else(|| type_.to_owned()),
    };
    let values: Vec<_> =
        field.enum_.iter().flatten().filter_map(|value| Some(format!("`{}`", value.0.as_str()?))).collect();
    if !values.is_empty() {
        return values.join(", ");
    }
    match (field.minimum, field.maximum) {
        (Some(least), Some(most)) => format!("{kind}, {least} to {most}"),
        (Some(least), None) => format!("{kind}, {least} or more"),
        _ => kind,
    }
}
