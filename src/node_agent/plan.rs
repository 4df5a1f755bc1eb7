//! Which certificates are asked for now, and when it is looked again. Pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::pki::vault::CLOCKS;

/// Pause after the first try that failed. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How soon after a certificate another one is asked for at the earliest, however short its life or wrong a clock.
const SOONEST: Duration = Duration::from_secs(5);
/// Longest time without a look at what is there: clocks are set, machines sleep, files are deleted.
const LOOK: Duration = Duration::from_secs(60);
/// Shortest time, so that it never spins.
const BREATH: Duration = Duration::from_millis(200);

/// What there is of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// None that is of use: what is wrong.
    Unfit(&'static str),
    /// One for its key and for what is asked for.
    Fits(Life),
}

/// A certificate's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// When it was signed.
    pub issued: Timestamp,
    /// When it ends.
    pub ends: Timestamp,
    /// When its authority ends.
    pub authority_ends: Timestamp,
}

impl Life {
    /// When it is renewed: at two thirds of its life. One that ends with its authority no renewal makes live longer, so
    /// that is asked for when the authority has ended, to say so.
    pub fn renew_at(&self) -> Timestamp {
        let with_authority = self.ends.checked_add(CLOCKS * 2).unwrap_or(Timestamp::MAX) >= self.authority_ends;
        if with_authority {
            return self.authority_ends;
        }
        let life = Duration::try_from(self.ends.duration_since(self.issued)).unwrap_or_default();
        self.issued.checked_add(life * 2 / 3).unwrap_or(self.ends)
    }
}

/// What came of earlier tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    failed: u32,
    /// Before that nothing is tried.
    next: Option<Timestamp>,
}

impl Tries {
    /// One failed. `chance` is any number: by it nodes that failed together do not come back together.
    pub fn failed(&mut self, now: Timestamp, chance: u64) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failed.min(16)).min(LONGEST_PAUSE);
        // Three quarters of it to all of it.
        let quarter = u64::try_from(pause.as_millis() / 4).unwrap_or(u64::MAX).max(1);
        let pause = pause.saturating_sub(Duration::from_millis(chance % quarter));
        self.failed = self.failed.saturating_add(1);
        self.next = now.checked_add(pause).ok();
    }

    /// One went well.
    pub fn went_well(&mut self, now: Timestamp) {
        *self = Self { failed: 0, next: now.checked_add(SOONEST).ok() };
    }

    /// When it is tried again, if that is not now.
    pub fn waits_until(&self, now: Timestamp) -> Option<Timestamp> {
        // One further ahead was noted before the clock was set back.
        let longest = now.checked_add(LONGEST_PAUSE).unwrap_or(Timestamp::MAX);
        self.next.filter(|next| (now..=longest).contains(next) && *next != now)
    }
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Certificates to ask for, by their place, and why.
    pub ask: Vec<(usize, &'static str)>,
    /// How long nothing is to be done after that.
    pub pause: Duration,
    /// Whether every certificate is there, and has not ended.
    pub complete: bool,
}

/// Decides what to do now about certificates of which this was found, and that were tried so.
pub fn plan<'a>(certificates: impl IntoIterator<Item = (&'a Found, &'a Tries)>, now: Timestamp) -> Plan {
    let mut plan = Plan { complete: true, ..Plan::default() };
    let mut until = now.checked_add(LOOK).unwrap_or(Timestamp::MAX);
    for (index, (found, tries)) in certificates.into_iter().enumerate() {
        let (why, due) = match found {
            Found::Unfit(why) => (*why, now),
            Found::Fits(life) => ("has lived for two thirds of its time", life.renew_at()),
        };
        match found {
            // When it ends there is something to be said, whatever may be tried then.
            Found::Fits(life) if life.ends > now => until = until.min(life.ends),
            _ => plan.complete = false,
        }
        let due = tries.waits_until(now).map_or(due, |next| due.max(next));
        if due <= now {
            plan.ask.push((index, why));
        } else {
            until = until.min(due);
        }
    }
    plan.pause = pause(until, now);
    plan
}

