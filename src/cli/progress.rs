//! A word to the person who waits.

use std::{io::Write, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How long nothing is said.
const SILENT: Duration = Duration::from_secs(2);
/// Pause between two words.
const PAUSE: Duration = Duration::from_secs(5);

/// Awaits `work`, and says on standard error what is waited for where that takes long.
pub(super) async fn patiently<T>(what: &str, work: impl Future<Output = T>) -> T {
    told_to(std::io::stderr(), what, work).await
}

async fn told_to<T>(mut to: impl Write, what: &str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let mut ticks = interval_at(began + SILENT, PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            // Who cannot be told waits all the same.
            _ = ticks.tick() => drop(writeln!(to, "{what}: {} s so far", began.elapsed().as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_long_is_told_and_who_does_not_is_left_in_peace() {
        for (takes, said) in [(1, ""), (3, "x: 2 s so far\n"), (8, "x: 2 s so far\nx: 7 s so far\n")] {
            let mut told = Vec::new();
            let work = async {
                tokio::time::sleep(Duration::from_secs(takes)).await;
                takes
            };
            assert_eq!(told_to(&mut told, "x", work).await, takes);
            assert_eq!(String::from_utf8(told).unwrap(), said);
        }
    }
}
