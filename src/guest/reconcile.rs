//! Effects of the guest operator: rights inside the guest, and a look at its nodes.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use super::{
    GuestFacts,
    addons::{self, BundleError},
    client::{self, ConnectError},
    drain, dress, plan, renew, requests, rewrite, rights,
    setup::{Setup, unready_add_on},
};
use crate::{
    api::{Reason, names},
    cluster::{Blames, ClusterKey, Identity, Report, Valid, valid::NodePool},
    context::{Context, Target},
    pki::{self, PkiFacts, authority, keys::Subject, request::SigningRequest, rotation::Published},
    runtime::{
        CallError,
        apply::{self, Applier, ApplyError, Memory, Owner},
        call, chain,
        operator::Reconciler,
        queue::Outcome,
    },
};

/// How often a guest is looked at while it settles, and when it is well.
const POLL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(15));
/// A guest that settles is not looked at for so many times as long as it took to answer, up to the pause of one that is well:
/// on a slow machine answers cost it what it needs to come up.
const REST: u32 = 4;
/// How long rights and add-ons are taken to be as they were seen: a guest that starts has better things to do than to answer
/// the same questions at every look. Less than the pause between two looks at a guest that is well.
pub(super) const SEEN_FOR: Duration = Duration::from_secs(10);

/// Field manager inside guests.
pub(super) const MANAGER: &str = "giantnetes.guest";

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Rights inside the guest.
    #[error("set up rights inside the guest")]
    Rights(#[source] ApplyError),
    /// Rights of users inside the guest.
    #[error("set up users' rights inside the guest")]
    Access(#[source] CallError),
    /// Nodes and the like.
    #[error("look into the guest")]
    Nodes(#[source] CallError),
    /// The manifests of the VM image, asked of the VM pod.
    #[error("ask VM pod {pod} at {address}:{} for the add-ons of its image", names::SUPERVISOR_PORT)]
    Manifests {
        /// The VM pod.
        pod: String,
        /// Its address.
        address: std::net::IpAddr,
        /// Why not.
        #[source]
        source: CallError,
    },
    /// The manifests.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Add-ons inside the guest.
    #[error("set up add-ons inside the guest")]
    AddOns(#[source] CallError),
}

impl Blames for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Rights(ApplyError::Foreign { .. }) => Reason::ForeignObject,
            Self::Connect(ConnectError::Credentials(error)) => error.reason(),
            _ => Reason::Error,
        }
    }
}

impl Error {
    /// Whether the guest's API just does not answer, as it does while it starts.
    fn is_silence(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Manifests { .. } | Self::Bundle(_) => false,
            Self::Rights(ApplyError::Foreign { .. } | ApplyError::Encode { .. }) => false,
            Self::Rights(ApplyError::Call(error)) | Self::Access(error) | Self::Nodes(error) | Self::AddOns(error) => {
                error.status().is_none()
            }
        }
    }
}

#[derive(Clone)]
struct Session {
    client: Client,
    /// What it remembers is about this guest: names in another one are others.
    applier: Applier,
    uid: String,
    address: std::net::IpAddr,
    /// Who has signed its certificate, and whom it trusts.
    authority: Option<String>,
    expires: Instant,
    equipped: Option<Equipped>,
    users: Option<rights::Seen>,
}

/// When rights and add-ons were last seen to be there.
#[derive(Clone)]
struct Equipped {
    at: Instant,
    /// UID of the VM pod whose add-ons these are.
    vm_pod: String,
    /// What was asked for of optional ones.
    options: String,
}

/// The guest operator.
pub struct GuestOperator {
    context: Context,
    sessions: Mutex<HashMap<ClusterKey, Session>>,
    setup: Setup,
}

type Answer = (Report<GuestFacts>, Outcome);

impl GuestOperator {
    /// A guest operator.
    pub fn new(context: Context) -> Self {
        Self { context, sessions: Mutex::default(), setup: Setup::default() }
    }

