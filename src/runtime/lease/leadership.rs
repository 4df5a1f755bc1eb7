//! Whether this process may write, asked right before every write.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// Whether this process leads. Clones share it.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// Until when it leads; `None`: it does not.
    until: watch::Sender<Option<Instant>>,
    writes: Arc<Writes>,
}

#[derive(Debug, Default)]
struct Writes {
    under_way: AtomicUsize,
    /// No more begin.
    closed: AtomicBool,
    ended: Notify,
}

/// A write that is under way.
#[derive(Debug)]
pub struct Permit(Arc<Writes>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
        self.0.ended.notify_waiters();
    }
}

impl Default for Leadership {
    fn default() -> Self {
        Self { until: watch::Sender::new(None), writes: Arc::default() }
    }
}

impl Leadership {
    /// Whether this process leads now.
    pub fn holds(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Lets one write begin, if this process leads now.
    pub fn begin_write(&self) -> Option<Permit> {
        // Counted first and judged then: whoever ends the leadership either is seen here or sees this write.
        self.writes.under_way.fetch_add(1, Ordering::SeqCst);
        let permit = Permit(self.writes.clone());
        (self.holds() && !self.writes.closed.load(Ordering::SeqCst)).then_some(permit)
    }

    /// Lets no write begin any more, for good. Those under way go on, and it still leads: nobody else may write before they
    /// have ended.
    pub fn close(&self) {
        self.writes.closed.store(true, Ordering::SeqCst);
    }

    /// It leads until `until`, or (`None`) no more. From now on no write begins that is not covered.
    pub(in crate::runtime) fn set(&self, until: Option<Instant>) {
        self.until.send_replace(until);
    }

    /// Waits until this process leads.
    pub async fn gained(&self) {
        let mut until = self.until.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = until.wait_for(|until| until.is_some_and(|until| Instant::now() < until)).await;
    }

    /// Waits until this process leads no more. It looks at the clock whenever it is polled: in a process that was frozen, what
    /// waits for leadership's end may be polled before the timer that announces it.
    pub async fn lost(&self) {
        let mut told = pin!(self.told_lost());
        poll_fn(|context| if self.holds() { told.as_mut().poll(context) } else { Poll::Ready(()) }).await;
    }

    async fn told_lost(&self) {
        let mut changes = self.until.subscribe();
        loop {
            let until = *changes.borrow_and_update();
            let Some(until) = until.filter(|until| Instant::now() < *until) else { return };
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Waits until no write is under way, at most for `limit`. Answers whether there is none.
    pub async fn idle(&self, limit: Duration) -> bool {
        let all_ended = async {
            loop {
                let ended = self.writes.ended.notified();
                let mut ended = std::pin::pin!(ended);
                // Registered before the count is read, or the last write's end could be missed.
                ended.as_mut().enable();
                if self.writes.under_way.load(Ordering::SeqCst) == 0 {
                    return;
                }
                ended.await;
            }
        };
        tokio::time::timeout(limit, all_ended).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_write_begins_without_or_after_leadership() {
        let leadership = Leadership::default();
        assert!(leadership.begin_write().is_none());
        leadership.set(Some(Instant::now() + Duration::from_secs(2)));
        leadership.gained().await;
        assert!(leadership.begin_write().is_some());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(!leadership.holds() && leadership.begin_write().is_none());
        leadership.lost().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_under_way_is_waited_for() {
        let leadership = Leadership::default();
        leadership.set(Some(Instant::now() + Duration::from_secs(60)));
        let write = leadership.begin_write();
        leadership.set(None);
        assert!(!leadership.idle(Duration::from_secs(5)).await);
        let waiting = tokio::spawn({
            let leadership = leadership.clone();
            async move { leadership.idle(Duration::from_secs(5)).await }
        });
        tokio::task::yield_now().await;
        drop(write);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_closes_no_write_begins_and_those_under_way_are_waited_for() {
        let leadership = Leadership::default();
        leadership.set(Some(Instant::now() + Duration::from_secs(60)));
        let write = leadership.begin_write();
        leadership.close();
        assert!(leadership.holds() && leadership.begin_write().is_none());
        assert!(!leadership.idle(Duration::from_secs(5)).await);
        drop(write);
        assert!(leadership.idle(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn the_end_of_leadership_is_seen_before_any_timer_tells() {
        let leadership = Leadership::default();
        leadership.set(Some(Instant::now() + Duration::from_millis(20)));
        let mut lost = pin!(leadership.lost());
        assert!(futures::poll!(lost.as_mut()).is_pending());
        // As in a process that is frozen, nobody looks after timers meanwhile.
        std::thread::sleep(Duration::from_millis(40));
        assert!(futures::poll!(lost.as_mut()).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn leadership_that_is_not_renewed_ends_by_itself() {
        let leadership = Leadership::default();
        let began = Instant::now();
        leadership.set(Some(began + Duration::from_secs(2)));
        leadership.lost().await;
        assert!(began.elapsed() >= Duration::from_secs(2) && began.elapsed() < Duration::from_secs(3));
    }
}
