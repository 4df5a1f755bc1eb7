//! What every call goes through on its way out: writes begin only while this process leads, and calls are counted.
//!
//! As in [`link`](crate::runtime::link), whose rules these are. A write that waits for a connection is given up when leadership
//! ends. In a process that is frozen just then it may still go out when the process goes on, with what is on the wire.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http::{Request, Response};
use tonic::{Code, body::Body};
use tower::{BoxError, Service};

use crate::runtime::{
    lease::Leadership,
    link::{NotLeading, Verb, count, while_leading},
};

/// What metrics call this server.
const SERVER: &str = "flannel-etcd";

/// A connection that is written to only while this process leads.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    pub(super) inner: S,
    /// None: it writes as it likes, and nothing is counted.
    pub(super) leadership: Option<Leadership>,
}

impl<S, B> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(leadership) = self.leadership.clone() else {
            let answer = self.inner.call(request);
            return Box::pin(async { answer.await.map_err(Into::into) });
        };
        let (verb, began) = (verb(request.uri().path()), Instant::now());
        let permit = if verb.writes() { leadership.begin_write() } else { None };
        if verb.writes() && permit.is_none() {
            return Box::pin(async { Err(NotLeading.into()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = async { answer.await.map_err(Into::into) };
            let answer = match permit {
                Some(permit) => while_leading(&leadership, permit, answer).await,
                None => answer.await,
            };
            count(SERVER, verb, answer.as_ref().map_or("none", class), began);
            answer
        })
    }
}

/// What a call does, by its path: `/package.Service/Call`.
fn verb(path: &str) -> Verb {
    match path.rsplit('/').next().unwrap_or_default() {
        "Range" | "AuthStatus" | "UserGet" | "UserList" | "RoleGet" | "RoleList" => Verb::Get,
        "UserAdd" | "RoleAdd" => Verb::Create,
        "UserDelete" | "RoleDelete" | "DeleteRange" => Verb::Delete,
        // Whatever else there may be counts as a write.
        _ => Verb::Update,
    }
}

/// The answer's class, as API servers' status would have it. An error of etcd's has no body, so its code is in the head.
fn class<B>(answer: &Response<B>) -> &'static str {
    let code = answer.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    match code {
        _ if !answer.status().is_success() => "other",
        Code::Ok => "2xx",
        Code::ResourceExhausted => "429",
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated => "4xx",
        _ => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{ServiceExt as _, service_fn};

    use super::*;

    #[tokio::test]
    async fn without_leadership_nothing_but_reads_is_sent() {
        let send = |path: &str| {
            let wire = service_fn(|_| async { Ok::<_, Infallible>(Response::new(())) });
            let guarded = Guarded { inner: wire, leadership: Some(Leadership::default()) };
            guarded.oneshot(Request::builder().uri(path).body(Body::empty()).unwrap())
        };
        for call in ["KV/Range", "Auth/AuthStatus", "Auth/UserGet", "Auth/UserList", "Auth/RoleGet", "Auth/RoleList"] {
            send(&format!("/etcdserverpb.{call}")).await.unwrap();
        }
        for call in [
            "KV/Txn",
            "KV/Put",
            "KV/DeleteRange",
            "Auth/AuthEnable",
            "Auth/UserAdd",
            "Auth/UserDelete",
            "Auth/UserGrantRole",
            "Auth/RoleAdd",
            "Auth/RoleDelete",
            "Auth/RoleGrantPermission",
            "",
        ] {
            let error = send(&format!("/etcdserverpb.{call}")).await.unwrap_err();
            assert!(error.is::<NotLeading>(), "{call}: {error}");
        }
    }

    #[test]
    fn an_answer_has_a_class() {
        let of = |status: u16, code: &str| {
            class(&Response::builder().status(status).header("grpc-status", code).body(()).unwrap())
        };
        assert_eq!(class(&Response::new(())), "2xx");
        assert_eq!([of(200, "0"), of(200, "7"), of(200, "9"), of(200, "8")], ["2xx", "4xx", "4xx", "429"]);
        assert_eq!([of(200, "14"), of(200, "?"), of(503, "0")], ["5xx", "5xx", "other"]);
    }
}
