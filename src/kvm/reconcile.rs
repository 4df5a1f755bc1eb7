//! Effects of the kvm operator: volumes, configuration and VM pods.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    Metadata as _,
    api::{
        core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PartialObjectMeta};
use tracing::info;

use super::{
    KvmFacts,
    plan::{self, NodeObjects, PlanError, Surroundings},
    pod::{self, NODE_HASH_ANNOTATION},
    survey::Survey,
    vm_pod::VmPod,
    without::Without,
};
use crate::{
    api::{Accelerator, Reason, names},
    cluster::{Blames, ClusterKey, Identity, Report, Valid},
    context::{Context, Target},
    network::Inside,
    runtime::{
        CallError,
        apply::{self, Applied, Applier, ApplyError},
        cache,
        operator::Reconciler,
        queue::Outcome,
    },
};

/// Seconds that the guests of a deleted Cluster have to shut down: nothing of them is kept.
const DELETION_GRACE: u32 = 2;
const DELETION_POLL: Duration = Duration::from_secs(1);

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object of a node.
    #[error("make node {node}")]
    Node {
        /// The node.
        node: String,
        /// Which object, and why not.
        #[source]
        source: ApplyError,
    },
    /// The objects of a node cannot be written down.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What refuses evictions.
    #[error("make the PodDisruptionBudget of the VM pods")]
    Budget(#[source] ApplyError),
    /// Deletion.
    #[error("delete the VM pods")]
    Delete(#[source] CallError),
    /// A worker that is wanted no more.
    #[error("remove node {node}")]
    Remove {
        /// The node.
        node: String,
        /// Why not.
        #[source]
        source: CallError,
    },
    /// A node that is to be replaced or removed.
    #[error("replace or remove node {node}")]
    Leave {
        /// The node.
        node: String,
        /// Why not.
        #[source]
        source: CallError,
    },
    /// Whether etcd's volumes are there.
    #[error("look for etcd's volumes")]
    Volumes(#[source] CallError),
    /// Which places are taken.
    #[error("list the places of workers")]
    Places(#[source] CallError),
}

impl Blames for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Node { source: ApplyError::Foreign { .. }, .. } | Self::Budget(ApplyError::Foreign { .. }) => {
                Reason::ForeignObject
            }
            _ => Reason::Error,
        }
    }
}

pub(super) type Answer = (Report<KvmFacts>, Outcome);

/// The kvm operator.
pub struct KvmOperator {
    pub(super) context: Context,
    applier: Applier,
}

impl KvmOperator {
    /// A kvm operator.
    pub fn new(context: Context) -> Self {
        let applier = Applier::new("giantnetes.kvm", names::HASH_ANNOTATION, &context.memory);
        Self { context, applier }
    }

