//! Every state of a stack, with everything that can be wanted of it and known about it.

use std::collections::BTreeMap;

use super::*;
use crate::aws::{
    change_set::{Action, Change, Replacement},
    status::{ChangeSetStatus, Execution},
    template::Kind,
};

const UID: &str = "6f0c3b1e-8a53-4c55-9a11-0f5f3a3f1c2d";
const NEW: &str = "new";
const OLD: &str = "old";
const OPERATIONS: [Operation; 6] = [
    Operation::Apply,
    Operation::Clear,
    Operation::RollBack,
    Operation::ContinueRollback,
    Operation::Delete,
    Operation::ForceDelete,
];

fn subject() -> Subject {
    Subject { uid: UID.into(), stack: "g8s-k3v7qzma".into(), attempt: 1 }
}

fn present(formed: bool) -> Desired {
    Desired::Present(Wanted { spec_hash: NEW.into(), formed, ..Wanted::default() })
}

fn stack(status: StackStatus, spec_hash: Option<&str>) -> Stack {
    Stack { status, owner: Some(UID.into()), is_protected: true, spec_hash: spec_hash.map(str::to_owned) }
}

fn change_set(status: ChangeSetStatus, execution: Execution, changes: Vec<Change>) -> ChangeSet {
    ChangeSet { name: subject().apply_token(NEW), status, execution, reason: String::new(), changes }
}

fn change(kind: Kind, action: Action, replacement: Replacement) -> Change {
    Change { id: "Master0Volume".into(), kind: kind.name().into(), action, replacement, shrinks: false }
}

/// What is done, in words short enough for a table.
fn word(step: &Step) -> String {
    match step {
        Step::Done => "done".into(),
        Step::Wait => "wait".into(),
        Step::CreateChangeSet { creates: true, .. } => "change set that creates".into(),
        Step::CreateChangeSet { creates: false, .. } => "change set".into(),
        Step::ExecuteChangeSet { .. } => "execute".into(),
        Step::DeleteChangeSet { .. } => "delete change set".into(),
        Step::Protect(on) => format!("protect {on}"),
        Step::RollBack { .. } => "roll back".into(),
        Step::ContinueRollback { .. } => "continue rollback".into(),
        Step::Delete { sweep, force, .. } => {
            format!("delete{}{}", if *sweep { ", sweep" } else { "" }, if *force { ", force" } else { "" })
        }
        Step::Failed(failure) => format!("failed: {failure}"),
    }
}

#[test]
fn the_whole_table_is_golden() {
    let mut table = String::new();
    let mut row = |name: &str, stack: Option<&Stack>| {
        let wishes = [
            ("wanted", present(false), None),
            ("wanted, formed", present(true), None),
            ("wanted, this attempt failed", present(false), Some(Operation::Apply)),
            ("unwanted", Desired::Absent { force: false }, None),
            ("unwanted, forced", Desired::Absent { force: true }, None),
            ("unwanted, this attempt failed", Desired::Absent { force: false }, Some(Operation::Delete)),
        ];
        table.push_str(&format!("{name}\n"));
        for (wish, desired, failed) in wishes {
            let hash = if failed == Some(Operation::Apply) { NEW } else { "" };
            let last_token = failed.map(|operation| subject().token(operation, hash));
            let step = |is_protected| {
                let stack = stack.map(|stack| Stack { is_protected, ..stack.clone() });
                let observed = Observed { stack, change_set: None, last_token: last_token.clone() };
                word(&next(&subject(), &desired, &observed))
            };
            let (open, protected) = (step(false), step(true));
            let differs = if open == protected { String::new() } else { format!("; protected: {protected}") };
            table.push_str(&format!("    {wish}: {open}{differs}\n"));
        }
    };
    row("no stack", None);
    for status in StackStatus::ALL {
        // What it was made for is told of what was made.
        let hashes = match status.phase() {
            Phase::Settled | Phase::Undone => vec![(" of an older spec", Some(OLD)), (" of this spec", Some(NEW))],
            _ => vec![("", None)],
        };
        for (word, hash) in hashes {
            row(&format!("{status}{word}"), Some(&stack(*status, hash)));
        }
    }
    insta::assert_snapshot!("table", table);
}

