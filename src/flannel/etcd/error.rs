//! Why etcd did not do what it was asked for.

use std::{error::Error, io};

use rustls::AlertDescription;
use tonic::{Code, Status};

use crate::runtime::{CallFailure, chain, link::NotLeading};

/// What etcd says of a request that was judged by rights of before.
const STALE: &str = "etcdserver: revision of auth store is old";
/// What etcd says of a user or role that is there already.
const EXISTS: [&str; 2] = ["etcdserver: user name already exists", "etcdserver: role name already exists"];
/// What etcd says of a user or role that is not there.
const NOT_FOUND: [&str; 2] = ["etcdserver: user name not found", "etcdserver: role name not found"];
/// What etcd says to whom it does not know, beside what has a code of its own.
const UNKNOWN: [&str; 2] =
    ["etcdserver: user name is empty", "etcdserver: authentication failed, invalid user ID or password"];
/// What a member says that does not serve yet, or not any more, with the code of a refusal.
const NOT_SERVING: [&str; 2] = ["etcdserver: not capable", "etcdserver: not leader"];

/// A call to etcd failed.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// The settings or certificates lead to no client.
    #[error("set up a client of etcd at {endpoint}")]
    SetUp {
        /// etcd's URL.
        endpoint: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// A call came to nothing.
    #[error("etcd at {endpoint}: {}", format!("{call} {object}").trim_end())]
    Failed {
        /// etcd's URL.
        endpoint: String,
        /// The call, by its name in etcd's API.
        call: &'static str,
        /// The key, user or role; empty, if it is about none.
        object: String,
        /// Why it failed.
        #[source]
        source: Failure,
    },
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no answer of etcd's, it cannot serve, or this process does not lead.
    // Not transparent: whoever looks for the cause must find it.
    #[error("{0}")]
    Call(#[source] CallFailure),
    /// One of the two does not take the other's certificate, or there is no such right.
    #[error("denied: {0}")]
    Denied(String),
    /// Each time that it was tried, users or roles changed meanwhile.
    #[error("users and roles changed during each of several tries")]
    Stale,
    /// What was to be so for a write is not so. Nothing was written.
    #[error("not written: others have written meanwhile")]
    Guard,
    /// etcd refuses for another reason: its words.
    #[error("{0}")]
    Refused(String),
}

impl EtcdError {
    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::SetUp { .. } => None,
            Self::Failed { source, .. } => Some(source),
        }
    }

    /// Whether etcd as a whole does not serve: it is silent, or nowhere, or has no quorum.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.failure(), Some(Failure::Call(CallFailure::NoAnswer(_) | CallFailure::TimedOut(_))))
    }

    /// Whether it is certificates or rights that are amiss.
    pub fn is_denied(&self) -> bool {
        matches!(self.failure(), Some(Failure::Denied(_)))
    }

    /// Whether a write was not done, because what was to be so is not so.
    pub fn is_guard(&self) -> bool {
        matches!(self.failure(), Some(Failure::Guard))
    }

    /// Whether the user or role is there already.
    pub(super) fn is_there(&self) -> bool {
        self.says(&EXISTS)
    }

    /// Whether the user or role is not there.
    pub(super) fn is_not_there(&self) -> bool {
        self.says(&NOT_FOUND)
    }

    fn says(&self, words: &[&str]) -> bool {
        matches!(self.failure(), Some(Failure::Refused(said)) if words.contains(&said.as_str()))
    }
}

/// What it means that a call ended so.
pub(super) fn understand(status: &Status) -> Failure {
    match status.source() {
        Some(error) => never_answered(error),
        None => answered(status.code(), status.message()),
    }
}

/// What an error means that came up on this side.
fn never_answered(error: &(dyn Error + 'static)) -> Failure {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<NotLeading>() {
            return Failure::Call(CallFailure::NotLeading(NotLeading));
        }
        if of_certificates(error) {
            return Failure::Denied(chain(error));
        }
        cause = error.source();
    }
    Failure::Call(CallFailure::NoAnswer(chain(error)))
}

