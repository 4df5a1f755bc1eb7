//! AWS's answers in our words. One stack that says what is not known does not hide the others.

use std::collections::BTreeMap;

use aws_sdk_cloudformation::{operation::describe_change_set::DescribeChangeSetOutput, types};

use super::{
    cloudformation::{Described, Drift, Seen},
    failure::Failure,
};
use crate::{
    api::names,
    aws::{
        change_set::{Action, Change, ChangeSet, Replacement},
        driver::Stack,
        progress::Event,
        status::{Execution, UnknownStatus},
        template::{Kind, SPEC_HASH},
    },
};

/// A stack. None: it says neither what it is called nor what its id is.
pub(super) fn stack(stack: types::Stack) -> Option<Seen> {
    let outputs: BTreeMap<_, _> = stack
        .outputs
        .unwrap_or_default()
        .into_iter()
        .filter_map(|output| Some((output.output_key?, output.output_value?)))
        .collect();
    let owner = owner(stack.tags.as_deref().unwrap_or_default());
    let is_protected = stack.enable_termination_protection.unwrap_or(false);
    let spec_hash = outputs.get(SPEC_HASH).cloned();
    let word = stack.stack_status.as_ref().map_or("", types::StackStatus::as_str);
    Some(Seen {
        name: stack.stack_name?,
        id: stack.stack_id?,
        reason: stack.stack_status_reason.unwrap_or_default(),
        stack: word.parse().map(|status| Stack { status, owner, is_protected, spec_hash }),
        outputs,
        drift: stack.drift_information.map_or_else(Drift::default, |told| Drift {
            is_drifted: told.stack_drift_status == Some(types::StackDriftStatus::Drifted),
            checked: told.last_check_timestamp.map(|at| at.secs()),
        }),
    })
}

/// A resource that is not as its stack made it: which, and what of it.
pub(super) fn drift(drift: types::StackResourceDrift) -> String {
    let id = drift.logical_resource_id.unwrap_or_default();
    let kind = drift.resource_type.unwrap_or_default();
    if drift.stack_resource_drift_status == Some(types::StackResourceDriftStatus::Deleted) {
        return format!("{id} ({kind}) is gone");
    }
    // What it is and should be may be long, and is nobody's secret, but not for everybody who reads a status.
    let paths = drift.property_differences.unwrap_or_default().into_iter().filter_map(|it| it.property_path);
    format!("{id} ({kind}) has another {}", paths.collect::<Vec<_>>().join(" and "))
}

/// UID of the Cluster that tags name.
fn owner(tags: &[types::Tag]) -> Option<String> {
    let tag = tags.iter().find(|tag| tag.key.as_deref() == Some(names::OWNER_UID_ANNOTATION))?;
    tag.value.clone()
}

/// A page of a change set: all that is not on the next page.
pub(super) fn change_set(page: DescribeChangeSetOutput) -> Result<Described, Failure> {
    let changes = page.changes.unwrap_or_default().into_iter().filter_map(|change| change.resource_change);
    let status = page.status.as_ref().map_or("", types::ChangeSetStatus::as_str);
    let execution = page.execution_status.as_ref().map(types::ExecutionStatus::as_str);
    Ok(Described {
        id: page.change_set_id.ok_or(Failure::Answer("id of the change set"))?,
        owner: owner(page.tags.as_deref().unwrap_or_default()),
        set: ChangeSet {
            name: page.change_set_name.ok_or(Failure::Answer("name of the change set"))?,
            status: status.parse()?,
            // One that is being made does not say yet.
            execution: execution.map_or(Ok(Execution::Unavailable), str::parse)?,
            reason: page.status_reason.unwrap_or_default(),
            changes: changes.map(change).collect::<Result<_, _>>()?,
        },
    })
}

fn change(change: types::ResourceChange) -> Result<Change, UnknownStatus> {
    let kind = change.resource_type.unwrap_or_default();
    let action = change.action.as_ref().map_or("", types::ChangeAction::as_str);
    let replacement = change.replacement.as_ref().map(types::Replacement::as_str);
    let action: Action = action.parse()?;
    // AWS says so of what is modified alone.
    let replacement = replacement.map_or(Ok(Replacement::No), str::parse)?;
    let details = change.details.unwrap_or_default();
    let shrinks = kind == Kind::Volume.name() && details.iter().any(shrinks);
    Ok(Change { id: change.logical_resource_id.unwrap_or_default(), kind, action, replacement, shrinks })
}

/// Whether a volume is to become smaller.
fn shrinks(detail: &types::ResourceChangeDetail) -> bool {
    let Some(target) = detail.target.as_ref().filter(|target| target.name.as_deref() == Some("Size")) else {
        return false;
    };
    let size = |text: Option<&String>| text.and_then(|text| text.parse::<u64>().ok());
    match (size(target.before_value.as_ref()), size(target.after_value.as_ref())) {
        (Some(before), Some(after)) => after < before,
        _ => false,
    }
}