/// Everything that can be observed, for every wish.
fn product(mut each: impl FnMut(&Desired, &Observed)) -> usize {
    let mut wishes = vec![Desired::Absent { force: false }, Desired::Absent { force: true }];
    for formed in [false, true] {
        for given_up in [BTreeSet::new(), BTreeSet::from(["Master0Volume".to_owned()])] {
            wishes.push(Desired::Present(Wanted { spec_hash: NEW.into(), given_up, formed }));
        }
    }
    let mut stacks = vec![None];
    for status in StackStatus::ALL {
        for owner in [None, Some(UID), Some("another")] {
            for is_protected in [false, true] {
                for spec_hash in [None, Some(OLD), Some(NEW)] {
                    let owner = owner.map(str::to_owned);
                    stacks.push(Some(Stack { owner, is_protected, ..stack(*status, spec_hash) }));
                }
            }
        }
    }
    let mut sets = vec![None];
    for status in ChangeSetStatus::ALL {
        for execution in Execution::ALL {
            for replacement in [Replacement::No, Replacement::Yes] {
                sets.push(Some(change_set(
                    *status,
                    *execution,
                    vec![change(Kind::Volume, Action::Modify, replacement)],
                )));
            }
        }
    }
    // Of what was not made nothing can be executed.
    sets.retain(|set| {
        set.as_ref()
            .is_none_or(|set| set.status == ChangeSetStatus::CreateComplete || set.execution == Execution::Unavailable)
    });
    let mut tokens: Vec<_> = OPERATIONS
        .map(|operation| Some(subject().token(operation, if operation == Operation::Apply { NEW } else { "" })))
        .into();
    tokens.extend([None, Some("another".to_owned())]);
    let mut states = 0;
    for change_set in sets {
        for last_token in &tokens {
            let mut observed = Observed { stack: None, change_set: change_set.clone(), last_token: last_token.clone() };
            for stack in &stacks {
                observed.stack.clone_from(stack);
                for desired in &wishes {
                    each(desired, &observed);
                    states += 1;
                }
            }
        }
    }
    states
}

#[test]
fn rules_hold_in_every_state() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let subject = subject();
    let states = product(|desired, observed| {
        let step = next(&subject, desired, observed);
        *seen.entry(word(&step)).or_default() += 1;
        let told = || format!("{desired:?} {observed:?} -> {step:?}");
        let there = observed.stack.as_ref().filter(|stack| stack.status != StackStatus::DeleteComplete);
        let wanted = match desired {
            Desired::Present(wanted) => Some(wanted),
            Desired::Absent { .. } => None,
        };

        // Of somebody else's stack nothing is changed.
        if there.is_some_and(|stack| stack.owner.as_deref() != Some(UID)) {
            assert!(matches!(step, Step::Done | Step::Failed(Failure::Foreign(_))), "{}", told());
            assert_eq!(step == Step::Done, wanted.is_none(), "{}", told());
        }
        // A guest with data is not deleted, nor made anew, as long as it is wanted; and nothing deletes against protection.
        if let Step::Delete { sweep, force, .. } = &step {
            assert!(!wanted.is_some_and(|wanted| wanted.formed), "{}", told());
            assert!(!there.unwrap().is_protected, "{}", told());
            assert!(!force || *desired == Desired::Absent { force: true } && *sweep, "{}", told());
        }
        if matches!(step, Step::Protect(false)) {
            assert!(!wanted.is_some_and(|wanted| wanted.formed), "{}", told());
        }
        // Nothing is executed that loses what was not given up, and nothing at all of a stack that should go.
        if let Step::ExecuteChangeSet { token } = &step {
            let set = observed.change_set.as_ref().unwrap();
            assert_eq!(
                (set.status, set.execution),
                (ChangeSetStatus::CreateComplete, Execution::Available),
                "{}",
                told()
            );
            let loses = set.changes[0].replacement != Replacement::No;
            assert!(!loses || wanted.unwrap().given_up.contains("Master0Volume"), "{}", told());
            assert_eq!(*token, subject.apply_token(NEW));
        }
        if wanted.is_none() {
            let creates =
                matches!(step, Step::CreateChangeSet { .. } | Step::ExecuteChangeSet { .. } | Step::Protect(true));
            assert!(!creates, "{}", told());
        }
        // CloudFormation refuses every request about a stack that it is at work on, but for protection.
        if there.is_some_and(|stack| stack.status.phase() == Phase::Busy && stack.owner.as_deref() == Some(UID)) {
            assert!(matches!(step, Step::Wait | Step::Protect(true)), "{}", told());
        }
        // It is well if it is, and gone if it is.
        if step == Step::Done && wanted.is_some() {
            let stack = there.unwrap();
            assert!(matches!(stack.status.phase(), Phase::Settled | Phase::Undone) && stack.is_protected, "{}", told());
            assert_eq!(stack.spec_hash.as_deref(), Some(NEW), "{}", told());
        }
    });
    assert!(states > 100_000, "{states}");
    // Every kind of step is taken somewhere, or the rules above say nothing about it.
    for word in [
        "done",
        "wait",
        "execute",
        "delete",
        "delete, sweep",
        "delete, sweep, force",
        "protect true",
        "protect false",
        "roll back",
        "continue rollback",
        "delete change set",
        "change set",
        "change set that creates",
    ] {
        assert!(seen.contains_key(word), "nothing comes to {word:?}: {seen:?}");
    }
}

