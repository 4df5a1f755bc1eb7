//! Effects of the network operator: the VNI claim, the policy and the Service.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt as _};

use super::{
    Inside, NetworkFacts,
    claims::{self, Holder, VniChoice},
    holdings::{Holdings, Taken},
    outside::{Outside, Way},
    plan, policies,
};
use crate::{
    api::{Reason, names},
    cluster::{Blames, ClusterKey, Identity, Report, Valid, valid::Exposure},
    context::{Context, Target},
    runtime::{
        CallError,
        apply::{Applier, ApplyError},
        operator::Reconciler,
        queue::Outcome,
    },
};

pub(super) const MANAGER: &str = "giantnetes.network";
/// Pause before a claim that met a faster one is tried again.
pub(super) const CLAIM_PAUSE: Duration = Duration::from_secs(1);
/// Pause before a VNI that is taken is asked for again.
const TAKEN_PAUSE: Duration = Duration::from_secs(30);

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The claim on a VNI.
    #[error("claim a VNI or host name")]
    Claim(#[source] CallError),
    /// Giving the VNI back.
    #[error("release a claim")]
    Release(#[source] CallError),
    /// The policy.
    #[error("make the guest's NetworkPolicy")]
    Policy(#[source] ApplyError),
    /// The Ingress.
    #[error("make the Ingress to the guest's API")]
    Expose(#[source] ApplyError),
    /// The TLSRoute.
    #[error("make the TLSRoute to the guest's API")]
    Route(#[source] ApplyError),
    /// The Service with a load balancer.
    #[error("make the Service whose load balancer leads to the guest's API")]
    Balance(#[source] ApplyError),
    /// A way that is not wanted any more.
    #[error("remove a way to the guest's API")]
    Unexpose(#[source] CallError),
    /// The Service.
    #[error("make the Service in front of the guest's API")]
    Service(#[source] ApplyError),
    /// The Service of the guest's ingress controller.
    #[error("make the Service that leads to the guest's ingress controller")]
    Ingress(#[source] ApplyError),
    /// The Service that lists the VM pods.
    #[error("make the Service that lists the guest's VM pods")]
    Nodes(#[source] ApplyError),
}

impl Blames for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Service(ApplyError::Foreign { .. })
            | Self::Nodes(ApplyError::Foreign { .. })
            | Self::Ingress(ApplyError::Foreign { .. })
            | Self::Policy(ApplyError::Foreign { .. })
            | Self::Balance(ApplyError::Foreign { .. })
            | Self::Route(ApplyError::Foreign { .. })
            | Self::Expose(ApplyError::Foreign { .. }) => Reason::ForeignObject,
            _ => Reason::Error,
        }
    }
}

type Answer = (Report<NetworkFacts>, Outcome);

/// The network operator.
pub struct NetworkOperator {
    pub(super) context: Context,
    applier: Applier,
}

impl NetworkOperator {
    /// A network operator.
    pub fn new(context: Context) -> Self {
        let applier = Applier::new(MANAGER, names::HASH_ANNOTATION, &context.memory);
        Self { context, applier }
    }

    async fn look(&self, key: &ClusterKey, target: &Target) -> Result<Answer, Error> {
        if target.is_deleting() {
            return self.release(target).await;
        }
        let Some(valid) = target.workable() else {
            return Ok((Report::waiting("a valid and protected Cluster"), Outcome::AwaitChange));
        };
        let holdings = Holdings(&self.context);
        // One that somebody marked as released is not counted out: this Cluster lives.
        let ours = holdings.of(key).into_iter().filter(|claim| claim.spec.cluster_ref.uid == valid.identity.uid);
        let held = ours.filter_map(|claim| claims::vni_of(&claim.name_any())).next();
        let holder = |vni| holdings.holder(&claims::claim_name(vni), &valid.identity);
        match claims::choose_vni(&valid.identity, valid.requested_vni, held, holder) {
            VniChoice::Held(vni) | VniChoice::Claim(vni) => {
                match holdings.take(&valid.identity, &claims::claim(&valid.identity, vni)).await? {
                    Taken::Ours => self.serve(key, valid, vni).await,
                    Taken::Others => Ok((Report::waiting("a VNI"), Outcome::After(CLAIM_PAUSE))),
                }
            }
            VniChoice::InUse(vni, holder) => {
                let message = in_use(&format!("VNI {vni}"), &holder);
                Ok((Report::failed(Reason::VNIInUse, message, None), Outcome::After(pause(&holder))))
            }
            VniChoice::Exhausted => {
                let message = "every VNI is taken; delete a Cluster".to_owned();
                Ok((Report::failed(Reason::VNIExhausted, message, None), Outcome::After(TAKEN_PAUSE)))
            }
        }
    }

    async fn serve(&self, key: &ClusterKey, valid: &Valid, vni: u32) -> Result<Answer, Error> {
        let identity = &valid.identity;
        if self.context.namespace(identity).is_none() {
            let what = format!("namespace {}", identity.namespace);
            return Ok((Report::waiting(what), Outcome::AwaitChange));
        }
        // Before anything runs that it holds back: the VM pods wait for this operator's facts.
        let policy = policies::policy(valid, &self.context.settings);
        let cached = self.context.meta(&self.context.cache.policies, &identity.namespace, policies::POLICY);
        self.ensure(identity, &policy, cached, &["/spec"]).await.map_err(Error::Policy)?;
        let service = self.context.master_service(identity);
        let cached = service.as_ref().map(|service| service.metadata.clone());
        self.ensure(identity, &plan::master_service(valid), cached, &["/spec/selector"])
            .await
            .map_err(Error::Service)?;
        // A guest of one node has no peers to find.
        if valid.has_peers() {
            let cached = self.context.meta(&self.context.cache.services, &identity.namespace, names::NODES_SERVICE);
            let exact = ["/spec/selector"];
            self.ensure(identity, &plan::nodes_service(valid), cached, &exact).await.map_err(Error::Nodes)?;
        }
        let address = service.as_ref().and_then(|service| service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok());
        let Some(api_address) = address else {
            return Ok((Report::waiting("the Service's address"), Outcome::AwaitChange));
        };
        let outside = self.expose(key, valid, api_address).await?;
        let (ingress, waits) = match self.lead_to_ingress(valid).await? {
            None => (None, None),
            Some(Way::At(address)) => (Some(address), None),
            Some(Way::Waits(what)) => (None, Some(what)),
        };
        let facts =
            |endpoint| NetworkFacts { inside: Some(Inside { vni, api_address }), endpoint, ingress: ingress.clone() };
        // A guest that people do not reach is made nevertheless.
        Ok(match outside {
            Outside::At(endpoint) => {
                let facts = facts(Some(endpoint));
                let report = match waits {
                    None => Report::Ready(facts),
                    Some(what) => Report::Waiting { what, facts: Some(facts) },
                };
                (report, Outcome::AwaitChange)
            }
            Outside::Waits(what) => (Report::Waiting { what, facts: Some(facts(None)) }, Outcome::AwaitChange),
            Outside::Closed { reason, message, endpoint, outcome } => {
                (Report::Failed { reason, message, facts: Some(facts(endpoint)) }, outcome)
            }
        })
    }

    /// At `exact` nothing of others may be: what they add to a selector or a rule decides who reaches whom.
    pub(super) async fn ensure<K>(
        &self,
        identity: &Identity,
        desired: &K,
        cached: Option<ObjectMeta>,
        exact: &[&str],
    ) -> Result<(), ApplyError>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + serde::Serialize
            + std::fmt::Debug,
    {
        let api = Api::<K>::namespaced(self.context.client.clone(), &identity.namespace);
        self.applier.ensure_exactly(&api, &identity.owner(), desired, cached.as_ref(), exact).await.map(drop)
    }

    /// Gives the claims back, but not before the last VM pod that could send with this VNI is gone, what Flannel's etcd says of
    /// it, and what leads there by the host name.
    async fn release(&self, target: &Target) -> Result<Answer, Error> {
        let identity = &target.identity;
        let reports = self.context.reports.of(identity);
        if !reports.kvm.is_some_and(|report| report.is_gone()) {
            return Ok((Report::waiting("the VM pods to be gone"), Outcome::AwaitChange));
        }
        if target.asks_for_flannel() && !reports.flannel.is_some_and(|report| report.is_gone()) {
            return Ok((Report::waiting("Flannel's etcd to know nothing of it"), Outcome::AwaitChange));
        }
        let closed = self.close_others(identity, &Exposure::None).await?;
        if !(self.close_ingress(identity).await? && closed) {
            let what = format!(
                "the Ingress or TLSRoute to go, or the load balancers of Services {} and {} in {} to be removed by their provider",
                names::BALANCED_SERVICE,
                names::INGRESS_SERVICE,
                identity.namespace,
            );
            return Ok((Report::waiting(what), Outcome::After(CLAIM_PAUSE)));
        }
        if Holdings(&self.context).release_all(identity).await? {
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        Ok((Report::waiting("the claims to be released"), Outcome::After(CLAIM_PAUSE)))
    }
}

pub(super) fn in_use(what: &str, holder: &Holder) -> String {
    let why = match holder {
        Holder::Cluster(_) => "belongs to another Cluster".to_owned(),
        Holder::Quarantine(until) => format!("was given back and is in quarantine until {until:.0}"),
    };
    format!("{what} {why}; ask for another, or for none")
}

/// When to ask again for what is taken.
pub(super) fn pause(holder: &Holder) -> Duration {
    match holder {
        Holder::Cluster(_) => TAKEN_PAUSE,
        // A moment later than that, since the claim is deleted then.
        Holder::Quarantine(until) => Duration::try_from(until.duration_since(Timestamp::now()))
            .map_or(CLAIM_PAUSE, |left| (left + CLAIM_PAUSE).min(TAKEN_PAUSE)),
    }
}

impl Reconciler for NetworkOperator {
    const NAME: &'static str = "network";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let target = self.context.target(key);
        let next = match (Holdings(&self.context).collect(key, target.as_ref()).await, &target) {
            (Err(error), Some(target)) => {
                return self.context.reports.conclude(&target.identity, |reports| &mut reports.network, Err(error));
            }
            (next, _) => next?,
        };
        let Some(target) = target else { return Ok(Outcome::at(next)) };
        if target.is_on_aws() {
            // The aws operator's, all of it.
            return Ok(Outcome::at(next));
        }
        if let Some(left) = target.paused(Timestamp::now()) {
            return Ok(Outcome::After(left).or_sooner(Outcome::at(next)));
        }
        let look = self.look(key, &target).await;
        let outcome = self.context.reports.conclude(&target.identity, |reports| &mut reports.network, look)?;
        Ok(outcome.or_sooner(Outcome::at(next)))
    }
}