    pub(super) fn around<'a>(
        &'a self,
        namespace: &'a PartialObjectMeta<Namespace>,
        network: &Inside,
    ) -> Surroundings<'a> {
        Surroundings {
            vni: network.vni,
            api_address: network.api_address,
            namespace_uid: namespace.metadata.uid.as_deref().unwrap_or_default(),
            etcd_formed: false,
            settings: &self.context.settings,
        }
    }

    pub(super) fn has_keys(&self, identity: &Identity, node: &str) -> bool {
        let keys = self.context.meta(&self.context.cache.secrets, &identity.namespace, &names::node_secret(node));
        keys.is_some_and(|meta| identity.owner().owns(&meta))
    }

    /// Makes a node's objects so, and says how it is.
    pub(super) async fn node(
        &self,
        target: &Target,
        survey: &Survey<'_>,
        node: &str,
        mut objects: NodeObjects,
    ) -> Result<State, Error> {
        let identity = &target.identity;
        let pod = cache::get(&self.context.cache.pods, Some(&identity.namespace), node);
        // A stranger's is met when ours is made, and refused.
        let mut pod = pod.filter(|pod| identity.owner().owns(pod.metadata()));
        if let Some(pod) = &pod {
            let failed = |source| Error::Leave { node: node.to_owned(), source };
            if let Some(state) = self.on_dead_host(target, survey, pod).await.map_err(failed)? {
                return Ok(state);
            }
            if pod.is_finished() && !pod.is_going() {
                info!(node, trouble = pod.trouble(), "the VM pod has ended; it is made anew");
                apply::delete(&self.pods(identity), pod.metadata(), None).await.map_err(Error::Delete)?;
                return Ok(State::waits(format!("the ended VM pod {node} to go")));
            }
            if let Some(state) = self.leave(target, survey, pod).await? {
                return Ok(state);
            }
            if pod.wish().is_none() && !pod.is_going() {
                let wish = annotation(objects.pod.metadata(), names::NODE_WISH_ANNOTATION);
                self.adopt(identity, pod, &wish.into()).await?;
            }
            if !is_current(pod, &objects) && (pod.host().is_some() || pod.is_going()) {
                // A running node changes only when it is rolled, never because the controller was updated.
                return Ok(state_of(pod, node));
            }
        }
        self.settle(target, &mut pod, &mut objects).await?;
        let applied = self
            .ensure(identity, objects, pod.as_deref())
            .await
            .map_err(|source| Error::Node { node: node.to_owned(), source })?;
        Ok(match pod {
            Some(_) if applied == Applied::Terminating => State::waits(format!("the old VM pod {node} to go")),
            Some(pod) => state_of(&pod, node),
            None => State::waits(format!("VM pod {node} to start")),
        })
    }

    /// Makes a VM pod that is still to come ask for what it would have of its host. One that finds none is deleted for one that
    /// asks for less.
    async fn settle(
        &self,
        target: &Target,
        pod: &mut Option<Arc<VmPod>>,
        objects: &mut NodeObjects,
    ) -> Result<(), Error> {
        let Some(valid) = target.workable() else { return Ok(()) };
        let may_emulate = valid.accelerator == Accelerator::Auto;
        let is_one_of_many = objects.claim.is_some() && valid.control_plane.replicas > 1;
        let mut without = Without::default();
        let waits = pod.as_ref().filter(|pod| !pod.is_going());
        if let Some((old, next)) = waits.and_then(|pod| Some((pod, Without::next(pod, may_emulate, is_one_of_many)?))) {
            let (node, trouble) = (old.node(), old.trouble());
            info!(node, trouble, without = %next, "no host has room for the VM pod; it is made anew and asks for less");
            apply::delete(&self.pods(&target.identity), old.metadata(), None).await.map_err(Error::Delete)?;
            // Or the next one would pass for it, which was made a moment ago.
            self.context.memory.forget(old.metadata());
            (*pod, without) = (None, next);
        }
        if pod.is_some() {
            return Ok(());
        }
        if may_emulate && !without.kvm && self.is_kvm_offered(&objects.pod) {
            pod::ask_for_kvm(&mut objects.pod);
        }
        if is_one_of_many && !without.own_host {
            pod::ask_for_own_host(&mut objects.pod);
        }
        pod::note_what_it_lacks(&mut objects.pod, without);
        Ok(())
    }

    fn is_kvm_offered(&self, pod: &Pod) -> bool {
        self.context.cache.hosts.state().iter().any(|host| host.offers_kvm(pod))
    }

    async fn ensure(
        &self,
        identity: &Identity,
        objects: NodeObjects,
        pod: Option<&VmPod>,
    ) -> Result<Applied, ApplyError> {
        let NodeObjects { claim, config, pod: desired } = objects;
        let namespace = identity.namespace.as_str();
        let owner = identity.owner();
        let client = || self.context.client.clone();
        if let Some(claim) = claim {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let cached = self.context.meta(&self.context.cache.volume_claims, namespace, name);
            let api = Api::<PersistentVolumeClaim>::namespaced(client(), namespace);
            // A volume is made once: what could change of it is not ours to change.
            if !cached.is_some_and(|meta| owner.owns(&meta)) {
                self.applier.ensure(&api, &owner, &claim, None).await?;
            }
        }
        self.ensure_config(identity, &config).await?;
        match pod {
            // A pod's specification cannot change; its hash is that of what we want, so there is nothing to compare.
            Some(pod) if pod.is_going() => Ok(Applied::Terminating),
            Some(_) => Ok(Applied::Unchanged),
            None => self.applier.ensure(&self.pods(identity), &owner, &desired, None).await,
        }
    }

    pub(super) async fn ensure_config(&self, identity: &Identity, config: &ConfigMap) -> Result<Applied, ApplyError> {
        let name = config.metadata.name.as_deref().unwrap_or_default();
        let cached = self.context.meta(&self.context.cache.config_maps, &identity.namespace, name);
        self.applier.ensure(&self.config_maps(identity), &identity.owner(), config, cached.as_ref()).await
    }

    pub(super) async fn ensure_budget(&self, valid: &Valid, nodes: usize) -> Result<Applied, ApplyError> {
        let identity = &valid.identity;
        let api = Api::<PodDisruptionBudget>::namespaced(self.context.client.clone(), &identity.namespace);
        let cached = self.context.meta(&self.context.cache.budgets, &identity.namespace, names::BUDGET);
        let budget = plan::budget(valid, nodes);
        // What others add to the selector would let go of pods.
        self.applier.ensure_exactly(&api, &identity.owner(), &budget, cached.as_ref(), &["/spec/selector"]).await
    }

    /// Says that this program makes nothing on AWS. It removes nothing there, either, so its Clusters stay until one that can comes.
    #[cfg(not(feature = "aws"))]
    fn has_no_aws(&self, identity: &Identity) {
        let message = "this controller manager was built without AWS";
        self.context.reports.update(identity, |reports| {
            let reason = Reason::ProviderPending;
            reports.kvm = Some(Report::Pending { reason, message: message.into() });
            reports.pools = Some(Report::Pending { reason, message: message.into() });
            reports.network = Some(Report::Pending { reason, message: message.into() });
        });
    }

    /// Deletes the VM pods and answers `Gone` when the server itself lists none.
    pub(super) async fn delete(&self, identity: &Identity) -> Result<Answer, Error> {
        let (api, owner) = (self.pods(identity), identity.owner());
        let left = apply::prune(&api, &identity.selector(), &owner, Some(DELETION_GRACE), |_| false)
            .await
            .map_err(Error::Delete)?;
        if left.is_empty() {
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        Ok((Report::waiting("the VM pods to be gone"), Outcome::After(DELETION_POLL)))
    }

    pub(super) fn pods(&self, identity: &Identity) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &identity.namespace)
    }

    pub(super) fn config_maps(&self, identity: &Identity) -> Api<ConfigMap> {
        Api::namespaced(self.context.client.clone(), &identity.namespace)
    }
}