/// CloudFormation, as far as steps go: what it was asked for it does at once, and well unless told otherwise.
struct Model {
    observed: Observed,
    /// Operations that fail, counted down.
    failures: u32,
    /// Tokens of all that it was asked for: AWS takes a second request of one token for the first one, come again.
    tokens: BTreeSet<String>,
}

impl Model {
    fn fails(&mut self) -> bool {
        let fails = self.failures > 0;
        self.failures = self.failures.saturating_sub(1);
        fails
    }

    fn begin(&mut self, token: &str) {
        assert!(self.tokens.insert(token.to_owned()), "a token comes twice");
        self.observed.last_token = Some(token.to_owned());
    }

    fn turn(&mut self, status: StackStatus) {
        let stack = self.observed.stack.get_or_insert(Stack { is_protected: false, ..stack(status, None) });
        stack.status = status;
    }

    fn take(&mut self, step: &Step) {
        let status = self.observed.stack.as_ref().map(|stack| stack.status);
        match step {
            Step::CreateChangeSet { creates, token } => {
                if *creates {
                    self.turn(StackStatus::ReviewInProgress);
                }
                let set = change_set(ChangeSetStatus::CreateComplete, Execution::Available, vec![]);
                self.observed.change_set = Some(ChangeSet { name: token.clone(), ..set });
            }
            Step::ExecuteChangeSet { token } => {
                self.observed.change_set = None;
                self.begin(token);
                let is_new = status == Some(StackStatus::ReviewInProgress);
                if self.fails() {
                    self.turn(if is_new { StackStatus::CreateFailed } else { StackStatus::UpdateRollbackComplete });
                } else {
                    self.turn(if is_new { StackStatus::CreateComplete } else { StackStatus::UpdateComplete });
                    self.observed.stack.as_mut().unwrap().spec_hash = Some(NEW.into());
                }
            }
            Step::Protect(on) => self.observed.stack.as_mut().unwrap().is_protected = *on,
            Step::RollBack { token } | Step::ContinueRollback { token } => {
                self.begin(token);
                let fails = self.fails();
                self.turn(if fails { status.unwrap() } else { StackStatus::UpdateRollbackComplete });
            }
            Step::Delete { token, .. } => {
                self.begin(token);
                if self.fails() { self.turn(StackStatus::DeleteFailed) } else { self.observed.stack = None }
            }
            Step::DeleteChangeSet { .. } => self.observed.change_set = None,
            // It ends what it is at.
            Step::Wait => match status.unwrap() {
                StackStatus::CreateInProgress => self.turn(StackStatus::CreateComplete),
                StackStatus::RollbackInProgress => self.turn(StackStatus::RollbackComplete),
                StackStatus::DeleteInProgress => self.observed.stack = None,
                StackStatus::UpdateInProgress | StackStatus::UpdateCompleteCleanupInProgress => {
                    self.turn(StackStatus::UpdateComplete);
                }
                StackStatus::ImportInProgress => self.turn(StackStatus::ImportComplete),
                StackStatus::ImportRollbackInProgress => self.turn(StackStatus::ImportRollbackComplete),
                _ => self.turn(StackStatus::UpdateRollbackComplete),
            },
            Step::Done | Step::Failed(_) => {}
        }
    }
}