    async fn look(&self, key: &ClusterKey, target: &Target) -> Result<Answer, Error> {
        if target.is_deleting() {
            self.forget(key);
            self.setup.forget(key);
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        let Some(valid) = target.workable() else {
            return Ok((Report::waiting("a valid and protected Cluster"), Outcome::AwaitChange));
        };
        let reports = self.context.reports.of(&target.identity);
        let address = reports
            .network
            .as_ref()
            .and_then(Report::facts)
            .and_then(|facts| facts.inside)
            .map(|inside| inside.api_address);
        let running = reports.kvm.as_ref().and_then(Report::facts).is_some_and(|facts| facts.ready > 0);
        let Some(address) = address.filter(|_| running) else {
            return Ok((Report::waiting("the control plane"), Outcome::AwaitChange));
        };
        let session = self.session(key, valid, address).await?;
        // First, so that nothing else that fails keeps rights from ending.
        self.let_in(key, &session, &valid.identity).await?;
        // What is refused here keeps no node from being drained.
        let equipped = match self.equip(key, &session, valid).await {
            Err(error) if error.is_silence() => return Err(error),
            equipped => equipped,
        };
        let client = session.client;
        let nodes = call("list", "the guest's Nodes", Api::<Node>::all(client.clone()).list(&ListParams::default()))
            .await
            .map_err(Error::Nodes)?
            .items;
        let workers = self.context.workers(valid);
        self.tend(&client, valid, &workers, &nodes).await.map_err(Error::Nodes)?;
        let vm_pods = self.context.vm_pods(&valid.identity);
        let drains = drain::tend(&client, &vm_pods, &nodes).await.map_err(Error::Nodes)?;
        let masters = usize::try_from(valid.control_plane.replicas).unwrap_or(usize::MAX);
        let expected = masters.saturating_add(workers.len());
        let wanted = |name: &str| workers.iter().any(|(_, node)| node == name);
        let silent = plan::silent(&nodes, wanted);
        let published = published(&client, reports.pki.as_ref(), silent).await;
        let rewrites = renew::going(reports.pki.as_ref()).map(|going| going.rewrites.as_slice()).unwrap_or_default();
        let unwritten = rewrite::rewrite(&client, rewrites).await;
        let facts = GuestFacts { nodes: plan::count(&nodes, &vm_pods), drains, published, unwritten };
        let nodes = plan::count(plan::wanted(&nodes, wanted), &vm_pods);
        // Before any is, a guest has better things to do than to list what nobody could ask for.
        if nodes.ready > 0
            && let Err(error) = self.sign_requests(&client, valid).await
        {
            // A guest is no less Ready for it.
            warn!(error = chain(&error), "the guest's CertificateSigningRequests are not answered");
        }
        if let Err(error) = equipped {
            let report = Report::Failed { reason: error.reason(), message: chain(&error), facts: Some(facts) };
            self.context.reports.update(&valid.identity, |reports| reports.guest = Some(report));
            return Err(error);
        }
        // Made by the guest's own controllers within moments; before it no pod is accepted.
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
        let account = call("get", "the guest's default ServiceAccount", accounts.get_metadata_opt("default"));
        if account.await.map_err(Error::Nodes)?.is_none() {
            let what = "the guest's default service account".into();
            return Ok((Report::Waiting { what, facts: Some(facts) }, Outcome::After(POLL.0)));
        }
        let waiting = |what| Ok((Report::Waiting { what, facts: Some(facts.clone()) }, Outcome::After(POLL.0)));
        if nodes.total < expected || nodes.ready < nodes.total {
            return waiting(match expected.saturating_sub(nodes.total) {
                0 => format!("nodes to be Ready ({nodes})"),
                missing => format!("nodes to be Ready ({nodes}, {missing} more to come)"),
            });
        }
        if let Some(what) = unready_add_on(&client, silent).await? {
            return waiting(what);
        }
        let is_moving = vm_pods.iter().any(|pod| pod.leaving().is_some()) || !rewrites.is_empty();
        let pause = if is_moving { POLL.0 } else { POLL.1 };
        Ok((Report::Ready(facts), Outcome::After(pause)))
    }

    /// Signs what was asked for inside the guest and approved there. With the guest's authority, which it does not have itself.
    async fn sign_requests(&self, client: &Client, valid: &Valid) -> Result<(), CallError> {
        let (context, identity) = (&self.context, &valid.identity);
        // Read when there is something to sign, and then once.
        let ca = &OnceCell::new();
        let sign = |request: SigningRequest, ttl| async move {
            let ca = ca.get_or_try_init(|| pki::clients::clients(context, identity)).await?;
            authority::sign_request(context, &ca.signer, &request, Timestamp::now(), ttl).await
        };
        requests::answer(client, valid.pki.leaf_ttl, sign).await
    }

    /// Sees that rights and add-ons are there, if that was not seen just now.
    async fn equip(&self, key: &ClusterKey, session: &Session, valid: &Valid) -> Result<(), Error> {
        let pods = self.context.vm_pods(&valid.identity);
        let master = plan::bearer(&pods, valid).and_then(|pod| Some((pod, pod.answering_at()?)));
        let vm_pod = master.and_then(|(pod, _)| pod.metadata.uid.clone()).unwrap_or_default();
        let seen = session.equipped.as_ref();
        let options = addons::options(valid);
        let as_now = |seen: &Equipped| seen.vm_pod == vm_pod && seen.options == options && seen.at.elapsed() < SEEN_FOR;
        if seen.is_some_and(as_now) {
            return Ok(());
        }
        self.rights(&session.client, &session.applier, valid).await?;
        if let Some((pod, address)) = master {
            self.setup.add_ons(&session.client, valid, pod, address).await?;
        }
        self.note(key, |session| session.equipped = Some(Equipped { at: Instant::now(), vm_pod, options }));
        Ok(())
    }

    /// Sees that users have the rights that their ClusterAccesses ask for, and nobody else has, if that was not seen just now.
    async fn let_in(&self, key: &ClusterKey, session: &Session, identity: &Identity) -> Result<(), Error> {
        let wishes = self.context.rights(key);
        if session.users.as_ref().is_some_and(|seen| seen.holds(&wishes)) {
            return Ok(());
        }
        let guest = rights::Guest { client: &session.client, applier: &session.applier, owner: identity.owner() };
        let bound = guest.bind(&wishes).await.map_err(Error::Access)?;
        self.context.reports.update(identity, |reports| reports.bound = Some(Arc::new(bound)));
        self.note(key, |session| session.users = Some(rights::Seen::now(wishes)));
        Ok(())
    }

    /// Keeps what was seen in the guest's session, if it is there still.
    fn note(&self, key: &ClusterKey, note: impl FnOnce(&mut Session)) {
        if let Some(session) = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key) {
            note(session);
        }
    }

