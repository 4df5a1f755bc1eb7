//! A guest's stacks, one step each at a look: what became of it, how far it is, and when it is looked at again.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    accounts::Session,
    blame::{self, Blame},
    calls::cloudformation::Seen,
    deploy::{self, AdvanceError, Order, Told},
    driver::Step,
    ledger::Book,
    memory::{Busy, Checked, Guest, Rest},
    progress,
    status::{Phase, StackStatus},
};
use crate::runtime::{chain, is_not_leading};

/// How a stack is.
#[derive(Clone, Debug)]
pub(super) struct Stand {
    pub is: Is,
    /// What it says of itself, if it is there.
    pub outputs: std::collections::BTreeMap<String, String>,
    /// What somebody changed of it.
    pub drift: Option<Blame>,
    /// After which time it is looked at again.
    pub again: Duration,
}

impl Stand {
    /// One of which nothing is known but that.
    pub fn failed(blame: Blame, again: Duration) -> Self {
        Self { is: Is::Failed(blame), outputs: Default::default(), drift: None, again }
    }
}

/// Whether a stack is as it should be.
#[derive(Clone, Debug)]
pub(super) enum Is {
    Done,
    /// What it waits for.
    Waits(String),
    Failed(Blame),
}

/// What is needed to take steps.
pub(super) struct Stacks<'a> {
    pub session: &'a Session,
    pub book: &'a Book,
    pub guest: &'a mut Guest,
    /// How often is looked.
    pub poll: Duration,
    /// How often it is found out what somebody changed of a stack. Zero: never.
    pub drift_interval: Duration,
}

/// In looks at an account that is busy: how long a stack that failed is let be, at first; one that is to go.
const REST: u32 = 60;
const REST_OF_LEAVING: u32 = 12;
/// When events of a stack that takes long are looked at: twice in its first minutes, which is what a stack may cost, and then rarely.
const LOOKS: [u32; 2] = [6, 24];
const RARELY: u32 = 60;
/// The part of the interval after which a stack is first looked at for what somebody changed of it.
const FIRST_DRIFT: u32 = 36;

