//! Reading a Cluster from a file, more strictly than the watch does: what a person mistyped is named, not dropped.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::api::{self, Cluster, schema};

/// The Cluster that a YAML text holds, or everything about its form that is wrong.
pub(super) fn parse(text: &str) -> Result<Cluster, Vec<String>> {
    let document = serde_saphyr::from_str(text).map_err(|error| vec![error.to_string()])?;
    cluster(document)
}

fn cluster(mut document: Value) -> Result<Cluster, Vec<String>> {
    forget_nulls(&mut document);
    for (field, wanted) in [("apiVersion", "giantnetes.io/v1alpha1"), ("kind", "Cluster")] {
        match document.get(field).and_then(Value::as_str) {
            Some(found) if found == wanted => {}
            found => return Err(vec![format!("{field}: must be {wanted}, and is {}", found.unwrap_or("missing"))]),
        }
    }
    let mut problems = schema::misfits(api::cluster_crd(), &document);
    problems.extend(unknown_metadata(&document["metadata"]));
    if !problems.is_empty() {
        return Err(problems);
    }
    serde_json::from_value(document).map_err(|error| vec![error.to_string()])
}

/// Fields beside those that every object has.
fn unknown_metadata(metadata: &Value) -> Vec<String> {
    let Ok(known) = serde_json::from_value::<ObjectMeta>(metadata.clone()).and_then(serde_json::to_value) else {
        // The decoder says what is wrong.
        return Vec::new();
    };
    let fields = metadata.as_object().into_iter().flatten();
    fields
        .filter(|(name, _)| known.get(name.as_str()).is_none())
        .map(|(name, _)| format!("metadata.{name}: unknown field"))
        .collect()
}

/// To the API server a field that is null is not there.
fn forget_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(forget_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_nulls),
        _ => {}
    }
}

/// Makes `new` what an update of `old` would be: identity and status are not the writer's.
pub(super) fn succeed(old: &Cluster, new: &mut Cluster) {
    new.metadata.uid.clone_from(&old.metadata.uid);
    new.metadata.namespace = new.metadata.namespace.take().or_else(|| old.metadata.namespace.clone());
    new.status.clone_from(&old.status);
}

#[cfg(test)]
#[allow(dead_code, clippy::expect_used)]
#[path = "../../../e2e/tests/admission/cases.rs"]
mod cases;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::plan, settings::Settings};

    /// What the plan says, a line per problem.
    fn verdict(case: &cases::Case, settings: &Settings) -> Result<(), Vec<String>> {
        let mut new = cluster(case.new.clone())?;
        let lines = |failure: crate::cli::Failure| failure.to_string().lines().map(str::to_owned).collect::<Vec<_>>();
        let Some(old) = &case.old else { return plan::fresh(&new, settings).map(drop).map_err(lines) };
        let (_, forbidden) = plan::against(&cluster(old.clone())?, &mut new, settings).map_err(lines)?;
        if forbidden.is_empty() { Ok(()) } else { Err(forbidden.iter().map(ToString::to_string).collect()) }
    }

    #[test]
    fn every_case_gets_the_verdict_that_the_api_server_gives() {
        let settings: Settings = serde_saphyr::from_str(cases::SETTINGS).unwrap();
        let all = cases::cases();
        let mut wrong = Vec::new();
        for case in &all {
            let refused = case.refused.as_ref().and_then(|refused| Some((refused, refused.valid.as_ref()?)));
            match (verdict(case, &settings), refused) {
                (Ok(()), None) => {}
                (Ok(()), Some(_)) => wrong.push(format!("{}: is accepted", case.case)),
                (Err(problems), None) => wrong.push(format!("{}: {}", case.case, problems.join("; "))),
                (Err(problems), Some((refused, rule))) => {
                    if !problems.iter().any(|problem| refused.is_said_by(problem, rule)) {
                        wrong.push(format!("{}: {}", case.case, problems.join("; ")));
                    }
                    assert!(problems.iter().all(|problem| problem.len() < 1000), "{}: nobody reads this", case.case);
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let bad = all.iter().filter(|case| case.refused.is_some()).count();
        assert!(bad >= 60 && all.len() - bad >= 20, "{bad} of {} cases are bad", all.len());
    }

    #[test]
    fn a_document_of_another_kind_and_unknown_metadata_are_named() {
        assert_eq!(parse("{kind: Pod}").unwrap_err(), ["apiVersion: must be giantnetes.io/v1alpha1, and is missing"]);
        let pod = parse("{apiVersion: giantnetes.io/v1alpha1, kind: Pod}").unwrap_err();
        assert_eq!(pod, ["kind: must be Cluster, and is Pod"]);
        let typo = "{apiVersion: giantnetes.io/v1alpha1, kind: Cluster, metadata: {name: a, lables: {}}, spec: {}}";
        assert_eq!(parse(typo).unwrap_err(), ["metadata.lables: unknown field"]);
        assert_eq!(parse("{").unwrap_err().len(), 1);
    }
}
