//! `/addons`: the manifests that the VM image carries. They fit the container images on its node disk, so whoever sets up
//! the guest asks here for them.

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};

use super::paths;

/// Path on the supervisor's port.
pub const PATH: &str = "/addons";
/// The file in the node image.
const FILE: &str = "addons.yaml";

/// The route.
pub(super) fn routes() -> Router {
    Router::new().route(PATH, get(manifests))
}

async fn manifests() -> Response {
    match tokio::fs::read(format!("{}/{FILE}", paths::NODE)).await {
        Ok(text) => ([(header::CONTENT_TYPE, "application/yaml")], text).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, format!("the VM image has no {FILE}: {error}\n")).into_response(),
    }
}
