//! Effects of the pki operator: Secrets with roots, node certificates and the kubeconfig.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{Namespace, Secret},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use secrecy::ExposeSecret as _;
use serde_json::json;
use tracing::info;

use super::{
    PkiFacts,
    embedded::{self, Pair, PkiError},
    kubeconfig,
    leaf::{self, Authority, LEAF_TTL, Leaf},
    plan::{self, FINGERPRINT_ANNOTATION, Root, Step, World},
    secrets::{bytes, issued, pair_of, root_data, secret, secret_meta},
};
use crate::{
    api::{Reason, names},
    cluster::{Blames, ClusterKey, Identity, Report, Valid},
    context::{Context, Target},
    node_config::paths,
    runtime::{CallError, apply, cache, call, operator::Reconciler, queue::Outcome},
};

const MANAGER: &str = "giantnetes.pki";
/// Longest time between two looks at the certificates.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A key or certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A Secret of our name belongs to somebody else.
    #[error("Secret {0} exists and is not ours; delete or rename it")]
    Foreign(String),
    /// A root's Secret does not hold what it should.
    #[error(
        "Secret {0} is missing or does not hold the recorded root; restore it from a backup, it is never made anew"
    )]
    Lost(String),
}

impl Blames for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Foreign(_) => Reason::ForeignObject,
            Self::Lost(_) => Reason::CALost,
            Self::Call(_) | Self::Pki(_) => Reason::Error,
        }
    }
}

type Answer = (Report<PkiFacts>, Outcome);

/// The pki operator.
pub struct PkiOperator {
    context: Context,
}

impl PkiOperator {
    /// A pki operator.
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    async fn look(&self, key: &ClusterKey, target: &Target) -> Result<Answer, Error> {
        if target.is_deleting() {
            return self.delete_kubeconfig(&target.identity).await;
        }
        let Some(valid) = target.workable() else {
            return Ok((Report::waiting("a valid and protected Cluster"), Outcome::AwaitChange));
        };
        let world = self.observe(key, valid)?;
        let now = Timestamp::now();
        let plan = plan::plan(valid, &world, now);
        if let Some(root) = plan.lost.first() {
            return Err(Error::Lost(format!("{}/{}", valid.identity.namespace, root.secret())));
        }
        for step in &plan.steps {
            self.carry_out(valid, &world, step, now).await?;
        }
        let facts = PkiFacts { renew_at: next_renewal(&world).map(|at| at.to_string()) };
        if plan.steps.is_empty() && plan.waiting.is_empty() {
            return Ok((Report::Ready(facts), Outcome::After(sleep(&world, now))));
        }
        // The watch brings what was written, and with it the next look.
        let what = if plan.waiting.is_empty() { "certificates to be stored".into() } else { plan.waiting.join(", ") };
        Ok((Report::Waiting { what, facts: Some(facts) }, Outcome::After(Duration::from_secs(5))))
    }

    fn observe(&self, key: &ClusterKey, valid: &Valid) -> Result<World, Error> {
        let identity = &valid.identity;
        let namespace = self.context.namespace(identity);
        let records = namespace
            .as_ref()
            .and_then(|namespace| namespace.metadata.annotations.clone())
            .unwrap_or_default()
            .into_iter()
            .filter(|(name, _)| name.starts_with(names::CA_ANNOTATION_PREFIX))
            .collect();
        let kubeconfig = names::kubeconfig_secret(&key.name);
        let mut secrets = BTreeMap::new();
        let beside = cache::get(&self.context.cache.secrets, Some(&key.namespace), &kubeconfig);
        for secret in self.context.secrets(&identity.namespace).into_iter().chain(beside) {
            let meta = &secret.metadata;
            let name = meta.name.clone().unwrap_or_default();
            if !identity.owner().owns(meta) {
                return Err(Error::Foreign(name));
            }
            secrets.insert(name, secret_meta(meta));
        }
        let reports = self.context.reports.of(identity);
        let endpoint = reports
            .network
            .as_ref()
            .and_then(Report::facts)
            .map(|facts| format!("https://{}:{}", facts.api_address, names::API_PORT));
        let places = self.context.places(identity);
        let vm_pods = self.context.vm_pods(identity).iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        Ok(World { namespace: namespace.is_some(), records, secrets, endpoint, places, vm_pods })
    }

