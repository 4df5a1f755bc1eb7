//! Workers that take keys from a queue and reconcile them.

use std::{fmt::Display, hash::Hash, sync::Arc, time::Instant};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, error, info_span, warn};

use super::{
    queue::{Outcome, Queue},
    telemetry,
};

/// Something that brings one kind of thing about, key by key.
pub trait Reconciler: Send + Sync + 'static {
    /// The operator's name: field manager, metric label and log target.
    const NAME: &'static str;
    /// What a unit of work is called.
    type Key: Clone + Eq + Hash + Display + Send + Sync + 'static;
    /// Why a reconciliation failed.
    type Error: std::error::Error + Send;

    /// Brings the thing called `key` closer to what it should be. May be called at any time and any number of times.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Outcome, Self::Error>> + Send;
}

/// Starts `workers` tasks that reconcile keys of `queue` until `stop`; a reconciliation that runs then is finished.
///
/// A panic in a reconciliation is a defect, but one key's: it is logged and counted, and the key comes back like a failed one.
pub fn start<R: Reconciler>(
    reconciler: Arc<R>,
    queue: &Queue<R::Key>,
    workers: usize,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    for _ in 0..workers {
        let (reconciler, queue, stop) = (reconciler.clone(), queue.clone(), stop.clone());
        let inner = tasks.clone();
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    () = stop.cancelled() => return,
                    key = queue.next() => key,
                };
                let outcome = once(reconciler.clone(), key.clone(), &inner).await;
                queue.done(&key, outcome);
                telemetry::QUEUE_DEPTH
                    .with_label_values(&[R::NAME])
                    .set(i64::try_from(queue.depth()).unwrap_or(i64::MAX));
            }
        });
    }
}

async fn once<R: Reconciler>(reconciler: Arc<R>, key: R::Key, tasks: &TaskTracker) -> Outcome {
    let started = Instant::now();
    let span = info_span!("reconcile", operator = R::NAME, object = %key);
    let task = async move {
        match reconciler.reconcile(&key).await {
            Ok(outcome) => (outcome, "ok"),
            Err(error) => {
                warn!(error = super::chain(&error), "reconciliation failed; it is repeated");
                (Outcome::Failed, "error")
            }
        }
    };
    let (outcome, result) = match tasks.spawn(task.instrument(span.clone())).await {
        Ok(finished) => finished,
        Err(join) => {
            span.in_scope(|| error!(%join, "reconciliation panicked; it is repeated"));
            (Outcome::Failed, "panic")
        }
    };
    telemetry::RECONCILES.with_label_values(&[R::NAME, result]).inc();
    telemetry::RECONCILE_SECONDS.with_label_values(&[R::NAME]).observe(started.elapsed().as_secs_f64());
    outcome
}
