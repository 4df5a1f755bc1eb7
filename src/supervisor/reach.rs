//! `/isolation?to=ADDRESS,…`: which of these TCP addresses the pod reaches by its own interface. The manager asks for those that
//! it must not.
//!
//! Only connections are made, and ended at once: nothing is sent. They leave by the pod's interface alone, so neither what
//! listens inside the pod nor the guest's overlay is tried, whatever addresses the overlay has.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures::future::join_all;
use serde::Deserialize;
use tokio::{net::TcpSocket, sync::Mutex};

/// Path on the supervisor's port.
pub const PATH: &str = "/isolation";
/// The most addresses that are tried for one question.
pub const MOST: usize = 16;
/// What is kept out is kept out silently, as a rule: who is let in answers sooner.
const PATIENCE: Duration = Duration::from_millis(1500);

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

/// One question at a time, and the interface that connections leave by.
#[derive(Clone)]
struct Way {
    device: Option<&'static str>,
    turn: Arc<Mutex<()>>,
}

/// The route. Connections leave by this device; none: by any.
pub(super) fn routes(device: Option<&'static str>) -> Router {
    Router::new().route(PATH, get(try_all)).with_state(Way { device, turn: Arc::default() })
}

async fn try_all(State(way): State<Way>, Query(question): Query<Question>) -> Response {
    let parsed: Result<Vec<SocketAddr>, _> = question.to.split(',').map(str::parse).collect();
    match parsed {
        Ok(addresses) if addresses.len() <= MOST => {
            let _turn = way.turn.lock().await;
            let reached = join_all(addresses.into_iter().map(|address| reach(way.device, address))).await;
            match reached.into_iter().collect::<std::io::Result<Vec<_>>>() {
                Ok(reached) => Json(reached.into_iter().flatten().collect::<Vec<_>>()).into_response(),
                // What could not be tried is not closed.
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("try to connect: {error}\n")).into_response(),
            }
        }
        Ok(_) => (StatusCode::BAD_REQUEST, format!("to: at most {MOST} addresses\n")).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("to: {error}, such as 10.96.0.1:443\n")).into_response(),
    }
}

/// The address, if it is reached; an error if it could not be tried.
async fn reach(device: Option<&str>, address: SocketAddr) -> std::io::Result<Option<SocketAddr>> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind_device(device.map(str::as_bytes))?;
    let connected = tokio::time::timeout(PATIENCE, socket.connect(address)).await;
    Ok(matches!(connected, Ok(Ok(_))).then_some(address))
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tokio::net::TcpListener;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(path: &str) -> (StatusCode, String) {
        let answer = routes(None).oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
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
    async fn what_cannot_be_tried_does_not_count_as_closed() {
        let path = question(["127.0.0.1:1".parse().unwrap()].iter());
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = routes(Some("no-such-device")).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
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
