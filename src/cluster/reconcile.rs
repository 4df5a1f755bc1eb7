//! Effects of the cluster operator: finalizer, namespace, deletion, and the Cluster's status.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Namespace, jiff::Timestamp};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{PartialObjectMeta, PostParams},
};
use tracing::info;

use super::{
    ClusterKey, Identity, Report,
    news::news,
    pace::{GAP, Pace, weigh},
    plan,
};
use crate::{
    api::{Cluster, ClusterStatus, Reason, names},
    context::{Context, Target},
    runtime::{
        CallError,
        apply::{self, Applied, Applier, ApplyError},
        cache, call, chain, finalizer,
        operator::Reconciler,
        queue::Outcome,
    },
};

const MANAGER: &str = "giantnetes.cluster";

/// How often a Cluster that is being deleted is looked at, beside every change of it.
const DELETION_POLL: Duration = Duration::from_secs(2);

/// How often a guest whose namespace was deleted is looked at.
const LOST_POLL: Duration = Duration::from_secs(60);

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace.
    #[error("make the guest's namespace")]
    Namespace(#[source] ApplyError),
    /// A look at the namespace.
    #[error("look at the guest's namespace")]
    Look(#[source] CallError),
    /// The finalizer.
    #[error("protect the Cluster with a finalizer")]
    Finalizer(#[source] CallError),
    /// The status.
    #[error("write the Cluster's status")]
    Status(#[source] CallError),
    /// Deletion.
    #[error("delete the guest's namespace")]
    Delete(#[source] CallError),
}

/// The cluster operator.
pub struct ClusterOperator {
    context: Context,
    applier: Applier,
    pace: Pace,
}

impl ClusterOperator {
    /// A cluster operator.
    pub fn new(context: Context) -> Self {
        let applier = Applier::new(MANAGER, names::HASH_ANNOTATION, &context.memory);
        Self { context, applier, pace: Pace::default() }
    }

    fn clusters(&self, key: &ClusterKey) -> Api<Cluster> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }

    fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.context.client.clone())
    }

    async fn keep(&self, key: &ClusterKey, target: &Target) -> Result<Outcome, Error> {
        if finalizer::add(&self.clusters(key), &target.cluster, names::CLUSTER_FINALIZER, MANAGER)
            .await
            .map_err(Error::Finalizer)?
        {
            // The change comes back by the watch, and with it the next look.
            return Ok(Outcome::AwaitChange);
        }
        let mut failure = None;
        let mut result = Ok(Outcome::AwaitChange);
        if let Some(lost) = self.lost_namespace(&target.identity).await.map_err(Error::Look)? {
            failure = Some((Reason::CALost, lost));
            result = Ok(Outcome::After(LOST_POLL));
        } else if target.valid.is_ok() {
            match self.ensure_namespace(&target.identity).await {
                Ok(Applied::Terminating) => result = Ok(Outcome::After(DELETION_POLL)),
                // The watch brings it in a moment: the first status pins its UID, too.
                Ok(_) if self.seen_namespace(&target.identity).is_none() => return Ok(Outcome::After(GAP)),
                Ok(_) => {}
                Err(error) => {
                    let reason = match error {
                        ApplyError::Foreign { .. } => Reason::ForeignObject,
                        _ => Reason::Error,
                    };
                    failure = Some((reason, chain(&error)));
                    result = Err(Error::Namespace(error));
                }
            }
        }
        let is_known = target.cluster.status.is_some() && failure.is_none() && target.valid.is_ok();
        if is_known && target.identity.namespace_uid.is_some() && !self.context.has_heard_all(target) {
            // After a start: what the others will say wakes us, and until then the status that is there says more.
            return result;
        }
        match self.write_status(key, target, None, failure).await? {
            Some(pause) => result.map(|outcome| outcome.or_sooner(Outcome::After(pause))),
            None => result,
        }
    }

    /// Says that nothing is done, and leaves what was said before.
    async fn pause(&self, key: &ClusterKey, target: &Target, left: Duration) -> Result<Outcome, Error> {
        let fresh = ClusterStatus::default();
        let old = target.cluster.status.as_ref().unwrap_or(&fresh);
        let until = target.valid.as_ref().ok().and_then(|valid| valid.paused_until).unwrap_or_default();
        let generation = target.cluster.meta().generation.unwrap_or_default();
        let reports = self.context.reports.of(&target.identity);
        let pki = reports.pki.as_ref().and_then(Report::facts);
        self.replace_status(key, target, plan::paused_status(old, generation, until, pki, Timestamp::now())).await?;
        self.pace.rests(key);
        Ok(Outcome::After(left))
    }

    /// Says so if the pinned namespace is no more. It is not made anew: with it went the roots that the guest lives on.
    async fn lost_namespace(&self, identity: &Identity) -> Result<Option<String>, CallError> {
        let Some(pinned) = &identity.namespace_uid else { return Ok(None) };
        let cached = self.seen_namespace(identity);
        if cached.is_some_and(|namespace| namespace.metadata.uid.as_ref() == Some(pinned)) {
            return Ok(None);
        }
        let object = format!("Namespace {}", identity.namespace);
        let live = call("get", object, self.namespaces().get_metadata_opt(&identity.namespace)).await?;
        if live.is_some_and(|namespace| namespace.metadata.uid.as_ref() == Some(pinned)) {
            return Ok(None);
        }
        Ok(Some(format!(
            "namespace {} was deleted, and with it the guest's roots and etcd's volume; delete the Cluster, they are never made anew",
            identity.namespace
        )))
    }

    /// The namespace as the cache has it.
    fn seen_namespace(&self, identity: &Identity) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        cache::get(&self.context.cache.namespaces, None, &identity.namespace)
    }

    async fn ensure_namespace(&self, identity: &Identity) -> Result<Applied, ApplyError> {
        let cached = self.seen_namespace(identity);
        let desired = plan::namespace(identity);
        self.applier
            .ensure(&self.namespaces(), &identity.owner(), &desired, cached.as_ref().map(|object| &object.metadata))
            .await
    }

    async fn delete(&self, key: &ClusterKey, target: &Target) -> Result<Outcome, Error> {
        if !target.cluster.finalizers().iter().any(|name| name == names::CLUSTER_FINALIZER) {
            return Ok(Outcome::AwaitChange);
        }
        let reports = self.context.reports.of(&target.identity);
        let pods_are_gone = reports.kvm.as_ref().is_some_and(super::Report::is_gone);
        let namespace_is_gone = self.delete_namespace(&target.identity, pods_are_gone).await.map_err(Error::Delete)?;
        let left = plan::left_over(&reports, target.is_on_aws(), namespace_is_gone);
        if left.is_empty() {
            finalizer::remove(&self.clusters(key), &target.cluster, names::CLUSTER_FINALIZER, MANAGER)
                .await
                .map_err(Error::Finalizer)?;
            info!("every trace is gone; the Cluster is released");
            return Ok(Outcome::AwaitChange);
        }
        self.write_status(key, target, Some(left), None).await?;
        Ok(Outcome::After(DELETION_POLL))
    }

    /// Deletes the namespace if its time has come. Answers whether it was seen to be gone, asking the server itself.
    async fn delete_namespace(&self, identity: &Identity, may_go: bool) -> Result<bool, CallError> {
        let api = self.namespaces();
        let object = format!("Namespace {}", identity.namespace);
        let Some(live) = call("get", object, api.get_metadata_opt(&identity.namespace)).await? else {
            return Ok(true);
        };
        // One that lost its annotation, but has our label, is ours still: leaving it behind would leave keys behind.
        let labels = live.metadata.labels.as_ref();
        let labelled = labels.and_then(|labels| labels.get(names::CLUSTER_LABEL)) == Some(&identity.id);
        let named = live.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(names::OWNER_UID_ANNOTATION));
        if !identity.owner().owns(&live.metadata) && (named || !labelled) {
            return Ok(true);
        }
        if may_go && live.metadata.deletion_timestamp.is_none() {
            apply::delete(&api, &live.metadata, None).await?;
        }
        Ok(false)
    }

    /// Writes the status that follows from the reports, if it is another one. Answers how long that has to wait.
    async fn write_status(
        &self,
        key: &ClusterKey,
        target: &Target,
        deleting: Option<Vec<&'static str>>,
        failure: Option<(Reason, String)>,
    ) -> Result<Option<Duration>, Error> {
        let fresh = ClusterStatus::default();
        let old = target.cluster.status.as_ref().unwrap_or(&fresh);
        let observed = plan::Observed {
            identity: &target.identity,
            generation: target.cluster.meta().generation.unwrap_or_default(),
            old,
            valid: &target.valid,
            reports: &self.context.reports.of(&target.identity),
            deleting,
            namespace_uid: self
                .seen_namespace(&target.identity)
                .filter(|namespace| target.identity.owner().owns(&namespace.metadata))
                .and_then(|namespace| namespace.metadata.uid.clone()),
            failure,
        };
        let new = plan::status(&observed, Timestamp::now());
        if new == *old {
            self.pace.rests(key);
            return Ok(None);
        }
        // What is pinned is waited for by the others.
        let pins = |status: &ClusterStatus| {
            let ClusterStatus { namespace_uid, version, image, vni, endpoint, vault, etcd_formed, .. } = status;
            (namespace_uid.clone(), version.clone(), image.clone(), *vni, endpoint.clone(), vault.clone(), *etcd_formed)
        };
        let weight = weigh(old, &new);
        if pins(&new) == pins(old) {
            let wait = self.pace.wait(key, weight);
            if !wait.is_zero() {
                return Ok(Some(wait));
            }
        }
        if self.replace_status(key, target, new).await? {
            self.pace.written(key, weight);
        }
        Ok(None)
    }

    /// Writes a status unless it is so already, and tells what is news in it. Answers whether it was written.
    async fn replace_status(&self, key: &ClusterKey, target: &Target, new: ClusterStatus) -> Result<bool, Error> {
        let fresh = ClusterStatus::default();
        let old = target.cluster.status.as_ref().unwrap_or(&fresh);
        if new == *old {
            return Ok(false);
        }
        info!(phase = new.phase.as_deref(), message = new.message.as_deref(), "status");
        let said = news(old, &new);
        let mut cluster = Cluster::clone(&target.cluster);
        cluster.status = Some(new);
        let write = self.clusters(key);
        let name = cluster.name_any();
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        match call("replace status of", key.to_string(), write.replace_status(&name, &params, &cluster)).await {
            // Somebody was faster, or it is gone: the watch brings the newer object and with it the next look.
            Err(error) if matches!(error.status(), Some(404 | 409)) => return Ok(false),
            Err(error) => return Err(Error::Status(error)),
            Ok(_) => {}
        }
        for news in said {
            self.context.events.say(&*target.cluster, news.weight, &news.reason, "Reconcile", &news.note).await;
        }
        Ok(true)
    }
}

impl Reconciler for ClusterOperator {
    const NAME: &'static str = "cluster";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let Some(target) = self.context.target(key) else {
            self.context.reports.forget(key);
            self.pace.forget(key);
            return Ok(Outcome::AwaitChange);
        };
        if let Some(left) = target.paused(Timestamp::now()) {
            return self.pause(key, &target, left).await;
        }
        if target.is_deleting() { self.delete(key, &target).await } else { self.keep(key, &target).await }
    }
}
