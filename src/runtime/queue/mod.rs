//! Work keys.
//!
//! A key is in the queue at most once, and is worked on by at most one worker at a time; a key that is added while it
//! is worked on is worked on once more. A failed key comes back after a pause that doubles with every failure. Groups
//! of keys take turns (`fair`).

mod fair;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use self::fair::Ready;

/// What a unit of work is called.
pub trait Key: Clone + Eq + Hash {
    /// Whom it belongs to, such as a namespace: groups share the workers fairly.
    fn group(&self) -> &str;
}

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What becomes of a key that was worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more until it is added again.
    AwaitChange,
    /// It comes back after this time, if it is not added before.
    After(Duration),
    /// It failed: it comes back after a pause that doubles with every failure in a row.
    Failed,
}

impl Outcome {
    /// That of a look after which nothing happens by itself before `next`.
    pub fn at(next: Option<Duration>) -> Self {
        next.map_or(Self::AwaitChange, Self::After)
    }

    /// The earlier of two; what failed has a pause of its own.
    #[must_use]
    pub fn or_sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::After(one), Self::After(other)) => Self::After(one.min(other)),
            (Self::AwaitChange, other) => other,
            (one, _) => one,
        }
    }
}

#[derive(Debug)]
struct State<K> {
    ready: Ready<K>,
    /// In `ready`, or to be put there when its worker is done.
    dirty: HashSet<K>,
    working: HashSet<K>,
    /// Keys that wait for their time; the number keeps equal times apart.
    delayed: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    sequence: u64,
}

/// A queue of work keys. Clones share it.
#[derive(Debug)]
pub struct Queue<K> {
    state: Arc<Mutex<State<K>>>,
    changed: Arc<Notify>,
    workers: usize,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), changed: self.changed.clone(), workers: self.workers }
    }
}

impl<K: Key> Queue<K> {
    /// An empty queue for so many workers.
    pub fn new(workers: usize) -> Self {
        let state = State {
            ready: Ready::new(workers),
            dirty: HashSet::new(),
            working: HashSet::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            sequence: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::new(Notify::new()), workers }
    }

    /// For how many workers it is.
    pub fn workers(&self) -> usize {
        self.workers
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a key that is to be worked on now.
    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.changed.notify_one();
    }

    /// Keys that are ready or being worked on.
    pub fn depth(&self) -> usize {
        let state = self.lock();
        state.ready.len() + state.working.len()
    }

    /// Waits for the next key. The caller owes a [`Queue::done`] for it.
    pub async fn next(&self) -> K {
        loop {
            let wait = {
                let mut state = self.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    if state.ready.len() > 0 {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.first_key_value().map(|((at, _), _)| *at)
            };
            match wait {
                Some(at) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// Gives a key back.
    pub fn done(&self, key: &K, outcome: Outcome) {
        let mut state = self.lock();
        state.working.remove(key);
        state.ready.done(key);
        match outcome {
            Outcome::AwaitChange => {
                state.failures.remove(key);
            }
            Outcome::After(pause) => {
                state.failures.remove(key);
                state.delay(key, Instant::now() + pause);
            }
            Outcome::Failed => {
                let failures = state.failures.entry(key.clone()).or_insert(0);
                *failures = failures.saturating_add(1);
                let pause = pause(*failures);
                state.delay(key, Instant::now() + pause);
            }
        }
        if state.dirty.contains(key) {
            state.ready.push(key.clone());
        }
        drop(state);
        self.changed.notify_one();
    }
}

/// The pause after the `failures`-th failure in a row.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}

impl<K: Key> State<K> {
    fn add(&mut self, key: K) {
        if let Some(at) = self.due.remove(&key) {
            self.delayed.remove(&at);
        }
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push(key);
        }
    }

    fn delay(&mut self, key: &K, at: Instant) {
        if let Some(old) = self.due.remove(key) {
            self.delayed.remove(&old);
        }
        self.sequence += 1;
        self.due.insert(key.clone(), (at, self.sequence));
        self.delayed.insert((at, self.sequence), key.clone());
    }

    /// Moves keys whose time has come to the ready ones.
    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
                self.ready.push(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Key for &str {
        fn group(&self) -> &str {
            self
        }
    }

    #[tokio::test]
    async fn a_key_is_in_the_queue_once() {
        let queue = Queue::new(4);
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!((queue.next().await, queue.next().await), ("a", "b"));
        assert_eq!(queue.depth(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_worked_on_comes_back_and_never_to_two_workers() {
        let queue = Queue::new(4);
        queue.add("a");
        let key = queue.next().await;
        queue.add("a");
        assert!(tokio::time::timeout(Duration::from_secs(5), queue.next()).await.is_err());
        queue.done(&key, Outcome::AwaitChange);
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_success_forgets_them() {
        let queue = Queue::new(4);
        queue.add("a");
        for expected in [250, 500, 1000] {
            let key = queue.next().await;
            let failed_at = Instant::now();
            queue.done(&key, Outcome::Failed);
            let key = queue.next().await;
            assert_eq!(failed_at.elapsed().as_millis() / 10 * 10, expected);
            queue.done(&key, Outcome::AwaitChange);
            for _ in 0..(expected / 250).ilog2() + 1 {
                queue.add("a");
                let key = queue.next().await;
                queue.done(&key, Outcome::Failed);
            }
        }
        assert_eq!(pause(1), FIRST_PAUSE);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn adding_a_delayed_key_brings_it_at_once_and_only_once() {
        let queue = Queue::new(4);
        queue.add("a");
        let key = queue.next().await;
        queue.done(&key, Outcome::After(Duration::from_secs(30)));
        queue.add("a");
        let before = Instant::now();
        let key = queue.next().await;
        assert!(before.elapsed() < Duration::from_secs(1));
        queue.done(&key, Outcome::AwaitChange);
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }
}
