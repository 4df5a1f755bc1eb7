//! One watch per kind into a store.
//!
//! A watch never ends by itself: it is repeated with a back-off of its own for as long as the process lives. For every
//! object that came, changed or went a call-back is called *after* the store has changed; after a new list it is called
//! for every object before and after, so that nothing that happened during an outage is missed.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use backon::BackoffBuilder as _;
use futures::{Stream, StreamExt as _};
use kube::{
    Resource,
    runtime::{
        reflector::{self, Lookup, ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// First and longest pause before a failed watch is repeated.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Which watches have seen their first list.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, bool>>>);

impl Readiness {
    fn set(&self, watch: &'static str, ready: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(watch, ready);
    }

    /// The watches that have not yet seen their first list.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        let watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watches.iter().filter(|(_, ready)| !**ready).map(|(name, _)| *name).collect()
    }
}

/// Watches a kind until `stop` and keeps what it sees in the returned store.
///
/// `events` is a [`watcher::watcher`] or [`watcher::metadata_watcher`]; `name` is for logs and readiness.
pub fn watch<K>(
    name: &'static str,
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    readiness: &Readiness,
    stop: CancellationToken,
    changed: impl Fn(&K) + Send + 'static,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    <K as Lookup>::DynamicType: Eq + Hash + Clone,
{
    let writer = Writer::<K>::default();
    let store = writer.as_reader();
    readiness.set(name, false);
    let mut task = Watch { name, store: store.clone(), writer, readiness: readiness.clone(), changed };
    tokio::spawn(async move {
        let mut events = std::pin::pin!(events);
        let mut pauses = pauses();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    // `Init` only says that a list is going to be tried.
                    if !matches!(event, Event::Init | Event::InitApply(_)) {
                        pauses = self::pauses();
                    }
                    task.handle(event);
                }
                Some(Err(error)) => {
                    let pause = pauses.next().unwrap_or(BACKOFF.1);
                    warn!(watch = name, error = super::chain(&error), ?pause, "watch failed; it is repeated");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                None => return,
            }
        }
    });
    store
}

fn pauses() -> impl Iterator<Item = Duration> {
    backon::ExponentialBuilder::default()
        .with_min_delay(BACKOFF.0)
        .with_max_delay(BACKOFF.1)
        .with_jitter()
        .without_max_times()
        .build()
}

struct Watch<K: Lookup<DynamicType = ()> + Clone + 'static, F> {
    name: &'static str,
    store: Store<K>,
    writer: Writer<K>,
    readiness: Readiness,
    changed: F,
}

impl<K, F> Watch<K, F>
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + Debug,
    F: Fn(&K),
{
    fn handle(&mut self, mut event: Event<K>) {
        match &mut event {
            Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => {
                // Who wrote which field is of no use to a reconciler and is half of an object's size.
                object.meta_mut().managed_fields = None;
            }
            Event::Init | Event::InitDone => {}
        }
        let before = if matches!(event, Event::InitDone) { self.store.state() } else { Vec::new() };
        self.writer.apply_watcher_event(&event);
        match event {
            Event::Apply(object) | Event::Delete(object) => (self.changed)(&object),
            Event::Init | Event::InitApply(_) => {}
            Event::InitDone => {
                self.readiness.set(self.name, true);
                debug!(watch = self.name, objects = self.store.len(), "listed");
                let now = self.store.state();
                for object in before.iter().chain(&now) {
                    (self.changed)(object);
                }
            }
        }
    }
}

/// Looks an object up in a store by namespace (`None` for a cluster-scoped kind) and name.
pub fn get<K>(store: &Store<K>, namespace: Option<&str>, name: &str) -> Option<Arc<K>>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    let mut key = reflector::ObjectRef::<K>::new(name);
    if let Some(namespace) = namespace {
        key = ObjectRef::within(key, namespace);
    }
    store.get(&key)
}
