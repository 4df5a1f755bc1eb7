//! What of a new status is worth an event. Pure.

use crate::{
    api::{ClusterStatus, Condition, ConditionType},
    runtime::events::Weight,
};

/// Something to say about a Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Good or bad.
    pub weight: Weight,
    /// The event's reason.
    pub reason: String,
    /// In words.
    pub note: String,
}

/// What changed between two statuses that a person would want to be told.
pub fn news(old: &ClusterStatus, new: &ClusterStatus) -> Vec<News> {
    let mut all = Vec::new();
    let mut say = |weight, reason: &str, note: String| all.push(News { weight, reason: reason.to_owned(), note });
    let changed = |type_| {
        let (before, after) = (condition(old, type_), condition(new, type_)?);
        let same = before.is_some_and(|before| {
            (&before.status, &before.reason, &before.message) == (&after.status, &after.reason, &after.message)
        });
        (!same).then_some((before, after))
    };
    if let Some((before, after)) = changed(ConditionType::Degraded) {
        let was = before.is_some_and(|before| before.status == "True");
        match after.status.as_str() {
            "True" => say(Weight::Warning, &after.reason, after.message.clone()),
            _ if was => say(Weight::Normal, "Recovered", "what was wrong is right again".into()),
            _ => {}
        }
    }
    if let Some((before, after)) = changed(ConditionType::Ready)
        && after.status == "True"
        && before.is_none_or(|before| before.status != "True")
    {
        let endpoint = new.endpoint.as_deref().unwrap_or_default();
        say(Weight::Normal, "Ready", format!("the guest cluster is ready at {endpoint}"));
    }
    if condition(old, ConditionType::Deleting).is_none() && condition(new, ConditionType::Deleting).is_some() {
        say(Weight::Normal, "Deleting", "everything of the guest cluster is being removed".into());
    }
    all
}

fn condition(status: &ClusterStatus, type_: ConditionType) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_.name())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::api::{Conditions, Reason, Status};

    fn status(type_: ConditionType, status: Status, reason: Reason, message: &str) -> ClusterStatus {
        let mut conditions = Conditions::new(&[], 1, Timestamp::UNIX_EPOCH);
        conditions.set(type_, status, reason, message.to_owned());
        ClusterStatus { conditions: conditions.finish(), endpoint: Some("https://x".into()), ..Default::default() }
    }

    #[test]
    fn trouble_is_a_warning_with_its_cause_and_its_end_is_told() {
        let bad = status(ConditionType::Degraded, Status::True, Reason::CALost, "roots-1 is missing");
        let fine = status(ConditionType::Degraded, Status::False, Reason::AsExpected, "");
        let said = news(&fine, &bad);
        assert_eq!((said[0].weight, said[0].reason.as_str()), (Weight::Warning, "CALost"));
        assert!(said[0].note.contains("roots-1"));
        assert_eq!(news(&bad, &fine)[0].reason, "Recovered");
        assert!(news(&bad, &bad).is_empty() && news(&ClusterStatus::default(), &fine).is_empty());
    }

    #[test]
    fn ready_is_said_when_it_becomes_so() {
        let ready = status(ConditionType::Ready, Status::True, Reason::AsExpected, "");
        assert_eq!(news(&ClusterStatus::default(), &ready)[0].note, "the guest cluster is ready at https://x");
        assert!(news(&ready, &ready).is_empty());
    }
}
