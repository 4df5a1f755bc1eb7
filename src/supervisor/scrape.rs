//! `/guest/<component>/metrics`: what the guest's own components count, for the management cluster's Prometheus.
//!
//! ```text
//!  Prometheus ── http, let in by the NetworkPolicy ──► supervisor ── mutual TLS ──► API server, etcd, kubelet in the VM
//! ```
//!
//! The certificate for it never leaves the VM pod. Answers are passed on as they come and are the guest's word: whoever scrapes
//! them bounds them and keeps their names apart from his own.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http_body_util::Limited;
use tokio::sync::Mutex;

use super::line::{Callee, Line};
use crate::{
    api::names,
    node_config::paths::{CA, ETCD_CA},
    pki::{kubeconfig::TLS_SERVER_NAME, leaf},
    runtime::telemetry::metric::{Kind, Metric},
};

/// TCP port at which etcd serves its clients, in the VM.
const ETCD_PORT: u16 = 2379;
/// How long a component may take to begin its answer. Prometheus gives up after ten seconds unless it is told otherwise.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The most that is passed on of one answer, in bytes: an API server of a large guest has some 10 MB.
const MOST: usize = 64 << 20;

/// What in a guest has metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Component {
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

    fn callee(self, node: &str) -> Callee {
        let (port, server_name, authority, identity) = match self {
            Self::ApiServer => (names::API_PORT, TLS_SERVER_NAME, CA, leaf::METRICS),
            Self::Etcd => (ETCD_PORT, node, ETCD_CA, leaf::ETCD_CLIENT),
            Self::Kubelet | Self::Containers => (names::KUBELET_PORT, node, CA, leaf::METRICS),
        };
        Callee { port, server_name: server_name.to_owned(), authority, identity: Some(identity) }
    }
}

const fn counted(
    name: &'static str,
    kind: Kind,
    labels: &'static [(&'static str, &'static str)],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

const MEAN: Kind = Kind::Histogram(&[]);

/// What the chart's PodMonitors keep of what guests' components count: enough to tell how a guest is, and few series. The guest's
/// labels are Kubernetes' own.
static KEPT: [Metric; 19] = [
    counted("apiserver_request_total", Kind::Counter, &[("verb", "Kubernetes'"), ("code", "HTTP's")], "Requests"),
    counted(
        "apiserver_request_duration_seconds",
        MEAN,
        &[("verb", "Kubernetes'")],
        "How long they took; without the buckets",
    ),
    counted(
        "apiserver_current_inflight_requests",
        Kind::Gauge,
        &[("request_kind", "mutating, readOnly")],
        "Requests under way",
    ),
    counted(
        "apiserver_resource_objects",
        Kind::Gauge,
        &[("group", "of the API"), ("resource", "plural of the kind")],
        "Stored objects",
    ),
    counted("etcd_server_has_leader", Kind::Gauge, &[], "1 if this member knows a leader"),
    counted("etcd_server_leader_changes_seen_total", Kind::Counter, &[], "Changes of the leader that this member saw"),
    counted("etcd_server_proposals_failed_total", Kind::Counter, &[], "Proposals that failed"),
    counted("etcd_server_quota_backend_bytes", Kind::Gauge, &[], "How large its database may become"),
    counted("etcd_mvcc_db_total_size_in_bytes", Kind::Gauge, &[], "How large its database is"),
    counted(
        "etcd_disk_wal_fsync_duration_seconds",
        MEAN,
        &[],
        "How long its log takes to be on disk; without the buckets",
    ),
    counted("etcd_disk_backend_commit_duration_seconds", MEAN, &[], "How long a commit takes; without the buckets"),
    counted("kubelet_running_pods", Kind::Gauge, &[], "Pods that have a running sandbox"),
    counted(
        "kubelet_runtime_operations_errors_total",
        Kind::Counter,
        &[("operation_type", "of the container runtime")],
        "Operations of the container runtime that failed",
    ),
    counted(
        "kubelet_volume_stats_used_bytes",
        Kind::Gauge,
        &[("persistentvolumeclaim", "its name")],
        "What a volume holds",
    ),
    counted(
        "kubelet_volume_stats_capacity_bytes",
        Kind::Gauge,
        &[("persistentvolumeclaim", "its name")],
        "What a volume can hold",
    ),
    counted(
        "container_cpu_usage_seconds_total",
        Kind::Counter,
        &[("id", "cgroup; / is the node")],
        "CPU time of a node",
    ),
    counted(
        "container_memory_working_set_bytes",
        Kind::Gauge,
        &[("id", "cgroup; / is the node")],
        "Memory of a node that cannot be taken back",
    ),
    counted("machine_cpu_cores", Kind::Gauge, &[], "CPUs of a node"),
    counted("machine_memory_bytes", Kind::Gauge, &[], "Memory of a node"),
];

/// What the chart keeps of guests' components.
pub fn metrics() -> Vec<&'static Metric> {
    KEPT.iter().collect()
}

/// One component of the guest, and the line to it.
struct Scraped {
    component: Component,
    callee: Callee,
    address: IpAddr,
    line: Mutex<Line>,
}

/// The routes of the components that a node has.
pub(super) fn routes(node: &str, is_worker: bool, address: IpAddr) -> Router {
    let components: &[_] = if is_worker { &Component::OF_WORKER } else { &Component::OF_MASTER };
    components.iter().fold(Router::new(), |router, component| {
        let (component, callee) = (*component, component.callee(node));
        let scraped = Arc::new(Scraped { component, callee, address, line: Mutex::default() });
        router.merge(Router::new().route(component.path(), get(scrape)).with_state(scraped))
    })
}

async fn scrape(State(scraped): State<Arc<Scraped>>, headers: HeaderMap) -> Response {
    match tokio::time::timeout(TIMEOUT, scraped.ask(headers.get(header::ACCEPT))).await {
        Ok(Ok(answer)) => answer,
        Ok(Err((status, problem))) => (status, format!("{problem}\n")).into_response(),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, format!("no answer within {TIMEOUT:?}\n")).into_response(),
    }
}

impl Scraped {
    async fn ask(&self, accept: Option<&header::HeaderValue>) -> Result<Response, (StatusCode, String)> {
        let unavailable = || {
            let what =
                "its certificate for this is not there, or not usable; it comes with the node's other certificates";
            (StatusCode::SERVICE_UNAVAILABLE, what.to_owned())
        };
        let client = self.line.lock().await.client(&self.callee, self.address).await.ok_or_else(unavailable)?;
        let mut request = http::Request::get(self.component.inner_path());
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        let bad = |problem: String| (StatusCode::BAD_GATEWAY, problem);
        let request = request.body(kube::client::Body::empty()).map_err(|error| bad(error.to_string()))?;
        let answer = client.send(request).await.map_err(|error| bad(crate::runtime::chain(&error)))?;
        if answer.status() != StatusCode::OK {
            return Err(bad(format!("the guest answers {}", answer.status())));
        }
        let mut headers = HeaderMap::new();
        headers.extend(answer.headers().get(header::CONTENT_TYPE).map(|type_| (header::CONTENT_TYPE, type_.clone())));
        Ok((headers, Body::new(Limited::new(answer.into_body(), MOST))).into_response())
    }
}