/// How long to wait until then.
pub fn pause(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default().clamp(BREATH, LOOK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn life(issued: i64, ends: i64) -> Found {
        Found::Fits(Life { issued: at(issued), ends: at(ends), authority_ends: at(10_000_000) })
    }

    fn of(found: &Found, tries: &Tries, now: i64) -> Plan {
        plan([(found, tries)], at(now))
    }

    #[test]
    fn it_is_asked_for_what_is_missing_and_at_two_thirds_and_not_before() {
        let fresh = Tries::default();
        let missing = of(&Found::Unfit("is missing"), &fresh, 0);
        assert_eq!((missing.ask, missing.complete), (vec![(0, "is missing")], false));
        let found = life(0, 900);
        let rests = of(&found, &fresh, 599);
        assert_eq!((rests.ask.len(), rests.complete, rests.pause), (0, true, Duration::from_secs(1)));
        let due = of(&found, &fresh, 600);
        assert_eq!((due.ask.len(), due.complete), (1, true));
        let over = of(&found, &fresh, 900);
        assert_eq!((over.ask.len(), over.complete), (1, false));
        // However long it may rest, it looks.
        assert_eq!(of(&found, &fresh, 0).pause, LOOK);
    }

    #[test]
    fn what_failed_waits_longer_each_time_and_holds_up_nothing_else() {
        let mut tries = Tries::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            tries.failed(at(0), 0);
            pauses.push(tries.waits_until(at(0)).unwrap().as_second());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        let (missing, fresh) = (Found::Unfit("is missing"), Tries::default());
        assert_eq!(plan([(&missing, &tries), (&missing, &fresh)], at(0)).ask, [(1, "is missing")]);
        assert_eq!(of(&missing, &tries, 300).ask.len(), 1);
        // A clock that was set back lets nobody wait for longer.
        assert_eq!(of(&missing, &tries, -10_000).ask.len(), 1);
        tries.went_well(at(0));
        tries.failed(at(0), 0);
        assert_eq!(tries.waits_until(at(0)), Some(at(1)));
    }

    #[test]
    fn a_certificate_that_is_due_at_once_is_not_asked_for_again_at_once() {
        let mut tries = Tries::default();
        tries.went_well(at(100));
        let found = life(0, 100);
        let plan = of(&found, &tries, 100);
        assert_eq!((plan.ask.len(), plan.pause), (0, SOONEST));
        assert_eq!(of(&found, &tries, 105).ask.len(), 1);
        // What ends is looked at when it does.
        let mut tries = Tries::default();
        (0..8).for_each(|_| tries.failed(at(80), 0));
        let plan = of(&found, &tries, 80);
        assert_eq!((plan.ask.len(), plan.complete, plan.pause), (0, true, Duration::from_secs(20)));
    }

    #[test]
    fn what_ends_with_its_authority_is_not_renewed_in_vain() {
        let found = Found::Fits(Life { issued: at(0), ends: at(900), authority_ends: at(960) });
        assert_eq!(of(&found, &Tries::default(), 800).ask.len(), 0);
        assert_eq!(of(&found, &Tries::default(), 960).ask.len(), 1);
    }

    proptest! {
        /// Whatever goes wrong: in an hour there are few tries, and there is always another.
        #[test]
        fn there_are_few_tries_and_always_another(chances in prop::collection::vec(any::<u64>(), 40)) {
            let (mut tries, mut now, missing) = (Tries::default(), at(0), Found::Unfit("is missing"));
            let mut asked = 0;
            for chance in chances {
                let plan = plan([(&missing, &tries)], now);
                if !plan.ask.is_empty() {
                    asked += 1;
                    tries.failed(now, chance);
                }
                let until = tries.waits_until(now).unwrap();
                prop_assert!(until > now && until <= now + LONGEST_PAUSE);
                now = until;
            }
            prop_assert_eq!(asked, 40);
            prop_assert!(now.as_second() > 3600, "{}", now);
        }
    }
}
