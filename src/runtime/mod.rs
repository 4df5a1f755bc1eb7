//! The operator kit. It knows nothing about guest clusters; another operator could be written on it.
//!
//! - [`cache`]: one watch per kind into a store, with a call-back for every object that changed
//! - [`queue`]: work keys, deduplicated, with a back-off per key
//! - [`operator`]: workers that take keys from a queue and reconcile them, one at a time per key
//! - [`apply`]: make an object so, by UID, and write nothing when it is so already
//! - [`finalizer`]: add and remove a finalizer
//! - [`telemetry`], [`http`]: logs, metrics, and the endpoints that show them

pub mod apply;
pub mod cache;
pub mod finalizer;
pub mod http;
pub mod operator;
pub mod queue;
pub mod telemetry;

use std::time::Duration;

/// Longest time that one call to the API server may take.
///
/// kube's client has no time-out of its own, and a reconciler that hangs holds up its key for ever.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// A call to the API server failed or took too long.
#[derive(Debug, thiserror::Error)]
#[error("{action} {object}")]
pub struct CallError {
    /// What was tried: `create`, `get`, `list`, `patch`, `delete`.
    pub action: &'static str,
    /// On which object: `kind namespace/name`.
    pub object: String,
    /// Why it failed.
    #[source]
    pub source: CallFailure,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallFailure {
    /// The server said no: its message and its reason.
    #[error("{} ({})", .0.message, .0.reason)]
    Refused(Box<kube::core::Status>),
    /// The call did not get as far as an answer.
    #[error(transparent)]
    Kube(Box<kube::Error>),
    /// No answer in [`CALL_TIMEOUT`].
    #[error("no answer in {} s", CALL_TIMEOUT.as_secs())]
    TimedOut,
}

impl CallError {
    /// The HTTP status that the server answered, if it answered.
    pub fn status(&self) -> Option<u16> {
        match &self.source {
            CallFailure::Refused(status) => Some(status.code),
            CallFailure::Kube(_) | CallFailure::TimedOut => None,
        }
    }
}

/// Runs a call within [`CALL_TIMEOUT`] and says, when it fails, what was tried on which object.
///
/// # Errors
/// [`CallError`] if the call fails or takes too long.
pub async fn call<T>(
    action: &'static str,
    object: impl Into<String>,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    let source = match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(kube::Error::Api(status))) => CallFailure::Refused(status),
        Ok(Err(error)) => CallFailure::Kube(Box::new(error)),
        Err(_) => CallFailure::TimedOut,
    };
    Err(CallError { action, object: object.into(), source })
}

/// An error with all its causes on one line, as logs and conditions show it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
