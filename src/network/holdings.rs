//! Effects of claims: taking, giving back, and caring for those of former Clusters.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tracing::info;

use super::{
    claims::{self, Holder},
    reconcile::{Error, MANAGER},
};
use crate::{
    api::{Cluster, NetworkClaim, NetworkClaimSpec},
    cluster::{ClusterKey, Identity},
    context::{Context, Target},
    runtime::{CallError, apply, cache, call},
};

/// What trying to take a claim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is ours.
    Ours,
    /// Somebody was faster.
    Others,
}

/// The claims that there are.
pub(super) struct Holdings<'a>(pub &'a Context);

impl Holdings<'_> {
    fn api(&self) -> Api<NetworkClaim> {
        Api::all(self.0.client.clone())
    }

    /// Claims that a Cluster of this name holds or held.
    pub(super) fn of(&self, key: &ClusterKey) -> Vec<Arc<NetworkClaim>> {
        let names = self.0.cache.claims_by_cluster.names(&key.to_string());
        names.iter().filter_map(|name| cache::get(&self.0.cache.claims, None, name)).collect()
    }

    /// Whose the claim of this name is, as this guest sees it.
    pub(super) fn holder(&self, name: &str, identity: &Identity) -> Option<Holder> {
        let claim = cache::get(&self.0.cache.claims, None, name)?;
        Some(claims::holder(&claim, &identity.uid, self.0.settings.network.quarantine))
    }

    /// Takes a claim that nobody else is known to hold, or keeps it: the API server decides every race.
    pub(super) async fn take(&self, identity: &Identity, claim: &NetworkClaim) -> Result<Taken, Error> {
        let name = claim.name_any();
        if let Some(there) = cache::get(&self.0.cache.claims, None, &name) {
            return self.keep(identity, &there, claim).await;
        }
        let object = format!("NetworkClaim {name}");
        // The cache may lag behind our own claim, and a look costs the server less than a refused creation.
        let there = call("get", object.clone(), self.api().get_opt(&name)).await.map_err(Error::Claim)?;
        if let Some(there) = there {
            return self.keep(identity, &there, claim).await;
        }
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        match call("create", object, self.api().create(&params, claim)).await {
            Ok(_) => {
                info!(claim = name, "claimed");
                Ok(Taken::Ours)
            }
            // Somebody was faster.
            Err(error) if error.status() == Some(409) => Ok(Taken::Others),
            Err(error) => Err(Error::Claim(error)),
        }
    }

    /// Puts a claim of ours right that somebody edited, above all one that was marked as released: others would get it.
    async fn keep(&self, identity: &Identity, there: &NetworkClaim, wanted: &NetworkClaim) -> Result<Taken, Error> {
        if there.spec.cluster_ref.uid != identity.uid {
            return Ok(Taken::Others);
        }
        if claims::is_as_wanted(there, wanted) {
            return Ok(Taken::Ours);
        }
        let NetworkClaimSpec { kind, value, host, .. } = &wanted.spec;
        let patch = json!({
            "metadata": {"labels": wanted.metadata.labels},
            "spec": {"kind": kind, "value": value, "host": host, "releasedAt": null},
        });
        let kept = self.patch(there, "put right", patch).await.map_err(Error::Claim)?;
        if kept {
            info!(claim = there.name_any(), "an edit was undone");
        }
        Ok(if kept { Taken::Ours } else { Taken::Others })
    }

    /// Patches exactly the claim that was seen. Answers whether it was still there and the same.
    async fn patch(&self, claim: &NetworkClaim, action: &'static str, mut patch: Value) -> Result<bool, CallError> {
        let name = claim.name_any();
        patch["metadata"]["uid"] = json!(claim.metadata.uid);
        patch["metadata"]["resourceVersion"] = json!(claim.metadata.resource_version);
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match call(action, format!("NetworkClaim {name}"), self.api().patch(&name, &params, &Patch::Merge(patch))).await
        {
            // Gone, or changed by somebody: the watch brings what is now.
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// Cares for claims of former Clusters of this name: deletes those whose quarantine is over, and releases one whose
    /// creation was answered too late to be seen. Answers when the next quarantine ends.
    pub(super) async fn collect(&self, key: &ClusterKey, current: Option<&Target>) -> Result<Option<Duration>, Error> {
        let now = Timestamp::now();
        let mut next = None;
        for claim in self.of(key) {
            let uid = &claim.spec.cluster_ref.uid;
            let lives = current.is_some_and(|target| target.identity.uid == *uid && !target.is_deleting());
            if lives && claims::vni_of(&claim.name_any()).is_some() {
                // Whoever marked it as released: it is in use, and taken back.
                continue;
            }
            if let Some(free_at) = claims::free_at(&claim, self.0.settings.network.quarantine) {
                match Duration::try_from(free_at.duration_since(now)) {
                    Ok(left) if !left.is_zero() => next = Some(next.map_or(left, |next: Duration| next.min(left))),
                    _ => self.give_free(&claim).await?,
                }
            } else if current.is_none_or(|target| target.identity.uid != *uid) && !self.may_live(key, uid).await? {
                info!(claim = claim.name_any(), "its Cluster is no more");
                self.mark_released(&claim, now).await?;
            }
        }
        Ok(next)
    }

    /// Whether the server has the Cluster with this UID, or a trace of it.
    async fn may_live(&self, key: &ClusterKey, uid: &str) -> Result<bool, Error> {
        let clusters = Api::<Cluster>::namespaced(self.0.client.clone(), &key.namespace);
        let live = call("get", format!("Cluster {key}"), clusters.get_metadata_opt(&key.name)).await;
        if live.map_err(Error::Release)?.is_some_and(|live| live.metadata.uid.as_deref() == Some(uid)) {
            return Ok(true);
        }
        let namespace = Identity::new(key.clone(), uid.to_owned()).namespace;
        let namespaces = Api::<Namespace>::all(self.0.client.clone());
        let left = call("get", format!("Namespace {namespace}"), namespaces.get_metadata_opt(&namespace)).await;
        Ok(left.map_err(Error::Release)?.is_some())
    }

    async fn give_free(&self, claim: &NetworkClaim) -> Result<(), Error> {
        info!(claim = claim.name_any(), "its quarantine is over");
        apply::delete(&self.api(), &claim.metadata, None).await.map_err(Error::Release)
    }

    /// Gives a claim back: it rests from now on.
    pub(super) async fn mark_released(&self, claim: &NetworkClaim, now: Timestamp) -> Result<(), Error> {
        let patch = json!({"spec": {"releasedAt": Time(now)}});
        self.patch(claim, "release", patch).await.map(drop).map_err(Error::Release)
    }

    /// Gives all claims of a Cluster back. Answers whether the server itself has none left that is not released.
    pub(super) async fn release_all(&self, identity: &Identity) -> Result<bool, Error> {
        // From the server, not from the cache: what is not in the cache yet must not be left behind.
        let params = ListParams::default().labels(&identity.selector());
        let held = call("list", "NetworkClaims", self.api().list(&params)).await.map_err(Error::Release)?;
        let ours: Vec<_> = held.items.iter().filter(|claim| is_held_by(claim, identity)).collect();
        let now = Timestamp::now();
        for claim in &ours {
            self.mark_released(claim, now).await?;
        }
        Ok(ours.is_empty())
    }
}

/// Whether a Cluster holds a claim now.
pub(super) fn is_held_by(claim: &NetworkClaim, identity: &Identity) -> bool {
    claim.spec.cluster_ref.uid == identity.uid && claim.spec.released_at.is_none()
}
