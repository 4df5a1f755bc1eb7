//! How many calls are made: a token bucket for each account, region and family of calls.
//!
//! AWS counts the calls of a whole account, ours and those of people and other programs. So nobody can know how many are
//! ours to make: the bucket fills more slowly each time that AWS throttles, and faster again while it does not.

use std::time::Duration;

/// Calls that AWS counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Those of CloudFormation that look.
    Look,
    /// Those of CloudFormation that change something.
    Change,
    /// Those of STS.
    Identity,
    /// Those of EC2 and of load balancers.
    Resource,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Look, Self::Change, Self::Identity, Self::Resource];

    /// What metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Change => "change",
            Self::Identity => "identity",
            Self::Resource => "resource",
        }
    }

    /// What it begins with. AWS publishes no figures for CloudFormation; these are well below what clients of it were seen
    /// to be refused at, about ten looks a second.
    fn limits(self) -> Limits {
        match self {
            Self::Look => Limits { fastest: Duration::from_millis(200), burst: 20 },
            Self::Change => Limits { fastest: Duration::from_millis(500), burst: 10 },
            Self::Resource => Limits { fastest: Duration::from_millis(200), burst: 20 },
            Self::Identity => Limits { fastest: Duration::from_millis(200), burst: 10 },
        }
    }
}

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Time between two tokens when all is well.
    fastest: Duration,
    /// Most tokens.
    burst: u32,
}

/// Longest time between two tokens, however often AWS throttles.
pub const SLOWEST: Duration = Duration::from_secs(8);

/// A token bucket. Time is what went by since a moment that its owner chose.
#[derive(Clone, Debug)]
pub struct Bucket {
    limits: Limits,
    /// Time between two tokens, now.
    interval: Duration,
    /// When it is full again, if no more is taken.
    full: Duration,
    /// When it was last slowed down.
    slowed: Option<Duration>,
}

impl Bucket {
    /// A full one.
    pub fn new(family: Family) -> Self {
        let limits = family.limits();
        Self { limits, interval: limits.fastest, full: Duration::ZERO, slowed: None }
    }

    /// Takes a token, which is there after the time that is answered.
    ///
    /// # Errors
    /// If it were there only after a time longer than `patience`. Then that time is told and nothing is taken.
    pub fn take(&mut self, now: Duration, patience: Duration) -> Result<Duration, Duration> {
        let owed = self.full.saturating_sub(now);
        let wait = owed.saturating_sub(self.interval * (self.limits.burst - 1));
        if wait > patience {
            return Err(wait);
        }
        self.full = self.full.max(now) + self.interval;
        Ok(wait)
    }

    /// AWS throttled a call: no token is left, and the next ones come half as fast. Calls that were on their way together
    /// count once.
    pub fn throttled(&mut self, now: Duration) {
        if self.slowed.is_none_or(|slowed| now >= slowed + self.interval) {
            self.pace((self.interval * 2).min(SLOWEST), now);
            self.slowed = Some(now);
        }
        self.full = self.full.max(now + self.interval * self.limits.burst);
    }

    /// AWS took a call: tokens come a little faster, as long as they are slower than they may be.
    pub fn went_well(&mut self, now: Duration) {
        self.pace((self.interval - self.interval / 16).max(self.limits.fastest), now);
    }

