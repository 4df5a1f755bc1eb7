//! The way to the API server: a client whose writes begin only while this process leads, and whose calls are counted.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::TryFutureExt as _;
use http::{Method, Request, Response};
use http_body_util::Limited;
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
};
use tower::{BoxError, Layer, Service};

use super::{
    lease::{Leadership, leadership::Permit},
    telemetry,
};

/// A list or a watch that hears nothing for so long is dead. Longer than the [`super::cache::WATCH_SECONDS`] after which
/// the server ends a watch by itself.
const READ_TIMEOUT: Duration = Duration::from_secs(75);
/// Longest time to a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A write was held back because this process does not lead, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process does not lead; the leader does the work")]
pub struct NotLeading;

/// A client for the server that `config` names.
///
/// With `leadership`, requests are counted, and every one that is not a read asks for it right before it is sent; it is given
/// up when leadership ends. What is already on the wire then cannot be called back: of a process that is frozen between the
/// question and the sending, that is one request of each connection at most.
///
/// # Errors
/// If the configuration is unusable.
pub fn connect(config: Config, leadership: Option<Leadership>) -> kube::Result<Client> {
    connect_to(Server { name: MANAGEMENT, connecting: CONNECT_TIMEOUT, answer: usize::MAX }, config, leadership)
}

/// What metrics call the server that [`connect`] leads to.
pub const MANAGEMENT: &str = "management";

/// A server, and what a connection to it may take.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// What metrics call it, and all of its sort.
    pub name: &'static str,
    /// Longest time to a connection, its handshake included.
    pub connecting: Duration,
    /// Longest answer in bytes; a longer one is an error. A server that is not trusted could fill this process' memory.
    pub answer: usize,
}

/// [`connect`], for a server of another sort.
///
/// # Errors
/// As [`connect`].
pub fn connect_to(server: Server, mut config: Config, leadership: Option<Leadership>) -> kube::Result<Client> {
    // kube would repeat a refused call up to fifteen times and sleep in between; queues do that better.
    config.default_retry = false;
    config.connect_timeout = Some(server.connecting);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    Ok(ClientBuilder::try_from(config)?.with_layer(&Guard { leadership, server }).build())
}

/// Whether an error is a write that was held back by [`NotLeading`].
pub fn is_not_leading(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<NotLeading>() {
            return true;
        }
        cause = error.source();
    }
    // kube boxes what a layer answers without naming it as a source.
    matches!(error, kube::Error::Service(inner) if inner.is::<NotLeading>())
}

#[derive(Clone)]
struct Guard {
    leadership: Option<Leadership>,
    server: Server,
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

#[derive(Clone)]
struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S, B> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body,
{
    type Response = Response<Limited<B>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, began) = (verb(&request), Instant::now());
        let watched = (verb == Verb::Watch).then(|| resource(&request).to_owned());
        let permit = match &self.guard.leadership {
            Some(leadership) if verb.writes() => match leadership.begin_write() {
                Some(permit) => Some(permit),
                None => return Box::pin(async { Err(NotLeading.into()) }),
            },
            _ => None,
        };
        let Server { name: server, answer: longest, .. } = self.guard.server;
        let answer = self.inner.call(request).map_ok(move |answer| answer.map(|body| Limited::new(body, longest)));
        let Some(leadership) = self.guard.leadership.clone() else { return Box::pin(answer) };
        Box::pin(async move {
            let answer = match permit {
                None => answer.await,
                Some(permit) => while_leading(&leadership, permit, answer).await,
            };
            let code = answer.as_ref().map_or("none", |answer| class(answer.status()));
            count(server, verb, code, began);
            if let Some(watched) = watched.filter(|_| code == "2xx") {
                telemetry::WATCH_AGE.hear(&watched);
            }
            answer
        })
    }
}

/// The answer to a write that `permit` lets begin, given up when leadership ends.
///
/// `lost` looks at the clock before the request goes on, each time: one that waits for a connection, or a process that was
/// frozen, does not send what it was allowed to send long ago.
pub(crate) async fn while_leading<T, E: From<NotLeading>>(
    leadership: &Leadership,
    permit: Permit,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let answer = tokio::select! {
        biased;
        () = leadership.lost() => Err(NotLeading.into()),
        answer = answer => answer,
    };
    drop(permit);
    answer
}

