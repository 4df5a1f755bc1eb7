//! Who may hold a lease, and for how long. Pure.
//!
//! ```text
//!             nobody holds it, or its holder was silent for its whole length
//!   candidate ───────────────────────────────────────────────────────────────► holder ─┐ renews
//!       ▲                                                                        │ ▲────┘
//!       └──── somebody else wrote, or no renewal was confirmed in time ◄─────────┘
//! ```
//!
//! Time is an input: what has passed since the process started, by a clock that nobody sets. The times that stand in
//! the object are for people; no decision reads them, so clocks of different hosts need not agree.

use std::time::Duration;

/// The lease as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Who holds it; `None` if it was released.
    pub holder: Option<String>,
    /// resourceVersion: every write of the holder changes it.
    pub version: String,
    /// How long the holder may be silent.
    pub length: Duration,
    /// When this resourceVersion was first seen.
    pub since: Duration,
}

impl Sighting {
    /// What is known after a look: of an unchanged lease, how long it has been so.
    pub fn follow(self, before: Option<&Self>) -> Self {
        match before {
            Some(before) if before.version == self.version => Self { since: before.since, ..self },
            _ => self,
        }
    }
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Write our name into it: it does not exist, was released, or its holder is silent.
    Take,
    /// Say that we are still here.
    Renew,
    /// Look again after this time.
    Wait(Duration),
}

/// Decides for the candidate `me`. Every write that follows names the resourceVersion that was seen, so of two who take
/// a lease at a time one is refused.
pub fn next_move(me: &str, seen: Option<&Sighting>, now: Duration) -> Move {
    let Some(seen) = seen else { return Move::Take };
    match seen.holder.as_deref() {
        None | Some("") => Move::Take,
        Some(holder) if holder == me => Move::Renew,
        Some(_) => match (seen.since + seen.length).checked_sub(now) {
            None | Some(Duration::ZERO) => Move::Take,
            Some(left) => Move::Wait(left),
        },
    }
}

/// Until when the holder may write after a renewal that it *sent* at `sent`.
///
/// Others count the whole length from a moment that is later than `sent`; the quarter in between covers the time from a
/// look at the clock to the last byte on the wire, and clocks that run at slightly different speeds.
pub fn valid_until(sent: Duration, length: Duration) -> Duration {
    sent + length * 3 / 4
}

/// Pause between two renewals: three may fail in a row before the lease is lost.
pub fn renew_every(length: Duration) -> Duration {
    length / 5
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTH: Duration = Duration::from_secs(15);

    fn seen(holder: Option<&str>, since: u64) -> Sighting {
        Sighting {
            holder: holder.map(Into::into),
            version: "7".into(),
            length: LENGTH,
            since: Duration::from_secs(since),
        }
    }

    #[test]
    fn a_lease_of_another_is_taken_only_after_its_whole_length_of_silence() {
        let at = |seconds| next_move("me", Some(&seen(Some("other"), 100)), Duration::from_secs(seconds));
        assert_eq!(at(100), Move::Wait(LENGTH));
        assert_eq!(at(114), Move::Wait(Duration::from_secs(1)));
        assert_eq!(at(115), Move::Take);
    }

    #[test]
    fn what_nobody_holds_is_taken_and_our_own_is_renewed() {
        assert_eq!(next_move("me", None, Duration::ZERO), Move::Take);
        assert_eq!(next_move("me", Some(&seen(None, 0)), Duration::ZERO), Move::Take);
        assert_eq!(next_move("me", Some(&seen(Some(""), 0)), Duration::ZERO), Move::Take);
        assert_eq!(next_move("me", Some(&seen(Some("me"), 0)), Duration::ZERO), Move::Renew);
    }

    #[test]
    fn silence_counts_from_the_first_look_at_a_version() {
        let first = seen(Some("other"), 100);
        assert_eq!(seen(Some("other"), 110).follow(Some(&first)).since, Duration::from_secs(100));
        let renewed = Sighting { version: "8".into(), ..seen(Some("other"), 110) };
        assert_eq!(renewed.follow(Some(&first)).since, Duration::from_secs(110));
    }

    proptest! {
        /// The holder's last allowed write lies before anybody else's first, whenever its renewal was seen.
        #[test]
        fn two_never_hold_it(sent in 0_u64..1_000_000, seen_after in 0_u64..100_000, length in 1_u64..60_000) {
            let length = Duration::from_millis(length);
            let sent = Duration::from_millis(sent);
            let sighting = Sighting { length, since: sent + Duration::from_millis(seen_after), ..seen(Some("other"), 0) };
            let last = valid_until(sent, length);
            prop_assert!(matches!(next_move("me", Some(&sighting), last), Move::Wait(_)));
        }
    }

    #[test]
    fn three_renewals_fit_into_the_time_that_one_is_good_for() {
        assert!(renew_every(LENGTH) * 3 < valid_until(Duration::ZERO, LENGTH));
    }
}
