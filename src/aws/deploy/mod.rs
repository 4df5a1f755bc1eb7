//! Does to a stack what the driver says, one step at a time.
//!
//! ```text
//!  Ledger ─ Record ─┐                              ┌─ Failed: with the event that it comes of
//!  Account ─ View ──┼─► Observed ─► driver::next ──┼─ Wait, Done
//!  change set ──────┤                              └─ anything else: one call, by a token, and the account is looked at anew
//!  events ──────────┘
//! ```
//!
//! The attempt is written down before anything is tried, and the stack's ARN as soon as it is known. What else matters is in AWS:
//! whoever goes on after a crash sees it there, and repeats a request with the same token.
//!
//! - [`record`]: what is written down; pure
//! - `sight`: what is looked at before a step

pub mod record;
mod sight;
#[cfg(test)]
mod tests;

use std::{error::Error, sync::Arc, time::Duration};

use self::{
    record::Record,
    sight::{Sight, Sighted},
};
use super::{
    accounts::{Session, View},
    calls::{AwsError, Failure, cloudformation::Seen},
    driver::{self, Desired, Step, Subject, Wanted},
    status::UnknownStatus,
    template::Body,
};

/// Longest pause between two looks at a change set that is being made.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is to be done about a stack.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// UID of the Cluster.
    pub uid: &'a str,
    /// Name of the stack.
    pub stack: &'a str,
    /// What it should be.
    pub goal: Goal<'a>,
    /// Whether what failed is to be tried again: once, by one order that says so.
    pub again: bool,
}

/// What a stack should be.
#[derive(Clone, Debug)]
pub enum Goal<'a> {
    /// There, and made for this.
    Present {
        /// Its template.
        body: &'a Body,
        /// What it is made for; its hash is in the template, too.
        wanted: &'a Wanted,
    },
    /// Gone.
    Absent {
        /// Whether what cannot be deleted may be left behind. Only a person can say so.
        force: bool,
    },
}

impl Goal<'_> {
    /// What an attempt at it is written down as.
    fn text(&self) -> String {
        match self {
            Self::Present { wanted, .. } => format!("present/{}", wanted.spec_hash),
            // Force is a word on the same attempt.
            Self::Absent { .. } => "absent".to_owned(),
        }
    }

    pub(in crate::aws) fn desired(&self) -> Desired {
        match self {
            Self::Present { wanted, .. } => Desired::Present((*wanted).clone()),
            Self::Absent { force } => Desired::Absent { force: *force },
        }
    }

    fn is_formed(&self) -> bool {
        matches!(self, Self::Present { wanted, .. } if wanted.formed)
    }
}

/// Where a stack's [`Record`] is kept: in the status of its Cluster.
pub trait Ledger: Sync {
    /// What was written down last.
    fn read(&self) -> Option<Record>;

    /// Writes down, and answers when it is safe.
    fn write(&self, record: &Record) -> impl Future<Output = Result<(), Box<dyn Error + Send + Sync>>> + Send;
}

/// What came of a step.
#[derive(Clone, Debug)]
pub struct Told {
    /// What was done, or is waited for.
    pub step: Step,
    /// The stack, as it was seen before.
    pub stack: Option<Arc<Seen>>,
    /// Of what failed, the event that it comes of.
    pub cause: Option<String>,
    /// After which time to come back. None: nothing changes by itself.
    pub again: Option<Duration>,
}

/// Why a step came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AdvanceError {
    /// The attempt could not be written down.
    #[error("write down the attempt at stack {stack}")]
    Record {
        /// Name of the stack.
        stack: String,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The account's stacks could not be looked at.
    #[error("look at stack {stack}")]
    Look {
        /// Name of the stack.
        stack: String,
        /// Why not.
        #[source]
        source: Arc<AwsError>,
    },
    /// A call failed.
    #[error("stack {stack}")]
    Call {
        /// Name of the stack.
        stack: String,
        /// Why.
        #[source]
        source: AwsError,
    },
    /// CloudFormation says of the stack what is not known.
    #[error("stack {stack}")]
    Unknown {
        /// Name of the stack.
        stack: String,
        /// What.
        #[source]
        source: UnknownStatus,
    },
}

/// Takes the next step, if it is time for one.
///
/// # Errors
/// If something cannot be looked at, written down or done. Whoever comes back later goes on.
pub async fn advance(session: &Session, order: &Order<'_>, ledger: &impl Ledger) -> Result<Told, AdvanceError> {
    Work { session, order, ledger }.advance().await
}

/// One look at one order.
struct Work<'a, L> {
    session: &'a Session,
    order: &'a Order<'a>,
    ledger: &'a L,
}

