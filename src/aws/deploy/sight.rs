//! What is looked at before a step. The list of stacks is there anyway; events and change sets are asked for only where the driver's
//! next step depends on them, so that a stack that is as it should be costs no call.

use super::{AdvanceError, Goal, Ledger, Record, Seen, Work, decide};
use crate::aws::{
    calls::cloudformation::Described,
    driver::{Observed, Stack, Step, Subject},
    progress::{Event, latest_token, root_cause},
    status::Phase,
    template::{BOUNDARY, Kind},
};

/// One look.
pub(super) struct Sight<'a, L> {
    pub work: &'a Work<'a, L>,
    pub subject: &'a Subject,
    pub record: &'a Record,
    /// Whether the attempt was written down a moment ago: then nothing was tried yet, and there is no change set of it.
    pub is_new: bool,
    pub seen: Option<&'a Seen>,
}

/// What was seen, and what is next.
pub(super) struct Sighted {
    pub step: Step,
    /// Whether there is a stack, and it is ours.
    pub is_ours: bool,
    /// ARN of the attempt's change set.
    pub change_set: Option<String>,
    /// Of what failed, the event that it comes of.
    pub cause: Option<String>,
}

impl<L: Ledger> Sight<'_, L> {
    pub(super) async fn next(&self) -> Result<Sighted, AdvanceError> {
        let mut observed = Observed { stack: self.stack().await?, ..Observed::default() };
        let is_ours = observed.stack.as_ref().is_some_and(|stack| stack.owner.as_ref() == Some(&self.subject.uid));
        let mut step = decide(self.subject, &self.work.order.goal, &observed);
        let mut events = Vec::new();
        if is_ours && self.depends_on_events(&observed, &step) {
            events = self.events().await?;
            observed.last_token = latest_token(&events).map(str::to_owned);
            step = decide(self.subject, &self.work.order.goal, &observed);
        }
        let mut set = None;
        if let (true, Step::CreateChangeSet { token, .. }) = (is_ours && !self.is_new, &step) {
            set = self.change_set(token).await?;
            observed.change_set = set.as_ref().map(|set| set.set.clone());
            step = decide(self.subject, &self.work.order.goal, &observed);
        }
        let cause = if matches!(step, Step::Failed(_)) { cause(&events) } else { None };
        Ok(Sighted { step, is_ours, change_set: set.map(|set| set.id), cause })
    }

    /// The stack, with its owner.
    async fn stack(&self) -> Result<Option<Stack>, AdvanceError> {
        let Some(seen) = self.seen else { return Ok(None) };
        let unknown = |source| AdvanceError::Unknown { stack: self.subject.stack.clone(), source };
        let mut stack = seen.stack.clone().map_err(unknown)?;
        if stack.owner.is_none() && stack.status.phase() == Phase::Review {
            stack.owner = self.owner(&seen.id).await?;
        }
        Ok(Some(stack))
    }

    /// Whose a stack is that has only change sets so far: its tags come with the first that is executed. It is ours if we wrote
    /// down that we made it, or if a change set says so.
    async fn owner(&self, id: &str) -> Result<Option<String>, AdvanceError> {
        if self.record.id.as_deref() == Some(id) {
            return Ok(Some(self.subject.uid.clone()));
        }
        let aws = &self.work.session.cloudformation;
        let sets = aws.change_sets(&self.subject.stack).await.map_err(|error| self.work.failed(error))?;
        match sets.first() {
            Some(name) => Ok(self.change_set(name).await?.and_then(|set| set.owner)),
            None => Ok(None),
        }
    }

    /// Whether what is next may depend on whose token is on the latest events. That of what went well does not matter, and of
    /// a stack that is to go only whether that was tried.
    fn depends_on_events(&self, observed: &Observed, step: &Step) -> bool {
        let Some(phase) = observed.stack.as_ref().map(|stack| stack.status.phase()) else { return false };
        let went_wrong = match step {
            Step::Done | Step::Wait | Step::Protect(_) => false,
            Step::Delete { .. } => matches!(phase, Phase::Remains | Phase::Stillborn),
            _ => matches!(phase, Phase::Undone | Phase::Stillborn | Phase::HalfWay | Phase::Stuck | Phase::Remains),
        };
        let is_to_go = matches!(self.work.order.goal, Goal::Absent { .. });
        went_wrong && (!is_to_go || phase == Phase::Remains)
    }

    async fn events(&self) -> Result<Vec<Event>, AdvanceError> {
        let stack = self.seen.map_or(self.subject.stack.as_str(), |seen| seen.id.as_str());
        self.work.session.cloudformation.events(stack).await.map_err(|error| self.work.failed(error))
    }

    async fn change_set(&self, name: &str) -> Result<Option<Described>, AdvanceError> {
        let aws = &self.work.session.cloudformation;
        aws.change_set(&self.subject.stack, name).await.map_err(|error| self.work.failed(error))
    }
}

/// The event that the latest operation failed by, for people.
fn cause(events: &[Event]) -> Option<String> {
    let event = root_cause(events, latest_token(events)?)?;
    let Event { id, kind, reason, .. } = event;
    let mut text = format!("{id} ({kind}): {reason}");
    if lacks_boundary(event) {
        text.push_str(&format!(
            "; the account lacks the policy {BOUNDARY}: make it once, of files/aws/nodes-boundary.json in the chart"
        ));
    }
    Some(text)
}

/// Whether a role could not be made since there is no policy that bounds it. An account has one, for all guests in it.
fn lacks_boundary(event: &Event) -> bool {
    event.kind == Kind::Role.name() && event.reason.contains(BOUNDARY) && event.reason.contains("not")
}
