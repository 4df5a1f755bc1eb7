//! How often a status is written: reports come in bursts, and each write is one for the API server and all who watch.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::ClusterKey;
use crate::api::ClusterStatus;

/// Shortest time between two writes of one Cluster's status, unless something waits for it.
pub(super) const GAP: Duration = Duration::from_millis(500);
/// The same where it says in other words what it said before: what an operator waits for changes often on the way.
pub(super) const GAP_OF_WORDS: Duration = Duration::from_secs(3);

/// When each Cluster's status was last written.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<ClusterKey, Instant>>);

impl Pace {
    /// How long a write has to wait that comes `gap` after the last one at the earliest. Zero: it may be done now, and counts
    /// as done.
    pub(super) fn wait(&self, key: &ClusterKey, gap: Duration) -> Duration {
        let now = Instant::now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = last.get(key).map_or(Duration::ZERO, |at| gap.saturating_sub(now.duration_since(*at)));
        if left.is_zero() {
            last.insert(key.clone(), now);
        }
        left
    }

    /// Forgets a Cluster that is gone.
    pub(super) fn forget(&self, key: &ClusterKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// The gap that a change of the status keeps.
pub(super) fn gap(old: &ClusterStatus, new: &ClusterStatus) -> Duration {
    let mut said = new.clone();
    said.message.clone_from(&old.message);
    for condition in &mut said.conditions {
        if let Some(before) = old.conditions.iter().find(|before| before.type_ == condition.type_) {
            condition.message.clone_from(&before.message);
        }
    }
    if said == *old { GAP_OF_WORDS } else { GAP }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn other_words_for_the_same_wait_longer_than_news() {
        let status = |message: &str, reason: &str, phase: &str| -> ClusterStatus {
            let condition = json!({
                "type": "NetworkReady", "status": "False", "reason": reason, "message": message,
                "lastTransitionTime": "2030-01-01T00:00:00Z",
            });
            serde_json::from_value(json!({"phase": phase, "message": message, "conditions": [condition]})).unwrap()
        };
        let old = status("waits for a VNI", "Waiting", "Provisioning");
        assert_eq!(gap(&old, &status("waits for the Service's address", "Waiting", "Provisioning")), GAP_OF_WORDS);
        assert_eq!(gap(&old, &status("VNI 7 is taken", "VNIInUse", "Provisioning")), GAP);
        assert_eq!(gap(&old, &status("waits for a VNI", "Waiting", "Degraded")), GAP);
        assert_eq!(gap(&ClusterStatus::default(), &old), GAP);
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_write_of_a_burst_waits() {
        let pace = Pace::default();
        let key = ClusterKey { namespace: "a".into(), name: "b".into() };
        assert!(pace.wait(&key, GAP).is_zero());
        assert_eq!(pace.wait(&key, GAP), GAP);
        tokio::time::advance(GAP).await;
        assert!(pace.wait(&key, GAP).is_zero());
    }
}
