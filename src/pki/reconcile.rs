//! Effects of the pki operator: Secrets with roots, node certificates and the kubeconfig.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use k8s_openapi::{
    api::core::v1::{Namespace, Secret},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::OnceCell;
use tracing::info;

use super::{
    PkiFacts,
    authority::{self, Kept},
    embedded::{self, Pair, PkiError},
    import::{self, ImportError, Importing},
    issue::Issue,
    leaf::{self, Authority},
    plan::{self, Plan, Step, World},
    roots::{self, Root, Roots},
    store::KeyStore,
    vault::{self, VaultError},
};
use crate::{
    api::{PkiBackend, Reason, VaultPlace, names},
    cluster::{Blames, ClusterKey, Identity, Report, Valid},
    context::{Context, Target},
    runtime::{CallError, apply, cache, call, operator::Reconciler, queue::Outcome},
};

const MANAGER: &str = "giantnetes.pki";

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
    /// The roots' Secret does not hold what it should.
    #[error(
        "Secret {0} is missing or does not hold the recorded roots; restore it from a backup, they are never made anew"
    )]
    Lost(String),
    /// Roots could not be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Vault.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// A Cluster is kept in a Vault that the settings name no more.
    #[error("this Cluster's authorities are in Vault, and the settings name none; set settings.vault again")]
    NoVault,
    /// A Cluster is kept elsewhere than where the settings lead.
    #[error("this Cluster's authorities are {recorded}, and settings.vault leads to {set}; set it as it was")]
    ElsewhereInVault {
        /// Where they are.
        recorded: Box<VaultPlace>,
        /// Where they would be now.
        set: Box<VaultPlace>,
    },
}

impl Error {
    /// Whether the authority is well, and does not sign this.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Pki(PkiError::Make { .. }) => true,
            Self::Vault(error) => error.is_refusal(),
            _ => false,
        }
    }
}

impl Blames for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Foreign(_) => Reason::ForeignObject,
            Self::Lost(_) => Reason::CALost,
            Self::Import(_) => Reason::ImportFailed,
            Self::Vault(vault::Error::Foreign(_)) => Reason::ForeignObject,
            Self::Vault(vault::Error::Exchanged(_) | vault::Error::Vault(VaultError::NoMount(_))) => Reason::CALost,
            Self::Vault(vault::Error::Vault(VaultError::Denied { .. })) => Reason::VaultDenied,
            Self::NoVault | Self::ElsewhereInVault { .. } => Reason::VaultUnavailable,
            Self::Vault(vault::Error::Vault(VaultError::Refused { .. } | VaultError::Answer { .. })) => Reason::Error,
            Self::Vault(vault::Error::Vault(_)) => Reason::VaultUnavailable,
            Self::Vault(vault::Error::Pki(_) | vault::Error::Other { .. }) => Reason::Error,
            Self::Call(_) | Self::Pki(_) => Reason::Error,
        }
    }
}

type Answer = (Report<PkiFacts>, Outcome);

/// The pki operator.
pub struct PkiOperator {
    pub(super) context: Context,
    pub(super) keys: KeyStore,
    pub(super) importing: Importing,
}

impl PkiOperator {
    /// A pki operator.
    pub fn new(context: Context) -> Self {
        Self { keys: KeyStore::new(context.clone(), MANAGER), importing: Importing::default(), context }
    }

