//! A proxy between one controller manager and the API server that does what networks and servers do on bad days.

use std::{
    any::Any,
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::BodyExt as _;
use hyper::{Request, Response, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::support::processes::free_port;

/// What the proxy does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It forwards.
    Open,
    /// Nobody listens; what was connected is cut.
    Refused,
    /// It accepts and says nothing; what was connected never hears anything again, not even afterwards.
    Silent,
}

/// Where a process is to be killed.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// When its write arrives here: the server never sees it.
    BeforeForwarding,
    /// When the server has done the write and before the answer is passed on.
    BeforeAnswering,
}

#[derive(Clone, Copy, Debug)]
pub struct Crash {
    /// At which write, counted from 1.
    pub at: usize,
    pub moment: Moment,
    pub process: u32,
}

/// A write that was forwarded: leases and events are not counted.
#[derive(Clone)]
pub struct Write {
    what: String,
    status: u16,
}

impl std::fmt::Debug for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} → {}", self.what, self.status)
    }
}

/// Watches are told that they expired: once by the answer's status and once, as a server does whose cache has no such version
/// any more, by an event in a stream that began well. Clients take different ways from there.
#[derive(Default)]
struct Expiry {
    on: bool,
    /// How often each kind's watch was told.
    told: BTreeMap<String, usize>,
}

/// Some replaces and patches are refused as conflicts: so many a second at most, and of each object's never two in a row, or
/// a slow client would never get through.
#[derive(Default)]
struct Conflicts {
    per_second: u32,
    last: Option<Instant>,
    refused: BTreeMap<String, bool>,
    given: usize,
}

/// What came while requests failed.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    /// All requests.
    pub seen: usize,
    /// Those that failed, by status.
    pub failed: BTreeMap<u16, usize>,
}

/// Requests whose answers are withheld, though the server has done what they asked for.
#[derive(Clone, Debug)]
pub struct Held {
    pub method: hyper::Method,
    /// Part of their path.
    pub path: &'static str,
}

struct State {
    name: String,
    upstream: Client,
    mode: watch::Sender<Mode>,
    crash: Mutex<Option<Crash>>,
    arrived: AtomicUsize,
    reads: AtomicUsize,
    writes: Mutex<Vec<Write>>,
    /// First successful list after a mark, by kind.
    lists: Mutex<Vec<(Instant, String)>>,
    /// Requests in a hundred that fail.
    failing: AtomicU64,
    failures: Mutex<Failures>,
    expiry: Mutex<Expiry>,
    conflicts: Mutex<Conflicts>,
    held: Mutex<Option<Held>>,
    /// How many answers were withheld.
    withheld: AtomicUsize,
    /// Part of the path of writes that fail.
    refusing: Mutex<Option<&'static str>>,
    refused: AtomicUsize,
    dice: AtomicU64,
    graveyard: Mutex<Vec<Box<dyn Any + Send>>>,
}

