//! EC2 and load balancers, by AWS's query protocol: a form that is signed, answered with XML. Of their SDKs, which are larger than this
//! program, it would take a handful of calls.

use std::{fmt, sync::Arc};

use aws_sdk_cloudformation::{
    config::http::HttpResponse,
    error::{ErrorMetadata, ProvideErrorMetadata, SdkError},
};
use aws_sigv4::{
    http_request::{self, SignableBody, SignableRequest, SigningSettings},
    sign::v4,
};
use aws_smithy_runtime_api::{client::result::ConnectorError, http::StatusCode};
use aws_smithy_types::body::SdkBody;
use http::Request;
use http_body_util::BodyExt as _;
use kube::{Client, Config, client::Body};

use super::{
    caller::{Caller, Operation},
    failure::{AwsError, Failure},
    identity::Keyring,
    xml::Element,
};
use crate::runtime::link::{self, Server};

/// An answer has a page of a hundred things at most, each of some kilobytes.
const SERVER: Server = Server { name: "aws", connecting: std::time::Duration::from_secs(10), answer: 8 << 20 };

/// A service of AWS's that speaks the query protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Service {
    /// Its name in URLs and signatures.
    pub name: &'static str,
    /// Version of its API.
    pub version: &'static str,
}

/// Makes calls by the query protocol, as whom it was asked to be.
pub(super) struct Query {
    region: String,
    endpoint: Option<String>,
    keys: Arc<Keyring>,
    caller: Caller,
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").field("region", &self.region).finish_non_exhaustive()
    }
}

/// A refusal: its code and words.
#[derive(Debug)]
struct Refused(ErrorMetadata);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

impl ProvideErrorMetadata for Refused {
    fn meta(&self) -> &ErrorMetadata {
        &self.0
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Query {
    pub(super) fn new(region: String, endpoint: Option<String>, keys: Arc<Keyring>, caller: Caller) -> Self {
        Self { region, endpoint, keys, caller }
    }

    /// A call about `object`. Credentials of a role that AWS says have expired are got anew, once.
    ///
    /// # Errors
    /// If AWS refuses, or answers with what is no XML.
    pub(super) async fn call(
        &self,
        (operation, service): (&'static Operation, Service),
        object: &str,
        parameters: &[(String, String)],
    ) -> Result<Element, AwsError> {
        let send = || self.send(operation, service, parameters);
        self.keys.ready().await?;
        let text = match self.caller.call(operation, object, send).await {
            Err(AwsError { source: Failure::Expired(_), .. }) if self.keys.forget().await => {
                self.keys.ready().await?;
                self.caller.call(operation, object, send).await?
            }
            answer => answer?,
        };
        let strange =
            || AwsError { action: operation.action, object: object.to_owned(), source: Failure::Answer("XML") };
        Element::parse(&text).ok_or_else(strange)
    }

    async fn send(
        &self,
        operation: &Operation,
        service: Service,
        parameters: &[(String, String)],
    ) -> Result<String, SdkError<Refused, HttpResponse>> {
        let Service { name, version } = service;
        let url = self.endpoint.clone().unwrap_or_else(|| url(name, &self.region));
        let mut form = format!("Action={}&Version={version}", operation.name);
        for (key, value) in parameters {
            form.push_str(&format!("&{}={}", encoded(key), encoded(value)));
        }
        let request = self.signed(name, &url, form).map_err(SdkError::construction_failure)?;
        let client = client(&url).map_err(SdkError::construction_failure)?;
        let silent = |error: Error| SdkError::dispatch_failure(ConnectorError::io(error));
        let answer = client.send(request).await.map_err(|error| silent(error.into()))?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map_err(|error| silent(error.into()))?.to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if status.as_u16() < 400 {
            return Ok(text);
        }
        let said = Element::parse(&text);
        let word = |name: &str| said.as_ref().and_then(|said| said.first(name)).map(|it| it.text.clone());
        let mut meta = ErrorMetadata::builder();
        if let Some(code) = word("Code") {
            meta = meta.code(code);
        }
        meta = meta.message(word("Message").unwrap_or_default());
        let raw = HttpResponse::new(StatusCode::from(status), SdkBody::empty());
        Err(SdkError::service_error(Refused(meta.build()), raw))
    }

    fn signed(&self, service: &str, url: &str, form: String) -> Result<Request<Body>, Error> {
        let held = self.keys.held().ok_or("there are no credentials yet")?;
        let identity = held.into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(service)
            .time(std::time::SystemTime::now())
            .settings(SigningSettings::default())
            .build()?;
        let ours = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
        let body = SignableBody::Bytes(form.as_bytes());
        let request = SignableRequest::new("POST", url, ours.into_iter(), body)?;
        let (signed, _) = http_request::sign(request, &parameters.into())?.into_parts();
        let mut request = Request::builder().method("POST").uri(path(url));
        for (name, value) in ours.into_iter().chain(signed.headers()) {
            let mut value = http::HeaderValue::from_str(value)?;
            value.set_sensitive(name != "content-type");
            request = request.header(name, value);
        }
        Ok(request.body(Body::from(form.into_bytes()))?)
    }
}

fn client(url: &str) -> Result<Client, Error> {
    // Without a connection that is kept: there are few calls, and far between.
    Ok(link::connect_to(SERVER, Config::new(url.parse()?), None)?)
}

/// Where a service is. In China it is under another name.
fn url(service: &str, region: &str) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://{service}.{region}.{domain}/")
}

/// The path of a URL, which the client puts its own before.
fn path(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').map_or("/", |at| &rest[at..])
}

/// As forms have it, and signatures count it.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_in_their_region() {
        assert_eq!(url("ec2", "eu-central-1"), "https://ec2.eu-central-1.amazonaws.com/");
        assert_eq!(url("ec2", "cn-north-1"), "https://ec2.cn-north-1.amazonaws.com.cn/");
        assert_eq!((path("http://127.0.0.1:4566"), path("https://a.example/b/")), ("/", "/b/"));
        assert_eq!(encoded("tag:kubernetes.io/a b"), "tag%3Akubernetes.io%2Fa%20b");
    }
}