    async fn carry_out(&self, valid: &Valid, world: &World, step: &Step, now: Timestamp) -> Result<(), Error> {
        let identity = &valid.identity;
        match step {
            Step::MakeRoot(root) => self.make_root(identity, *root, now).await,
            Step::RecordRoots(roots) => self.record_roots(identity, roots, world).await,
            Step::IssueNode { node, leaves, hash, worker: false } => {
                self.issue_master(identity, world, node, leaves, hash, now).await
            }
            Step::IssueNode { node, leaves, hash, worker: true } => {
                self.issue_worker(identity, world, node, leaves, hash, now).await
            }
            Step::RemoveWorker { node } => self.remove_worker(identity, node).await,
            Step::IssueKubeconfig { endpoint, hash } => {
                self.issue_kubeconfig(identity, world, endpoint, hash, now).await
            }
        }
    }

    /// Makes a root for the first time. Its Secret has one name, so of two makers one fails and takes the other's.
    async fn make_root(&self, identity: &Identity, root: Root, now: Timestamp) -> Result<(), Error> {
        // The cache may lag behind the record that forbids this.
        let object = format!("Namespace {}", identity.namespace);
        let live = call("get", object, self.namespaces().get_metadata(&identity.namespace)).await?;
        if live.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(&root.record())) {
            return Err(Error::Lost(format!("{}/{}", identity.namespace, root.secret())));
        }
        let (data, identifying) = root_data(root, identity, now)?;
        let annotations = BTreeMap::from([(FINGERPRINT_ANNOTATION.to_owned(), embedded::fingerprint(&identifying))]);
        let secret = Secret {
            immutable: Some(true),
            ..secret(identity, &identity.namespace, &root.secret(), annotations, data)
        };
        match self.create(&secret).await {
            Err(Error::Call(error)) if error.status() == Some(409) => {
                // Ours, if the cache lags behind; else it stands in the way.
                let (name, api) = (root.secret(), self.secrets(&identity.namespace));
                let there = call("get", format!("Secret {name}"), api.get_metadata_opt(&name)).await?;
                let foreign = there.is_some_and(|there| !identity.owner().owns(&there.metadata));
                if foreign { Err(Error::Foreign(format!("{}/{name}", identity.namespace))) } else { Ok(()) }
            }
            Err(error) => Err(error),
            Ok(()) => {
                info!(root = root.name(), "made");
                Ok(())
            }
        }
    }

    async fn record_roots(&self, identity: &Identity, roots: &[Root], world: &World) -> Result<(), Error> {
        let mut records = BTreeMap::new();
        for root in roots {
            let name = root.secret();
            let fingerprint = world.secrets.get(&name).and_then(|secret| secret.fingerprint.clone());
            let fingerprint = fingerprint.ok_or_else(|| Error::Lost(format!("{}/{name}", identity.namespace)))?;
            records.insert(root.record(), fingerprint);
        }
        let namespace = self.context.namespace(identity);
        let patch = json!({"metadata": {
            // A namesake with another UID is not ours to write to.
            "uid": namespace.and_then(|namespace| namespace.metadata.uid.clone()),
            "annotations": records,
        }});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let object = format!("Namespace {}", identity.namespace);
        let request = self.namespaces();
        call("patch", object, request.patch_metadata(&identity.namespace, &params, &Patch::Merge(patch))).await?;
        Ok(())
    }

    async fn issue_master(
        &self,
        identity: &Identity,
        world: &World,
        node: &str,
        leaves: &[Leaf],
        hash: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        if self.is_issued(identity, &identity.namespace, &names::node_secret(node), hash, now).await? {
            return Ok(());
        }
        let roots = self.roots(identity, world).await?;
        let mut data = BTreeMap::new();
        for (file, root) in [
            (paths::CA, Root::Ca(Authority::Kubernetes)),
            (paths::ETCD_CA, Root::Ca(Authority::Etcd)),
            (paths::FRONT_PROXY_CA, Root::Ca(Authority::FrontProxy)),
            (paths::SERVICE_ACCOUNT_PUB, Root::ServiceAccount),
        ] {
            data.insert(file.to_owned(), bytes(&roots.pair(root, identity)?.certificate));
        }
        let service_account = roots.pair(Root::ServiceAccount, identity)?;
        data.insert(paths::SERVICE_ACCOUNT_KEY.into(), bytes(service_account.key.expose_secret()));
        let encryption = roots.pair(Root::Encryption, identity)?;
        data.insert(paths::ENCRYPTION.into(), bytes(encryption.key.expose_secret()));
        for leaf in leaves {
            sign_into(&mut data, roots.pair(Root::Ca(leaf.authority), identity)?, leaf, now)?;
        }
        let secret = secret(identity, &identity.namespace, &names::node_secret(node), issued(hash, now), data);
        self.store(identity, secret).await?;
        info!(node, "certificates issued");
        Ok(())
    }

    /// What a worker needs and no more: no key of an authority or of service accounts, nothing of etcd.
    async fn issue_worker(
        &self,
        identity: &Identity,
        world: &World,
        node: &str,
        leaves: &[Leaf],
        hash: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        if self.is_issued(identity, &identity.namespace, &names::node_secret(node), hash, now).await? {
            return Ok(());
        }
        let ca = self.root(identity, world, Root::Ca(Authority::Kubernetes)).await?;
        let mut data = BTreeMap::from([(paths::CA.to_owned(), bytes(&ca.certificate))]);
        for leaf in leaves {
            sign_into(&mut data, &ca, leaf, now)?;
        }
        let mut secret = secret(identity, &identity.namespace, &names::node_secret(node), issued(hash, now), data);
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert(names::ROLE_LABEL.into(), names::ROLE_WORKER.into());
        labels.insert(names::NODE_LABEL.into(), node.into());
        self.store(identity, secret).await?;
        info!(node, "certificates issued");
        Ok(())
    }

    async fn remove_worker(&self, identity: &Identity, node: &str) -> Result<(), Error> {
        let name = names::node_secret(node);
        if let Some(meta) = self.context.meta(&self.context.cache.secrets, &identity.namespace, &name)
            && identity.owner().owns(&meta)
        {
            apply::delete(&self.secrets(&identity.namespace), &meta, None).await?;
            info!(node, "certificates removed");
        }
        Ok(())
    }

    async fn issue_kubeconfig(
        &self,
        identity: &Identity,
        world: &World,
        endpoint: &str,
        hash: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        let name = names::kubeconfig_secret(&identity.key.name);
        if self.is_issued(identity, &identity.key.namespace, &name, hash, now).await? {
            return Ok(());
        }
        let roots = self.roots(identity, world).await?;
        let ca = roots.pair(Root::Ca(Authority::Kubernetes), identity)?;
        let client = embedded::sign(ca, &leaf::administrator(), now, LEAF_TTL)?;
        let text = kubeconfig::render(&identity.key.name, "administrator", endpoint, &ca.certificate, &client);
        let data = BTreeMap::from([("value".to_owned(), bytes(text.expose_secret()))]);
        self.store(identity, secret(identity, &identity.key.namespace, &name, issued(hash, now), data)).await?;
        info!("kubeconfig issued");
        Ok(())
    }

    /// Whether the server has this wish fulfilled already: the cache may lag behind what was issued a moment ago.
    async fn is_issued(
        &self,
        identity: &Identity,
        namespace: &str,
        name: &str,
        hash: &str,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let live = call("get", format!("Secret {name}"), self.secrets(namespace).get_metadata_opt(name)).await?;
        Ok(live.is_some_and(|live| {
            identity.owner().owns(&live.metadata) && !plan::is_due(Some(&secret_meta(&live.metadata)), hash, now)
        }))
    }

    async fn roots(&self, identity: &Identity, world: &World) -> Result<Roots, Error> {
        let mut pairs = BTreeMap::new();
        for root in Root::ALL {
            pairs.insert(root, self.root(identity, world, root).await?);
        }
        Ok(Roots { pairs })
    }

    /// Reads a root and compares it with its record.
    async fn root(&self, identity: &Identity, world: &World, root: Root) -> Result<Pair, Error> {
        let name = root.secret();
        let found = call("get", format!("Secret {name}"), self.secrets(&identity.namespace).get_opt(&name)).await?;
        let lost = || Error::Lost(format!("{}/{name}", identity.namespace));
        let pair = found.as_ref().and_then(|secret| pair_of(root, secret)).ok_or_else(lost)?;
        let identifying = if root == Root::Encryption { pair.key.expose_secret() } else { &pair.certificate };
        if world.records.get(&root.record()) != Some(&embedded::fingerprint(identifying)) {
            return Err(lost());
        }
        Ok(pair)
    }

    /// Stores a Secret that is made anew whenever it is issued: creates it, or replaces exactly the one that was observed.
    async fn store(&self, identity: &Identity, mut secret: Secret) -> Result<(), Error> {
        let (namespace, name) =
            (secret.metadata.namespace.clone().unwrap_or_default(), secret.metadata.name.clone().unwrap_or_default());
        let api = self.secrets(&namespace);
        let live = call("get", format!("Secret {name}"), api.get_metadata_opt(&name)).await?;
        let Some(live) = live else { return self.create(&secret).await };
        if !identity.owner().owns(&live.metadata) {
            return Err(Error::Foreign(format!("{namespace}/{name}")));
        }
        secret.metadata.uid = live.metadata.uid;
        secret.metadata.resource_version = live.metadata.resource_version;
        call("replace", format!("Secret {name}"), api.replace(&name, &post(), &secret)).await?;
        Ok(())
    }

    async fn create(&self, secret: &Secret) -> Result<(), Error> {
        let meta = &secret.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let object = format!("Secret {namespace}/{}", meta.name.clone().unwrap_or_default());
        call("create", object, self.secrets(&namespace).create(&post(), secret)).await?;
        Ok(())
    }

    async fn delete_kubeconfig(&self, identity: &Identity) -> Result<Answer, Error> {
        let (api, owner) = (self.secrets(&identity.key.namespace), identity.owner());
        if apply::prune(&api, &identity.selector(), &owner, None, |_| false).await?.is_empty() {
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        Ok((Report::waiting("the kubeconfig Secret to be gone"), Outcome::After(Duration::from_secs(2))))
    }

    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.context.client.clone())
    }
}