    async fn look(&self, key: &ClusterKey, target: &Target) -> Result<Answer, Error> {
        if target.is_deleting() {
            return self.clean_up(&target.identity, target.vault()).await;
        }
        let Some(valid) = target.workable() else {
            return Ok((Report::waiting("a valid and protected Cluster"), Outcome::AwaitChange));
        };
        let world =
            self.observe(key, valid, target.cluster.status.as_ref().and_then(|status| status.endpoint.clone())).await?;
        let now = Timestamp::now();
        let plan = plan::plan(valid, &world, now);
        if plan.lost {
            self.mark_roots(&valid.identity, &world.records).await?;
        }
        let in_vault = valid.pki.backend == PkiBackend::Vault;
        let next_renewal = plan::next_renewal(&world);
        let text = |at: Timestamp| at.to_string();
        let mut facts =
            PkiFacts { renew_at: next_renewal.map(text), end_at: plan::first_end(&world).map(text), vault: None };
        if plan.steps.iter().any(|step| matches!(step, Step::MakeRoots | Step::ImportRoots { .. })) {
            if in_vault && target.vault().is_none() {
                // The status remembers it longer than any other object of the guest.
                facts.vault = Some(authority::vault(&self.context)?.place(&valid.identity));
                let what = "the place of its authorities in Vault to be recorded".into();
                return Ok((Report::Waiting { what, facts: Some(facts) }, Outcome::AwaitChange));
            }
            self.has_no_roots(&valid.identity).await?;
        }
        if in_vault {
            authority::vault_at(&self.context, &valid.identity, target.vault())?;
        }
        // Read when the first step asks for them, and not again for the next.
        let roots = OnceCell::new();
        for step in &plan.steps {
            self.carry_out(valid, &world, &roots, step, now).await?;
        }
        if plan == Plan::default() {
            let mut pause = plan::pause(next_renewal, now);
            if in_vault {
                self.look_into_vault(&valid.identity, &world).await?;
                pause = pause.min(vault::SEEN_FOR);
            }
            return Ok((Report::Ready(facts), Outcome::After(pause)));
        }
        // The watch brings what was written, and with it the next look.
        let what = match plan.waiting.join(", ") {
            none if none.is_empty() => "keys and certificates to be stored".into(),
            waiting => waiting,
        };
        Ok((Report::Waiting { what, facts: Some(facts) }, Outcome::After(Duration::from_secs(5))))
    }

    async fn observe(&self, key: &ClusterKey, valid: &Valid, pinned_endpoint: Option<String>) -> Result<World, Error> {
        let identity = &valid.identity;
        let namespace = self.context.namespace(identity);
        let noted = namespace.as_ref().and_then(|namespace| namespace.metadata.annotations.as_ref());
        let records = roots::fingerprints(noted);
        let kubeconfig = names::kubeconfig_secret(&key.name);
        let mut secrets = BTreeMap::new();
        let beside = cache::get(&self.context.cache.secrets, Some(&key.namespace), &kubeconfig);
        for secret in self.context.secrets(&identity.namespace).into_iter().chain(beside) {
            let meta = &secret.metadata;
            let name = meta.name.clone().unwrap_or_default();
            match identity.owner().owns(meta) {
                true => drop(secrets.insert(name, self.keys.seen(meta).await?)),
                // Not seen to be the roots, who may have lost their mark: their content tells.
                false if name == roots::SECRET => {}
                false => return Err(Error::Foreign(name)),
            }
        }
        let reports = self.context.reports.of(identity);
        let endpoint = reports.network.as_ref().and_then(Report::facts).and_then(|facts| facts.endpoint.clone());
        // In a pause nobody reports, and certificates are renewed nevertheless.
        let endpoint = endpoint.or_else(|| pinned_endpoint.filter(|_| reports.network.is_none()));
        let places = self.context.places(identity);
        let workers = self.context.workers(valid).into_iter().map(|(_, node)| node).collect();
        let vm_pods = self.context.vm_pods(identity).iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        let provider = self.context.settings.kvm.enabled;
        Ok(World { namespace: namespace.is_some(), records, secrets, endpoint, workers, places, provider, vm_pods })
    }

    async fn carry_out(
        &self,
        valid: &Valid,
        world: &World,
        roots: &OnceCell<Roots>,
        step: &Step,
        now: Timestamp,
    ) -> Result<(), Error> {
        let identity = &valid.identity;
        match step {
            Step::MakeRoots => {
                let made = self.make_roots(valid, now).await?;
                self.store_roots(identity, world, &made).await
            }
            Step::ImportRoots { secret } => {
                let imported = self.import_roots(identity, secret, now).await?;
                self.store_roots(identity, world, &imported).await
            }
            Step::RecordRoots => self.record_roots(identity, world).await,
            Step::IssueNode { node, leaves, ttl, hash, worker } => {
                let issue = Issue { identity, world, roots, hash, ttl: *ttl, now };
                if *worker {
                    self.issue_worker(issue, node, leaves).await
                } else {
                    self.issue_master(issue, node, leaves).await
                }
            }
            Step::RemoveWorker { node } => self.remove_worker(valid, world, node).await,
            Step::IssueKubeconfig { endpoint, ttl, hash } => {
                self.issue_kubeconfig(Issue { identity, world, roots, hash, ttl: *ttl, now }, endpoint).await
            }
        }
    }

