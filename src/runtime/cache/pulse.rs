//! Does the server answer at all? A watch that hears nothing cannot tell a quiet server from a dead connection.

use std::time::Duration;

use http::Request;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the server is asked while it answers, and while it does not.
const EVERY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Counts how often the server came back after it did not answer. Clones share the count.
#[derive(Clone, Debug)]
pub struct Pulse(watch::Receiver<u64>);

impl Pulse {
    /// Asks the server of `client` until `stop`.
    pub fn start(client: Client, stop: CancellationToken) -> Self {
        let (returns, receiver) = watch::channel(0);
        tokio::spawn(async move {
            let mut answered = true;
            loop {
                let pause = if answered { EVERY.0 } else { EVERY.1 };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                let answers = answers(&client).await;
                match (answered, answers) {
                    (true, false) => warn!("the API server does not answer"),
                    (false, true) => {
                        info!("the API server answers again; everything is listed anew");
                        returns.send_modify(|count| *count += 1);
                    }
                    _ => {}
                }
                answered = answers;
            }
        });
        Self(receiver)
    }

    /// Waits until the server is back after an outage that began or ended since the last call.
    pub(super) async fn returned(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Any answer counts, a refusal too.
async fn answers(client: &Client) -> bool {
    let Ok(request) = Request::get("/version").body(Vec::new()) else { return false };
    let answer = tokio::time::timeout(PATIENCE, client.request_text(request)).await;
    matches!(answer, Ok(Ok(_) | Err(kube::Error::Api(_))))
}
