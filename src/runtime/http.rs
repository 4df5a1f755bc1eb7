//! `/livez`, `/readyz`, `/metrics`, and `PUT /loglevel` for whoever is on the same host or in the same pod.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::ConnectInfo,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::telemetry;

/// Answers what still stands in the way of being ready or alive; an empty list means: nothing.
pub type Check = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// The routes that every process of ours serves.
pub fn routes(live: Check, ready: Check) -> Router {
    Router::new()
        .route("/livez", get(move || answer(live.clone())))
        .route("/readyz", get(move || answer(ready.clone())))
        .route("/metrics", get(metrics))
        .route("/loglevel", put(log_level))
}

/// Serves `routes` until `stop`.
///
/// # Errors
/// If the address cannot be listened on, or the server fails.
pub async fn serve(address: SocketAddr, routes: Router, stop: CancellationToken) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn answer(check: Check) -> Response {
    let waiting = check();
    if waiting.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", waiting.join(", "))).into_response()
}

/// Changes what is logged to the filter in the body, such as `info,giantnetes=debug`.
async fn log_level(ConnectInfo(peer): ConnectInfo<SocketAddr>, filter: String) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only from the loopback address; see kubectl port-forward\n").into_response();
    }
    match telemetry::set_log_filter(&filter) {
        Ok(()) => {
            info!(filter, "log filter changed");
            (StatusCode::OK, "ok\n").into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

async fn metrics() -> Response {
    match telemetry::metrics_text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn the_log_level_is_set_from_the_loopback_address_alone() {
        let nothing: Check = Arc::new(Vec::new);
        let routes = routes(nothing.clone(), nothing);
        for (peer, refused) in [
            ("10.1.2.3:4000", true),
            ("[::ffff:10.1.2.3]:4000", true),
            ("[fd00::1]:4000", true),
            ("127.0.0.1:4000", false),
            ("[::1]:4000", false),
            ("[::ffff:127.0.0.1]:4000", false),
        ] {
            let peer: SocketAddr = peer.parse().unwrap();
            let request = Request::put("/loglevel").extension(ConnectInfo(peer)).body(Body::from("debug")).unwrap();
            let status = routes.clone().oneshot(request).await.unwrap().status();
            assert_eq!(status == StatusCode::FORBIDDEN, refused, "{peer}: {status}");
        }
    }
}