/// A running proxy. Dropping it ends it.
pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy whose requests carry `name` as user agent.
    pub fn start(name: &str, upstream: Client) -> Self {
        let state = Arc::new(State {
            name: name.into(),
            upstream,
            mode: watch::Sender::new(Mode::Open),
            crash: Mutex::default(),
            arrived: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            writes: Mutex::default(),
            lists: Mutex::default(),
            failing: AtomicU64::new(0),
            failures: Mutex::default(),
            expiry: Mutex::default(),
            conflicts: Mutex::default(),
            held: Mutex::default(),
            withheld: AtomicUsize::new(0),
            refusing: Mutex::default(),
            refused: AtomicUsize::new(0),
            dice: AtomicU64::new(0x9E37_79B9_7F4A_7C15),
            graveyard: Mutex::default(),
        });
        let port = free_port().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(state.clone(), port));
        Self { port, state, _tasks: tasks }
    }

    pub fn set(&self, mode: Mode) {
        self.state.mode.send_replace(mode);
    }

    pub fn crash(&self, crash: Crash) {
        self.state.arrived.store(0, Ordering::SeqCst);
        *self.state.crash.lock().unwrap() = Some(crash);
    }

    /// Forgets about a crash that was not come to.
    pub fn spare(&self) {
        *self.state.crash.lock().unwrap() = None;
    }

    /// Lets so many requests in a hundred fail with 429, 500 or 504; of the writes among them, half are done nevertheless.
    pub fn fail(&self, percent: u64) {
        self.state.failing.store(percent, Ordering::SeqCst);
    }

    /// What came since requests began to fail.
    pub fn failures(&self) -> Failures {
        self.state.failures.lock().unwrap().clone()
    }

    /// Tells each kind's next two watches that they expired: one with status 410, one with an event in its stream.
    pub fn expire_watches(&self) {
        *self.state.expiry.lock().unwrap() = Expiry { on: true, ..Expiry::default() };
    }

    /// How often each kind's watch was told that it expired.
    pub fn expired(&self) -> BTreeMap<String, usize> {
        self.state.expiry.lock().unwrap().told.clone()
    }

    /// Refuses so many replaces and patches a second as conflicts.
    pub fn conflict(&self, per_second: u32) {
        self.state.conflicts.lock().unwrap().per_second = per_second;
    }

    /// How many were refused as conflicts.
    pub fn conflicts(&self) -> usize {
        self.state.conflicts.lock().unwrap().given
    }

    /// Withholds the answers of requests like these, or of none.
    pub fn hold(&self, held: Option<Held>) {
        *self.state.held.lock().unwrap() = held;
    }

    /// Lets writes with this in their path fail, or no more.
    pub fn refuse(&self, path: Option<&'static str>) {
        *self.state.refusing.lock().unwrap() = path;
    }

    /// How many writes failed because of [`Self::refuse`].
    pub fn refused(&self) -> usize {
        self.state.refused.load(Ordering::SeqCst)
    }

    /// How many answers were withheld.
    pub fn withheld(&self) -> usize {
        self.state.withheld.load(Ordering::SeqCst)
    }

    pub fn writes(&self) -> Vec<Write> {
        self.state.writes.lock().unwrap().clone()
    }

    pub fn reads(&self) -> usize {
        self.state.reads.load(Ordering::SeqCst)
    }

    pub fn forget(&self) {
        self.state.writes.lock().unwrap().clear();
        self.state.lists.lock().unwrap().clear();
        self.state.reads.store(0, Ordering::SeqCst);
    }

    /// Kinds that were listed with success since `since`, with the time of their first list.
    pub fn lists_since(&self, since: Instant) -> BTreeMap<String, Duration> {
        let mut first = BTreeMap::new();
        for (at, kind) in self.state.lists.lock().unwrap().iter().filter(|(at, _)| *at >= since) {
            first.entry(kind.clone()).or_insert(at.duration_since(since));
        }
        first
    }
}

async fn listen(state: Arc<State>, port: u16) {
    let mut mode = state.mode.subscribe();
    loop {
        // The receiver lives as long as the sender in `state`.
        let _ = mode.wait_for(|mode| *mode != Mode::Refused).await;
        let listener = loop {
            // A connection that was tried meanwhile may hold the port for a moment.
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                _ = mode.wait_for(|mode| *mode == Mode::Refused) => break,
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        connections.spawn(serve(state.clone(), stream));
                    }
                }
            }
        }
    }
}

async fn serve(state: Arc<State>, stream: tokio::net::TcpStream) {
    let mut mode = state.mode.subscribe();
    if *mode.borrow() == Mode::Silent {
        state.graveyard.lock().unwrap().push(Box::new(stream));
        return;
    }
    let answering = state.clone();
    let service = service_fn(move |request| {
        let state = answering.clone();
        async move { Ok::<_, Infallible>(answer(state, request).await) }
    });
    let mut connection = Box::pin(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = mode.wait_for(|mode| *mode == Mode::Silent) => {}
    }
    // Open, and never polled again.
    state.graveyard.lock().unwrap().push(Box::new(connection));
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let (mut head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return refusal(400) };
    let path = head.uri.path().to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let is_read = head.method == hyper::Method::GET;
    let counts = !is_read && !path.contains("/leases") && !path.contains("/events");
    let failure = state.roll(&path);
    if is_read {
        state.reads.fetch_add(1, Ordering::SeqCst);
        if query.contains("watch=true")
            && let Some(answer) = state.expire(&path)
        {
            return answer;
        }
        if let Some(status) = failure {
            return refusal(status);
        }
    }
    let crash = if counts { state.crash_of_next() } else { None };
    if let Some(Crash { moment: Moment::BeforeForwarding, process, .. }) = crash {
        return kill(process).await;
    }
    if let Some(status) = failure.filter(|status| *status != 504) {
        return refusal(status);
    }
    if counts && state.refusing.lock().unwrap().is_some_and(|part| path.contains(part)) {
        state.refused.fetch_add(1, Ordering::SeqCst);
        return refusal(500);
    }
    if counts && state.is_conflict(&head.method, &path) {
        return refusal(409);
    }
    let what = format!("{} {path}", head.method);
    let is_held = state.is_held(&head.method, &path);
    head.headers.insert(header::USER_AGENT, state.name.parse().expect("a name"));
    head.headers.remove(header::HOST);
    let forwarded = Request::from_parts(head, Body::from(body.to_bytes().to_vec()));
    let answer = match state.upstream.send(forwarded).await {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("proxy {}: {what}: {error}", state.name);
            return refusal(502);
        }
    };
    let status = answer.status().as_u16();
    if counts {
        state.writes.lock().unwrap().push(Write { what, status });
    } else if is_read && status == 200 && query.contains("limit=") && !query.contains("watch=true") {
        state.lists.lock().unwrap().push((Instant::now(), kind(&path)));
    }
    if is_held {
        state.withheld.fetch_add(1, Ordering::SeqCst);
        return std::future::pending().await;
    }
    if let Some(Crash { process, .. }) = crash {
        return kill(process).await;
    }
    match failure {
        Some(status) if !is_read => refusal(status),
        _ => answer,
    }
}

