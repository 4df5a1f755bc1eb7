//! What is done next about a stack, from what it is and what it should be.
//!
//! ```text
//!  absent ──change set──► REVIEW_IN_PROGRESS ──execute──► busy ──► settled: is it the spec's? ──yes──► Done
//!    ▲                       │ loses something? Failed      │          │no  ▲
//!    │                       ▼                              ├► undone ─┴──► change set ──execute──► busy
//!    │                     Failed                           ├► half-way ──roll back──► busy
//!    └─────── delete ◄── a new attempt ◄── Failed ◄─────────┼► stillborn
//!                                                           └► stuck ──continue rolling back──► busy
//! ```
//!
//! - Changes are made by change sets alone, and each is looked at before it is executed.
//! - Every operation has a token: it is the name of its change set and on all its events. By it an attempt that failed is told
//!   from one that was not made yet, after a crash at any call, too.
//! - A stack of our name without our tag is somebody else's. Nothing is done about it.
//! - A guest that was formed has data. Its stack is never deleted to be made anew.

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, fmt};

use sha2::{Digest as _, Sha256};

use super::{
    change_set::{ChangeSet, Loss, Verdict},
    hex,
    status::{Phase, StackStatus},
};

/// The stack that is spoken of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// UID of the Cluster.
    pub uid: String,
    /// Name of the stack.
    pub stack: String,
    /// Number of the attempt. It is raised, and written down before anything else is tried, when the spec changes, when deletion
    /// begins, and when what failed is to be tried again. It never goes back, so that no token comes twice.
    pub attempt: u32,
}

/// What a stack should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    /// There, and made for this.
    Present(Wanted),
    /// Gone.
    Absent {
        /// Whether what cannot be deleted may be left behind in the account. Only a person can say so.
        force: bool,
    },
}

/// What a stack should be made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Hash of the spec.
    pub spec_hash: String,
    /// Logical ids of what may be lost, by word of a person.
    pub given_up: BTreeSet<String>,
    /// Whether the guest was formed: there are data in it.
    pub formed: bool,
}

/// What was seen of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The stack; by its id, if that is known, since one that is deleted is not found by its name. None: there is none.
    pub stack: Option<Stack>,
    /// The change set that is called [`Subject::apply_token`], if there is one.
    pub change_set: Option<ChangeSet>,
    /// The token of the stack's latest operation ([`super::progress::latest_token`]). What succeeded is seen without it, so
    /// events need only be read of a stack that is not well.
    pub last_token: Option<String>,
}

/// A stack, as CloudFormation describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Its state.
    pub status: StackStatus,
    /// UID of the Cluster that it is tagged with. In review a stack may show none yet: then that of its change set counts.
    pub owner: Option<String>,
    /// Whether termination protection is on.
    pub is_protected: bool,
    /// Its output [`super::template::SPEC_HASH`].
    pub spec_hash: Option<String>,
}

/// What is done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is as it should be.
    Done,
    /// Nothing: CloudFormation is at work.
    Wait,
    /// Make a change set of this name.
    CreateChangeSet {
        /// Its name, and the token of the request.
        token: String,
        /// Whether the stack comes into being by it. Then it is asked to leave what it has when it fails
        /// (`OnStackFailure: DO_NOTHING`), so that people can see why.
        creates: bool,
    },
    /// Execute the change set of this name.
    ExecuteChangeSet {
        /// Its name, and the token of the request.
        token: String,
    },
    /// Delete the change set of this name, which is of no use any more.
    DeleteChangeSet {
        /// Its name.
        name: String,
    },
    /// Switch termination protection.
    Protect(bool),
    /// Undo a change that was left half-way.
    RollBack {
        /// The token of the request.
        token: String,
    },
    /// Try again to undo a change.
    ContinueRollback {
        /// The token of the request.
        token: String,
    },
    /// Delete the stack.
    Delete {
        /// The token of the request.
        token: String,
        /// Whether what others made in its network has to go first: it was in the way.
        sweep: bool,
        /// Whether what cannot be deleted is left behind.
        force: bool,
    },
    /// Nothing: somebody has to be told.
    Failed(Failure),
}

/// Why a stack is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A stack of that name is somebody else's: whose, if it says so.
    Foreign(Option<String>),
    /// The stack of a guest that was formed is gone.
    Lost,
    /// The change would lose these.
    Blocked(Vec<Loss>),
    /// No change set could be made: why.
    ChangeSet(String),
    /// It could not be made.
    Creation(StackStatus),
    /// The change failed, and was undone.
    Undone,
    /// The change failed, and so did undoing it.
    Stuck(StackStatus),
    /// Some of it could not be deleted.
    Remains,
}

