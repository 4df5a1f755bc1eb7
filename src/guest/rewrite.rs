//! Has Secrets of a guest stored anew, once its API servers encrypt with another key.
//!
//! A patch without a change does it: an API server that finds an object under another key than the one that it writes with stores it
//! again, and one under that key not. So each is written once, whoever asks how often, and nobody's change is lost: there is no version
//! that it could conflict with.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tracing::info;

use crate::runtime::{CallError, call, chain};

/// Requests at a time: a guest has others to answer.
const AT_A_TIME: usize = 4;
/// How long one look goes on with it; what is left is for the next.
const TIME: Duration = Duration::from_secs(30);

/// Has them stored anew. Answers why one could not be, if that was so.
pub(super) async fn rewrite(client: &Client, secrets: &[String]) -> Option<String> {
    if secrets.is_empty() {
        return None;
    }
    let done: Vec<_> = stream::iter(secrets.to_vec())
        .map(|secret| one(client.clone(), secret))
        .buffer_unordered(AT_A_TIME)
        .take_until(tokio::time::sleep(TIME))
        .collect()
        .await;
    info!(asked = secrets.len(), done = done.iter().flatten().count(), "Secrets of the guest are stored anew");
    done.into_iter().filter_map(Result::err).next().map(|error| chain(&error))
}

/// One that is gone meanwhile has nothing left to store.
async fn one(client: Client, secret: String) -> Result<(), CallError> {
    let Some((namespace, name)) = secret.split_once('/') else { return Ok(()) };
    let api = Api::<Secret>::namespaced(client, namespace);
    let what = format!("the guest's Secret {secret}");
    match call("patch", what, api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(json!({})))).await {
        Err(error) if error.status() == Some(404) => Ok(()),
        done => done.map(drop),
    }
}