/// A short-lived client certificate with every right, for as long as a guest's RBAC is not set up. Never stored.
///
/// # Errors
/// [`Error`] if the Kubernetes CA cannot be read or used.
pub async fn bootstrap_credentials(
    context: &Context,
    identity: &Identity,
    ttl: Duration,
) -> Result<(String, Pair), Error> {
    let root = Root::Ca(Authority::Kubernetes);
    let name = root.secret();
    let lost = || Error::Lost(format!("{}/{name}", identity.namespace));
    let api = Api::<Secret>::namespaced(context.client.clone(), &identity.namespace);
    let secret = call("get", format!("Secret {name}"), api.get_opt(&name)).await?;
    let ca = secret.as_ref().and_then(|secret| pair_of(root, secret)).ok_or_else(lost)?;
    let recorded = cache::get(&context.cache.namespaces, None, &identity.namespace)
        .and_then(|namespace| namespace.metadata.annotations.as_ref()?.get(&root.record()).cloned());
    if recorded != Some(embedded::fingerprint(&ca.certificate)) {
        return Err(lost());
    }
    let client = embedded::sign(&ca, &leaf::bootstrapper(), Timestamp::now(), ttl)?;
    Ok((ca.certificate, client))
}

fn sign_into(
    data: &mut BTreeMap<String, ByteString>,
    authority: &Pair,
    leaf: &Leaf,
    now: Timestamp,
) -> Result<(), PkiError> {
    let pair = embedded::sign(authority, leaf, now, LEAF_TTL)?;
    data.insert(paths::certificate(leaf.name), bytes(&pair.certificate));
    data.insert(paths::key(leaf.name), bytes(pair.key.expose_secret()));
    Ok(())
}

struct Roots {
    pairs: BTreeMap<Root, Pair>,
}

impl Roots {
    fn pair(&self, root: Root, identity: &Identity) -> Result<&Pair, Error> {
        self.pairs.get(&root).ok_or_else(|| Error::Lost(format!("{}/{}", identity.namespace, root.secret())))
    }
}

fn next_renewal(world: &World) -> Option<Timestamp> {
    world.secrets.values().filter_map(|secret| secret.renew_at).min()
}

fn sleep(world: &World, now: Timestamp) -> Duration {
    let until =
        next_renewal(world).map_or(LONGEST_SLEEP, |at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    until.clamp(Duration::from_secs(1), LONGEST_SLEEP)
}

fn post() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}

impl Reconciler for PkiOperator {
    const NAME: &'static str = "pki";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let Some(target) = self.context.target(key) else { return Ok(Outcome::AwaitChange) };
        let look = self.look(key, &target).await;
        self.context.reports.conclude(&target.identity, |reports| &mut reports.pki, look)
    }
}
