//! As whom a guest's account is entered: what the Secret beside its Cluster holds. Pure.

use k8s_openapi::api::core::v1::Secret;
use secrecy::SecretString;

use super::calls::identity::{Keys, Role, Way};
use crate::{
    api::names,
    cluster::{Identity, valid::AwsCredentials},
    settings::AwsSettings,
};

/// Why a Secret leads nowhere. What it holds is not told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// It is not there, or another sort of Secret. Which of both is not for everybody who may write a Cluster.
    #[error(
        "there is no Secret {0} of type {type_}, which spec.provider.aws.credentials.secretName names",
        type_ = names::AWS_CREDENTIALS_TYPE
    )]
    Missing(String),
    /// It lacks something.
    #[error("Secret {0} lacks {1}, or it is no text")]
    Lacks(String, &'static str),
}

/// The way to a guest's account, as the Secret says.
///
/// # Errors
/// [`CredentialsError`]
pub fn way(
    found: Option<&Secret>,
    identity: &Identity,
    (region, credentials): (&str, &AwsCredentials),
    settings: &AwsSettings,
) -> Result<Way, CredentialsError> {
    let place = format!("{}/{}", identity.key.namespace, credentials.secret);
    let ours = found.filter(|secret| secret.type_.as_deref() == Some(names::AWS_CREDENTIALS_TYPE));
    let secret = ours.ok_or_else(|| CredentialsError::Missing(place.clone()))?;
    let text = |key: &str| {
        let bytes = &secret.data.as_ref()?.get(key)?.0;
        let text = std::str::from_utf8(bytes).ok()?.trim();
        // What an HTTP header cannot carry would be quoted in an error.
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
    };
    let needed = |key| text(key).ok_or_else(|| CredentialsError::Lacks(place.clone(), key));
    Ok(Way {
        region: region.to_owned(),
        endpoint: settings.endpoint.clone(),
        keys: Keys {
            id: needed("accessKeyID")?,
            secret: SecretString::from(needed("secretAccessKey")?),
            session: text("sessionToken").map(SecretString::from),
        },
        role: credentials.role.clone().map(|arn| Role {
            arn,
            external_id: credentials.external_id.clone(),
            session: identity.namespace.clone(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::on_aws;

    #[test]
    fn keys_are_taken_from_a_secret_of_their_type_alone() {
        let valid = on_aws(json!({"provider": {"aws": {"credentials": {
            "secretName": "aws", "roleARN": "arn:aws:iam::111122223333:role/giantnetes", "externalID": "demo",
        }}}}));
        let (aws, settings) = (valid.aws.clone().unwrap(), AwsSettings::default());
        let of = |type_: &str, data: serde_json::Value| {
            let secret: Secret = serde_json::from_value(json!({"type": type_, "data": data})).unwrap();
            way(Some(&secret), &valid.identity, (&aws.region, &aws.credentials), &settings)
        };
        // AKIA and hush, as base64.
        let good = json!({"accessKeyID": "QUtJQQ==", "secretAccessKey": "aHVzaAo="});
        let found = of(names::AWS_CREDENTIALS_TYPE, good.clone()).unwrap();
        assert_eq!(found.keys.id, "AKIA");
        let role = found.role.unwrap();
        assert_eq!((role.external_id.as_deref(), role.session), (Some("demo"), valid.identity.namespace.clone()));
        let missing = way(None, &valid.identity, (&aws.region, &aws.credentials), &settings).unwrap_err();
        assert_eq!(of("Opaque", good).unwrap_err(), missing, "what there is, is not told");
        let lacks = of(names::AWS_CREDENTIALS_TYPE, json!({"accessKeyID": "QUtJQQ=="})).unwrap_err();
        assert!(lacks.to_string().contains("secretAccessKey"), "{lacks}");
        // Two lines are no header.
        let torn = of(names::AWS_CREDENTIALS_TYPE, json!({"accessKeyID": "QUtJQQ==", "secretAccessKey": "aAphCg=="}));
        assert!(torn.is_err());
    }
}
