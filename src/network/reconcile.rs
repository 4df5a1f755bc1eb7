//! Effects of the network operator: the VNI claim and the Service.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Service},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tracing::info;

use super::{
    NetworkFacts,
    claims::{self, Holder, VniChoice},
    plan, policies,
};
use crate::{
    api::{Cluster, NetworkClaim, Reason, names},
    cluster::{Blames, ClusterKey, Identity, Report, Valid},
    context::{Context, Target},
    runtime::{
        CallError,
        apply::{self, Applier, ApplyError},
        cache, call,
        operator::Reconciler,
        queue::Outcome,
    },
};

/// Pause before a claim that met a faster one is tried again.
const CLAIM_PAUSE: Duration = Duration::from_secs(1);
/// Pause before a VNI that is taken is asked for again.
const TAKEN_PAUSE: Duration = Duration::from_secs(30);

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The claim on a VNI.
    #[error("claim a VNI")]
    Claim(#[source] CallError),
    /// Giving the VNI back.
    #[error("release the VNI")]
    Release(#[source] CallError),
    /// The policy.
    #[error("make the guest's NetworkPolicy")]
    Policy(#[source] ApplyError),
    /// The Service.
    #[error("make the Service in front of the guest's API")]
    Service(#[source] ApplyError),
    /// The Service that lists the VM pods.
    #[error("make the Service that lists the guest's VM pods")]
    Nodes(#[source] ApplyError),
}

impl Blames for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Service(ApplyError::Foreign { .. })
            | Self::Nodes(ApplyError::Foreign { .. })
            | Self::Policy(ApplyError::Foreign { .. }) => Reason::ForeignObject,
            _ => Reason::Error,
        }
    }
}

type Answer = (Report<NetworkFacts>, Outcome);

/// The network operator.
pub struct NetworkOperator {
    context: Context,
    applier: Applier,
}

impl NetworkOperator {
    /// A network operator.
    pub fn new(context: Context) -> Self {
        let applier = Applier::new("giantnetes.network", names::HASH_ANNOTATION, &context.memory);
        Self { context, applier }
    }

    fn claims(&self) -> Api<NetworkClaim> {
        Api::all(self.context.client.clone())
    }

    async fn look(&self, key: &ClusterKey, target: &Target) -> Result<Answer, Error> {
        if target.is_deleting() {
            return self.release(&target.identity).await;
        }
        let Some(valid) = target.workable() else {
            return Ok((Report::waiting("a valid and protected Cluster"), Outcome::AwaitChange));
        };
        let held = self.claims_of(key).iter().find_map(|claim| {
            let ours = claim.spec.cluster_ref.uid == valid.identity.uid && claim.spec.released_at.is_none();
            if ours { claims::vni_of(&claim.name_any()) } else { None }
        });
        let quarantine = self.context.settings.network.quarantine;
        let holder = |vni| {
            let claim = cache::get(&self.context.cache.claims, None, &claims::claim_name(vni))?;
            Some(claims::holder(&claim, quarantine))
        };
        match claims::choose_vni(&valid.identity, valid.requested_vni, held, holder) {
            VniChoice::Held(vni) => self.serve(valid, vni).await,
            VniChoice::Claim(vni) => self.claim(valid, vni).await,
            VniChoice::InUse(vni, holder) => {
                let pause = match holder {
                    Holder::Cluster(_) => TAKEN_PAUSE,
                    // A moment later than that, since the claim is deleted then.
                    Holder::Quarantine(until) => Duration::try_from(until.duration_since(Timestamp::now()))
                        .map_or(CLAIM_PAUSE, |left| (left + CLAIM_PAUSE).min(TAKEN_PAUSE)),
                };
                Ok((vni_in_use(vni, &holder), Outcome::After(pause)))
            }
            VniChoice::Exhausted => {
                let message = "every VNI is taken; delete a Cluster".to_owned();
                Ok((Report::failed(Reason::VNIExhausted, message, None), Outcome::After(TAKEN_PAUSE)))
            }
        }
    }

    fn claims_of(&self, key: &ClusterKey) -> Vec<Arc<NetworkClaim>> {
        let names = self.context.cache.claims_by_cluster.names(&key.to_string());
        names.iter().filter_map(|name| cache::get(&self.context.cache.claims, None, name)).collect()
    }

    async fn claim(&self, valid: &Valid, vni: u32) -> Result<Answer, Error> {
        let claim = claims::claim(&valid.identity, vni);
        let name = claims::claim_name(vni);
        match call("create", format!("NetworkClaim {name}"), self.claims().create(&PostParams::default(), &claim)).await
        {
            Ok(_) => {
                info!(vni, "claimed");
                self.serve(valid, vni).await
            }
            Err(error) if error.status() == Some(409) => {
                // Ours, if the cache lags behind our own claim; else somebody was faster.
                let holder = call("get", format!("NetworkClaim {name}"), self.claims().get_opt(&name)).await;
                match holder.map_err(Error::Claim)? {
                    Some(held)
                        if held.spec.cluster_ref.uid == valid.identity.uid && held.spec.released_at.is_none() =>
                    {
                        self.serve(valid, vni).await
                    }
                    _ => Ok((Report::waiting("a VNI"), Outcome::After(CLAIM_PAUSE))),
                }
            }
            Err(error) => Err(Error::Claim(error)),
        }
    }

    async fn serve(&self, valid: &Valid, vni: u32) -> Result<Answer, Error> {
        let identity = &valid.identity;
        if self.context.namespace(identity).is_none() {
            let what = format!("namespace {}", identity.namespace);
            return Ok((Report::waiting(what), Outcome::AwaitChange));
        }
        // Before anything runs that it holds back: the VM pods wait for this operator's facts.
        let policies = Api::<NetworkPolicy>::namespaced(self.context.client.clone(), &identity.namespace);
        let cached = self.context.meta(&self.context.cache.policies, &identity.namespace, policies::POLICY);
        let policy = policies::policy(identity, &self.context.settings);
        self.applier.ensure(&policies, &identity.owner(), &policy, cached.as_ref()).await.map_err(Error::Policy)?;
        let cached = self.context.master_service(identity);
        let api = Api::<Service>::namespaced(self.context.client.clone(), &identity.namespace);
        self.applier
            .ensure(&api, &identity.owner(), &plan::master_service(valid), cached.as_ref().map(|s| &s.metadata))
            .await
            .map_err(Error::Service)?;
        // A guest of one node has no peers to find.
        if !valid.pools.is_empty() {
            let cached = self.context.meta(&self.context.cache.services, &identity.namespace, names::NODES_SERVICE);
            self.applier
                .ensure(&api, &identity.owner(), &plan::nodes_service(valid), cached.as_ref())
                .await
                .map_err(Error::Nodes)?;
        }
        let address = cached.as_ref().and_then(|service| service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok());
        Ok(match address {
            Some(api_address) => (Report::Ready(NetworkFacts { vni, api_address }), Outcome::AwaitChange),
            None => (Report::waiting("the Service's address"), Outcome::AwaitChange),
        })
    }

    /// Cares for claims of former Clusters of this name: deletes those whose quarantine is over, and releases one whose
    /// creation was answered too late to be seen. Answers when the next quarantine ends.
    async fn collect(&self, key: &ClusterKey, current: Option<&Target>) -> Result<Option<Duration>, Error> {
        let now = Timestamp::now();
        let mut next = None;
        for claim in self.claims_of(key) {
            let uid = &claim.spec.cluster_ref.uid;
            if let Some(free_at) = claims::free_at(&claim, self.context.settings.network.quarantine) {
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
        let clusters = Api::<Cluster>::namespaced(self.context.client.clone(), &key.namespace);
        let live = call("get", format!("Cluster {key}"), clusters.get_metadata_opt(&key.name)).await;
        if live.map_err(Error::Release)?.is_some_and(|live| live.metadata.uid.as_deref() == Some(uid)) {
            return Ok(true);
        }
        let namespace = Identity::new(key.clone(), uid.to_owned()).namespace;
        let namespaces = Api::<Namespace>::all(self.context.client.clone());
        let left = call("get", format!("Namespace {namespace}"), namespaces.get_metadata_opt(&namespace)).await;
        Ok(left.map_err(Error::Release)?.is_some())
    }

    async fn give_free(&self, claim: &NetworkClaim) -> Result<(), Error> {
        info!(claim = claim.name_any(), "its quarantine is over");
        apply::delete(&self.claims(), &claim.metadata, None).await.map_err(Error::Release)
    }

    async fn mark_released(&self, claim: &NetworkClaim, now: Timestamp) -> Result<(), Error> {
        let name = claim.name_any();
        let patch = json!({
            "metadata": {"uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version},
            "spec": {"releasedAt": Time(now)},
        });
        let params = PatchParams { field_manager: Some("giantnetes.network".into()), ..PatchParams::default() };
        match call("release", format!("NetworkClaim {name}"), self.claims().patch(&name, &params, &Patch::Merge(patch)))
            .await
        {
            // Gone, or changed by somebody: the watch brings what is now.
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
            Err(error) => Err(Error::Release(error)),
            Ok(_) => Ok(()),
        }
    }

    /// Gives the claims back, but not before the last VM pod that could send with this VNI is gone.
    async fn release(&self, identity: &Identity) -> Result<Answer, Error> {
        if !self.context.reports.of(identity).kvm.is_some_and(|report| report.is_gone()) {
            return Ok((Report::waiting("the VM pods to be gone"), Outcome::AwaitChange));
        }
        // From the server, not from the cache: what is not in the cache yet must not be left behind.
        let params = ListParams::default().labels(&identity.selector());
        let held = call("list", "NetworkClaims", self.claims().list(&params)).await.map_err(Error::Release)?;
        let ours =
            |claim: &&NetworkClaim| claim.spec.cluster_ref.uid == identity.uid && claim.spec.released_at.is_none();
        let ours: Vec<_> = held.items.iter().filter(ours).collect();
        if ours.is_empty() {
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        let now = Timestamp::now();
        for claim in ours {
            self.mark_released(claim, now).await?;
        }
        Ok((Report::waiting("the claims to be released"), Outcome::After(CLAIM_PAUSE)))
    }
}

fn vni_in_use(vni: u32, holder: &Holder) -> Report<NetworkFacts> {
    let why = match holder {
        Holder::Cluster(_) => "belongs to another Cluster".to_owned(),
        Holder::Quarantine(until) => format!("was given back and is in quarantine until {until:.0}"),
    };
    Report::failed(Reason::VNIInUse, format!("VNI {vni} {why}; ask for another, or for none"), None)
}

/// The earlier of what a look asked for and `next`.
fn sooner(outcome: Outcome, next: Option<Duration>) -> Outcome {
    match (outcome, next) {
        (Outcome::AwaitChange, Some(next)) => Outcome::After(next),
        (Outcome::After(pause), Some(next)) => Outcome::After(pause.min(next)),
        (outcome, _) => outcome,
    }
}

impl Reconciler for NetworkOperator {
    const NAME: &'static str = "network";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let target = self.context.target(key);
        let next = self.collect(key, target.as_ref()).await?;
        let Some(target) = target else { return Ok(sooner(Outcome::AwaitChange, next)) };
        let look = self.look(key, &target).await;
        let outcome = self.context.reports.conclude(&target.identity, |reports| &mut reports.network, look)?;
        Ok(sooner(outcome, next))
    }
}
