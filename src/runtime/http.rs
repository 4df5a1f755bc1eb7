//! `/livez`, `/readyz` and `/metrics`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::telemetry;

/// Answers what still stands in the way of being ready or alive; an empty list means: nothing.
pub type Check = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// The routes that every process of ours serves.
pub fn routes(live: Check, ready: Check) -> Router {
    Router::new()
        .route("/livez", get(move || answer(live.clone())))
        .route("/readyz", get(move || answer(ready.clone())))
        .route("/metrics", get(metrics))
}

/// Serves `routes` until `stop`.
///
/// # Errors
/// If the address cannot be listened on, or the server fails.
pub async fn serve(address: SocketAddr, routes: Router, stop: CancellationToken) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn answer(check: Check) -> Response {
    let waiting = check();
    if waiting.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", waiting.join(", "))).into_response()
}

async fn metrics() -> Response {
    match telemetry::metrics_text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
