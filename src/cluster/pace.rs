//! How often a status is written: reports come in bursts, and each write is one for the API server and all who watch.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::ClusterKey;
use super::metrics::HELD_BACK;
use crate::api::{ClusterStatus, ConditionType};

/// Shortest time between two writes of one Cluster's status, unless something waits for it.
pub(super) const GAP: Duration = Duration::from_millis(500);
/// How long details wait at first: a guest's objects are made in less, and then one write tells of all of them.
const SHORTEST: Duration = Duration::from_secs(2);
/// The longest that details wait. Until then each write of details makes the next ones wait twice as long.
const LONGEST: Duration = Duration::from_secs(5);

/// How urgent a change of a status is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// What people and programs wait for: the phase, whether it is ready, and why not.
    News,
    /// How far it is on the way: counts, and the words of conditions. Of these there are many while nodes come.
    Details,
}

/// What is known of the writes of one Cluster's status.
#[derive(Clone, Copy, Debug, Default)]
struct Beat {
    /// When the last one was, and how long details wait from then on.
    last: Option<(Instant, Duration)>,
    /// Whether one is held back.
    held: bool,
}

impl Beat {
    fn hold(&mut self, held: bool) {
        if self.held != held {
            self.held = held;
            HELD_BACK.add(if held { 1 } else { -1 });
        }
    }
}

/// When each Cluster's status was last written.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<ClusterKey, Beat>>);

impl Pace {
    /// How long a write has to wait.
    pub(super) fn wait(&self, key: &ClusterKey, weight: Weight) -> Duration {
        self.with(key, |beat| {
            let Some((at, details)) = beat.last else { return Duration::ZERO };
            let gap = if weight == Weight::News { GAP } else { details };
            let left = gap.saturating_sub(Instant::now().duration_since(at));
            beat.hold(!left.is_zero());
            left
        })
    }

    /// Takes note that it was done.
    pub(super) fn written(&self, key: &ClusterKey, weight: Weight) {
        self.with(key, |beat| {
            let details = match (weight, beat.last) {
                (Weight::Details, Some((_, details))) => (details * 2).min(LONGEST),
                _ => SHORTEST,
            };
            beat.last = Some((Instant::now(), details));
            beat.hold(false);
        });
    }

    /// Takes note that there is nothing to write.
    pub(super) fn rests(&self, key: &ClusterKey) {
        self.with(key, |beat| beat.hold(false));
    }

    /// Forgets a Cluster that is gone.
    pub(super) fn forget(&self, key: &ClusterKey) {
        self.rests(key);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn with<T>(&self, key: &ClusterKey, then: impl FnOnce(&mut Beat) -> T) -> T {
        then(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default())
    }
}

/// How urgent it is that a status is replaced by another.
pub(super) fn weigh(old: &ClusterStatus, new: &ClusterStatus) -> Weight {
    let headline = |status: &ClusterStatus| {
        let told = [ConditionType::Ready, ConditionType::Available, ConditionType::NetworkIsolated];
        let said = told.map(|type_| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == type_.name());
            condition.map(|condition| (condition.status.clone(), condition.reason.clone()))
        });
        (status.observed_generation, status.phase.clone(), said)
    };
    if headline(old) == headline(new) { Weight::Details } else { Weight::News }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn readiness_and_its_reason_are_news_and_words_are_details() {
        let status = |message: &str, reason: &str, phase: &str| -> ClusterStatus {
            let condition = |type_: &str, reason: &str| {
                json!({
                    "type": type_, "status": "False", "reason": reason, "message": message,
                    "lastTransitionTime": "2030-01-01T00:00:00Z",
                })
            };
            let conditions = [condition("Ready", reason), condition("NetworkReady", "Waiting")];
            serde_json::from_value(json!({"phase": phase, "message": message, "conditions": conditions})).unwrap()
        };
        let old = status("waits for a VNI", "Waiting", "Provisioning");
        let words = status("waits for the Service's address", "Waiting", "Provisioning");
        assert_eq!(weigh(&old, &words), Weight::Details);
        assert_eq!(weigh(&old, &ClusterStatus { nodes: Some("1/4".into()), ..old.clone() }), Weight::Details);
        assert_eq!(weigh(&old, &status("VNI 7 is taken", "VNIInUse", "Provisioning")), Weight::News);
        assert_eq!(weigh(&old, &status("waits for a VNI", "Waiting", "Degraded")), Weight::News);
        assert_eq!(weigh(&old, &ClusterStatus { observed_generation: Some(2), ..old.clone() }), Weight::News);
        assert_eq!(weigh(&ClusterStatus::default(), &old), Weight::News);
    }

    #[tokio::test(start_paused = true)]
    async fn details_wait_ever_longer_until_there_is_news() {
        let pace = Pace::default();
        let key = ClusterKey { namespace: "a".into(), name: "b".into() };
        let waits = |weight| pace.wait(&key, weight);
        assert!(waits(Weight::Details).is_zero());
        pace.written(&key, Weight::Details);
        for gap in [2, 4, 5, 5].map(Duration::from_secs) {
            assert_eq!(waits(Weight::Details), gap);
            tokio::time::advance(gap).await;
            // One that fails counts for nothing.
            assert!(waits(Weight::Details).is_zero() && waits(Weight::Details).is_zero());
            pace.written(&key, Weight::Details);
        }
        assert_eq!(waits(Weight::News), GAP);
        tokio::time::advance(GAP).await;
        assert!(waits(Weight::News).is_zero());
        pace.written(&key, Weight::News);
        assert_eq!(waits(Weight::Details), SHORTEST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_back_is_counted_until_it_is_written_or_nothing_is_left_to_write() {
        let pace = Pace::default();
        let keys = ["a", "b", "c"].map(|name| ClusterKey { namespace: "x".into(), name: name.into() });
        let held = || {
            let beats = pace.0.lock().unwrap();
            beats.values().filter(|beat| beat.held).count()
        };
        for key in &keys {
            pace.written(key, Weight::News);
            pace.wait(key, Weight::Details);
            pace.wait(key, Weight::Details);
        }
        assert_eq!(held(), 3);
        pace.written(&keys[0], Weight::Details);
        pace.rests(&keys[1]);
        pace.forget(&keys[2]);
        assert_eq!(held(), 0);
    }
}
