//! What is remembered of a guest between two looks. Whoever comes anew finds it out again.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::accounts::Session;
use crate::{api::Cluster, cluster::valid::AwsCredentials};

/// A guest.
#[derive(Debug, Default)]
pub(super) struct Guest {
    /// UID of its Cluster: a namesake inherits nothing.
    pub uid: String,
    /// How its account was entered, or why not.
    pub entry: Option<Entry>,
    /// The Cluster as this process wrote it last.
    pub written: Option<Cluster>,
    /// Stacks that failed, by name: when they are tried again.
    pub retries: HashMap<String, Retry>,
    /// What became of stacks that failed, by name: for a while nothing is asked, however often somebody looks.
    pub rests: HashMap<String, Rest>,
    /// Stacks that something is done to, by name.
    pub busy: HashMap<String, Busy>,
    /// Stacks that were seen to be gone.
    pub gone: BTreeSet<String>,
    /// Whether what the guest made itself was removed before its network, and after it.
    pub swept: [bool; 2],
    /// Stacks that are as they should be, by name: since when, and what was found to be changed of them past CloudFormation.
    pub drifts: HashMap<String, Checked>,
    /// Instance types that were looked for in its zones, and what came of it.
    pub offered: Option<Offered>,
}

/// An account that was entered, once for as long as the Secret and what the spec says of it are the same.
#[derive(Debug)]
pub(super) struct Entry {
    /// UID and resourceVersion of the Secret.
    pub version: Option<(String, String)>,
    /// What the spec says.
    pub credentials: AwsCredentials,
    /// When the Secret was last looked at.
    pub looked: Instant,
    /// When AWS was last asked.
    pub tried: Instant,
    /// What came of it.
    pub session: Result<Session, super::blame::Blame>,
}

/// Whether somebody changed what a stack made.
#[derive(Debug)]
pub(super) struct Checked {
    pub since: Instant,
    /// When it was last asked to be found out.
    pub asked: Option<Instant>,
    /// When what is told was found out, in seconds since 1970, and what that is.
    pub told: Option<(i64, Vec<String>)>,
}

/// Whether the zones have what is asked for.
#[derive(Debug)]
pub(super) struct Offered {
    pub types: Vec<String>,
    pub zones: Vec<String>,
    pub at: Instant,
    pub missing: Option<super::blame::Blame>,
}

/// A stack that failed.
#[derive(Debug)]
pub(super) struct Rest {
    /// What it was to be.
    pub goal: String,
    pub until: Instant,
    pub stand: super::stacks::Stand,
}

/// When what failed is tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    pub at: Instant,
    pub count: u32,
}

/// How far what is done to a stack is.
#[derive(Clone, Debug)]
pub(super) struct Busy {
    pub since: Instant,
    /// How often its events were looked at.
    pub looks: u32,
    pub progress: Option<String>,
}

/// Longest pause before what failed is tried again.
const LONGEST: Duration = Duration::from_secs(3600);

impl Guest {
    /// Whether a stack that failed is to be tried again now. It is answered once.
    pub fn is_due(&mut self, stack: &str) -> bool {
        let Some(retry) = self.retries.get_mut(stack).filter(|retry| retry.at <= Instant::now()) else { return false };
        // Until it is known how that goes.
        retry.at += LONGEST;
        true
    }

    /// A stack failed: after which time it is tried again, which begins with `first` and doubles.
    pub fn failed(&mut self, stack: &str, was_retry: bool, first: Duration) -> Duration {
        let now = Instant::now();
        let pause = |count: u32| first.saturating_mul(1 << count.min(10)).min(LONGEST);
        let retry = self.retries.entry(stack.to_owned()).or_insert(Retry { at: now + pause(0), count: 0 });
        if was_retry {
            retry.count += 1;
            retry.at = now + pause(retry.count);
        }
        retry.at.saturating_duration_since(now)
    }

    /// What is known of a stack that failed, as long as it is to be let be.
    pub fn rest(&self, stack: &str, goal: &str) -> Option<super::stacks::Stand> {
        let rest = self.rests.get(stack).filter(|rest| rest.goal == goal)?;
        let again = rest.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        Some(super::stacks::Stand { again, ..rest.stand.clone() })
    }

    /// A stack is as it should be.
    pub fn settled(&mut self, stack: &str) {
        self.retries.remove(stack);
        self.busy.remove(stack);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_tried_again_ever_later_and_once_each_time() {
        let mut guest = Guest::default();
        let first = Duration::from_secs(300);
        assert!(!guest.is_due("a"));
        assert_eq!(guest.failed("a", false, first), first);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(guest.failed("a", false, first), Duration::from_secs(200), "another look is no other failure");
        tokio::time::advance(Duration::from_secs(200)).await;
        assert!(guest.is_due("a") && !guest.is_due("a"));
        assert_eq!(guest.failed("a", true, first), first * 2);
        for _ in 0..20 {
            guest.failed("a", true, first);
        }
        assert_eq!(guest.failed("a", true, first), LONGEST);
        guest.settled("a");
        assert_eq!(guest.failed("a", false, first), first);
    }
}
