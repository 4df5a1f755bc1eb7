//! The API server's audit policy.

use crate::api::AuditPolicy;

/// Health checks, the leases' heartbeat and what the nodes read are left out.
const BEGIN: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: [/healthz*, /livez*, /readyz*]
- level: None
  resources:
  - group: coordination.k8s.io
    resources: [leases]
- level: None
  verbs: [get, list, watch]
  userGroups: [system:nodes, system:masters]
";

/// The first rule that fits decides: what holds secrets comes before the bodies.
const REQUEST: &str = "\
- level: Metadata
  resources:
  - group: \"\"
    resources: [secrets, configmaps, serviceaccounts/token]
  - group: authentication.k8s.io
    resources: [tokenreviews]
- level: Request
  verbs: [create, update, patch, delete, deletecollection]
";

/// Who did what, without the bodies: bodies hold secrets.
const METADATA: &str = "- level: Metadata\n";

const NOTHING: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: None
";

/// The policy file.
pub(super) fn policy(wanted: AuditPolicy) -> String {
    match wanted {
        AuditPolicy::None => NOTHING.into(),
        AuditPolicy::Metadata => format!("{BEGIN}{METADATA}"),
        AuditPolicy::Request => format!("{BEGIN}{REQUEST}{METADATA}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The level at which a request for a resource is logged.
    fn level(policy: AuditPolicy, verb: &str, group: &str, resource: &str) -> String {
        let parsed: Value = serde_saphyr::from_str(&super::policy(policy)).unwrap();
        let has = |list: &Value, wanted: &str| list.as_array().is_none_or(|all| all.iter().any(|one| one == wanted));
        let rule = parsed["rules"].as_array().unwrap().iter().find(|rule| {
            let resources = rule["resources"].as_array();
            rule["nonResourceURLs"].is_null()
                && rule["userGroups"].is_null()
                && has(&rule["verbs"], verb)
                && resources
                    .is_none_or(|all| all.iter().any(|one| one["group"] == group && has(&one["resources"], resource)))
        });
        rule.unwrap()["level"].as_str().unwrap().to_owned()
    }

    #[test]
    fn bodies_are_logged_if_asked_for_and_those_of_secrets_never() {
        for (verb, group, resource, request) in [
            ("create", "apps", "deployments", "Request"),
            ("patch", "", "pods", "Request"),
            ("get", "", "pods", "Metadata"),
            ("create", "", "secrets", "Metadata"),
            ("update", "", "configmaps", "Metadata"),
            ("create", "", "serviceaccounts/token", "Metadata"),
            ("create", "authentication.k8s.io", "tokenreviews", "Metadata"),
            ("update", "coordination.k8s.io", "leases", "None"),
        ] {
            assert_eq!(level(AuditPolicy::Request, verb, group, resource), request, "{verb} {resource}");
            assert_eq!(level(AuditPolicy::None, verb, group, resource), "None");
            let metadata = level(AuditPolicy::Metadata, verb, group, resource);
            assert_eq!(metadata, if resource == "leases" { "None" } else { "Metadata" });
        }
    }
}