/// Counts a request to `server` whose answer, of the class `code`, began now.
pub(crate) fn count(server: &str, verb: Verb, code: &str, began: Instant) {
    telemetry::API_REQUESTS.with_label_values(&[server, verb.name(), code]).inc();
    telemetry::API_REQUEST_SECONDS.with_label_values(&[server, verb.name()]).observe(began.elapsed().as_secs_f64());
}

/// What a request does, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
}

impl Verb {
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::Get | Self::Watch)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

fn verb<B>(request: &Request<B>) -> Verb {
    let watches = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    match *request.method() {
        Method::GET | Method::HEAD if watches => Verb::Watch,
        Method::GET | Method::HEAD => Verb::Get,
        Method::POST => Verb::Create,
        Method::PATCH => Verb::Patch,
        Method::DELETE => Verb::Delete,
        // Whatever else there may be counts as a write.
        _ => Verb::Update,
    }
}

/// Plural of the kind that a request for all objects of it names.
fn resource<B>(request: &Request<B>) -> &str {
    request.uri().path().rsplit('/').next().unwrap_or_default()
}

/// The answer's class: single codes would make a series each.
fn class(status: http::StatusCode) -> &'static str {
    match status.as_u16() {
        409 => "409",
        429 => "429",
        200..=299 => "2xx",
        400..=499 => "4xx",
        500..=599 => "5xx",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use http_body_util::{BodyExt as _, Empty, Full};
    use tokio_util::bytes::Bytes;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    fn guard(leadership: Option<Leadership>, longest: usize) -> Guard {
        Guard { leadership, server: Server { name: "x", connecting: CONNECT_TIMEOUT, answer: longest } }
    }

    async fn send(guard: &Guard, method: Method) -> Result<(), BoxError> {
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        let wire = service_fn(move |_: Request<Body>| {
            count.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, BoxError>(Response::new(Empty::<Bytes>::new())) }
        });
        let request = Request::builder().method(method).uri("/api").body(Body::empty())?;
        let answer = guard.layer(wire).oneshot(request).await.map(|_| ());
        assert_eq!(sent.load(Ordering::SeqCst), usize::from(answer.is_ok()));
        answer
    }

    #[tokio::test]
    async fn without_leadership_nothing_but_reads_is_sent() {
        let guard = guard(Some(Leadership::default()), 0);
        send(&guard, Method::GET).await.unwrap();
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
            let error = kube::Error::Service(send(&guard, method).await.unwrap_err());
            assert!(is_not_leading(&error));
        }
    }

    #[tokio::test]
    async fn a_request_that_waits_over_the_end_of_leadership_is_not_sent() {
        let leadership = Leadership::default();
        leadership.set(Some(tokio::time::Instant::now() + Duration::from_millis(20)));
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        let wire = service_fn(move |_: Request<Body>| {
            let count = count.clone();
            async move {
                // There is no connection yet.
                tokio::task::yield_now().await;
                count.fetch_add(1, Ordering::SeqCst);
                Ok::<_, BoxError>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let request = Request::builder().method(Method::POST).uri("/api").body(Body::empty()).unwrap();
        let mut answer = std::pin::pin!(guard(Some(leadership), 0).layer(wire).oneshot(request));
        assert!(futures::poll!(answer.as_mut()).is_pending());
        // Frozen: when it goes on, this is polled before any timer is looked at.
        std::thread::sleep(Duration::from_millis(40));
        assert!(answer.await.unwrap_err().is::<NotLeading>());
        assert_eq!(sent.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn an_unguarded_client_writes() {
        send(&guard(None, 0), Method::POST).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_not_read_to_its_end() {
        for (longest, fits) in [(4, true), (3, false)] {
            let guard = guard(None, longest);
            let wire =
                service_fn(|_: Request<Body>| async { Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("four"))) });
            let request = Request::get("/api").body(Body::empty()).unwrap();
            let answer = guard.layer(wire).oneshot(request).await.unwrap();
            assert_eq!(answer.into_body().collect().await.is_ok(), fits, "{longest}");
        }
    }

    #[test]
    fn a_watch_is_told_from_a_list() {
        let of = |uri: &str| verb(&Request::builder().uri(uri).body(()).unwrap());
        assert_eq!(of("/api/v1/pods?limit=5&watch=true"), Verb::Watch);
        assert_eq!(of("/api/v1/pods?labelSelector=watch%3Dtrue"), Verb::Get);
        let of = |uri: &str| resource(&Request::builder().uri(uri).body(()).unwrap()).to_owned();
        assert_eq!(of("/apis/giantnetes.io/v1alpha1/clusters?watch=true"), "clusters");
    }
}
