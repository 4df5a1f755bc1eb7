//! Effects of the aws operator: a guest's stacks, from its Cluster.
//!
//! ```text
//!  Cluster ─► plan ─► ClusterStack, PoolStack ─► body ─┐
//!  Secret beside it ─► Session, one for each guest ────┼─► Stacks::step ─► Stand ─► reports: network, control plane, pools
//!  status.aws.stacks ─► Book ──────────────────────────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kube::Api;
use tokio::time::Instant;

use super::{
    accounts::{Accounts, Intervals},
    blame::Blame,
    deploy::{AdvanceError, Goal, Order},
    driver::Wanted,
    leave::remove,
    ledger::{self, Book},
    memory::{Guest, Offered},
    plan::{self, Outputs},
    stacks::{Is, Stacks, Stand},
    surroundings::{self, Surroundings},
    tags::Owner,
    template::{Body, InputError},
    user_data::UserDataError,
};
use crate::{
    api::{Cluster, Reason, names},
    cluster::{ClusterKey, Report, Valid, valid::Aws},
    context::{Context, Target},
    kvm::{KvmFacts, PoolFacts},
    network::NetworkFacts,
    pki::roots,
    runtime::{CallError, chain, operator::Reconciler, queue::Outcome},
};

/// In looks at an account that is busy: how often the Secret is looked at, while all is well and while it is not.
pub(super) const SECRET: u32 = 12;
pub(super) const SECRET_REFUSED: u32 = 2;
/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step.
    #[error(transparent)]
    Step(#[from] AdvanceError),
    /// The Secret.
    #[error("read the Secret with AWS's credentials")]
    Secret(#[source] CallError),
}

/// The aws operator.
pub struct AwsOperator {
    pub(super) context: Context,
    pub(super) accounts: Accounts,
    pub(super) poll: Duration,
    pub(super) drift_interval: Duration,
    guests: Mutex<HashMap<ClusterKey, Guest>>,
}

/// What is said of a guest.
pub(super) struct Said {
    pub(super) network: Report<NetworkFacts>,
    pub(super) control_plane: Report<KvmFacts>,
    pub(super) pools: Report<PoolFacts>,
    pub(super) outcome: Outcome,
}

impl Said {
    pub(super) fn waiting(what: &str) -> Self {
        Self {
            network: Report::waiting(what),
            control_plane: Report::waiting(what),
            pools: Report::waiting(what),
            outcome: Outcome::AwaitChange,
        }
    }

    pub(super) fn gone() -> Self {
        let outcome = Outcome::AwaitChange;
        Self { network: Report::Gone, control_plane: Report::Gone, pools: Report::Gone, outcome }
    }
}

/// One look at a guest that is to be there.
struct Look<'a> {
    valid: &'a Valid,
    aws: &'a Aws,
    owner: Owner,
    wanted: Wanted,
    roots: BTreeMap<String, String>,
}

impl AwsOperator {
    /// An aws operator, for as long as this process leads.
    pub fn new(context: Context) -> Self {
        let poll = Duration::try_from(context.settings.aws.poll).unwrap_or(Duration::from_secs(5));
        let intervals = Intervals { change_set: poll * 4 / 5, busy: poll, idle: poll * 12 };
        let accounts = Accounts::new(Some(context.leadership.clone()), intervals);
        let drift_interval = Duration::try_from(context.settings.aws.drift_interval).unwrap_or_default();
        Self { context, accounts, poll, drift_interval, guests: Mutex::default() }
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<ClusterKey, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self, key: &ClusterKey, target: &Target, guest: &mut Guest) -> Result<Said, Error> {
        let book = self.book(key, target, guest);
        let said = if target.is_deleting() {
            self.leave(target, guest, &book).await
        } else {
            self.keep(target, guest, &book).await
        };
        guest.written = Some(book.close());
        said
    }

    fn book(&self, key: &ClusterKey, target: &Target, guest: &mut Guest) -> Book {
        let newest = ledger::newer(Cluster::clone(&target.cluster), guest.written.take());
        Book::new(Api::namespaced(self.context.client.clone(), &key.namespace), key, newest)
    }

