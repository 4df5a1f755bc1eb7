//! Leaves a Vault alone that does not serve: whoever waits for it in vain holds up what needs no Vault.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::client::VaultError;

/// How long nobody asks after trouble.
const REST: Duration = Duration::from_secs(5);
/// How long the one who asks first after that has for it, before another may: longer than a call may take.
const PROBE: Duration = Duration::from_secs(20);

/// What is known of Vault's trouble.
#[derive(Default)]
pub(super) struct Breaker(Mutex<Option<Trouble>>);

struct Trouble {
    said: String,
    /// When somebody may ask again.
    next: Instant,
}

impl Breaker {
    /// Whether to ask now. If not, what was said when it was last asked.
    pub(super) fn admit(&self) -> Result<(), String> {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble.as_mut() {
            Some(trouble) if Instant::now() < trouble.next => Err(trouble.said.clone()),
            Some(trouble) => {
                trouble.next = Instant::now() + PROBE;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Takes note of how it went.
    pub(super) fn note(&self, error: Option<&VaultError>) {
        let said = error.and_then(VaultError::of_vault);
        let trouble = said.map(|said| Trouble { said, next: Instant::now() + REST });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_trouble_one_asks_at_a_time() {
        let breaker = Breaker::default();
        breaker.admit().unwrap();
        breaker.note(Some(&VaultError::NoMount("a".into())));
        breaker.admit().unwrap();
        breaker.note(Some(&VaultError::Sealed));
        assert_eq!(breaker.admit(), Err("Vault is sealed: unseal it".to_owned()));
        tokio::time::advance(REST).await;
        assert_eq!((breaker.admit().is_ok(), breaker.admit().is_ok()), (true, false));
        // Whoever asked never came back.
        tokio::time::advance(PROBE).await;
        assert_eq!((breaker.admit().is_ok(), breaker.admit().is_ok()), (true, false));
        breaker.note(None);
        assert_eq!((breaker.admit().is_ok(), breaker.admit().is_ok()), (true, true));
    }
}
