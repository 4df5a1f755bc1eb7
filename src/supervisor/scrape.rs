//! `/guest/<component>/metrics`: what the guest's own components count, for the management cluster's Prometheus.
//!
//! ```text
//!  Prometheus ── http, let in by the NetworkPolicy ──► supervisor ── mutual TLS ──► API server, etcd, kubelet in the VM
//!             ◄── few series: `kept` ──               ◄── whatever the guest says ──
//! ```
//!
//! No certificate leaves the VM pod. The answers are the guest's word, and of them only what is known here is passed on.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router, extract,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http_body_util::{BodyExt as _, Limited};
use tokio::sync::Mutex;

use super::{
    kept::{self, Kept},
    line::{Callee, Line},
};
use crate::{
    api::names,
    node_config::paths::{CA, ETCD_CA},
    pki::{kubeconfig::TLS_SERVER_NAME, leaf},
    runtime::{chain, telemetry::metric::Metric},
};

/// TCP port at which etcd serves its clients, in the VM.
pub(super) const ETCD_PORT: u16 = 2379;
/// How long a component may take for all of its answer. An emulated API server takes seconds.
const TIMEOUT: Duration = Duration::from_secs(30);
/// An answer is given again for so long: several replicas of Prometheus cost the guest no more than one.
const FRESH: Duration = Duration::from_secs(8);
/// The most that is read of one answer, in bytes: the API server of a large guest has some 10 MB.
const MOST: usize = 32 << 20;
/// The only format that is understood here.
const TEXT: &str = "text/plain;version=0.0.4";

/// What in a guest has metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Component {
    ApiServer,
    Etcd,
    Kubelet,
    /// The containers of a node, as kubelet counts for them.
    Containers,
}

impl Component {
    const OF_MASTER: [Self; 4] = [Self::ApiServer, Self::Etcd, Self::Kubelet, Self::Containers];
    const OF_WORKER: [Self; 2] = [Self::Kubelet, Self::Containers];

    fn path(self) -> &'static str {
        match self {
            Self::ApiServer => "/guest/apiserver/metrics",
            Self::Etcd => "/guest/etcd/metrics",
            Self::Kubelet => "/guest/kubelet/metrics",
            Self::Containers => "/guest/containers/metrics",
        }
    }

    /// Where it has its own.
    fn inner_path(self) -> &'static str {
        match self {
            Self::ApiServer | Self::Etcd | Self::Kubelet => "/metrics",
            Self::Containers => "/metrics/cadvisor",
        }
    }

    /// etcd has no rights: who has a certificate of its authority may do everything, so it is asked as the API server asks it.
    fn callee(self, node: &str) -> Callee {
        let (port, server_name, authority, identity) = match self {
            Self::ApiServer => (names::API_PORT, TLS_SERVER_NAME, CA, leaf::METRICS),
            Self::Etcd => (ETCD_PORT, node, ETCD_CA, leaf::ETCD_CLIENT),
            Self::Kubelet | Self::Containers => (names::KUBELET_PORT, node, CA, leaf::METRICS),
        };
        Callee { port, server_name: server_name.to_owned(), authority, identity: Some(identity) }
    }
}

/// One component of the guest. Whoever asks while it is being asked gets the same answer.
struct Scraped {
    component: Component,
    callee: Callee,
    address: IpAddr,
    state: Mutex<State>,
}

/// The line to a component, and what it said last.
#[derive(Default)]
struct State {
    line: Line,
    said: Option<(Instant, String)>,
}

/// The routes of the components that a node has.
pub(super) fn routes(node: &str, is_worker: bool, address: IpAddr) -> Router {
    let components: &[_] = if is_worker { &Component::OF_WORKER } else { &Component::OF_MASTER };
    components.iter().fold(Router::new(), |router, component| {
        let (component, callee) = (*component, component.callee(node));
        let scraped = Arc::new(Scraped { component, callee, address, state: Mutex::default() });
        router.merge(Router::new().route(component.path(), get(scrape)).with_state(scraped))
    })
}

async fn scrape(extract::State(scraped): extract::State<Arc<Scraped>>) -> Response {
    let mut state = scraped.state.lock().await;
    if let Some((_, text)) = state.said.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
        return answer(text.clone());
    }
    match tokio::time::timeout(TIMEOUT, scraped.ask(&mut state.line)).await {
        Ok(Ok(text)) => {
            state.said = Some((Instant::now(), text.clone()));
            answer(text)
        }
        Ok(Err((status, problem))) => (status, format!("{problem}\n")).into_response(),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, format!("no answer within {TIMEOUT:?}\n")).into_response(),
    }
}

fn answer(text: String) -> Response {
    ([(header::CONTENT_TYPE, TEXT)], text).into_response()
}

impl Scraped {
    async fn ask(&self, line: &mut Line) -> Result<String, (StatusCode, String)> {
        let unavailable = || {
            let what =
                "its certificate for this is not there, or not usable; it comes with the node's other certificates";
            (StatusCode::SERVICE_UNAVAILABLE, what.to_owned())
        };
        let client = line.client(&self.callee, self.address).await.ok_or_else(unavailable)?;
        let bad = |problem: String| (StatusCode::BAD_GATEWAY, problem);
        let request = http::Request::get(self.component.inner_path()).header(header::ACCEPT, TEXT);
        let request = request.body(kube::client::Body::empty()).map_err(|error| bad(error.to_string()))?;
        let answer = client.send(request).await.map_err(|error| bad(chain(&error)))?;
        if answer.status() != StatusCode::OK {
            return Err(bad(format!("the guest answers {}", answer.status())));
        }
        let mut kept = Kept::of(self.component);
        let mut body = Limited::new(answer.into_body(), MOST);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| bad(format!("the guest's answer breaks off: {error}")))?;
            if let Ok(piece) = frame.into_data() {
                kept.read(&piece);
            }
        }
        Ok(kept.text())
    }
}

/// What is kept of guests' components.
pub fn metrics() -> Vec<&'static Metric> {
    kept::all().map(|rule| &rule.metric).collect()
}
