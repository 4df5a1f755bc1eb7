//! What a stack's events tell people: how far it is, what it waits for, and what went wrong first.

use std::collections::{BTreeMap, BTreeSet};

use super::status::ResourceStatus;

/// An event of a stack, as CloudFormation tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Logical id of what it is about; the stack's own events have the name of the stack.
    pub id: String,
    /// Whether it is about the stack itself.
    pub of_stack: bool,
    /// AWS's name of its type.
    pub kind: String,
    /// What became of it. None: AWS says it in a word that is not known, so nothing is told of it.
    pub status: Option<ResourceStatus>,
    /// Why, in AWS's words.
    pub reason: String,
    /// The token of the operation that it belongs to.
    pub token: Option<String>,
}

/// Resources that are named in one message.
const NAMED: usize = 3;

/// How far the operation with this token is, of the `total` resources that it is about: "52/74, waiting for NatA". `events` are in the order in
/// which they happened, the oldest first. None: the operation did nothing yet.
pub fn progress(events: &[Event], token: &str, total: usize) -> Option<String> {
    let latest: BTreeMap<&str, ResourceStatus> = of(events, token)
        .filter(|event| !event.of_stack)
        .filter_map(|event| Some((event.id.as_str(), event.status?)))
        .collect();
    if latest.is_empty() {
        return None;
    }
    let done = latest.values().filter(|status| !status.is_busy() && !status.is_failure()).count();
    // In the order in which they were begun: what takes long is named first.
    let mut named = BTreeSet::new();
    let mut waiting: Vec<&str> = of(events, token)
        .map(|event| event.id.as_str())
        .filter(|id| latest.get(id).is_some_and(|status| status.is_busy()) && named.insert(*id))
        .collect();
    let others = waiting.len().saturating_sub(NAMED);
    waiting.truncate(NAMED);
    let mut text = format!("{done}/{total}");
    if !waiting.is_empty() {
        text.push_str(&format!(", waiting for {}", waiting.join(", ")));
    }
    if others > 0 {
        text.push_str(&format!(" and {others} more"));
    }
    Some(text)
}

/// Of how many resources an operation has told so far.
pub fn about(events: &[Event], token: &str) -> usize {
    of(events, token).filter(|event| !event.of_stack).map(|event| event.id.as_str()).collect::<BTreeSet<_>>().len()
}

/// The event that an operation failed by: the oldest failure of a resource that is not the consequence of another one, or what
/// the stack itself says. `events` are in the order in which they happened, the oldest first.
pub fn root_cause<'a>(events: &'a [Event], token: &str) -> Option<&'a Event> {
    let failures = || of(events, token).filter(|event| event.status.is_some_and(ResourceStatus::is_failure));
    failures()
        .find(|event| !event.of_stack && !is_consequence(event))
        .or_else(|| failures().find(|event| event.of_stack && !event.reason.is_empty()))
        .or_else(|| failures().next())
}

/// The token of a stack's latest operation.
pub fn latest_token(events: &[Event]) -> Option<&str> {
    events.iter().rev().find(|event| event.of_stack).and_then(|event| event.token.as_deref())
}

fn of<'a>(events: &'a [Event], token: &str) -> impl Iterator<Item = &'a Event> {
    events.iter().filter(move |event| event.token.as_deref() == Some(token))
}