    /// Gives Nodes what kubelets may not give themselves, and removes those of workers that are no more.
    async fn tend(
        &self,
        client: &Client,
        valid: &Valid,
        workers: &[(&NodePool, String)],
        nodes: &[Node],
    ) -> Result<(), CallError> {
        let api = Api::<Node>::all(client.clone());
        let params = PatchParams::default();
        for name in plan::unlabelled(nodes) {
            let patch = json!({"metadata": {"labels": {plan::CONTROL_PLANE_LABEL: ""}}});
            call("label", format!("Node {name}"), api.patch(&name, &params, &Patch::Merge(patch))).await?;
        }
        let taints = plan::retaint(nodes, !valid.pools.is_empty());
        for (name, patch) in taints.into_iter().chain(dress::changes(nodes, workers)) {
            match call("patch", format!("Node {name}"), api.patch(&name, &params, &Patch::Merge(patch))).await {
                // Changed in the meantime, by the label above for one: the next look has what is now.
                Err(error) if error.status() == Some(409) => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        let wanted: HashSet<_> = workers.iter().map(|(_, node)| node.as_str()).collect();
        let pods = self.context.vm_pods(&valid.identity);
        let has_pod = |name: &str| pods.iter().any(|pod| pod.metadata.name.as_deref() == Some(name));
        for node in plan::gone(nodes, |name| wanted.contains(name) || has_pod(name)) {
            info!(node = node.name_any(), "a worker that is no more");
            apply::delete(&api, &node.metadata, None).await?;
        }
        Ok(())
    }

    async fn rights(&self, client: &Client, applier: &Applier, valid: &Valid) -> Result<(), Error> {
        let owner = valid.identity.owner();
        let (roles, bindings) =
            (Api::<ClusterRole>::all(client.clone()), Api::<ClusterRoleBinding>::all(client.clone()));
        for role in plan::roles() {
            ensure_right(&roles, applier, &owner, &role).await?;
        }
        for binding in plan::bindings() {
            ensure_right(&bindings, applier, &owner, &binding).await?;
        }
        Ok(())
    }

    /// A client for this guest; a new one when the certificate has less than a quarter of its life left.
    async fn session(&self, key: &ClusterKey, valid: &Valid, address: std::net::IpAddr) -> Result<Session, Error> {
        let known = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        // Read before a certificate is: one that others sign meanwhile is asked for at the next look.
        let authority = pki::clients::kubernetes_authority(&self.context, &valid.identity);
        if let Some(session) = known
            && session.uid == valid.identity.uid
            && session.address == address
            && session.authority == authority
            && session.expires > Instant::now() + client::TTL / 4
        {
            return Ok(session);
        }
        let expires = Instant::now() + client::TTL;
        let client = client::connect(&self.context, &valid.identity, address).await?;
        let applier = Applier::new(MANAGER, names::HASH_ANNOTATION, &Memory::default());
        let uid = valid.identity.uid.clone();
        let session = Session { client, applier, uid, address, authority, expires, equipped: None, users: None };
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), session.clone());
        Ok(session)
    }