/// An event. A word that is not known hides neither the others nor whose operation it is of.
pub(super) fn event(event: types::StackEvent) -> Event {
    let status = event.resource_status.as_ref().map_or("", types::ResourceStatus::as_str);
    Event {
        of_stack: event.physical_resource_id.is_some() && event.physical_resource_id == event.stack_id,
        id: event.logical_resource_id.unwrap_or_default(),
        kind: event.resource_type.unwrap_or_default(),
        status: status.parse().ok(),
        reason: event.resource_status_reason.unwrap_or_default(),
        token: event.client_request_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::status::{ChangeSetStatus, StackStatus};

    fn tag(key: &str, value: &str) -> types::Tag {
        types::Tag::builder().key(key).value(value).build()
    }

    #[test]
    fn a_stack_is_read_with_its_owner_and_what_it_was_made_for() {
        let output = types::Output::builder().output_key(SPEC_HASH).output_value("abc").build();
        let told = types::Stack::builder()
            .stack_name("g8s-a")
            .stack_id("arn:a")
            .stack_status(types::StackStatus::from("UPDATE_ROLLBACK_COMPLETE"))
            .tags(tag("other", "x"))
            .tags(tag(names::OWNER_UID_ANNOTATION, "uid"))
            .outputs(output)
            .enable_termination_protection(true);
        let seen = stack(told.clone().build()).unwrap();
        let expected = Stack {
            status: StackStatus::UpdateRollbackComplete,
            owner: Some("uid".into()),
            is_protected: true,
            spec_hash: Some("abc".into()),
        };
        assert_eq!((seen.name.as_str(), seen.id.as_str(), seen.stack), ("g8s-a", "arn:a", Ok(expected)));
        let strange = stack(told.stack_status(types::StackStatus::from("MELTED")).build()).unwrap();
        assert_eq!(strange.stack.unwrap_err().text, "MELTED");
        assert!(stack(types::Stack::builder().build()).is_none());
    }

    #[test]
    fn a_change_set_is_read_whole_or_not_at_all() {
        let volume = |before: &str, after: &str| {
            let target =
                types::ResourceTargetDefinition::builder().name("Size").before_value(before).after_value(after);
            let detail = types::ResourceChangeDetail::builder().target(target.build()).build();
            let change = types::ResourceChange::builder()
                .logical_resource_id("Master0Volume")
                .resource_type("AWS::EC2::Volume")
                .action(types::ChangeAction::Modify)
                .replacement(types::Replacement::False)
                .details(detail);
            types::Change::builder().resource_change(change.build()).build()
        };
        let told = |action: Option<types::Change>| {
            DescribeChangeSetOutput::builder()
                .change_set_id("arn:c")
                .change_set_name("g8s-1")
                .status(types::ChangeSetStatus::CreateComplete)
                .execution_status(types::ExecutionStatus::Available)
                .tags(tag(names::OWNER_UID_ANNOTATION, "uid"))
                .set_changes(action.map(|action| vec![action]))
                .build()
        };
        let read = change_set(told(Some(volume("16", "8")))).unwrap();
        assert_eq!((read.owner.as_deref(), read.set.status), (Some("uid"), ChangeSetStatus::CreateComplete));
        assert!(read.set.changes[0].shrinks);
        for (before, after) in [("8", "16"), ("8", "8"), ("{{changeSet:KNOWN_AFTER_APPLY}}", "8"), ("", "")] {
            assert!(!change_set(told(Some(volume(before, after)))).unwrap().set.changes[0].shrinks, "{before} {after}");
        }
        let strange = types::ResourceChange::builder().action(types::ChangeAction::from("Melt")).build();
        let strange = types::Change::builder().resource_change(strange).build();
        assert!(matches!(change_set(told(Some(strange))), Err(Failure::Unknown(_))));
    }

    #[test]
    fn an_event_of_the_stack_is_told_from_one_of_a_resource() {
        let told = |physical: &str| {
            let event = types::StackEvent::builder().stack_id("arn:a").physical_resource_id(physical);
            event
                .event_id("1")
                .stack_name("a")
                .timestamp(aws_smithy_types::DateTime::from_secs(0))
                .resource_status(types::ResourceStatus::CreateComplete)
                .build()
        };
        assert!(event(told("arn:a")).of_stack);
        assert!(!event(told("vpc-1")).of_stack);
        let mut strange = told("vpc-1");
        strange.resource_status = Some(types::ResourceStatus::from("MELTED"));
        assert_eq!(event(strange).status, None);
    }
}
