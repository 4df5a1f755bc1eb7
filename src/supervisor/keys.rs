//! `/keys` and `/stored`: which keys the guest's API server verifies service-account tokens with, and what of the Secrets in the guest's
//! etcd is not encrypted with a certain key. The manager asks while keys are rotated.
//!
//! The first is the API server's own word. The second is read from etcd itself: what an API server says of an object tells nothing of
//! the key that it is stored with. No value leaves this process, nor does it look at more of one than its begin.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;

use super::{
    line::{Callee, Line},
    scrape::ETCD_PORT,
};
use crate::{
    api::names,
    node_config::paths::{CA, ETCD_CA},
    pki::{kubeconfig::TLS_SERVER_NAME, leaf},
};

/// Paths on the supervisor's port. The second is asked with `?key=NAME`.
pub const KEYS_PATH: &str = "/keys";
/// See [`KEYS_PATH`].
pub const STORED_PATH: &str = "/stored";
/// How long the API server may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a look at all Secrets may take: 10,000 of an emulated guest take about half of it.
pub const LOOK: Duration = Duration::from_secs(90);
/// Where API servers keep Secrets, and where that ends.
const SECRETS: (&str, &str) = ("/registry/secrets/", "/registry/secrets0");
/// Objects that are read at a time, and bytes that they may have: half as many are read then. One alone has 1.5 MiB at most, which
/// etcd sees to, and a third more in base64.
const PAGE: usize = 64;
const BYTES: usize = 4 << 20;
/// Objects that are named of those that have to be rewritten.
pub const NAMED: usize = 500;

/// What of the stored is not encrypted with a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// Secrets that are stored.
    pub all: usize,
    /// Those that are not encrypted with it.
    pub others: usize,
    /// The first of them, `namespace/name`; at most [`NAMED`].
    pub named: Vec<String>,
}

/// What is asked of [`STORED_PATH`].
#[derive(Debug, Deserialize)]
struct Wanted {
    /// Name of the key.
    key: String,
}

struct Node {
    address: IpAddr,
    api: (Callee, Mutex<Line>),
    etcd: (Callee, Mutex<Line>),
}

/// The routes of a control-plane node's supervisor.
pub(super) fn routes(node: &str, address: IpAddr) -> Router {
    let callee = |port, server_name: &str, authority, identity| Callee {
        port,
        server_name: server_name.to_owned(),
        authority,
        identity: Some(identity),
    };
    let api = callee(names::API_PORT, TLS_SERVER_NAME, CA, leaf::METRICS);
    let etcd = callee(ETCD_PORT, node, ETCD_CA, leaf::ETCD_CLIENT);
    let node = Node { address, api: (api, Mutex::default()), etcd: (etcd, Mutex::default()) };
    Router::new().route(KEYS_PATH, get(keys)).route(STORED_PATH, get(stored)).with_state(Arc::new(node))
}

async fn keys(State(node): State<Arc<Node>>) -> Result<Json<BTreeSet<String>>, StatusCode> {
    let ask = async {
        let client = node.api.1.lock().await.client(&node.api.0, node.address).await?;
        let request = http::Request::get("/openid/v1/jwks").body(Body::empty()).ok()?;
        let answer = client.send(request).await.ok()?;
        let well = answer.status() == StatusCode::OK;
        let text = super::health::read(answer.into_body()).await.filter(|_| well)?;
        ids(&text)
    };
    let found = tokio::time::timeout(TIMEOUT, ask).await.ok().flatten();
    found.map(Json).ok_or(StatusCode::BAD_GATEWAY)
}

/// Names of the keys of a JSON Web Key Set.
fn ids(text: &[u8]) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Key {
        kid: String,
    }
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Key>,
    }
    let set: Set = serde_json::from_slice(text).ok()?;
    Some(set.keys.into_iter().map(|key| key.kid).collect())
}

async fn stored(State(node): State<Arc<Node>>, Query(wanted): Query<Wanted>) -> Result<Json<Stored>, StatusCode> {
    // One look at a time: who asks again meanwhile waits for the line.
    let look = async {
        let mut line = node.etcd.1.lock().await;
        let client = line.client(&node.etcd.0, node.address).await?;
        sweep(&wanted.key, |from, revision, limit| page(client.clone(), question(&from, &revision, limit))).await
    };
    let found = tokio::time::timeout(LOOK, look).await.ok().flatten();
    found.map(Json).ok_or(StatusCode::BAD_GATEWAY)
}

/// A page's text: nothing within if it is too long, or is cut off. None: there is no answer, or it is none of success.
async fn page(client: kube::Client, question: Body) -> Option<Option<Vec<u8>>> {
    let answer = client.send(http::Request::post("/v3/kv/range").body(question).ok()?).await.ok()?;
    let well = answer.status() == StatusCode::OK;
    let body = Limited::new(answer.into_body(), BYTES).collect().await;
    well.then(|| body.ok().map(|body| body.to_bytes().to_vec()))
}

/// A request for a page of Secrets, as etcd's JSON gateway wants it: linearizable, so that nothing that was written before is missed.
fn question(from: &str, revision: &str, limit: usize) -> Body {
    let range = json!({
        "key": STANDARD.encode(from), "range_end": STANDARD.encode(SECRETS.1),
        "limit": limit.to_string(), "revision": revision,
    });
    Body::from(range.to_string().into_bytes())
}

#[derive(Deserialize)]
struct Page {
    header: Header,
    #[serde(default)]
    kvs: Vec<Pair>,
    #[serde(default)]
    more: bool,
}

#[derive(Deserialize)]
struct Header {
    revision: String,
}