impl Stacks<'_> {
    /// Takes a stack's next step. `resources`: how many it has when it is whole.
    ///
    /// # Errors
    /// If the record could not be written, or this process leads no more. Whoever comes back later goes on.
    pub async fn step(&mut self, mut order: Order<'_>, resources: usize) -> Result<Stand, AdvanceError> {
        let stack = order.stack;
        order.again = self.guest.is_due(stack);
        let goal = format!("{:?}", order.goal.desired());
        if let Some(stand) = self.guest.rest(stack, &goal).filter(|_| !order.again) {
            return Ok(stand);
        }
        let stand = self.advance(&order, resources).await?;
        match &stand.is {
            Is::Failed(_) => {
                let rest = Rest { goal, until: Instant::now() + stand.again, stand: stand.clone() };
                self.guest.rests.insert(stack.to_owned(), rest);
            }
            Is::Waits(_) => {
                self.guest.rests.remove(stack);
                // Whoever looks at the account knows that somebody waits.
                self.session.account.hurry();
            }
            Is::Done => drop(self.guest.rests.remove(stack)),
        }
        Ok(stand)
    }

    async fn advance(&mut self, order: &Order<'_>, resources: usize) -> Result<Stand, AdvanceError> {
        let stack = order.stack;
        let told = match deploy::advance(self.session, order, &self.book.of(stack)).await {
            Ok(told) => told,
            Err(error @ AdvanceError::Record { .. }) => return Err(error),
            Err(error) if is_not_leading(&error) => return Err(error),
            Err(error) if blame::waits_its_turn(&error) => {
                let what = format!("a turn to call AWS ({})", chain(&error));
                let outputs = Default::default();
                return Ok(Stand { is: Is::Waits(what), outputs, drift: None, again: self.poll * 4 });
            }
            Err(error) => {
                return Ok(Stand::failed(blame::of_advance(&error), self.poll * 4));
            }
        };
        let outputs = told.stack.as_ref().map(|seen| seen.outputs.clone()).unwrap_or_default();
        let idle = self.session.account.intervals().idle;
        let mut drift = None;
        let (is, again) = match &told.step {
            Step::Done => {
                self.guest.settled(stack);
                if let Some(seen) = &told.stack {
                    drift = self.drift(stack, seen).await;
                }
                (Is::Done, idle)
            }
            Step::Failed(failure) => {
                self.guest.busy.remove(stack);
                let blame = blame::of_failure(stack, failure, told.cause.as_deref());
                let first = self.poll * if is_leaving(order) { REST_OF_LEAVING } else { REST };
                let again = match failure.may_be_tried_again() {
                    true => self.guest.failed(stack, order.again, first).min(idle).max(self.poll),
                    false => idle,
                };
                (Is::Failed(blame), again)
            }
            _ => (Is::Waits(self.waits(stack, &told, resources).await), told.again.unwrap_or(self.poll)),
        };
        if !matches!(is, Is::Done) {
            self.guest.drifts.remove(stack);
        }
        Ok(Stand { is, outputs, drift, again })
    }

    /// What somebody changed of a stack past CloudFormation. It is found out now and then; what was found is in every look at stacks.
    async fn drift(&mut self, stack: &str, seen: &Seen) -> Option<Blame> {
        let (interval, now) = (self.drift_interval, Instant::now());
        if interval.is_zero() {
            return None;
        }
        let fresh = || Checked { since: now, asked: None, told: None };
        let known = self.guest.drifts.entry(stack.to_owned()).or_insert_with(fresh);
        let age = seen.drift.checked.map(|at| {
            let age = jiff::Timestamp::now().as_second().saturating_sub(at);
            Duration::from_secs(u64::try_from(age).unwrap_or_default())
        });
        let is_due = match age {
            Some(age) => age >= interval,
            // For the first time soon, so that a manager that often begins anew comes to it, too.
            None => known.since.elapsed() >= interval / FIRST_DRIFT,
        };
        if is_due && known.asked.is_none_or(|asked| asked.elapsed() >= interval / FIRST_DRIFT) {
            known.asked = Some(now);
            if let Err(error) = self.session.cloudformation.detect_drift(&seen.id).await {
                tracing::debug!(error = chain(&error), "whether stack {stack} was changed is not found out");
            }
        }
        if !seen.drift.is_drifted {
            known.told = None;
            return None;
        }
        let checked = seen.drift.checked.unwrap_or_default();
        if known.told.as_ref().is_none_or(|(at, _)| *at != checked) {
            // What it is, is told as soon as it can be.
            let found = self.session.cloudformation.drifts(&seen.id).await.ok()?;
            known.told = Some((checked, found));
        }
        let found = known.told.as_ref().map(|(_, found)| found.as_slice()).unwrap_or_default();
        Some(blame::of_drift(stack, found))
    }

    /// What is told of a stack that something is done to.
    async fn waits(&mut self, stack: &str, told: &Told, resources: usize) -> String {
        let status = told.stack.as_ref().and_then(|seen| seen.stack.as_ref().ok()).map(|stack| stack.status);
        let (Some(seen), Some(status)) = (&told.stack, status.filter(|status| status.phase() == Phase::Busy)) else {
            self.guest.busy.remove(stack);
            return format!("stack {stack}: {}", doing(&told.step));
        };
        let progress = self.progress(stack, seen, status, resources).await;
        let progress = progress.map(|text| format!(", {text}")).unwrap_or_default();
        format!("stack {stack}: {status}{progress}")
    }

    /// How far it is, by its events: looked at now and then.
    async fn progress(&mut self, stack: &str, seen: &Seen, status: StackStatus, resources: usize) -> Option<String> {
        let fresh = || Busy { since: Instant::now(), looks: 0, progress: None };
        let busy = self.guest.busy.entry(stack.to_owned()).or_insert_with(fresh);
        let rarely = LOOKS[LOOKS.len() - 1];
        let next = usize::try_from(busy.looks).ok().and_then(|looks| LOOKS.get(looks).copied());
        let next = next.unwrap_or_else(|| rarely + RARELY * (busy.looks + 1 - LOOKS.len() as u32));
        if busy.since.elapsed() < self.poll * next {
            return busy.progress.clone();
        }
        busy.looks += 1;
        // What cannot be told is not told; that the stack itself goes on is seen otherwise.
        let events = self.session.cloudformation.events(&seen.id).await.ok()?;
        let token = progress::latest_token(&events)?;
        let total = match status {
            StackStatus::CreateInProgress => resources,
            _ => progress::about(&events, token),
        };
        busy.progress = progress::progress(&events, token, total);
        busy.progress.clone()
    }
}

fn is_leaving(order: &Order<'_>) -> bool {
    matches!(order.goal, super::deploy::Goal::Absent { .. })
}

/// What a step does, for people.
fn doing(step: &Step) -> &'static str {
    match step {
        Step::Done | Step::Failed(_) => "as it is",
        Step::Wait => "a look at it",
        Step::CreateChangeSet { .. } => "its change set",
        Step::ExecuteChangeSet { .. } => "its change set to be executed",
        Step::DeleteChangeSet { .. } => "another change set",
        Step::Protect(_) => "its termination protection",
        Step::RollBack { .. } | Step::ContinueRollback { .. } => "a failed change to be undone",
        Step::Delete { .. } => "it to be deleted",
    }
}