impl<L: Ledger> Work<'_, L> {
    async fn advance(&self) -> Result<Told, AdvanceError> {
        let before = self.ledger.read();
        let seen = self.look().await?;
        let mut record = record::take_up(before.as_ref(), &self.order.goal.text(), self.order.again);
        let is_new = before.is_none_or(|before| before.attempt != record.attempt);
        // An order to try again says so once.
        if seen.is_some() || self.order.again {
            self.keep(&record).await?;
        }
        let Some(seen) = seen else {
            return Ok(Told { step: Step::Wait, stack: None, cause: None, again: Some(self.busy()) });
        };
        let subject = Subject { uid: self.order.uid.into(), stack: self.order.stack.into(), attempt: record.attempt };
        let sight = Sight { work: self, subject: &subject, record: &record, is_new, seen: seen.as_deref() };
        let sighted = sight.next().await?;
        if let Some(id) = sighted.is_ours.then_some(seen.as_ref()).flatten().map(|seen| &seen.id) {
            record.id = Some(id.clone());
            self.keep(&record).await?;
        }
        let made = self.act(&sighted.step, seen.as_deref(), sighted.change_set.as_deref()).await?;
        if made.is_some() {
            record.id = made;
            self.keep(&record).await?;
        }
        let again = self.pause(&sighted);
        if again.is_none() {
            self.session.account.settle(self.order.stack);
        }
        Ok(Told { step: sighted.step, stack: seen, cause: sighted.cause, again })
    }

    /// Writes down what is not written down so.
    async fn keep(&self, record: &Record) -> Result<(), AdvanceError> {
        if self.ledger.read().as_ref() == Some(record) {
            return Ok(());
        }
        let failed = |source| AdvanceError::Record { stack: self.order.stack.into(), source };
        self.ledger.write(record).await.map_err(failed)
    }

    /// The stack, or that there is none. None: it is not known yet.
    async fn look(&self) -> Result<Option<Option<Arc<Seen>>>, AdvanceError> {
        let Order { stack, goal, .. } = self.order;
        let view = self.session.account.view(stack);
        match view.map_err(|source| AdvanceError::Look { stack: (*stack).to_owned(), source })? {
            View::Stale => Ok(None),
            View::There(seen) => Ok(Some(Some(seen))),
            // What follows from it cannot be taken back: CloudFormation itself is asked.
            View::Absent if goal.is_formed() || matches!(goal, Goal::Absent { .. }) => {
                // By its name: an ARN that was written down may be of the one before, where whoever made another died too soon.
                let seen = self.session.cloudformation.stack(stack).await.map_err(|error| self.failed(error))?;
                Ok(Some(seen.map(Arc::new)))
            }
            View::Absent => Ok(Some(None)),
        }
    }

    /// Does what a step asks for. A stack that comes into being by it is answered.
    async fn act(&self, step: &Step, seen: Option<&Seen>, set: Option<&str>) -> Result<Option<String>, AdvanceError> {
        if matches!(step, Step::Done | Step::Wait | Step::Failed(_)) {
            return Ok(None);
        }
        let done = self.send(step, seen, set).await;
        // Also when it failed: perhaps only the answer was lost.
        self.session.account.touch(self.order.stack);
        match done {
            Ok(made) => Ok(made),
            // It was seen in another state than it has. The next look shows that.
            Err(AwsError { source: Failure::Exists(_) | Failure::Busy(_) | Failure::NotFound(_), .. }) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn send(&self, step: &Step, seen: Option<&Seen>, set: Option<&str>) -> Result<Option<String>, AwsError> {
        let (aws, name) = (&self.session.cloudformation, self.order.stack);
        // Not by its name, where it has an identity: a namesake is not meant.
        let stack = seen.map_or(name, |seen| seen.id.as_str());
        match step {
            Step::Done | Step::Wait | Step::Failed(_) => {}
            Step::CreateChangeSet { token, creates } => {
                if let Goal::Present { body, .. } = self.order.goal {
                    let id = aws.create_change_set(body, token, *creates).await?;
                    return Ok(creates.then_some(id));
                }
            }
            Step::ExecuteChangeSet { token } => {
                aws.execute_change_set(stack, set.unwrap_or(token), token).await?;
            }
            Step::DeleteChangeSet { name } => aws.delete_change_set(stack, name).await?,
            Step::Protect(on) => aws.protect(stack, *on).await?,
            Step::RollBack { token } => aws.roll_back(stack, token).await?,
            Step::ContinueRollback { token } => aws.continue_rollback(stack, token).await?,
            Step::Delete { token, force, .. } => aws.delete(stack, token, *force).await?,
        }
        Ok(None)
    }

    /// After which time to come back.
    fn pause(&self, sighted: &Sighted) -> Option<Duration> {
        let least = self.session.account.intervals().change_set;
        match sighted.step {
            Step::Done | Step::Failed(_) => None,
            Step::CreateChangeSet { .. } => Some(least),
            // A change set takes seconds or minutes, and each look is a call: it comes after as long as it has taken so far.
            Step::Wait if sighted.change_set.is_some() => {
                let taken = self.session.account.done(self.order.stack).map_or(least, |done| done.elapsed());
                Some(taken.clamp(least, LONGEST_PAUSE.max(least)))
            }
            _ => Some(self.busy()),
        }
    }

    fn busy(&self) -> Duration {
        self.session.account.intervals().busy
    }

    fn failed(&self, source: AwsError) -> AdvanceError {
        AdvanceError::Call { stack: self.order.stack.into(), source }
    }
}

/// The step that is next, without doing it. For [`Sight`], which looks first at what it may depend on.
fn decide(subject: &Subject, goal: &Goal<'_>, observed: &driver::Observed) -> Step {
    driver::next(subject, &goal.desired(), observed)
}
