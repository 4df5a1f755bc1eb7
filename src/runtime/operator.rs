//! Workers that take keys from a queue and reconcile them.

use std::{fmt::Display, sync::Arc, time::Instant};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, debug, error, info_span, warn};

use super::{
    queue::{self, Outcome, Queue},
    telemetry,
};

/// What a reconciliation comes to.
const RESULTS: [&str; 4] = ["ok", "error", "panic", "not leading"];

/// Something that brings one kind of thing about, key by key.
pub trait Reconciler: Send + Sync + 'static {
    /// The operator's name: field manager, metric label and log target.
    const NAME: &'static str;
    /// What a unit of work is called.
    type Key: queue::Key + Display + Send + Sync + 'static;
    /// Why a reconciliation failed.
    type Error: std::error::Error + Send + 'static;

    /// Brings the thing called `key` closer to what it should be. May be called at any time and any number of times.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Outcome, Self::Error>> + Send;
}

/// The time for which this process leads: workers begin with it and end with it.
#[derive(Debug)]
pub struct Shift {
    tasks: TaskTracker,
    /// No reconciliation begins any more.
    stop: CancellationToken,
    /// None goes on any more.
    cut_off: CancellationToken,
}

impl Default for Shift {
    fn default() -> Self {
        Self { tasks: TaskTracker::new(), stop: CancellationToken::new(), cut_off: CancellationToken::new() }
    }
}

impl Shift {
    /// Begins no reconciliation any more and waits for those under way, but not for longer than `patience` lasts. Answers
    /// whether all of them ended in time; the others were cut off.
    pub async fn end<T>(&self, patience: impl Future<Output = T>) -> bool {
        self.stop.cancel();
        self.tasks.close();
        let in_time = tokio::select! {
            biased;
            () = self.tasks.wait() => true,
            _ = patience => false,
        };
        self.cut_off.cancel();
        self.tasks.wait().await;
        in_time
    }
}

/// Starts the queue's workers: tasks that reconcile its keys until the shift ends.
///
/// A panic in a reconciliation is a defect, but one key's: it is logged and counted, and the key comes back like a failed one.
pub fn start<R: Reconciler>(reconciler: Arc<R>, queue: &Queue<R::Key>, shift: &Shift) {
    let keys = queue.clone();
    telemetry::QUEUE_DEPTH.follow(R::NAME, move || keys.depth() as f64);
    for result in RESULTS {
        // From zero on, or Prometheus would not see the first of them as an increase.
        telemetry::RECONCILES.with_label_values(&[R::NAME, result]);
    }
    for _ in 0..queue.workers() {
        let (reconciler, queue, stop) = (reconciler.clone(), queue.clone(), shift.stop.clone());
        let (inner, cut_off) = (shift.tasks.clone(), shift.cut_off.clone());
        shift.tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    key = queue.next() => key,
                };
                let outcome = once(reconciler.clone(), key.clone(), &inner, &cut_off).await;
                queue.done(&key, outcome);
            }
        });
    }
}

async fn once<R: Reconciler>(
    reconciler: Arc<R>,
    key: R::Key,
    tasks: &TaskTracker,
    cut_off: &CancellationToken,
) -> Outcome {
    let cut_off = cut_off.clone();
    let started = Instant::now();
    let span = info_span!("reconcile", operator = R::NAME, object = %key);
    let task = async move {
        let result = tokio::select! {
            biased;
            () = cut_off.cancelled() => return (Outcome::Failed, "not leading"),
            result = reconciler.reconcile(&key) => result,
        };
        match result {
            Ok(outcome) => (outcome, "ok"),
            Err(error) if super::is_not_leading(&error) => {
                debug!("this process leads no more; the leader goes on");
                (Outcome::Failed, "not leading")
            }
            Err(error) => {
                let reason = super::reason(&error);
                warn!(error = super::chain(&error), reason, "reconciliation failed; it is repeated");
                telemetry::RECONCILE_ERRORS.with_label_values(&[R::NAME, reason]).inc();
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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use super::*;
    use crate::runtime::queue::Outcome;

    struct Hanging;

    impl Reconciler for Hanging {
        const NAME: &'static str = "hanging";
        type Key = String;
        type Error = Infallible;

        async fn reconcile(&self, _: &String) -> Result<Outcome, Infallible> {
            std::future::pending().await
        }
    }

    impl queue::Key for String {
        fn group(&self) -> &str {
            self
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_hangs_is_cut_off_when_patience_ends() {
        let (shift, queue) = (Shift::default(), Queue::new(2));
        start(Arc::new(Hanging), &queue, &shift);
        queue.add("a".to_owned());
        // In paused time this ends when nobody has anything else to do: the key is being worked on.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let began = tokio::time::Instant::now();
        assert!(!shift.end(tokio::time::sleep(Duration::from_secs(3))).await);
        assert_eq!(began.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn without_work_nobody_is_waited_for() {
        let (shift, queue) = (Shift::default(), Queue::<String>::new(2));
        start(Arc::new(Hanging), &queue, &shift);
        assert!(shift.end(std::future::pending::<()>()).await);
    }
}