/// Whether a resource was given up because of another one. That is not told but in words.
fn is_consequence(event: &Event) -> bool {
    ["Resource creation cancelled", "Resource update cancelled", "Resource deletion cancelled"]
        .iter()
        .any(|words| event.reason.starts_with(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, status: ResourceStatus, reason: &str) -> Event {
        let of_stack = id == "g8s-k3v7qzma";
        Event {
            id: id.into(),
            of_stack,
            kind: String::new(),
            status: Some(status),
            reason: reason.into(),
            token: Some("now".into()),
        }
    }

    fn begun_and_done(ids: &[&str]) -> Vec<Event> {
        use ResourceStatus::{CreateComplete, CreateInProgress};
        ids.iter().flat_map(|id| [event(id, CreateInProgress, ""), event(id, CreateComplete, "")]).collect()
    }

    #[test]
    fn people_see_how_far_it_is_and_what_takes_long() {
        use ResourceStatus::CreateInProgress;
        assert_eq!(progress(&[event("g8s-k3v7qzma", CreateInProgress, "")], "now", 74), None);
        let mut events = begun_and_done(&["Vpc", "Key"]);
        assert_eq!(progress(&events, "now", 74).unwrap(), "2/74");
        // Begun in this order; more than one event of each.
        for id in ["NatB", "NatA", "NatB", "InternalApi", "Domain", "S3Endpoint"] {
            events.push(event(id, CreateInProgress, "Resource creation Initiated"));
        }
        assert_eq!(progress(&events, "now", 74).unwrap(), "2/74, waiting for NatB, NatA, InternalApi and 2 more");
        events.extend(begun_and_done(&["NatB", "InternalApi", "Domain", "S3Endpoint"]));
        assert_eq!(progress(&events, "now", 74).unwrap(), "6/74, waiting for NatA");
        // What was before is not told.
        events.iter_mut().for_each(|event| event.token = Some("before".into()));
        assert_eq!(progress(&events, "now", 74), None);
    }

    #[test]
    fn the_first_failure_that_follows_from_none_is_the_cause() {
        use ResourceStatus::{CreateFailed, CreateInProgress, DeleteFailed, RollbackInProgress};
        let mut events = begun_and_done(&["Vpc"]);
        assert_eq!(root_cause(&events, "now"), None);
        events.extend([
            event("Key", CreateFailed, "Resource creation cancelled"),
            event("NatA", CreateFailed, "The maximum number of addresses has been reached."),
            event("NatB", CreateFailed, "Resource creation cancelled"),
            event("g8s-k3v7qzma", RollbackInProgress, "The following resource(s) failed to create: [NatA]."),
            event("Vpc", DeleteFailed, "has dependencies"),
        ]);
        assert_eq!(root_cause(&events, "now").unwrap().id, "NatA");
        // Of an earlier operation there is nothing to tell.
        events.insert(0, Event { token: Some("before".into()), ..event("Role", CreateFailed, "AccessDenied") });
        assert_eq!(root_cause(&events, "now").unwrap().id, "NatA");
        let alone =
            [event("g8s-k3v7qzma", CreateInProgress, ""), event("g8s-k3v7qzma", CreateFailed, "Stack name is taken")];
        assert_eq!(root_cause(&alone, "now").unwrap().reason, "Stack name is taken");
        let cancelled = [event("Key", CreateFailed, "Resource creation cancelled")];
        assert_eq!(root_cause(&cancelled, "now").unwrap().id, "Key", "better than nothing");
    }

    #[test]
    fn what_is_not_known_of_a_resource_hides_nothing_else() {
        use ResourceStatus::{CreateFailed, CreateInProgress};
        let mut events = begun_and_done(&["Vpc"]);
        events.push(Event { status: None, ..event("Key", CreateInProgress, "melted") });
        events.push(event("NatA", CreateFailed, "no more addresses"));
        assert_eq!(progress(&events, "now", 74).unwrap(), "1/74");
        assert_eq!(root_cause(&events, "now").unwrap().id, "NatA");
        events.push(Event { status: None, ..event("g8s-k3v7qzma", CreateInProgress, "") });
        assert_eq!(latest_token(&events), Some("now"));
    }

    #[test]
    fn the_latest_operation_is_told_by_the_stack_itself() {
        use ResourceStatus::{CreateComplete, UpdateInProgress};
        let mut events = vec![event("g8s-k3v7qzma", CreateComplete, "")];
        events.push(Event { token: Some("later".into()), ..event("Key", UpdateInProgress, "") });
        assert_eq!(latest_token(&events), Some("now"));
        // One that somebody began by hand has none.
        events.push(Event { token: None, ..event("g8s-k3v7qzma", UpdateInProgress, "User Initiated") });
        assert_eq!(latest_token(&events), None);
    }
}
