//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(50);

/// Looks until `ready` says `Ok`, at most for `limit`.
///
/// `what` completes the sentence "… within 30 s" in the error, which also tells the last reason why not.
///
/// # Errors
/// If the condition does not come true in time.
pub fn wait_for<T>(limit: Duration, what: &str, ready: impl FnMut() -> Result<T>) -> Result<T> {
    wait_every(POLL, limit, what, ready)
}

/// As [`wait_for`], looking every `pause`: for what takes long, since looking takes time from what is waited for.
///
/// # Errors
/// If the condition does not come true in time.
pub fn wait_every<T>(pause: Duration, limit: Duration, what: &str, mut ready: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match ready() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => bail!("{what} did not come true within {limit:?}: {reason:#}"),
            Err(_) => std::thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reason_is_told() {
        let mut looks = 0;
        let error = wait_for(Duration::from_millis(120), "a second node", || -> Result<()> {
            looks += 1;
            bail!("look {looks}")
        });
        assert_eq!(
            error.unwrap_err().to_string(),
            format!("a second node did not come true within 120ms: look {looks}")
        );
        assert!(looks >= 2);
    }
}