    /// Makes the guest's stacks, or makes them so.
    async fn keep(&self, target: &Target, guest: &mut Guest, book: &Book) -> Result<Said, Error> {
        let Some((valid, aws)) = target.workable().and_then(|valid| Some((valid, valid.aws.as_ref()?))) else {
            return Ok(Said::waiting("a valid and protected Cluster"));
        };
        let Some(namespace) = self.context.namespace(&valid.identity) else {
            return Ok(Said::waiting("the namespace"));
        };
        let roots = roots::fingerprints(namespace.metadata.annotations.as_ref());
        if roots.is_empty() {
            return Ok(Said::waiting("the guest's authorities"));
        }
        let session = match self.enter(target, (&aws.region, &aws.credentials), guest).await? {
            Ok(session) => session,
            Err(blame) => return Ok(self.blamed(target, &blame, self.poll * SECRET_REFUSED)),
        };
        let wanted = Wanted { given_up: given_up(target), formed: target.has_formed_etcd(), ..Wanted::default() };
        let owner = plan::owner(&valid.identity);
        let look = Look { valid, aws, owner, wanted, roots };
        let mut stacks =
            Stacks { session: &session, book, guest, poll: self.poll, drift_interval: self.drift_interval };
        if let Some(blame) = self.offered(&look, &mut stacks).await {
            return Ok(self.blamed(target, &blame, self.poll * SECRET));
        }
        let cluster = self.cluster_stack(&look, &mut stacks).await?;
        let outputs = Outputs::of(&cluster.outputs);
        let mut outcome = Outcome::After(cluster.again);
        let pools = match (&cluster.is, &outputs) {
            (Is::Done, Some(outputs)) => {
                let (report, again) = self.pools(&look, &mut stacks, outputs).await?;
                outcome = outcome.or_sooner(Outcome::After(again));
                report
            }
            _ if look.valid.pools.is_empty() => Report::Ready(PoolFacts::default()),
            _ => Report::waiting("the stack of network and control plane"),
        };
        self.note_refusals(target, guest, &cluster);
        // What is not seen now is where it was.
        let pinned = || target.cluster.status.as_ref().and_then(|status| status.endpoint.clone());
        let endpoint = outputs.as_ref().map(Outputs::endpoint).or_else(pinned);
        let facts = |endpoint| NetworkFacts { inside: None, endpoint, ingress: None };
        let masters = KvmFacts {
            ready: 0,
            wanted: usize::try_from(valid.control_plane.replicas).unwrap_or(usize::MAX),
            runs: matches!(cluster.is, Is::Done).then(|| valid.version.clone()),
            changing: look.wanted.formed && matches!(cluster.is, Is::Waits(_)),
        };
        let is = match (cluster.is, cluster.drift) {
            (Is::Done, Some(drift)) => Is::Failed(drift),
            (is, _) => is,
        };
        let (network, control_plane) = match is {
            Is::Done => (
                Report::Ready(facts(endpoint.clone())),
                Report::Waiting {
                    what: format!("the guest's API to answer at {}", endpoint.unwrap_or_default()),
                    facts: Some(masters),
                },
            ),
            Is::Waits(what) => (
                Report::Waiting { what: what.clone(), facts: endpoint.map(|endpoint| facts(Some(endpoint))) },
                Report::Waiting { what, facts: Some(masters) },
            ),
            Is::Failed(Blame { reason, message }) => (
                Report::Failed {
                    reason,
                    message: message.clone(),
                    facts: endpoint.map(|endpoint| facts(Some(endpoint))),
                },
                Report::Failed { reason, message, facts: Some(masters) },
            ),
        };
        Ok(Said { network, control_plane, pools, outcome })
    }

    async fn cluster_stack(&self, look: &Look<'_>, stacks: &mut Stacks<'_>) -> Result<Stand, Error> {
        let around = self.around(look);
        let rendered = around.map_or(Err(no_vault()), |around| {
            let data = surroundings::of_masters(look.valid, around).map_err(|error| of_user_data(&error))?;
            let stack = plan::cluster_stack(look.valid, look.aws, data);
            let body = stack.render().map_err(|error| of_input(&error))?;
            Ok((body, stack.spec_hash))
        });
        self.apply(look, stacks, rendered).await
    }