impl Failure {
    /// Whether another attempt may come to something else without a person who does something first.
    pub fn may_be_tried_again(&self) -> bool {
        match self {
            Self::ChangeSet(_) | Self::Creation(_) | Self::Undone | Self::Stuck(_) | Self::Remains => true,
            // These are seen to be over without an attempt, or are a person's to decide.
            Self::Foreign(_) | Self::Lost | Self::Blocked(_) => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(Some(owner)) => write!(f, "the stack of this name belongs to the Cluster with UID {owner}"),
            Self::Foreign(None) => f.write_str("there is a stack of this name that Giantnetes did not make"),
            Self::Lost => f.write_str("the stack is gone, and with it the guest that ran in it"),
            Self::Blocked(losses) => {
                f.write_str("the change is held back, since it loses what does not come back: ")?;
                let losses: Vec<_> = losses.iter().map(ToString::to_string).collect();
                f.write_str(&losses.join(", "))
            }
            Self::ChangeSet(reason) => write!(f, "CloudFormation could not work out the change: {reason}"),
            Self::Creation(status) => write!(f, "the stack could not be made ({status})"),
            Self::Undone => f.write_str("the change failed and was undone"),
            Self::Stuck(status) => write!(f, "the change failed, and undoing it failed, too ({status})"),
            Self::Remains => f.write_str("some of the stack could not be deleted (DELETE_FAILED)"),
        }
    }
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Apply,
    Clear,
    RollBack,
    ContinueRollback,
    Delete,
    /// With what cannot be deleted left behind: another operation, so that a person's word is heeded at once.
    ForceDelete,
}

impl Subject {
    /// The name of the change set by which this attempt brings the stack to a spec, and the token of its execution.
    pub fn apply_token(&self, spec_hash: &str) -> String {
        self.token(Operation::Apply, spec_hash)
    }

    /// 64 letters, digits and hyphens that begin with a letter: as a change set's name must, of at most 128.
    fn token(&self, operation: Operation, spec_hash: &str) -> String {
        let word = match operation {
            Operation::Apply => "apply",
            Operation::Clear => "clear",
            Operation::RollBack => "roll-back",
            Operation::ContinueRollback => "continue-rollback",
            Operation::Delete => "delete",
            Operation::ForceDelete => "force-delete",
        };
        let attempt = self.attempt.to_string();
        let mut hash = Sha256::new();
        for part in [self.uid.as_str(), &self.stack, word, spec_hash, &attempt] {
            hash.update(part.as_bytes());
            // None of them has it inside, so no two lists are the same bytes.
            hash.update([0]);
        }
        let mut token = format!("g8s-{}", hex(&hash.finalize()));
        token.truncate(64);
        token
    }
}

/// What is done next.
pub fn next(subject: &Subject, desired: &Desired, observed: &Observed) -> Step {
    let of = Of { subject, observed };
    match desired {
        Desired::Present(wanted) => of.present(wanted),
        Desired::Absent { force } => of.absent(*force),
    }
}

struct Of<'a> {
    subject: &'a Subject,
    observed: &'a Observed,
}