#[test]
fn every_state_leads_to_what_is_wanted() {
    for status in StackStatus::ALL {
        for failures in 0..4 {
            for desired in [present(false), Desired::Absent { force: false }] {
                let observed = Observed { stack: Some(stack(*status, Some(OLD))), ..Observed::default() };
                let mut model = Model { observed, failures, tokens: BTreeSet::new() };
                let (mut of, mut steps, mut requests) = (subject(), vec![], 0);
                loop {
                    let step = next(&of, &desired, &model.observed);
                    steps.push(word(&step));
                    assert!(steps.len() < 40, "{status}, {failures} failures, {desired:?}: {steps:#?}");
                    match &step {
                        Step::Done => break,
                        // Nobody undoes the undoing of an import but a person.
                        Step::Failed(Failure::Stuck(StackStatus::ImportRollbackFailed)) => break,
                        Step::Failed(failure) => {
                            assert!(failure.may_be_tried_again(), "{status}: {failure}");
                            of.attempt += 1;
                        }
                        step => {
                            requests += usize::from(*step != Step::Wait);
                            model.take(step);
                        }
                    }
                }
                assert!(
                    requests <= 8 + 4 * failures as usize,
                    "{status}, {failures} failures, {desired:?}: {steps:#?}"
                );
                let is_there = model.observed.stack.is_some_and(|stack| stack.status != StackStatus::DeleteComplete);
                assert_eq!(is_there, desired != Desired::Absent { force: false }, "{status}: {steps:#?}");
            }
        }
    }
}

#[test]
fn a_failed_attempt_is_made_once() {
    let mut observed = Observed {
        stack: Some(stack(StackStatus::UpdateRollbackComplete, Some(OLD))),
        change_set: None,
        last_token: Some(subject().apply_token(NEW)),
    };
    assert_eq!(next(&subject(), &present(true), &observed), Step::Failed(Failure::Undone));
    // Also if CloudFormation had to be asked to undo it.
    for operation in [Operation::RollBack, Operation::ContinueRollback] {
        let last_token = Some(subject().token(operation, ""));
        let undone = Observed { last_token, ..observed.clone() };
        assert_eq!(next(&subject(), &present(true), &undone), Step::Failed(Failure::Undone));
    }
    // Another attempt, and another spec, are other operations.
    let again = Subject { attempt: 2, ..subject() };
    assert!(matches!(next(&again, &present(true), &observed), Step::CreateChangeSet { .. }));
    let other = Desired::Present(Wanted { spec_hash: "newer".into(), formed: true, ..Wanted::default() });
    assert!(matches!(next(&subject(), &other, &observed), Step::CreateChangeSet { .. }));
    // Back at what it was before, nothing has to be done.
    let back = Desired::Present(Wanted { spec_hash: OLD.into(), formed: true, ..Wanted::default() });
    assert_eq!(next(&subject(), &back, &observed), Step::Done);
    // A change set of another attempt is not this one's.
    let set = change_set(ChangeSetStatus::CreateComplete, Execution::Available, vec![]);
    observed.change_set = Some(ChangeSet { name: "another".into(), ..set });
    assert!(matches!(next(&again, &present(true), &observed), Step::CreateChangeSet { .. }));
}

