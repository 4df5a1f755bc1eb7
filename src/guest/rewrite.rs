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
use tokio::time::Instant;
use tracing::info;

use crate::runtime::{CallError, call, chain};

/// Requests at a time: a guest has others to answer.
const AT_A_TIME: usize = 4;
/// How long one look goes on with it; what is left is for the next.
const TIME: Duration = Duration::from_secs(30);
/// How long the same ones are not asked for again.
const PAUSE: Duration = Duration::from_secs(60);

/// Has them stored anew. Answers why one could not be, if that was so.
pub(super) async fn rewrite(client: &Client, secrets: &[String]) -> Option<String> {
    if secrets.is_empty() {
        return None;
    }
    let done: Vec<_> = stream::iter(secrets.to_vec())
        .map(|secret| async { (secret.clone(), one(client.clone(), secret).await) })
        .buffer_unordered(AT_A_TIME)
        .take_until(tokio::time::sleep(TIME))
        .collect()
        .await;
    info!(
        asked = secrets.len(),
        done = done.iter().filter(|(_, done)| done.is_ok()).count(),
        "Secrets of the guest are stored anew"
    );
    first_refusal(done.into_iter().map(|(secret, done)| (secret, done.err().map(|error| chain(&error)))))
}

/// That of the first by name: those that are asked at a time end in any order, and nothing changed by that.
fn first_refusal(done: impl Iterator<Item = (String, Option<String>)>) -> Option<String> {
    done.filter_map(|(secret, why)| Some((secret, why?))).min().map(|(_, why)| why)
}

/// What was last asked of a guest, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    secrets: Vec<String>,
    at: Instant,
    unwritten: Option<String>,
}

impl Asked {
    /// These, now.
    pub(super) fn of(secrets: &[String], unwritten: Option<String>) -> Self {
        Self { secrets: secrets.to_vec(), at: Instant::now(), unwritten }
    }

    /// What became of the same ones, if that was a moment ago: until etcd is looked at again they are named again, and what is refused
    /// is refused again.
    pub(super) fn again(&self, secrets: &[String]) -> Option<Option<String>> {
        (self.secrets == secrets && self.at.elapsed() < PAUSE).then(|| self.unwritten.clone())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_ones_are_asked_for_again_after_a_while_and_others_at_once() {
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let asked = Asked::of(&named(&["a/b", "a/c"]), Some("refused".into()));
        assert_eq!(asked.again(&named(&["a/b", "a/c"])), Some(Some("refused".into())));
        assert_eq!(asked.again(&named(&["a/c"])), None);
        tokio::time::advance(PAUSE).await;
        assert_eq!(asked.again(&named(&["a/b", "a/c"])), None);
    }

    #[test]
    fn the_first_refusal_by_name_is_told_whatever_ended_first() {
        let all = [("a/c", Some("third")), ("a/a", None), ("a/b", Some("second"))];
        let told = first_refusal(all.into_iter().map(|(name, why)| (name.to_owned(), why.map(Into::into))));
        assert_eq!(told.as_deref(), Some("second"));
    }
}
