//! What a change set would do, and what of it may not happen unasked. It is looked at before every execution: no linter, and
//! no rule about fields of the spec, knows as well as CloudFormation itself which property replaces what.

use std::{collections::BTreeSet, fmt};

use super::{
    status::{ChangeSetStatus, Execution, UnknownStatus},
    template::Kind,
};

/// A change set, as CloudFormation describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeSet {
    /// Its name: the token of the operation that it is for.
    pub name: String,
    /// Its state.
    pub status: ChangeSetStatus,
    /// Whether it can be executed.
    pub execution: Execution,
    /// Why it is in its state, in AWS's words.
    pub reason: String,
    /// What it would do; all pages of it.
    pub changes: Vec<Change>,
}

/// What a change set would do to one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Logical id.
    pub id: String,
    /// AWS's name of its type.
    pub kind: String,
    /// What would be done.
    pub action: Action,
    /// Whether another one would take its place.
    pub replacement: Replacement,
    /// Whether a volume would become smaller. AWS makes none smaller, and says so only when it tries.
    pub shrinks: bool,
}

/// What would be done to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It would be made.
    Add,
    /// It would be changed.
    Modify,
    /// It would be removed.
    Remove,
    /// It would be taken over.
    Import,
    /// That turns out in the doing.
    Dynamic,
    /// What was changed past CloudFormation would be taken for right.
    SyncWithActual,
}

/// Whether another resource would take one's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// No; AWS also says nothing about what is not modified.
    No,
    /// Yes.
    Yes,
    /// That depends on what other resources turn out to be.
    Conditional,
}

impl std::str::FromStr for Action {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Ok(match text {
            "Add" => Self::Add,
            "Modify" => Self::Modify,
            "Remove" => Self::Remove,
            "Import" => Self::Import,
            "Dynamic" => Self::Dynamic,
            "SyncWithActual" => Self::SyncWithActual,
            _ => return Err(UnknownStatus { of: "action of a change", text: text.to_owned() }),
        })
    }
}

impl std::str::FromStr for Replacement {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Ok(match text {
            "False" => Self::No,
            "True" => Self::Yes,
            "Conditional" => Self::Conditional,
            _ => return Err(UnknownStatus { of: "replacement of a change", text: text.to_owned() }),
        })
    }
}

/// A change that loses something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// Logical id of what is lost.
    pub id: String,
    /// AWS's name of its type.
    pub kind: String,
    /// How.
    pub how: How,
}

/// How something is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// It would be removed.
    Removed,
    /// Another one would take its place.
    Replaced,
    /// Another one might.
    PerhapsReplaced,
    /// Nobody can say.
    Unclear,
    /// It would have to shrink, which is not possible.
    Shrinks,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, kind, how } = self;
        let what = match how {
            How::Removed => "would be removed",
            How::Replaced => "would be replaced",
            How::PerhapsReplaced => "might be replaced",
            How::Unclear => "might be lost",
            How::Shrinks => "cannot be made smaller",
        };
        write!(f, "{id} ({kind}) {what}")
    }
}

impl Change {
    /// What it loses. Of a type that is not ours nothing is known, so it counts as stateful.
    fn loss(&self) -> Option<Loss> {
        if Kind::parse(&self.kind).is_some_and(|kind| !kind.is_stateful()) {
            return None;
        }
        let how = match (self.action, self.replacement) {
            (Action::Modify, Replacement::No) if self.shrinks => How::Shrinks,
            (Action::Remove, _) => How::Removed,
            (_, Replacement::Yes) => How::Replaced,
            (_, Replacement::Conditional) => How::PerhapsReplaced,
            (Action::Dynamic, Replacement::No) => How::Unclear,
            (Action::Add | Action::Modify | Action::Import | Action::SyncWithActual, Replacement::No) => return None,
        };
        Some(Loss { id: self.id.clone(), kind: self.kind.clone(), how })
    }
}

/// What a change set comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is being made.
    NotYet,
    /// It can be executed.
    Harmless,
    /// There is nothing to change.
    Nothing,
    /// It loses what was not given up: that is listed.
    Loses(Vec<Loss>),
    /// It was executed already, and its stack tells how that goes.
    Taken,
    /// It cannot be executed any more, and another one has to be made.
    Stale,
    /// It could not be made: why.
    Failed(String),
}

