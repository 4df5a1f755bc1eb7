//! A guest's stacks, one step each at a look: what became of it, how far it is, and when it is looked at again.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    accounts::Session,
    blame::{self, Blame},
    calls::cloudformation::Seen,
    deploy::{AdvanceError, Order, Told, advance},
    driver::Step,
    ledger::Book,
    memory::{Busy, Guest},
    progress,
    status::{Phase, StackStatus},
};
use crate::runtime::is_not_leading;

/// How a stack is.
#[derive(Clone, Debug)]
pub(super) struct Stand {
    pub is: Is,
    /// What it says of itself, if it is there.
    pub outputs: std::collections::BTreeMap<String, String>,
    /// After which time it is looked at again.
    pub again: Duration,
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
}

/// In looks at an account that is busy: how long a stack that failed is let be, at first; one that is to go.
const REST: u32 = 60;
const REST_OF_LEAVING: u32 = 12;
/// When events of a stack that takes long are looked at: twice in its first minutes, which is what a stack may cost, and then rarely.
const LOOKS: [u32; 2] = [6, 24];
const RARELY: u32 = 60;

impl Stacks<'_> {
    /// Takes a stack's next step. `resources`: how many it has when it is whole.
    ///
    /// # Errors
    /// If the record could not be written, or this process leads no more. Whoever comes back later goes on.
    pub async fn step(&mut self, mut order: Order<'_>, resources: usize) -> Result<Stand, AdvanceError> {
        let stack = order.stack;
        order.again = self.guest.is_due(stack);
        let told = match advance(self.session, &order, &self.book.of(stack)).await {
            Ok(told) => told,
            Err(error @ AdvanceError::Record { .. }) => return Err(error),
            Err(error) if is_not_leading(&error) => return Err(error),
            Err(error) => {
                let outputs = Default::default();
                return Ok(Stand { is: Is::Failed(blame::of_advance(&error)), outputs, again: self.poll * 4 });
            }
        };
        let outputs = told.stack.as_ref().map(|seen| seen.outputs.clone()).unwrap_or_default();
        let idle = self.session.account.intervals().idle;
        let (is, again) = match &told.step {
            Step::Done => {
                self.guest.settled(stack);
                (Is::Done, idle)
            }
            Step::Failed(failure) => {
                self.guest.busy.remove(stack);
                let blame = blame::of_failure(stack, failure, told.cause.as_deref());
                let first = self.poll * if is_leaving(&order) { REST_OF_LEAVING } else { REST };
                let again = match failure.may_be_tried_again() {
                    true => self.guest.failed(stack, order.again, first).min(idle).max(self.poll),
                    false => idle,
                };
                (Is::Failed(blame), again)
            }
            _ => (Is::Waits(self.waits(stack, &told, resources).await), told.again.unwrap_or(self.poll)),
        };
        Ok(Stand { is, outputs, again })
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