    /// The stacks of the pools that there should be, and of those that there should not be any more.
    async fn pools(
        &self,
        look: &Look<'_>,
        stacks: &mut Stacks<'_>,
        outputs: &Outputs,
    ) -> Result<(Report<PoolFacts>, Duration), Error> {
        let drain = self.context.settings.rollout.drain_timeout.as_secs().clamp(30, 7200);
        let drain = u32::try_from(drain).unwrap_or(7200);
        let mut again = stacks.session.account.intervals().idle;
        let (mut waits, mut failed, mut wanted) = (None, None, 0);
        let mut names = BTreeSet::new();
        for pool in &look.valid.pools {
            let rendered = self.around(look).map_or(Err(no_vault()), |around| {
                let data = surroundings::of_pool(look.valid, pool, around).map_err(|error| of_user_data(&error))?;
                let stack = plan::pool_stack(look.valid, look.aws, pool, outputs, (data, drain));
                let body = stack.render().map_err(|error| of_input(&error))?;
                Ok((body, stack.spec_hash))
            });
            wanted += usize::try_from(pool.replicas).unwrap_or(usize::MAX);
            let name = look.owner.pool_stack(pool.name.as_str());
            stacks.guest.gone.remove(&name);
            names.insert(name);
            let stand = self.apply(look, stacks, rendered).await?;
            again = again.min(stand.again);
            failed = failed.or(stand.drift);
            match stand.is {
                Is::Done => {}
                Is::Waits(what) => waits = waits.or(Some(what)),
                Is::Failed(blame) => failed = failed.or(Some(blame)),
            }
        }
        for name in self.pools_of(&look.owner, stacks.book) {
            if names.contains(&name) || stacks.guest.gone.contains(&name) {
                continue;
            }
            let stand = remove(&look.owner, stacks, &name, false).await?;
            again = again.min(stand.again);
            match stand.is {
                Is::Done => drop(stacks.guest.gone.insert(name)),
                Is::Waits(what) => waits = waits.or(Some(what)),
                Is::Failed(blame) => failed = failed.or(Some(blame)),
            }
        }
        // How many of them are Ready the guest itself tells.
        let facts = PoolFacts { ready: 0, wanted, changing: look.wanted.formed && waits.is_some() };
        let waits = waits.or_else(|| (wanted > 0).then(|| format!("{wanted} nodes to register with the guest's API")));
        let report = match (failed, waits) {
            (Some(Blame { reason, message }), _) => Report::Failed { reason, message, facts: Some(facts) },
            (None, Some(what)) => Report::Waiting { what, facts: Some(facts) },
            (None, None) => Report::Ready(facts),
        };
        Ok((report, again))
    }

    /// Brings a stack to what was rendered.
    async fn apply(
        &self,
        look: &Look<'_>,
        stacks: &mut Stacks<'_>,
        rendered: Result<(Body, String), Blame>,
    ) -> Result<Stand, Error> {
        let (body, spec_hash) = match rendered {
            Ok(rendered) => rendered,
            Err(blame) => {
                let again = stacks.session.account.intervals().idle;
                return Ok(Stand::failed(blame, again));
            }
        };
        let wanted = Wanted { spec_hash, ..look.wanted.clone() };
        let goal = Goal::Present { body: &body, wanted: &wanted };
        let order = Order { uid: &look.owner.uid, stack: &body.stack, goal, again: false };
        Ok(stacks.step(order, body.resources).await?)
    }