    fn forget(&self, key: &ClusterKey) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Reconciler for GuestOperator {
    const NAME: &'static str = "guest";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let Some(target) = self.context.target(key) else {
            self.forget(key);
            return Ok(Outcome::AwaitChange);
        };
        if let Some(left) = target.paused(Timestamp::now()) {
            return Ok(Outcome::After(left));
        }
        let reports = self.context.reports.of(&target.identity);
        if !target.is_deleting() && (reports.network.is_none() || reports.kvm.is_none()) {
            // After a start: what was reported before the start still stands in the status.
            return Ok(Outcome::AwaitChange);
        }
        let began = Instant::now();
        let look = match self.look(key, &target).await {
            Err(error) if error.is_silence() => {
                info!(error = chain(&error), "the guest's API does not answer");
                self.forget(key);
                Ok((Report::waiting("the guest's API to answer"), Outcome::After(POLL.0)))
            }
            Ok((report, Outcome::After(pause))) if pause < POLL.1 => {
                Ok((report, Outcome::After((began.elapsed() * REST).clamp(pause, POLL.1))))
            }
            look => look,
        };
        self.context.reports.conclude(&target.identity, |reports| &mut reports.guest, look)
    }
}

/// What the guest's objects say of its authorities, while they are rotated.
async fn published(client: &Client, pki: Option<&Report<PkiFacts>>, silent: usize) -> Option<Published> {
    let going = renew::going(pki).filter(|going| going.subject == Subject::Authorities)?;
    let tended = renew::tend(client, going, silent).await;
    tended
        .inspect_err(|error| warn!(error = chain(error), "it is not known which authorities the guest publishes"))
        .ok()
}

async fn ensure_right<K>(api: &Api<K>, applier: &Applier, owner: &Owner, right: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
{
    let (kind, name) = (K::kind(&()), right.name_any());
    let live = call("get", format!("{kind} {name}"), api.get_metadata_opt(&name)).await;
    let live = live.map_err(|error| Error::Rights(error.into()))?;
    let there = live.as_ref().map(|object| &object.metadata);
    applier.ensure(api, owner, right, there).await.map(drop).map_err(Error::Rights)
}
