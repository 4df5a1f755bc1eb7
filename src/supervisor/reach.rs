//! `/isolation?to=ADDRESS,…`: which of these TCP addresses the pod reaches. The manager asks for those that it must not.
//!
//! Only connections are made, and ended at once: nothing is sent. Who may ask is let in by the guest's NetworkPolicy, and
//! reaches more than this pod, whose way to private addresses is closed.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::Query,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures::future::join_all;
use serde::Deserialize;
use tokio::net::TcpStream;

/// Path on the supervisor's port.
pub const PATH: &str = "/isolation";
/// The most addresses that are tried for one question.
const MOST: usize = 16;
/// What is kept out is kept out silently, as a rule: who is let in answers sooner.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Deserialize)]
struct Question {
    /// Addresses with ports, separated by commas.
    to: String,
}

/// The question, as a path.
pub fn question<'a>(addresses: impl Iterator<Item = &'a SocketAddr>) -> String {
    let addresses: Vec<_> = addresses.map(ToString::to_string).collect();
    // All of their letters may stand in a query as they are.
    format!("{PATH}?to={}", addresses.join(","))
}

/// The route.
pub(super) fn routes() -> Router {
    Router::new().route(PATH, get(try_all))
}

async fn try_all(Query(question): Query<Question>) -> Response {
    let parsed: Result<Vec<SocketAddr>, _> = question.to.split(',').map(str::parse).collect();
    match parsed {
        Ok(addresses) if addresses.len() <= MOST => {
            let reached = join_all(addresses.into_iter().map(reach)).await;
            Json(reached.into_iter().flatten().collect::<Vec<_>>()).into_response()
        }
        Ok(_) => (StatusCode::BAD_REQUEST, format!("to: at most {MOST} addresses\n")).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("to: {error}, such as 10.96.0.1:443\n")).into_response(),
    }
}

async fn reach(address: SocketAddr) -> Option<SocketAddr> {
    let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await;
    matches!(connected, Ok(Ok(_))).then_some(address)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tokio::net::TcpListener;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(path: &str) -> (StatusCode, String) {
        let answer = routes().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn who_listens_is_reached_and_nobody_else() {
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let [open_at, closed_at] = [&open, &closed].map(|listener| listener.local_addr().unwrap());
        drop(closed);
        let (status, reached) = ask(&question([open_at, closed_at].iter())).await;
        assert_eq!((status, reached), (StatusCode::OK, format!("[\"{open_at}\"]")));
    }

    #[tokio::test]
    async fn what_is_no_address_and_what_is_too_much_is_refused() {
        let many = vec!["127.0.0.1:1"; MOST + 1].join(",");
        for to in ["", "localhost:80", "127.0.0.1", &many] {
            let (status, said) = ask(&format!("{PATH}?to={to}")).await;
            assert!(status == StatusCode::BAD_REQUEST && said.starts_with("to: "), "{to}: {status} {said}");
        }
    }
}