    /// Whether the guest's zones have the instance types that it asks for: asked when either changes, and now and then while some are
    /// missing. A stack would tell so only after minutes.
    async fn offered(&self, look: &Look<'_>, stacks: &mut Stacks<'_>) -> Option<Blame> {
        let (types, zones) = (plan::instance_types(look.valid, look.aws), look.aws.zones.clone());
        let known = stacks.guest.offered.as_ref().filter(|known| known.types == types && known.zones == zones);
        if let Some(known) = known.filter(|known| known.missing.is_none() || known.at.elapsed() < self.poll * SECRET) {
            return known.missing.clone();
        }
        let lacks = match stacks.session.resources.offerings(&types, &zones).await {
            Ok(found) => plan::missing(&types, &zones, &found),
            // Then the stack tells, later.
            Err(error) => {
                tracing::warn!(error = chain(&error), "whether AWS has the instance types is not known");
                Vec::new()
            }
        };
        let missing = (!lacks.is_empty()).then(|| Blame {
            reason: Reason::InstanceTypeUnavailable,
            message: format!("AWS does not have {}; ask for other instance types or zones", lacks.join(", ")),
        });
        let at = Instant::now();
        stacks.guest.offered = Some(Offered { types, zones, at, missing: missing.clone() });
        missing
    }

    fn around<'a>(&'a self, look: &'a Look<'a>) -> Option<Surroundings<'a>> {
        // Of Vault's roles nothing is known here: who writes them tells their ids.
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        Some(Surroundings {
            owner: &look.owner,
            aws: look.aws,
            vault: self.context.settings.vault.as_ref()?,
            settings: &self.context.settings.aws,
            roots: &look.roots,
            etcd_formed: look.wanted.formed,
            logins: &NONE,
        })
    }

    /// The same of all that a guest has there; what was known stays known.
    pub(super) fn blamed(&self, target: &Target, blame: &Blame, again: Duration) -> Said {
        let before = self.context.reports.of(&target.identity);
        let Blame { reason, message } = blame;
        Said {
            network: Report::failed(*reason, message, before.network.as_ref()),
            control_plane: Report::failed(*reason, message, before.kvm.as_ref()),
            pools: Report::failed(*reason, message, before.pools.as_ref()),
            outcome: Outcome::After(again),
        }
    }
}

pub(super) fn annotation<'a>(target: &'a Target, name: &str) -> Option<&'a str> {
    target.cluster.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Logical ids that a person gave up.
fn given_up(target: &Target) -> BTreeSet<String> {
    let given = annotation(target, names::AWS_GIVE_UP_ANNOTATION).unwrap_or_default();
    given.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

fn no_vault() -> Blame {
    Blame { reason: Reason::VaultUnavailable, message: "settings.vault names no Vault any more".into() }
}

fn of_user_data(error: &UserDataError) -> Blame {
    let reason = match error {
        UserDataError::TooBig { .. } => Reason::UserDataTooBig,
        UserDataError::Render { .. } | UserDataError::Compress { .. } => Reason::Error,
    };
    Blame { reason, message: chain(error) }
}

fn of_input(error: &InputError) -> Blame {
    let reason = match error {
        InputError::UserDataTooBig { .. } | InputError::TemplateTooBig { .. } => Reason::UserDataTooBig,
        _ => Reason::InvalidSpec,
    };
    Blame { reason, message: error.to_string() }
}

impl Reconciler for AwsOperator {
    const NAME: &'static str = "aws";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let Some(target) = self.context.target(key).filter(Target::is_on_aws) else {
            self.guests().remove(key);
            return Ok(Outcome::AwaitChange);
        };
        if let Some(left) = target.paused(Timestamp::now()) {
            return Ok(Outcome::After(left));
        }
        let uid = target.identity.uid.clone();
        let known = self.guests().remove(key).filter(|guest| guest.uid == uid);
        let mut guest = known.unwrap_or_else(|| Guest { uid, ..Guest::default() });
        let said = self.look(key, &target, &mut guest).await;
        self.guests().insert(key.clone(), guest);
        let said = said.inspect_err(|error| {
            // Of a step it is that another leads, or has written since: nothing to tell of the guest.
            if matches!(error, Error::Secret(_)) {
                let blame = Blame { reason: Reason::Error, message: chain(error) };
                self.say(&target, self.blamed(&target, &blame, self.poll));
            }
        })?;
        let outcome = said.outcome;
        self.say(&target, said);
        Ok(outcome)
    }
}

impl AwsOperator {
    fn say(&self, target: &Target, said: Said) {
        self.context.reports.update(&target.identity, |reports| {
            reports.network = Some(said.network);
            reports.kvm = Some(said.control_plane);
            reports.pools = Some(said.pools);
        });
    }
}
