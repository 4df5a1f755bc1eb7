//! What of the objects is new, changed, gone or as it should be.

use serde_json::Value;

use super::steps::Step;
use crate::cluster::valid::parse_bytes;

/// A step, and what it comes to.
#[derive(Debug)]
pub(super) struct Change {
    pub step: Step,
    pub state: State,
}

/// What a step comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The object is made.
    Created,
    /// It differs.
    Changed,
    /// It is as it should be.
    Unchanged,
    /// It is no longer wanted.
    Removed,
    /// It was not looked at, or cannot be done.
    Unknown(String),
}

impl State {
    /// The sign in front of a step.
    pub(super) fn sign(&self) -> char {
        match self {
            Self::Created => '+',
            Self::Changed => '~',
            Self::Unchanged => '=',
            Self::Removed => '-',
            Self::Unknown(_) => '?',
        }
    }
}

/// How one plan differs from another.
pub(super) fn plans(mut before: Vec<Step>, after: Vec<Step>) -> Vec<Change> {
    let mut changes: Vec<_> = after
        .into_iter()
        .map(|step| {
            let old = before.iter().position(|old| old.object == step.object).map(|place| before.remove(place));
            let state = match old {
                None => State::Created,
                Some(old) if old.body == step.body => State::Unchanged,
                Some(_) => State::Changed,
            };
            Change { step, state }
        })
        .collect();
    changes.extend(before.into_iter().rev().map(|step| Change { step, state: State::Removed }));
    changes
}

/// Whether an object of the server has all that is wanted. The server adds defaults, and writes quantities its own way.
pub(super) fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(name, value)| match live.get(name) {
            Some(live) => covers(live, value),
            None => is_empty(value),
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| covers(live, wanted))
        }
        (Value::String(live), Value::String(wanted)) => {
            live == wanted || matches!((parse_bytes(live), parse_bytes(wanted)), (Some(a), Some(b)) if a == b)
        }
        (live, wanted) => live == wanted,
    }
}

/// What a server leaves out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_may_add_but_not_differ() {
        let wanted = json!({"spec": {"size": "8589934592", "ports": [{"port": 1}], "selector": {}}});
        for (live, expected) in [
            (json!({"spec": {"size": "8Gi", "ports": [{"port": 1, "protocol": "TCP"}]}, "status": {}}), true),
            (json!({"spec": {"size": "9Gi", "ports": [{"port": 1}]}}), false),
            (json!({"spec": {"size": "8Gi", "ports": []}}), false),
            (json!({"spec": {"size": "8Gi", "ports": [{"port": 2}]}}), false),
        ] {
            assert_eq!(covers(&live, &wanted), expected, "{live}");
        }
    }
}