    /// Changes how fast tokens come, and not how many are left, nor how long the next one is waited for if none is.
    fn pace(&mut self, interval: Duration, now: Duration) {
        let (owed, before) = (self.full.saturating_sub(now), self.interval);
        let but_one = self.limits.burst - 1;
        let owed = match owed.checked_sub(before * but_one) {
            Some(wait) => interval * but_one + wait,
            None => owed.mul_f64(interval.as_secs_f64() / before.as_secs_f64()),
        };
        (self.interval, self.full) = (interval, now + owed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(3600);

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_burst_is_free_and_what_follows_waits_its_turn() {
        let mut bucket = Bucket::new(Family::Change);
        let waits: Vec<_> = (0..13).map(|_| bucket.take(Duration::ZERO, FOR_EVER).unwrap()).collect();
        assert_eq!(waits[..10], [Duration::ZERO; 10]);
        assert_eq!(waits[10..], [millis(500), millis(1000), millis(1500)]);
        // After a while it is full again, and holds no more than before.
        let later = Duration::from_secs(60);
        let waits: Vec<_> = (0..11).map(|_| bucket.take(later, FOR_EVER).unwrap()).collect();
        assert_eq!((waits[9], waits[10]), (Duration::ZERO, millis(500)));
    }

    #[test]
    fn who_has_no_patience_takes_nothing() {
        let mut bucket = Bucket::new(Family::Change);
        while bucket.take(Duration::ZERO, Duration::ZERO).is_ok() {}
        for _ in 0..3 {
            assert_eq!(bucket.take(Duration::ZERO, millis(499)), Err(millis(500)));
        }
        assert_eq!(bucket.take(Duration::ZERO, millis(500)), Ok(millis(500)));
    }

    #[test]
    fn throttling_empties_the_bucket_and_slows_it_down_once_for_all_that_were_under_way() {
        let mut bucket = Bucket::new(Family::Look);
        for _ in 0..5 {
            bucket.throttled(Duration::ZERO);
        }
        assert_eq!(bucket.take(Duration::ZERO, FOR_EVER), Ok(millis(400)));
        assert_eq!(bucket.take(Duration::ZERO, FOR_EVER), Ok(millis(800)));
        // What is throttled later is news.
        bucket.throttled(millis(800));
        assert_eq!(bucket.interval, millis(800));
        for round in 0..20 {
            bucket.throttled(Duration::from_secs(10 + 10 * round));
        }
        assert_eq!(bucket.interval, SLOWEST);
        for _ in 0..100 {
            bucket.went_well(FOR_EVER);
        }
        assert_eq!(bucket.interval, Family::Look.limits().fastest);
    }

    /// An account that others use up to a limit: each call is throttled if less than `every` went by since the last one it took.
    fn calls_until(taken: usize, every: Duration) -> (usize, Duration) {
        let (mut bucket, mut now, mut calls, mut done) = (Bucket::new(Family::Change), Duration::ZERO, 0, 0);
        let mut last: Option<Duration> = None;
        while done < taken {
            now += bucket.take(now, FOR_EVER).unwrap();
            calls += 1;
            if last.is_none_or(|last| now >= last + every) {
                last = Some(now);
                done += 1;
                bucket.went_well(now);
            } else {
                bucket.throttled(now);
            }
        }
        (calls, now)
    }

    #[test]
    fn a_slow_account_is_found_out_without_a_storm() {
        for every in [millis(400), millis(1500), millis(4000)] {
            let (calls, took) = calls_until(100, every);
            assert!(calls < 160, "{calls} calls for 100 at one each {every:?}");
            assert!(took < every * 100 * 3 + Duration::from_secs(60), "{took:?} for 100 at one each {every:?}");
        }
    }

    proptest! {
        /// However it is used, in any time no more tokens are given than it holds and than come in that time.
        #[test]
        fn no_more_is_given_than_comes(steps in prop::collection::vec((0u64..2000, 0u8..8), 1..200)) {
            let mut bucket = Bucket::new(Family::Look);
            let Limits { fastest, burst } = Family::Look.limits();
            let (mut now, mut given): (Duration, Vec<Duration>) = (Duration::ZERO, Vec::new());
            for (pause, what) in steps {
                now += millis(pause);
                match what {
                    0 => bucket.throttled(now),
                    1 => bucket.went_well(now),
                    _ => given.extend(bucket.take(now, millis(5000)).map(|wait| now + wait)),
                }
                prop_assert!(bucket.interval >= fastest && bucket.interval <= SLOWEST);
            }
            given.sort();
            for (index, first) in given.iter().enumerate() {
                for (count, last) in given[index..].iter().enumerate() {
                    let most = u128::from(burst) + (*last - *first).as_nanos() / fastest.as_nanos() + 1;
                    prop_assert!(count as u128 <= most);
                }
            }
        }
    }
}