/// Whether it is a certificate that made an end, ours or etcd's.
fn of_certificates(error: &(dyn Error + 'static)) -> bool {
    // An `io::Error` does not name what it is made of as its source.
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let tls = inner.map_or_else(|| error.downcast_ref(), |inner| inner.downcast_ref());
    match tls {
        Some(rustls::Error::InvalidCertificate(_)) => true,
        Some(rustls::Error::AlertReceived(alert)) => *alert != AlertDescription::InternalError,
        Some(_) => false,
        // HTTP/2 keeps no more than the words of what ended a connection that was there already.
        None => error.to_string().contains("received fatal alert"),
    }
}

/// What an answer means.
fn answered(code: Code, said: &str) -> Failure {
    let words = said.to_owned();
    match code {
        _ if said == STALE => Failure::Stale,
        _ if UNKNOWN.contains(&said) => Failure::Denied(words),
        Code::PermissionDenied | Code::Unauthenticated => Failure::Denied(words),
        _ if NOT_SERVING.contains(&said) => Failure::Call(CallFailure::NoAnswer(words)),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::NotFound | Code::AlreadyExists => {
            Failure::Refused(words)
        }
        // It has no quorum or no space, is overloaded or broken, or it is no etcd that answers.
        _ => Failure::Call(CallFailure::NoAnswer(words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{is_not_leading, reason};

    fn failed(source: Failure) -> EtcdError {
        EtcdError::Failed {
            endpoint: "https://192.0.2.1:2379".into(),
            call: "UserGet",
            object: "g8s-ab".into(),
            source,
        }
    }

    #[test]
    fn an_answer_is_understood_by_its_code_and_etcds_words() {
        let of = |code, said: &str| failed(understand(&Status::new(code, said)));
        let denied = of(Code::PermissionDenied, "etcdserver: permission denied");
        assert!(denied.is_denied() && !denied.is_unavailable());
        assert_eq!(
            chain(&denied),
            "etcd at https://192.0.2.1:2379: UserGet g8s-ab: denied: etcdserver: permission denied"
        );
        for (code, said) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
        ] {
            assert!(of(code, said).is_denied(), "{said}");
        }
        for (code, said) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (Code::FailedPrecondition, "etcdserver: not capable"),
            (Code::Unknown, "grpc-status header missing, mapped from HTTP status code 502"),
        ] {
            let error = of(code, said);
            assert!(error.is_unavailable() && reason(&error) == "no-answer", "{said}");
        }
        let stale = of(Code::InvalidArgument, STALE);
        assert!(matches!(stale.failure(), Some(Failure::Stale)) && !stale.is_denied() && !stale.is_unavailable());
        for (code, said, is_there, is_not_there) in [
            (Code::FailedPrecondition, "etcdserver: role name already exists", true, false),
            (Code::FailedPrecondition, "etcdserver: user name not found", false, true),
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request", false, false),
        ] {
            let error = of(code, said);
            assert_eq!((error.is_there(), error.is_not_there()), (is_there, is_not_there), "{said}");
            assert!(!error.is_denied() && !error.is_unavailable() && !error.is_guard());
        }
    }

    #[test]
    fn what_came_up_on_this_side_is_understood_by_its_cause() {
        let of = |error: Box<dyn Error + Send + Sync>| failed(understand(&Status::from_error(error)));
        let not_leading = of(Box::new(NotLeading));
        assert!(is_not_leading(&not_leading) && !not_leading.is_unavailable());
        let io = |tls| io::Error::new(io::ErrorKind::InvalidData, tls);
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(of(Box::new(io(unknown))).is_denied());
        let alert = |alert| of(Box::new(io(rustls::Error::AlertReceived(alert))));
        assert!(alert(AlertDescription::CertificateRequired).is_denied());
        assert!(alert(AlertDescription::InternalError).is_unavailable());
        assert!(of("received fatal alert: BadCertificate".into()).is_denied());
        let reset = of(Box::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(reset.is_unavailable() && chain(&reset).ends_with("connection reset"), "{}", chain(&reset));
    }
}
