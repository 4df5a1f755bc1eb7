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
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tracing::info;

use super::{
    PkiFacts, authority,
    embedded::PkiError,
    generations::Generations,
    import::{self, ImportError, Importing},
    issue::Issue,
    plan::{self, Step, World},
    roots::{self, Roots},
    rotate,
    store::KeyStore,
    turnover::{self, Record, Rotating},
    vault::{self, VaultError},
};
use crate::{
    api::{PkiBackend, Reason, VaultPlace, names},
    cluster::{Blames, ClusterKey, Identity, Report, Valid},
    context::{Context, Target},
    runtime::{CallError, cache, call, operator::Reconciler, queue::Outcome},
};

const MANAGER: &str = "giantnetes.pki";
/// Pause before what was done or is waited for is looked at again, should no watch tell of it.
const SOON: Duration = Duration::from_secs(5);

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
            Self::Import(_) | Self::Vault(vault::Error::Occupied(_)) => Reason::ImportFailed,
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
        let now = Timestamp::now();
        let pinned = target.cluster.status.as_ref().and_then(|status| status.endpoint.clone());
        let world = World { paused: target.paused(now).is_some(), ..self.observe(key, valid, pinned).await? };
        let world = self.observe_rotation(valid, world, now).await?;
        let plan = plan::plan(valid, &world, now);
        if plan.lost {
            self.mark_roots(&valid.identity, &world).await?;
        }
        let in_vault = valid.pki.backend == PkiBackend::Vault;
        let next_renewal = plan::next_renewal(&world);
        let text = |at: Timestamp| at.to_string();
        let mut facts = PkiFacts {
            renew_at: next_renewal.map(text),
            end_at: plan::first_end(&world).map(text),
            vault: None,
            rotation: rotate::facts(valid, &world, &plan),
        };
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
        if let Some(node) = plan.rotating.as_ref().and_then(Rotating::turns) {
            // Said before it is done, so that no other is sent away meanwhile.
            let report = plan.report(valid, &world, facts.clone());
            self.context.reports.update(&valid.identity, |reports| reports.pki = Some(report.clone()));
            if !self.may_turn(&valid.identity, node).await? {
                return Ok((report, Outcome::After(SOON)));
            }
        }
        for step in &plan.steps {
            self.carry_out(valid, &world, &roots, step, now).await?;
        }
        if plan.is_fulfilled() {
            let mut pause = plan::pause(next_renewal, now);
            if let Some(rotating) = &plan.rotating {
                pause = pause.min(rotate::pause(rotating, now));
            }
            if in_vault {
                self.look_into_vault(&valid.identity, &world).await?;
                pause = pause.min(vault::SEEN_FOR);
            }
            return Ok((Report::Ready(facts), Outcome::After(pause)));
        }
        // The watch brings what was written, and with it the next look.
        Ok((plan.report(valid, &world, facts), Outcome::After(SOON)))
    }

    async fn observe(&self, key: &ClusterKey, valid: &Valid, pinned_endpoint: Option<String>) -> Result<World, Error> {
        let identity = &valid.identity;
        let namespace = self.context.namespace(identity);
        let noted = namespace.as_ref().and_then(|namespace| namespace.metadata.annotations.as_ref());
        let (records, next_records) = (roots::fingerprints(noted), roots::next_fingerprints(noted));
        let noted = |name: &str| noted.and_then(|all| all.get(name));
        let generation = noted(names::GENERATION_ANNOTATION).and_then(|text| text.parse().ok());
        let rotation = noted(names::ROTATION_ANNOTATION).and_then(|text| Record::read(text));
        let kubeconfig = names::kubeconfig_secret(&key.name);
        let mut secrets = BTreeMap::new();
        let beside = cache::get(&self.context.cache.secrets, Some(&key.namespace), &kubeconfig);
        for secret in self.context.secrets(&identity.namespace).into_iter().chain(beside) {
            let meta = &secret.metadata;
            let name = meta.name.clone().unwrap_or_default();
            match identity.owner().owns(meta) {
                true => drop(secrets.insert(name, self.keys.seen(meta).await?)),
                // Not seen to be the roots, who may have lost their mark: their content tells.
                false if roots::generation_of(&name).is_some() => {}
                false => return Err(Error::Foreign(name)),
            }
        }
        let reports = self.context.reports.of(identity);
        let endpoint = reports.network.as_ref().and_then(Report::facts).and_then(|facts| facts.endpoint.clone());
        // In a pause nobody reports, and certificates are renewed nevertheless.
        let endpoint = endpoint.or_else(|| pinned_endpoint.filter(|_| reports.network.is_none()));
        let places = self.context.places(identity);
        let workers = self.context.workers(valid).into_iter().map(|(_, node)| node).collect();
        let known = self.context.known_workers(identity);
        let lost = known.into_iter().filter(|known| known.lost).map(|known| known.node).collect();
        let vm_pods = self.context.vm_pods(identity).iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        let provider = self.context.settings.kvm.enabled;
        let generation = turnover::generation(generation, &secrets, &records);
        Ok(World {
            namespace: namespace.is_some(),
            records,
            secrets,
            endpoint,
            workers,
            places,
            provider,
            vm_pods,
            lost,
            generation,
            next_records,
            rotation,
            ..World::default()
        })
    }

    async fn carry_out(
        &self,
        valid: &Valid,
        world: &World,
        roots: &OnceCell<Generations>,
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
                // They are what its wish stands for, else they would be rotated at once.
                let imported = Roots { rotated_for: valid.pki.rotate, keys_for: valid.pki.keys, ..imported };
                let imported = self.bring_roots(valid, imported).await?;
                self.store_roots(identity, world, &imported).await
            }
            Step::RecordRoots => self.record_roots(valid, world).await,
            Step::MakeNext { generation, subject } => self.make_next(valid, world, *generation, *subject, now).await,
            Step::RecordNext { generation } => self.record_next(identity, *generation).await,
            Step::NoteStage { record } => self.note_stage(identity, record).await,
            Step::Adopt { generation } => self.adopt(identity, world, *generation, now).await,
            Step::RemoveRoots { generation } => self.remove_roots(identity, *generation).await,
            Step::IssueNode { node, leaves, ttl, hash, worker, standing } => {
                let issue = Issue { identity, world, roots, hash, ttl: *ttl, now };
                if *worker {
                    self.issue_worker(issue, node, leaves, *standing).await
                } else {
                    self.issue_master(issue, node, leaves, *standing).await
                }
            }
            Step::RemoveWorker { node } => self.remove_worker(valid, world, node).await,
            Step::IssueKubeconfig { endpoint, ttl, hash, front } => {
                self.issue_kubeconfig(Issue { identity, world, roots, hash, ttl: *ttl, now }, endpoint, *front).await
            }
        }
    }

    /// Fails if a root was ever recorded: the cache may lag behind the record that forbids to make another. This process is the
    /// only one that writes one, and works on one guest one look at a time.
    async fn has_no_roots(&self, identity: &Identity) -> Result<(), Error> {
        let object = format!("Namespace {}", identity.namespace);
        let live = call("get", object, self.namespaces().get_metadata(&identity.namespace)).await?;
        let records = roots::fingerprints(live.metadata.annotations.as_ref());
        if records.is_empty() { Ok(()) } else { Err(lost(identity, 1)) }
    }

    async fn record_roots(&self, valid: &Valid, world: &World) -> Result<(), Error> {
        let identity = &valid.identity;
        // Of what it holds, not of what somebody may have written on it.
        let (_, kept) = self.recorded(identity, world.generation(), &world.records).await?;
        let records = kept.fingerprints();
        // The cache may lag behind our own record. What is recorded is never made another.
        let object = format!("Namespace {}", identity.namespace);
        let live = call("get", object, self.namespaces().get_metadata(&identity.namespace)).await?;
        let recorded = roots::fingerprints(live.metadata.annotations.as_ref());
        if !roots::agree(&records, &recorded) {
            return Err(lost(identity, world.generation()));
        }
        if recorded.is_empty() && valid.pki.import_from.is_some() {
            self.are_nobody_elses(identity, &records).await?;
        }
        if recorded == records { Ok(()) } else { self.note(identity, json!(records)).await }
    }

    /// Writes annotations onto the guest's namespace.
    pub(super) async fn note(&self, identity: &Identity, annotations: Value) -> Result<(), Error> {
        let namespace = self.context.namespace(identity);
        let patch = json!({"metadata": {
            // A namesake with another UID is not ours to write to.
            "uid": namespace.and_then(|namespace| namespace.metadata.uid.clone()),
            "annotations": annotations,
        }});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let object = format!("Namespace {}", identity.namespace);
        let request = self.namespaces();
        call("patch", object, request.patch_metadata(&identity.namespace, &params, &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// Reads the roots and compares them with their records; in a rotation those of both generations.
    pub(super) async fn roots(&self, identity: &Identity, world: &World) -> Result<Generations, Error> {
        let (_, current) = self.recorded(identity, world.generation(), &world.records).await?;
        let next = match world.next_records.is_empty() {
            true => None,
            false => Some(self.recorded(identity, world.generation() + 1, &world.next_records).await?.1),
        };
        Ok(Generations { current, next })
    }

    /// The Secret of a generation of roots and what it holds, which is what is recorded.
    pub(super) async fn recorded(
        &self,
        identity: &Identity,
        generation: u32,
        records: &BTreeMap<String, String>,
    ) -> Result<(Secret, Roots), Error> {
        let found = read_roots(&self.keys.secrets(&identity.namespace), generation).await?;
        let is_recorded = |kept: &Roots| roots::agree(&kept.fingerprints(), records);
        found.filter(|(_, kept)| is_recorded(kept)).ok_or_else(|| lost(identity, generation))
    }

    /// Gives roots that are there and intact the labels and annotations back that somebody took from them: the cache does not see
    /// them without those. What is recorded is the guest's, whatever its Secret says; before that, anybody's Secret could stand there.
    pub(super) async fn mark_roots(&self, identity: &Identity, world: &World) -> Result<(), Error> {
        self.mark(identity, world.generation(), &world.records).await?;
        // Which of two is lost is found out by looking at both.
        match world.next_records.is_empty() {
            true => Ok(()),
            false => self.mark(identity, world.generation() + 1, &world.next_records).await,
        }
    }

    async fn mark(
        &self,
        identity: &Identity,
        generation: u32,
        records: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let (name, api) = (roots::secret_of(generation), self.keys.secrets(&identity.namespace));
        let owner = identity.owner();
        let (mut found, kept) = match self.recorded(identity, generation, records).await {
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
        annotations.extend(kept.annotations());
        annotations.insert(owner.annotation.into(), owner.uid);
        if before == (meta.labels.clone(), meta.annotations.clone()) {
            // The cache lags behind.
            return Ok(());
        }
        call("replace", format!("Secret {name}"), api.replace(&name, &self.keys.post(), &found)).await?;
        info!("labels and fingerprints of the roots were put right");
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

    fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.context.client.clone())
    }
}

/// The roots' Secret of a generation and what it holds, if that is all of them.
pub(super) async fn read_roots(api: &Api<Secret>, generation: u32) -> Result<Option<(Secret, Roots)>, CallError> {
    let name = roots::secret_of(generation);
    let found = call("get", format!("Secret {name}"), api.get_opt(&name)).await?;
    Ok(found.and_then(|secret| Roots::of(&secret).map(|kept| (secret, kept))))
}

pub(super) fn lost(identity: &Identity, generation: u32) -> Error {
    Error::Lost(format!("{}/{}", identity.namespace, roots::secret_of(generation)))
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