impl ChangeSet {
    /// What it comes to, where the logical ids `given_up` may be lost.
    pub fn verdict(&self, given_up: &BTreeSet<String>) -> Verdict {
        match self.status {
            ChangeSetStatus::CreatePending | ChangeSetStatus::CreateInProgress => Verdict::NotYet,
            ChangeSetStatus::CreateComplete => self.executable(given_up),
            ChangeSetStatus::Failed if self.has_no_changes() => Verdict::Nothing,
            ChangeSetStatus::Failed => Verdict::Failed(self.reason.clone()),
            ChangeSetStatus::DeletePending
            | ChangeSetStatus::DeleteInProgress
            | ChangeSetStatus::DeleteComplete
            | ChangeSetStatus::DeleteFailed => Verdict::Stale,
        }
    }

    fn executable(&self, given_up: &BTreeSet<String>) -> Verdict {
        match self.execution {
            Execution::Unavailable => Verdict::NotYet,
            Execution::Available => {
                let mut losses: Vec<_> = self.changes.iter().filter_map(Change::loss).collect();
                // What is not possible is so whoever gives it up.
                losses.retain(|loss| loss.how == How::Shrinks || !given_up.contains(&loss.id));
                losses.sort();
                if losses.is_empty() { Verdict::Harmless } else { Verdict::Loses(losses) }
            }
            Execution::ExecuteInProgress | Execution::ExecuteComplete => Verdict::Taken,
            Execution::ExecuteFailed | Execution::Obsolete => Verdict::Stale,
        }
    }

    /// Whether it failed because there is nothing to change. That is not told but in words: these two, from AWS's own tools.
    fn has_no_changes(&self) -> bool {
        ["The submitted information didn't contain changes.", "No updates are to be performed."]
            .iter()
            .any(|words| self.reason.starts_with(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: &str, action: Action, replacement: Replacement) -> Change {
        Change { id: "It".into(), kind: kind.into(), action, replacement, shrinks: false }
    }

    #[test]
    fn stateful_things_are_lost_by_all_that_is_not_surely_harmless() {
        use Action::{Add, Dynamic, Import, Modify, Remove, SyncWithActual};
        let actions = [Add, Modify, Remove, Import, Dynamic, SyncWithActual];
        let replacements = [Replacement::No, Replacement::Yes, Replacement::Conditional];
        for kind in Kind::ALL {
            for action in actions {
                for replacement in replacements {
                    let harmless = replacement == Replacement::No && ![Remove, Dynamic].contains(&action);
                    let loss = change(kind.name(), action, replacement).loss();
                    assert_eq!(loss.is_some(), kind.is_stateful() && !harmless, "{kind:?} {action:?} {replacement:?}");
                }
            }
        }
        let stateful: Vec<_> = Kind::ALL.iter().filter(|kind| kind.is_stateful()).map(|kind| kind.name()).collect();
        let expected =
            ["AWS::EC2::Subnet", "AWS::EC2::Volume", "AWS::EC2::VPC", "AWS::KMS::Key", "AWS::Route53::HostedZone"];
        assert_eq!(stateful, expected);
    }

    #[test]
    fn a_volume_that_would_shrink_is_held_back_whoever_gives_it_up() {
        let smaller = Change { shrinks: true, ..change("AWS::EC2::Volume", Action::Modify, Replacement::No) };
        let set = |changes| ChangeSet {
            name: "g8s-1".into(),
            status: ChangeSetStatus::CreateComplete,
            execution: Execution::Available,
            reason: String::new(),
            changes,
        };
        let given_up = BTreeSet::from(["It".to_owned()]);
        let Verdict::Loses(losses) = set(vec![smaller]).verdict(&given_up) else { panic!("it is let through") };
        assert_eq!(losses[0].to_string(), "It (AWS::EC2::Volume) cannot be made smaller");
        let gone = change("AWS::EC2::Volume", Action::Remove, Replacement::No);
        assert_eq!(set(vec![gone]).verdict(&given_up), Verdict::Harmless);
    }

    #[test]
    fn words_of_aws_are_known_whole() {
        assert_eq!("Conditional".parse(), Ok(Replacement::Conditional));
        assert!("conditional".parse::<Replacement>().is_err());
        assert_eq!("SyncWithActual".parse(), Ok(Action::SyncWithActual));
        assert!("".parse::<Action>().is_err());
    }
}
