//! The API server's `AuthenticationConfiguration`: who may come without a certificate or a service account's token.

use serde_json::json;

use crate::cluster::valid::Oidc;

/// Anonymous requests reach the health endpoints and nothing else.
const ANONYMOUS: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
";

/// The file; with the users of an OpenID Connect issuer, if there is one.
pub(super) fn configuration(oidc: Option<&Oidc>) -> String {
    let Some(oidc) = oidc else { return ANONYMOUS.into() };
    // Whatever a user wrote stands as a JSON text, which no YAML parser takes for anything else.
    let text = |text: &str| json!(text).to_string();
    let mut file = format!(
        "{ANONYMOUS}jwt:\n- issuer:\n    url: {}\n    audiences: [{}]\n",
        text(&oidc.issuer_url),
        text(&oidc.client_id),
    );
    if let Some(bundle) = &oidc.ca_bundle {
        file.push_str(&format!("    certificateAuthority: {}\n", text(bundle)));
    }
    let mapping = |claim: &str, prefix: &str| format!("{{claim: {}, prefix: {}}}\n", text(claim), text(prefix));
    file.push_str("  claimMappings:\n");
    file.push_str(&format!("    username: {}", mapping(&oidc.username_claim, &oidc.username_prefix)));
    if let Some(claim) = &oidc.groups_claim {
        file.push_str(&format!("    groups: {}", mapping(claim, &oidc.groups_prefix)));
    }
    file
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::valid;

    fn parsed(oidc: Value) -> Value {
        let valid = valid(json!({"kubernetes": {"apiServer": {"oidc": oidc}}}));
        serde_saphyr::from_str(&configuration(valid.kubernetes.api_server.oidc.as_ref())).unwrap()
    }

    #[test]
    fn users_of_an_issuer_are_mapped_as_asked_for_and_anonymous_ones_stay_outside() {
        let bundle = crate::testing::certificate();
        let file = parsed(json!({
            "issuerURL": "https://login.example.com/a", "clientID": "guests", "usernameClaim": "email",
            "usernamePrefix": "it's: \"#{}\\", "groupsClaim": "groups", "caBundle": bundle,
        }));
        assert_eq!(
            file["jwt"],
            json!([{
                "issuer": {
                    "url": "https://login.example.com/a", "audiences": ["guests"], "certificateAuthority": bundle,
                },
                "claimMappings": {
                    "username": {"claim": "email", "prefix": "it's: \"#{}\\"},
                    "groups": {"claim": "groups", "prefix": ""},
                },
            }])
        );
        assert_eq!(file["anonymous"]["conditions"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn the_least_that_can_be_said_of_an_issuer_is_enough() {
        let file = parsed(json!({"issuerURL": "https://a.example", "clientID": "b"}));
        let username = json!({"claim": "sub", "prefix": "https://a.example#"});
        assert_eq!(file["jwt"][0]["claimMappings"], json!({"username": username}));
        assert_eq!(parsed(Value::Null)["jwt"], Value::Null);
    }
}