#[derive(Deserialize)]
struct Pair {
    key: String,
    #[serde(default)]
    value: String,
}

/// Reads all Secrets, of one revision, page by page. `read` answers a page's text: nothing within if it is too long. None: it could not
/// be read to its end, and nothing is known.
async fn sweep<F>(key: &str, mut read: impl FnMut(String, String, usize) -> F) -> Option<Stored>
where
    F: Future<Output = Option<Option<Vec<u8>>>>,
{
    let begins = format!("k8s:enc:secretbox:v1:{key}:");
    let (mut from, mut revision, mut limit) = (SECRETS.0.to_owned(), "0".to_owned(), PAGE);
    let mut stored = Stored::default();
    loop {
        let text = match read(from.clone(), revision.clone(), limit).await? {
            Some(text) => text,
            None if limit > 1 => {
                limit /= 2;
                continue;
            }
            None => return None,
        };
        let page: Page = serde_json::from_slice(&text).ok()?;
        for pair in &page.kvs {
            from = String::from_utf8(STANDARD.decode(&pair.key).ok()?).ok()?;
            stored.all += 1;
            if !is_begun_by(&pair.value, &begins)? {
                stored.others += 1;
                if stored.named.len() < NAMED {
                    stored.named.push(from.strip_prefix(SECRETS.0)?.to_owned());
                }
            }
        }
        if !page.more || page.kvs.is_empty() {
            return Some(stored);
        }
        // The least key after it.
        from.push('\0');
        revision = page.header.revision;
    }
}

/// Whether a value (base64) begins so. Only as much of it is decoded.
fn is_begun_by(value: &str, begin: &str) -> Option<bool> {
    let enough = begin.len().div_ceil(3) * 4;
    let head = value.as_bytes().get(..enough.min(value.len()))?;
    Some(STANDARD.decode(head).ok()?.starts_with(begin.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, future::ready};

    use super::*;

    /// etcd, as far as it is asked: pages of what it holds, whose text may have so many bytes.
    fn etcd(held: &BTreeMap<String, String>, from: &str, limit: usize, most: usize) -> Option<Option<Vec<u8>>> {
        let mut rest = held.range(from.to_owned()..SECRETS.1.to_owned());
        let kvs: Vec<_> = rest
            .by_ref()
            .take(limit)
            .map(|(key, value)| json!({"key": STANDARD.encode(key), "value": STANDARD.encode(value)}))
            .collect();
        let page = json!({"header": {"revision": "7"}, "kvs": kvs, "more": rest.next().is_some(), "count": "9"});
        let text = page.to_string().into_bytes();
        Some((text.len() <= most).then_some(text))
    }

    async fn found(held: &BTreeMap<String, String>, most: usize) -> Option<Stored> {
        sweep("key2", |from, revision, limit| {
            assert_eq!(revision == "0", from == SECRETS.0, "pages are of one revision");
            ready(etcd(held, &from, limit, most))
        })
        .await
    }

    fn held(number: usize, key: &str) -> (String, String) {
        (format!("/registry/secrets/a/s{number:04}"), format!("k8s:enc:secretbox:v1:{key}:{}", "x".repeat(number % 90)))
    }

    #[tokio::test]
    async fn every_secret_is_looked_at_and_those_of_other_keys_are_named() {
        assert_eq!(found(&BTreeMap::new(), BYTES).await, Some(Stored::default()));
        let mut all: BTreeMap<_, _> = (0..1300).map(|number| held(number, "key2")).collect();
        all.insert("/registry/secretsfoo/x".into(), "another resource".into());
        assert_eq!(found(&all, BYTES).await.map(|stored| (stored.all, stored.others)), Some((1300, 0)));
        // Of another key whose name begins likewise, of none at all, and of nothing.
        all.extend([held(64, "key2-next"), held(640, "key1"), held(1299, "key")]);
        all.insert("/registry/secrets/b/plain".into(), "k8s\0 whatever".into());
        all.insert("/registry/secrets/b/void".into(), String::new());
        for most in [BYTES, 20_000, 600] {
            let stored = found(&all, most).await.unwrap();
            assert_eq!((stored.all, stored.others), (1302, 5), "{most}");
            assert_eq!(stored.named, ["a/s0064", "a/s0640", "a/s1299", "b/plain", "b/void"]);
        }
        let old: BTreeMap<_, _> = (0..900).map(|number| held(number, "key1")).collect();
        let stored = found(&old, BYTES).await.unwrap();
        assert_eq!((stored.others, stored.named.len(), stored.named[0].as_str()), (900, NAMED, "a/s0000"));
    }

    #[tokio::test]
    async fn what_could_not_be_read_to_its_end_is_not_known() {
        let all: BTreeMap<_, _> = (0..200).map(|number| held(number, "key2")).collect();
        // The second page fails, one that is too long by itself, and one that is no page.
        let broken = sweep("key2", |from, _, limit| {
            ready(if from == SECRETS.0 { etcd(&all, &from, limit, BYTES) } else { None })
        });
        assert_eq!(broken.await, None);
        assert_eq!(found(&all, 10).await, None);
        assert_eq!(sweep("key2", |_, _, _| ready(Some(Some(b"{}".to_vec())))).await, None);
    }

    #[test]
    fn keys_are_named_as_a_set_of_them_has_it() {
        let set = br#"{"keys":[{"use":"sig","kty":"EC","kid":"a","alg":"ES256"},{"kid":"b"}]}"#;
        assert_eq!(ids(set), Some(["a".to_owned(), "b".to_owned()].into()));
        assert_eq!([ids(b"{}"), ids(b"Forbidden")], [None, None]);
    }
}