impl Of<'_> {
    fn present(&self, wanted: &Wanted) -> Step {
        let Some(stack) = self.stack() else {
            // What was in it does not come back by making it anew.
            return if wanted.formed { Step::Failed(Failure::Lost) } else { self.apply(wanted, true) };
        };
        if !self.is_ours(stack) {
            return Step::Failed(Failure::Foreign(stack.owner.clone()));
        }
        match stack.status.phase() {
            Phase::Busy if is_leaving(stack.status) || stack.is_protected => Step::Wait,
            Phase::Busy => Step::Protect(true),
            Phase::Review | Phase::Gone => self.apply(wanted, true),
            Phase::Settled | Phase::Undone => self.settled(stack, wanted),
            Phase::Stillborn if wanted.formed || self.has_failed(&self.subject.apply_token(&wanted.spec_hash)) => {
                Step::Failed(Failure::Creation(stack.status))
            }
            Phase::Remains if wanted.formed => Step::Failed(Failure::Remains),
            Phase::Stillborn | Phase::Remains => self.delete(stack, Operation::Clear),
            Phase::HalfWay => {
                let token = self.subject.token(Operation::RollBack, "");
                if self.has_failed(&token) { stuck(stack) } else { Step::RollBack { token } }
            }
            Phase::Stuck => self.stuck(stack),
        }
    }

    fn settled(&self, stack: &Stack, wanted: &Wanted) -> Step {
        if !stack.is_protected {
            return Step::Protect(true);
        }
        if stack.spec_hash.as_ref() == Some(&wanted.spec_hash) {
            return Step::Done;
        }
        if stack.status.phase() == Phase::Undone && self.was_undone(wanted) {
            return Step::Failed(Failure::Undone);
        }
        self.apply(wanted, false)
    }

    /// Whether it is this attempt that was undone; by CloudFormation itself, or because it was asked to.
    fn was_undone(&self, wanted: &Wanted) -> bool {
        let asked =
            [Operation::RollBack, Operation::ContinueRollback].map(|operation| self.subject.token(operation, ""));
        self.has_failed(&self.subject.apply_token(&wanted.spec_hash))
            || asked.iter().any(|token| self.has_failed(token))
    }

    /// By way of the attempt's change set.
    fn apply(&self, wanted: &Wanted, creates: bool) -> Step {
        let token = self.subject.apply_token(&wanted.spec_hash);
        let Some(set) = self.observed.change_set.as_ref().filter(|set| set.name == token) else {
            return Step::CreateChangeSet { token, creates };
        };
        match set.verdict(&wanted.given_up) {
            // It was executed, and what is known of the stack is older than that.
            Verdict::NotYet | Verdict::Taken => Step::Wait,
            Verdict::Harmless => Step::ExecuteChangeSet { token },
            // There is something to make, so this cannot be.
            Verdict::Nothing if creates => Step::Failed(Failure::ChangeSet(set.reason.clone())),
            // The hash moved, and nothing of what is rendered. The next look finds the same change set.
            Verdict::Nothing => Step::Done,
            Verdict::Loses(losses) => Step::Failed(Failure::Blocked(losses)),
            Verdict::Stale => Step::DeleteChangeSet { name: token },
            Verdict::Failed(reason) => Step::Failed(Failure::ChangeSet(reason)),
        }
    }

    fn stuck(&self, stack: &Stack) -> Step {
        let token = self.subject.token(Operation::ContinueRollback, "");
        match stack.status {
            StackStatus::UpdateRollbackFailed if !self.has_failed(&token) => Step::ContinueRollback { token },
            // There is no request that would undo an import once more.
            _ => stuck(stack),
        }
    }

    fn absent(&self, force: bool) -> Step {
        // A stack of somebody else is nothing of ours that would have to go.
        let Some(stack) = self.stack().filter(|stack| self.is_ours(stack)) else {
            return Step::Done;
        };
        match stack.status.phase() {
            Phase::Gone => Step::Done,
            Phase::Busy => Step::Wait,
            Phase::Review
            | Phase::Settled
            | Phase::Undone
            | Phase::Stillborn
            | Phase::HalfWay
            | Phase::Stuck
            | Phase::Remains => {
                // AWS leaves nothing behind of a stack that it did not try to delete first.
                let forces = force && stack.status.phase() == Phase::Remains;
                self.delete(stack, if forces { Operation::ForceDelete } else { Operation::Delete })
            }
        }
    }

    /// One that could not be deleted is tried once in each attempt, after what was in its way has gone.
    fn delete(&self, stack: &Stack, operation: Operation) -> Step {
        let token = self.subject.token(operation, "");
        let sweep = stack.status.phase() == Phase::Remains;
        if sweep && self.has_failed(&token) {
            return Step::Failed(Failure::Remains);
        }
        if stack.is_protected {
            return Step::Protect(false);
        }
        Step::Delete { token, sweep, force: operation == Operation::ForceDelete }
    }

    /// The stack, if there is something of it.
    fn stack(&self) -> Option<&Stack> {
        self.observed.stack.as_ref().filter(|stack| stack.status.phase() != Phase::Gone)
    }

    fn is_ours(&self, stack: &Stack) -> bool {
        stack.owner.as_ref() == Some(&self.subject.uid)
    }

    /// Whether the operation that brought the stack where it is, is this one.
    fn has_failed(&self, token: &str) -> bool {
        self.observed.last_token.as_deref() == Some(token)
    }
}

fn stuck(stack: &Stack) -> Step {
    Step::Failed(Failure::Stuck(stack.status))
}

/// Whether a stack that CloudFormation is at work on is on its way out.
fn is_leaving(status: StackStatus) -> bool {
    matches!(status, StackStatus::DeleteInProgress | StackStatus::RollbackInProgress)
}