impl State {
    /// The status with which a request fails, if it does.
    fn roll(&self, path: &str) -> Option<u16> {
        let failing = self.failing.load(Ordering::SeqCst);
        // xorshift: the same faults in every run.
        let mut dice = self.dice.load(Ordering::SeqCst);
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        self.dice.store(dice, Ordering::SeqCst);
        if failing == 0 || path == "/version" {
            return None;
        }
        let fails = dice % 100 < failing;
        let status = fails.then(|| [429, 500, 504, 504][(dice >> 32) as usize % 4]);
        let mut failures = self.failures.lock().unwrap();
        failures.seen += 1;
        if let Some(status) = status {
            *failures.failed.entry(status).or_default() += 1;
        }
        status
    }

    /// The answer to a watch that is told that it expired, if it is.
    fn expire(&self, path: &str) -> Option<Response<Body>> {
        let mut expiry = self.expiry.lock().unwrap();
        if !expiry.on {
            return None;
        }
        let told = expiry.told.entry(kind(path)).or_default();
        *told += 1;
        match *told {
            1 => Some(refusal(410)),
            2 => Some(expired_event()),
            _ => {
                *told = 2;
                None
            }
        }
    }

    fn is_conflict(&self, method: &hyper::Method, path: &str) -> bool {
        let mut conflicts = self.conflicts.lock().unwrap();
        let may_conflict = [hyper::Method::PUT, hyper::Method::PATCH].contains(method) && conflicts.per_second > 0;
        if !may_conflict || conflicts.refused.insert(path.to_owned(), false) == Some(true) {
            return false;
        }
        let pause = Duration::from_secs(1) / conflicts.per_second;
        if conflicts.last.is_some_and(|last| last.elapsed() < pause) {
            return false;
        }
        conflicts.last = Some(Instant::now());
        conflicts.refused.insert(path.to_owned(), true);
        conflicts.given += 1;
        true
    }

    fn is_held(&self, method: &hyper::Method, path: &str) -> bool {
        self.held.lock().unwrap().as_ref().is_some_and(|held| held.method == *method && path.contains(held.path))
    }

    fn crash_of_next(&self) -> Option<Crash> {
        let number = self.arrived.fetch_add(1, Ordering::SeqCst) + 1;
        let mut crash = self.crash.lock().unwrap();
        if crash.as_ref().is_some_and(|crash| number >= crash.at) { crash.take() } else { None }
    }
}

/// Kills a process as nothing but `kill -9` does; the connection says nothing any more.
async fn kill(process: u32) -> Response<Body> {
    let _ = std::process::Command::new("kill").args(["-9", &process.to_string()]).status();
    std::future::pending().await
}

/// The resource that a path of a list or a watch is about.
fn kind(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

/// A watch that begins well and says at once that its version is too old.
fn expired_event() -> Response<Body> {
    let event = serde_json::json!({"type": "ERROR", "object": status_of(410)});
    answer_of(200, format!("{event}\n"))
}

fn refusal(status: u16) -> Response<Body> {
    answer_of(status, status_of(status).to_string())
}

fn answer_of(status: u16, body: String) -> Response<Body> {
    let body = Body::from(body.into_bytes());
    Response::builder().status(status).header(header::CONTENT_TYPE, "application/json").body(body).expect("a response")
}

fn status_of(status: u16) -> serde_json::Value {
    let reason = match status {
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        504 => "Timeout",
        _ => "InternalError",
    };
    serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a fault of the test's", "reason": reason, "code": status,
    })
}
