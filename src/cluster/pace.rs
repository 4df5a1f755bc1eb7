//! How often a status is written: reports come in bursts, and each write is one for the API server and all who watch.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::ClusterKey;

/// Shortest time between two writes of one Cluster's status, unless something waits for it.
const GAP: Duration = Duration::from_millis(500);

/// When each Cluster's status was last written.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<ClusterKey, Instant>>);

impl Pace {
    /// How long a write has to wait. Zero: it may be done now, and counts as done.
    pub(super) fn wait(&self, key: &ClusterKey) -> Duration {
        let now = Instant::now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = last.get(key).map_or(Duration::ZERO, |at| GAP.saturating_sub(now.duration_since(*at)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_second_write_of_a_burst_waits() {
        let pace = Pace::default();
        let key = ClusterKey { namespace: "a".into(), name: "b".into() };
        assert!(pace.wait(&key).is_zero());
        assert_eq!(pace.wait(&key), GAP);
        tokio::time::advance(GAP).await;
        assert!(pace.wait(&key).is_zero());
    }
}