    /// Fails if a root was ever recorded: the cache may lag behind the record that forbids to make another. This process is the
    /// only one that writes one, and works on one guest one look at a time.
    async fn has_no_roots(&self, identity: &Identity) -> Result<(), Error> {
        let object = format!("Namespace {}", identity.namespace);
        let live = call("get", object, self.namespaces().get_metadata(&identity.namespace)).await?;
        let records = roots::fingerprints(live.metadata.annotations.as_ref());
        if records.is_empty() { Ok(()) } else { Err(lost(identity)) }
    }

    async fn record_roots(&self, identity: &Identity, world: &World) -> Result<(), Error> {
        // Of what it holds, not of what somebody may have written on it.
        let records = self.roots(identity, world).await?.fingerprints();
        let namespace = self.context.namespace(identity);
        let object = format!("Namespace {}", identity.namespace);
        let request = self.namespaces();
        // The cache may lag behind our own record. What is recorded is never made another.
        let live = call("get", object.clone(), request.get_metadata(&identity.namespace)).await?;
        let recorded = roots::fingerprints(live.metadata.annotations.as_ref());
        if !roots::agree(&records, &recorded) {
            return Err(lost(identity));
        }
        if recorded == records {
            return Ok(());
        }
        let patch = json!({"metadata": {
            // A namesake with another UID is not ours to write to.
            "uid": namespace.and_then(|namespace| namespace.metadata.uid.clone()),
            "annotations": records,
        }});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        call("patch", object, request.patch_metadata(&identity.namespace, &params, &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// Reads the roots and compares them with their records.
    pub(super) async fn roots(&self, identity: &Identity, world: &World) -> Result<Roots, Error> {
        Ok(self.recorded(identity, &world.records).await?.1)
    }

    /// The roots' Secret and what it holds, which is what is recorded.
    async fn recorded(
        &self,
        identity: &Identity,
        records: &BTreeMap<String, String>,
    ) -> Result<(Secret, Roots), Error> {
        let found = read_roots(&self.keys.secrets(&identity.namespace)).await?;
        found.filter(|(_, kept)| roots::agree(&kept.fingerprints(), records)).ok_or_else(|| lost(identity))
    }

    /// Gives roots that are there and intact the labels and annotations back that somebody took from them: the cache does not see
    /// them without those. What is recorded is the guest's, whatever its Secret says; before that, anybody's Secret could stand there.
    pub(super) async fn mark_roots(
        &self,
        identity: &Identity,
        records: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let (name, api) = (roots::SECRET, self.keys.secrets(&identity.namespace));
        let owner = identity.owner();
        let (mut found, kept) = match self.recorded(identity, records).await {
            Ok((found, kept)) if !records.is_empty() || owner.owns(&found.metadata) => (found, kept),
            Ok(_) => return Err(Error::Foreign(format!("{}/{name}", identity.namespace))),
            // Nothing is recorded yet that could be lost.
            Err(Error::Lost(secret)) if records.is_empty() => return Err(Error::Foreign(secret)),
            Err(error) => return Err(error),
        };
        let meta = &mut found.metadata;
        let before = (meta.labels.clone(), meta.annotations.clone());
        meta.labels.get_or_insert_default().extend(identity.labels());
        let annotations = meta.annotations.get_or_insert_default();
        annotations.extend(kept.fingerprints());
        annotations.insert(owner.annotation.into(), owner.uid);
        if before == (meta.labels.clone(), meta.annotations.clone()) {
            // The cache lags behind.
            return Ok(());
        }
        call("replace", format!("Secret {name}"), api.replace(name, &self.keys.post(), &found)).await?;
        info!("labels and fingerprints of the roots were put right");
        Ok(())
    }

    /// Looks from time to time whether the guest's authorities are in Vault, and the recorded ones: who restores Vault from an
    /// older snapshot is to hear of what it lacks before a certificate has to be renewed.
    async fn look_into_vault(&self, identity: &Identity, world: &World) -> Result<(), Error> {
        let vault = authority::vault(&self.context)?;
        let unseen: Vec<_> =
            Authority::ALL.into_iter().filter(|of| !vault.is_seen(&vault.mount(identity, *of))).collect();
        if unseen.is_empty() {
            return Ok(());
        }
        let roots = self.roots(identity, world).await?;
        for root in unseen.into_iter().filter_map(|of| roots.authority(of).in_vault()) {
            vault.verify(root).await?;
        }
        Ok(())
    }

    /// Takes away what does not go with the guest's namespace: nothing is in Vault that no place there was recorded for.
    async fn clean_up(&self, identity: &Identity, recorded: Option<&VaultPlace>) -> Result<Answer, Error> {
        let mut waiting = Vec::new();
        if !self.delete_kubeconfig(identity).await? {
            waiting.push("the kubeconfig Secret to be gone".to_owned());
        }
        if recorded.is_some() {
            let vault = authority::vault_at(&self.context, identity, recorded)?;
            let left = vault.remove(identity).await.map_err(vault::Error::from)?;
            waiting.extend(left.iter().map(|mount| format!("{mount} in Vault to be gone")));
        }
        if waiting.is_empty() {
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        Ok((Report::waiting(waiting.join(", ")), Outcome::After(Duration::from_secs(2))))
    }

    /// Deletes the kubeconfig beside the Cluster. Answers whether it is gone.
    async fn delete_kubeconfig(&self, identity: &Identity) -> Result<bool, Error> {
        let (api, owner) = (self.keys.secrets(&identity.key.namespace), identity.owner());
        let mut left = apply::prune(&api, &identity.selector(), &owner, None, |_| false).await?;
        // By its name, too: it may have lost its labels.
        let name = names::kubeconfig_secret(&identity.key.name);
        let named = call("get", format!("Secret {name}"), api.get_metadata_opt(&name)).await?;
        if let Some(named) = named.filter(|named| owner.owns(&named.metadata)) {
            if !left.contains(&name) {
                apply::delete(&api, &named.metadata, None).await?;
            }
            left.push(name);
        }
        Ok(left.is_empty())
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
    let ca = kubernetes_ca(context, identity).await?;
    let client = authority::sign(context, &ca, "manager", &leaf::bootstrapper(), Timestamp::now(), ttl).await?;
    Ok((ca.certificate().to_owned(), client))
}

/// The recorded fingerprint of the authority that signs a guest's clients, once it is recorded.
pub fn kubernetes_authority(context: &Context, identity: &Identity) -> Option<String> {
    let namespace = context.namespace(identity)?;
    namespace.metadata.annotations.as_ref()?.get(&Root::Ca(Authority::Kubernetes).record()).cloned()
}

/// The authority that signs a guest's clients, if it is the recorded one.
///
/// # Errors
/// [`Error::Lost`] if it is missing or another one; a call.
pub async fn kubernetes_ca(context: &Context, identity: &Identity) -> Result<Kept, Error> {
    let api = Api::<Secret>::namespaced(context.client.clone(), &identity.namespace);
    let found = read_roots(&api).await?;
    let ca = found.map(|(_, kept)| kept.kubernetes);
    let recorded = kubernetes_authority(context, identity);
    ca.filter(|ca| Some(embedded::fingerprint(ca.certificate())) == recorded).ok_or_else(|| lost(identity))
}

/// The roots' Secret of a guest's namespace and what it holds, if that is all of them.
async fn read_roots(api: &Api<Secret>) -> Result<Option<(Secret, Roots)>, CallError> {
    let found = call("get", format!("Secret {}", roots::SECRET), api.get_opt(roots::SECRET)).await?;
    Ok(found.and_then(|secret| Roots::of(&secret).map(|kept| (secret, kept))))
}

fn lost(identity: &Identity) -> Error {
    Error::Lost(format!("{}/{}", identity.namespace, roots::SECRET))
}

impl Reconciler for PkiOperator {
    const NAME: &'static str = "pki";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let Some(target) = self.context.target(key) else { return Ok(Outcome::AwaitChange) };
        // Certificates are renewed in a pause, too; nothing is deleted.
        if let Some(left) = target.paused(Timestamp::now()).filter(|_| target.is_deleting()) {
            return Ok(Outcome::After(left));
        }
        let look = match self.look(key, &target).await {
            // Its user's to mend, and no call that failed. Nobody tells us of Secrets beside Clusters.
            Err(Error::Import(error)) => {
                let report = Report::failed(Reason::ImportFailed, error.to_string(), None);
                Ok((report, Outcome::After(import::LOOK_AGAIN)))
            }
            look => look,
        };
        self.context.reports.conclude(&target.identity, |reports| &mut reports.pki, look)
    }
}