fn is_current(pod: &VmPod, objects: &NodeObjects) -> bool {
    let hash = |meta| annotation(meta, NODE_HASH_ANNOTATION);
    hash(pod.metadata()) == hash(objects.pod.metadata())
}

fn annotation(meta: &ObjectMeta, name: &str) -> Option<String> {
    meta.annotations.as_ref()?.get(name).cloned()
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its guest answers.
    Ready,
    /// It does not yet.
    Waits {
        /// What it waits for.
        what: String,
        /// Of which sort, if somebody must mend it.
        obstacle: Option<Reason>,
    },
    /// It is being replaced or removed.
    Changes {
        /// Why, and how far that is.
        what: String,
        /// Whether its guest still answers.
        ready: bool,
    },
}

impl State {
    pub(super) fn waits(what: impl Into<String>) -> Self {
        Self::Waits { what: what.into(), obstacle: None }
    }

    /// Whether its guest answers.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self, Self::Ready | Self::Changes { ready: true, .. })
    }

    /// Of which sort that is which somebody must mend.
    pub(super) fn obstacle(&self) -> Option<Reason> {
        match self {
            Self::Waits { obstacle, .. } => *obstacle,
            Self::Ready | Self::Changes { .. } => None,
        }
    }

    /// What there is to wait for.
    pub(super) fn waits_for(&self) -> Option<String> {
        match self {
            Self::Ready => None,
            Self::Waits { what, .. } | Self::Changes { what, .. } => Some(what.clone()),
        }
    }
}

fn state_of(pod: &VmPod, node: &str) -> State {
    if pod.is_ready() && !pod.is_going() {
        return State::Ready;
    }
    State::Waits { what: format!("VM pod {node}: {}", pod.trouble()), obstacle: pod.obstacle() }
}

/// What there is to say of nodes, and of which sort that is. What nobody but a person can mend is said first, then who is
/// replaced, and before all that just takes its time what holds a replacement up.
pub(super) fn foremost(states: &[State], waits: Option<String>) -> Option<(String, Option<Reason>)> {
    let changes = states.iter().find(|state| matches!(state, State::Changes { .. }));
    let mend = states.iter().find(|state| state.obstacle().is_some());
    let rest = || states.iter().find_map(State::waits_for);
    let what = mend.or(changes).and_then(State::waits_for).or(waits).or_else(rest)?;
    Some((what, mend.and_then(State::obstacle)))
}

impl Reconciler for KvmOperator {
    const NAME: &'static str = "kvm";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let Some(target) = self.context.target(key) else { return Ok(Outcome::AwaitChange) };
        if target.is_on_aws() {
            #[cfg(not(feature = "aws"))]
            self.has_no_aws(&target.identity);
            return Ok(Outcome::AwaitChange);
        }
        if let Some(left) = target.paused(Timestamp::now()) {
            return Ok(Outcome::After(left));
        }
        if !target.is_deleting() && self.context.reports.of(&target.identity).network.is_none() {
            // After a start: what was reported before the start still stands in the status.
            return Ok(Outcome::AwaitChange);
        }
        let (reports, identity) = (&self.context.reports, &target.identity);
        let workable = target.workable().filter(|_| !target.is_deleting());
        let survey = workable.map(|valid| self.survey(valid, Timestamp::now()));
        let look = self.look_at_masters(&target, survey.as_ref()).await;
        let control_plane = reports.conclude(identity, |reports| &mut reports.kvm, look);
        let look = self.look_at_pools(&target, survey.as_ref()).await;
        let pools = reports.conclude(identity, |reports| &mut reports.pools, look);
        Ok(control_plane?.or_sooner(pools?))
    }
}
