//! The operator kit. It knows nothing about guest clusters; another operator could be written on it.
//!
//! - [`link`]: a client whose writes begin only while this process leads
//! - [`lease`]: one leader among the replicas
//! - [`cache`]: one watch per kind into a store, with a call-back for every object that changed
//! - [`queue`]: work keys, deduplicated, fair between groups, with a back-off per key
//! - [`operator`]: workers that take keys from a queue and reconcile them, one at a time per key
//! - [`apply`]: make an object so, by UID, and write nothing when it is so already; prune what is not wanted any more
//! - [`finalizer`]: add and remove a finalizer
//! - [`events`]: events for people, each said once
//! - [`telemetry`], [`http`]: logs, metrics, and the endpoints that show them
//!
//! `examples/welcome.rs` is a whole operator on it.

pub mod apply;
pub mod cache;
pub mod events;
pub mod finalizer;
pub mod http;
pub mod lease;
pub mod link;
pub mod operator;
pub mod queue;
pub mod telemetry;

use std::{sync::OnceLock, time::Duration};

use self::{apply::ApplyError, link::NotLeading};

/// Longest time that one call to the API server may take, unless [`set_call_timeout`] said otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);

static CHOSEN_TIMEOUT: OnceLock<Duration> = OnceLock::new();

/// Sets the longest time that one call may take, once for the whole process. Later calls change nothing.
pub fn set_call_timeout(limit: Duration) {
    let _ = CHOSEN_TIMEOUT.set(limit);
}

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
    /// A server of another kind cannot be reached, or cannot serve: why.
    #[error("{0}")]
    NoAnswer(String),
    /// No answer in this time.
    #[error("no answer in {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// It was a write, and was not sent.
    #[error(transparent)]
    NotLeading(NotLeading),
}

impl CallError {
    /// The HTTP status that the server answered, if it answered.
    pub fn status(&self) -> Option<u16> {
        match &self.source {
            CallFailure::Refused(status) => Some(status.code),
            CallFailure::Kube(_) | CallFailure::NoAnswer(_) | CallFailure::TimedOut(_) | CallFailure::NotLeading(_) => {
                None
            }
        }
    }
}

/// Whether `error` comes of a write that was held back because this process does not lead.
pub fn is_not_leading(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(CallFailure::NotLeading(_))) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Of which sort an error is, in one word of a closed list: what the call came to that it comes of.
pub fn reason(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(ApplyError::Foreign { .. }) = error.downcast_ref() {
            return "foreign-object";
        }
        match error.downcast_ref() {
            Some(CallFailure::Refused(status)) => return refusal(status.code),
            Some(CallFailure::TimedOut(_)) => return "timeout",
            Some(CallFailure::Kube(_) | CallFailure::NoAnswer(_)) => return "no-answer",
            Some(CallFailure::NotLeading(_)) | None => {}
        }
        cause = error.source();
    }
    "other"
}

fn refusal(code: u16) -> &'static str {
    match code {
        404 => "not-found",
        409 => "conflict",
        400 | 422 => "invalid",
        429 => "throttled",
        500.. => "server-error",
        _ => "refused",
    }
}

/// The longest time that one call may take.
pub fn call_timeout() -> Duration {
    *CHOSEN_TIMEOUT.get().unwrap_or(&CALL_TIMEOUT)
}

/// Runs a call within the time that calls may take and says, when it fails, what was tried on which object.
///
/// kube's client has no time-out of its own, and a reconciler that hangs holds up its key for ever.
///
/// # Errors
/// [`CallError`] if the call fails or takes too long.
pub async fn call<T>(
    action: &'static str,
    object: impl Into<String>,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    call_within(call_timeout(), action, object, request).await
}

/// [`call`] with a limit of its own.
///
/// # Errors
/// [`CallError`] if the call fails or takes longer than `limit`.
pub async fn call_within<T>(
    limit: Duration,
    action: &'static str,
    object: impl Into<String>,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    let source = match tokio::time::timeout(limit, request).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(kube::Error::Api(status))) => CallFailure::Refused(status),
        Ok(Err(error)) if link::is_not_leading(&error) => CallFailure::NotLeading(NotLeading),
        Ok(Err(error)) => CallFailure::Kube(Box::new(error)),
        Err(_) => CallFailure::TimedOut(limit),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As reconcilers wrap what failed.
    #[derive(Debug, thiserror::Error)]
    enum Wrapped {
        #[error("apply")]
        Apply(#[source] ApplyError),
        #[error("something else")]
        Else,
    }

    #[test]
    fn an_error_has_a_reason_however_deep_its_cause_is() {
        let of = |source: CallFailure| {
            let call = CallError { action: "get", object: "Pod a/b".into(), source };
            reason(&Wrapped::Apply(ApplyError::Call(call)))
        };
        let refused = |code: u16| CallFailure::Refused(Box::new(kube::core::Status { code, ..Default::default() }));
        for (code, word) in [
            (403, "refused"),
            (404, "not-found"),
            (409, "conflict"),
            (422, "invalid"),
            (429, "throttled"),
            (503, "server-error"),
        ] {
            assert_eq!(of(refused(code)), word, "{code}");
        }
        assert_eq!(of(CallFailure::TimedOut(CALL_TIMEOUT)), "timeout");
        assert_eq!(of(CallFailure::Kube(Box::new(kube::Error::LinesCodecMaxLineLengthExceeded))), "no-answer");
        assert_eq!(reason(&Wrapped::Apply(ApplyError::Foreign { object: "Pod a/b".into() })), "foreign-object");
        assert_eq!(reason(&Wrapped::Else), "other");
    }
}
