//! What a Cluster's status keeps of one of its stacks, so that a controller manager that comes anew goes on with the same attempt.

use serde::{Deserialize, Serialize};

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Number of the attempt. It never goes back.
    pub attempt: u32,
    /// What the attempt is to bring about.
    pub goal: String,
    /// ARN of the stack, as soon as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// What is to be written down before anything is tried: the attempt goes on as long as its goal is the same, unless what failed is
/// to be tried `again`.
pub fn take_up(record: Option<&Record>, goal: &str, again: bool) -> Record {
    match record {
        Some(record) if record.goal == goal && !again => record.clone(),
        Some(Record { attempt, id, .. }) => {
            Record { attempt: attempt.saturating_add(1), goal: goal.to_owned(), id: id.clone() }
        }
        None => Record { attempt: 1, goal: goal.to_owned(), id: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_has_one_goal_and_its_number_never_goes_back() {
        let first = take_up(None, "a", false);
        assert_eq!((first.attempt, first.goal.as_str()), (1, "a"));
        let first = Record { id: Some("arn:1".into()), ..first };
        assert_eq!(take_up(Some(&first), "a", false), first);
        let again = take_up(Some(&first), "a", true);
        assert_eq!((again.attempt, again.id.as_deref()), (2, Some("arn:1")));
        // Back to what was wanted before is another attempt.
        let other = take_up(Some(&again), "b", false);
        let back = take_up(Some(&other), "a", false);
        assert_eq!((other.attempt, back.attempt), (3, 4));
    }
}
