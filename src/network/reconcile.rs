//! Effects of the network operator: the VNI claim and the Service.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};
use tracing::info;

use super::{NetworkFacts, plan};
use crate::{
    api::{Cluster, NetworkClaim, Reason, names},
    cluster::{ClusterKey, Identity, Report, Valid},
    context::{Context, Target},
    runtime::{
        CallError,
        apply::{self, Applier, ApplyError},
        call, chain,
        operator::Reconciler,
        queue::Outcome,
    },
};

/// Pause before a claim that met a faster one is tried again.
const CLAIM_PAUSE: Duration = Duration::from_secs(1);

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The claim on a VNI.
    #[error("claim a VNI")]
    Claim(#[source] CallError),
    /// Giving the VNI back.
    #[error("release the VNI")]
    Release(#[source] CallError),
    /// The Service.
    #[error("make the Service in front of the guest's API")]
    Service(#[source] ApplyError),
}

impl Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Service(ApplyError::Foreign { .. }) => Reason::ForeignObject,
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
        Self { context, applier: Applier::new("giantnetes.network", names::HASH_ANNOTATION) }
    }

    fn claims(&self) -> Api<NetworkClaim> {
        Api::all(self.context.client.clone())
    }

    async fn look(&self, target: &Target) -> Result<Answer, Error> {
        if target.is_deleting() {
            return self.release(&target.identity).await;
        }
        let Some(valid) = target.workable() else {
            return Ok((Report::waiting("a valid and protected Cluster"), Outcome::AwaitChange));
        };
        match plan::choose_vni(&valid.identity, valid.requested_vni, &self.known_claims()) {
            plan::VniChoice::Held(vni) => self.serve(valid, vni).await,
            plan::VniChoice::Claim(vni) => self.claim(valid, vni).await,
            plan::VniChoice::InUse(vni) => {
                let message = format!("VNI {vni} belongs to another Cluster; ask for another, or for none");
                Ok((Report::failed(Reason::VNIInUse, message, None), Outcome::After(Duration::from_secs(30))))
            }
            plan::VniChoice::Exhausted => {
                let message = "every VNI is taken; delete a Cluster".to_owned();
                Ok((Report::failed(Reason::VNIExhausted, message, None), Outcome::After(Duration::from_secs(30))))
            }
        }
    }

    fn known_claims(&self) -> BTreeMap<u32, String> {
        let claims = self.context.cache.claims.state();
        claims
            .iter()
            // The name is the claim; what else the object says is for people.
            .filter_map(|claim| {
                Some((claim.name_any().strip_prefix("vni-")?.parse().ok()?, claim.spec.cluster_ref.uid.clone()))
            })
            .collect()
    }

    async fn claim(&self, valid: &Valid, vni: u32) -> Result<Answer, Error> {
        let claim = plan::claim(&valid.identity, vni);
        let name = plan::claim_name(vni);
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
                    Some(held) if held.spec.cluster_ref.uid == valid.identity.uid => self.serve(valid, vni).await,
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
        let cached = self.context.master_service(identity);
        let api = Api::<Service>::namespaced(self.context.client.clone(), &identity.namespace);
        self.applier
            .ensure(&api, &identity.owner(), &plan::master_service(valid), cached.as_ref().map(|s| &s.metadata))
            .await
            .map_err(Error::Service)?;
        let address = cached.as_ref().and_then(|service| service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok());
        Ok(match address {
            Some(api_address) => (Report::Ready(NetworkFacts { vni, api_address }), Outcome::AwaitChange),
            None => (Report::waiting("the Service's address"), Outcome::AwaitChange),
        })
    }

    /// Deletes claims of a Cluster of this name that is no more: one whose creation was answered too late to be seen.
    async fn collect(&self, key: &ClusterKey, current: Option<&Target>) -> Result<(), Error> {
        for claim in self.context.cache.claims.state() {
            let holder = &claim.spec.cluster_ref;
            let is_current = current.is_some_and(|target| target.identity.uid == holder.uid);
            if (&holder.namespace, &holder.name) != (&key.namespace, &key.name) || is_current {
                continue;
            }
            let clusters = Api::<Cluster>::namespaced(self.context.client.clone(), &key.namespace);
            let live = call("get", format!("Cluster {key}"), clusters.get_metadata_opt(&key.name)).await;
            if live.map_err(Error::Release)?.is_some_and(|live| live.metadata.uid.as_ref() == Some(&holder.uid)) {
                continue;
            }
            let namespace = Identity::new(key.clone(), holder.uid.clone()).namespace;
            let namespaces = Api::<Namespace>::all(self.context.client.clone());
            let left = call("get", format!("Namespace {namespace}"), namespaces.get_metadata_opt(&namespace)).await;
            if left.map_err(Error::Release)?.is_none() {
                info!(claim = claim.name_any(), "its Cluster is no more");
                apply::delete(&self.claims(), &claim.metadata, None).await.map_err(Error::Release)?;
            }
        }
        Ok(())
    }

    /// Gives the claims back, but not before the last VM pod that could send with this VNI is gone.
    async fn release(&self, identity: &Identity) -> Result<Answer, Error> {
        if !self.context.reports.of(identity).kvm.is_some_and(|report| report.is_gone()) {
            return Ok((Report::waiting("the VM pods to be gone"), Outcome::AwaitChange));
        }
        let label = format!("{}={}", names::CLUSTER_LABEL, identity.id);
        // From the server, not from the cache: what is not in the cache yet must not be left behind.
        let held = call("list", "NetworkClaims", self.claims().list(&ListParams::default().labels(&label)))
            .await
            .map_err(Error::Release)?;
        let ours: Vec<_> = held.items.iter().filter(|claim| claim.spec.cluster_ref.uid == identity.uid).collect();
        if ours.is_empty() {
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        for claim in ours.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none()) {
            apply::delete(&self.claims(), &claim.metadata, None).await.map_err(Error::Release)?;
        }
        Ok((Report::waiting("the claims to be gone"), Outcome::After(CLAIM_PAUSE)))
    }
}

impl Reconciler for NetworkOperator {
    const NAME: &'static str = "network";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let target = self.context.target(key);
        self.collect(key, target.as_ref()).await?;
        let Some(target) = target else { return Ok(Outcome::AwaitChange) };
        let (report, result) = match self.look(&target).await {
            Ok((report, outcome)) => (report, Ok(outcome)),
            Err(error) => {
                let before = self.context.reports.of(&target.identity).network;
                (Report::failed(error.reason(), chain(&error), before.as_ref()), Err(error))
            }
        };
        self.context.reports.update(&target.identity, |reports| reports.network = Some(report));
        result
    }
}