#[test]
fn a_word_that_something_may_be_left_behind_is_heeded_at_once() {
    let observed = Observed {
        stack: Some(Stack { is_protected: false, ..stack(StackStatus::DeleteFailed, None) }),
        change_set: None,
        last_token: Some(subject().token(Operation::Delete, "")),
    };
    let step = |force| next(&subject(), &Desired::Absent { force }, &observed);
    assert_eq!(step(false), Step::Failed(Failure::Remains));
    assert!(matches!(step(true), Step::Delete { sweep: true, force: true, .. }));
    let failed = Observed { last_token: Some(subject().token(Operation::ForceDelete, "")), ..observed.clone() };
    assert_eq!(next(&subject(), &Desired::Absent { force: true }, &failed), Step::Failed(Failure::Remains));
}

#[test]
fn nothing_to_change_is_done_and_is_not_asked_again() {
    let words =
        "The submitted information didn't contain changes. Submit different information to create a change set.";
    let set = change_set(ChangeSetStatus::Failed, Execution::Unavailable, vec![]);
    let of = |reason: &str| Observed {
        stack: Some(stack(StackStatus::UpdateComplete, Some(OLD))),
        change_set: Some(ChangeSet { reason: reason.into(), ..set.clone() }),
        last_token: None,
    };
    assert_eq!(next(&subject(), &present(true), &of(words)), Step::Done);
    assert_eq!(next(&subject(), &present(true), &of("No updates are to be performed.")), Step::Done);
    let failed = Failure::ChangeSet("Template error: it did not say No updates are to be performed.".into());
    let reason = "Template error: it did not say No updates are to be performed.";
    assert_eq!(next(&subject(), &present(true), &of(reason)), Step::Failed(failed));
}

#[test]
fn what_would_be_lost_is_listed() {
    let changes = vec![
        change(Kind::Volume, Action::Modify, Replacement::Conditional),
        Change { id: "Key".into(), ..change(Kind::Key, Action::Remove, Replacement::No) },
        Change { id: "Vpc".into(), ..change(Kind::Vpc, Action::Modify, Replacement::Yes) },
        Change { id: "Domain".into(), ..change(Kind::HostedZone, Action::Dynamic, Replacement::No) },
        Change { id: "PrivateSubnetA".into(), ..change(Kind::Subnet, Action::Modify, Replacement::No) },
        Change { id: "Role".into(), ..change(Kind::Role, Action::Modify, Replacement::Yes) },
        Change {
            id: "Unknown".into(),
            kind: "AWS::RDS::DBInstance".into(),
            ..change(Kind::Role, Action::Remove, Replacement::No)
        },
    ];
    let observed = Observed {
        stack: Some(stack(StackStatus::CreateComplete, Some(OLD))),
        change_set: Some(change_set(ChangeSetStatus::CreateComplete, Execution::Available, changes)),
        last_token: None,
    };
    let step = next(&subject(), &present(true), &observed);
    insta::assert_snapshot!("losses", word(&step));
    let Step::Failed(failure) = step else { panic!() };
    assert!(!failure.may_be_tried_again());
}

#[test]
fn tokens_differ_by_everything_and_are_names_of_change_sets() {
    let mut tokens = BTreeSet::new();
    for uid in ["a", "b"] {
        for stack in ["g8s-x", "g8s-x-pool"] {
            for attempt in [1, 11] {
                let of = Subject { uid: uid.into(), stack: stack.into(), attempt };
                for hash in ["", "1", "11"] {
                    for operation in OPERATIONS {
                        let token = of.token(operation, hash);
                        assert!(token.len() == 64 && token.starts_with("g8s-"), "{token}");
                        assert!(token.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{token}");
                        assert!(tokens.insert(token));
                    }
                }
            }
        }
    }
    // Whoever changes how they are made, makes every running operation an unknown one.
    assert_eq!(subject().apply_token(NEW), "g8s-19a8c43bb3acaf477f8f7a1d094dee8df6fd5a517a3677dea3e7e13f2248");
}
