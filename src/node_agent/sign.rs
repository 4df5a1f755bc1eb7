//! How a node shows who it is: a question to STS that it signs and does not send. Vault sends it, and takes STS's word. Pure.

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{self, SignableBody, SignableRequest, SigningError, SigningSettings},
    sign::v4,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

use super::config::Login;

/// What a form is called.
pub const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// The question: it does nothing, and no policy has to allow it.
const QUESTION: &str = "Action=GetCallerIdentity&Version=2011-06-15";
/// What names the Vault that the signature is for. Vault refuses one that is for another, or does not cover this.
const SERVER_ID: &str = "X-Vault-AWS-IAM-Server-ID";

/// Keys of an instance's role.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Id of the key.
    pub id: String,
    /// The key.
    pub secret: SecretString,
    /// What shows that they are a role's, for a time.
    pub token: SecretString,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The signer has to know more, which would be a defect of ours.
    #[error("sign for {0}")]
    Parameters(String, #[source] v4::signing_params::BuildError),
    /// The request cannot be signed.
    #[error("sign a request to {0}")]
    Request(String, #[source] SigningError),
}

/// Where a form goes, and what is in it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// AWS's short name of the service.
    pub service: &'a str,
    /// Its region.
    pub region: &'a str,
    /// Its URL.
    pub url: &'a str,
    /// The form.
    pub body: &'a str,
}

/// Headers of a form that is posted, with these of ours among them, which the signature covers.
///
/// # Errors
/// [`SignError`], if the URL is none.
pub fn request(
    keys: &Keys,
    target: &Target<'_>,
    ours: &[(&str, &str)],
    now: Timestamp,
) -> Result<Vec<(String, String)>, SignError> {
    let token = Some(keys.token.expose_secret().to_owned());
    let identity = Credentials::new(&keys.id, keys.secret.expose_secret(), token, None, "instance").into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(target.region)
        .name(target.service)
        .time(now.into())
        .settings(SigningSettings::default())
        .build()
        .map_err(|source| SignError::Parameters(target.url.to_owned(), source))?;
    let failed = |source| SignError::Request(target.url.to_owned(), source);
    let body = SignableBody::Bytes(target.body.as_bytes());
    let request = SignableRequest::new("POST", target.url, ours.iter().copied(), body).map_err(failed)?;
    let (signed, _) = http_request::sign(request, &parameters.into()).map_err(failed)?.into_parts();
    let all = ours.iter().copied().chain(signed.headers());
    Ok(all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// What Vault is sent to log in (its auth method `aws`, type `iam`).
///
/// # Errors
/// [`SignError`], if the URL of STS is none.
pub fn login(keys: &Keys, at: &Login, now: Timestamp) -> Result<Value, SignError> {
    let ours = [("content-type", FORM), (SERVER_ID, at.server_id.as_str())];
    let target = Target { service: "sts", region: &at.region, url: &at.sts, body: QUESTION };
    let signed = request(keys, &target, &ours, now)?;
    let headers: Map<_, _> = signed.iter().map(|(name, value)| (canonical(name), json!([value]))).collect();
    Ok(json!({
        "role": at.role,
        "iam_http_request_method": "POST",
        "iam_request_url": STANDARD.encode(&at.sts),
        "iam_request_body": STANDARD.encode(QUESTION),
        "iam_request_headers": STANDARD.encode(Value::Object(headers).to_string()),
    }))
}

/// A header's name as Go spells it: Vault looks `Authorization` up by that.
fn canonical(name: &str) -> String {
    let mut begins = true;
    let spelt = name.chars().map(|letter| {
        let spelt = if begins { letter.to_ascii_uppercase() } else { letter };
        begins = letter == '-';
        spelt
    });
    spelt.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Login {
        Login {
            mount: "giantnetes-aws".into(),
            role: "g8s-abc-web".into(),
            server_id: "vault.example.com".into(),
            region: "eu-central-1".into(),
            sts: "https://sts.eu-central-1.amazonaws.com/".into(),
        }
    }

    fn keys() -> Keys {
        Keys { id: "ASIAEXAMPLE".into(), secret: "s3cr3t".to_owned().into(), token: "t0ken".to_owned().into() }
    }

    fn decoded(body: &Value, field: &str) -> String {
        String::from_utf8(STANDARD.decode(body[field].as_str().unwrap()).unwrap()).unwrap()
    }

    fn headers(at: &Login, keys: &Keys, now: i64) -> Value {
        let body = login(keys, at, Timestamp::from_second(now).unwrap()).unwrap();
        serde_json::from_str(&decoded(&body, "iam_request_headers")).unwrap()
    }

    #[test]
    fn vault_is_sent_what_its_documentation_asks_for() {
        let body = login(&keys(), &at(), Timestamp::from_second(1_800_000_000).unwrap()).unwrap();
        assert_eq!((&body["role"], &body["iam_http_request_method"]), (&json!("g8s-abc-web"), &json!("POST")));
        assert_eq!(decoded(&body, "iam_request_url"), "https://sts.eu-central-1.amazonaws.com/");
        assert_eq!(decoded(&body, "iam_request_body"), QUESTION);
        let headers: Value = serde_json::from_str(&decoded(&body, "iam_request_headers")).unwrap();
        assert_eq!(headers["X-Vault-AWS-IAM-Server-ID"], json!(["vault.example.com"]));
        assert_eq!(headers["X-Amz-Security-Token"], json!(["t0ken"]));
        assert_eq!(headers["X-Amz-Date"], json!(["20270115T080000Z"]));
        let authorization = headers["Authorization"][0].as_str().unwrap();
        let scope = "AWS4-HMAC-SHA256 Credential=ASIAEXAMPLE/20270115/eu-central-1/sts/aws4_request, ";
        let covered = "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-vault-aws-iam-server-id, ";
        assert!(authorization.starts_with(&format!("{scope}{covered}Signature=")), "{authorization}");
        // The key itself is in nothing that leaves the node.
        assert!(!headers.to_string().contains("s3cr3t") && !body.to_string().contains("s3cr3t"));
    }

    /// The signature was computed by botocore 1.43 of the same request at the same time.
    #[test]
    fn the_signature_is_the_one_that_others_compute() {
        let headers = headers(&at(), &keys(), 1_800_000_000);
        let authorization = headers["Authorization"][0].as_str().unwrap();
        let (_, signature) = authorization.split_once("Signature=").unwrap();
        assert_eq!(signature, "a7f07648d2be7f97561345cfc80a79a8a16fe9b50314debe24e3150c327e29b2");
    }

    #[test]
    fn a_signature_is_for_one_vault_one_time_and_one_key() {
        let signature = |at: &Login, keys: &Keys, now| headers(at, keys, now)["Authorization"].clone();
        let first = signature(&at(), &keys(), 0);
        assert_eq!(first, signature(&at(), &keys(), 0));
        assert_ne!(first, signature(&Login { server_id: "other".into(), ..at() }, &keys(), 0));
        assert_ne!(first, signature(&at(), &keys(), 1));
        assert_ne!(first, signature(&at(), &Keys { secret: "other".to_owned().into(), ..keys() }, 0));
        let nowhere = login(&keys(), &Login { sts: "not a URL".into(), ..at() }, Timestamp::UNIX_EPOCH);
        assert!(nowhere.unwrap_err().to_string().contains("not a URL"));
    }
}
