//! One watch: its events into a store, its errors into pauses.

use std::{collections::HashMap, fmt::Debug, sync::Arc, time::Duration};

use backon::BackoffBuilder as _;
use futures::{StreamExt as _, stream::BoxStream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    runtime::{
        reflector::{Lookup, ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Change, Entry, Pulse, Readiness};
use crate::runtime::{chain, telemetry};

/// First and longest pause before a failed watch is repeated.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// Longest time that a list may be silent at first, between its pages too; it doubles with every list that was, up to a minute,
/// since a server may be slow and not dead.
const LIST_PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

pub(super) type Events<K> = BoxStream<'static, watcher::Result<Event<Entry<K>>>>;

/// Why a stream of events is left.
enum End {
    Stopped,
    /// Another one is begun at once.
    Returned,
    /// Another one is begun after a pause.
    Broken(String),
}

pub(super) struct Watch<K: Lookup<DynamicType = ()> + Clone + 'static, F> {
    name: &'static str,
    store: Store<K>,
    writer: Writer<K>,
    readiness: Readiness,
    changed: F,
    patience: Duration,
    /// resourceVersions before the list that is being read.
    before: HashMap<ObjectRef<K>, (Arc<K>, Option<String>)>,
}

impl<K, F> Watch<K, F>
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    F: Fn(&K, Change) + Send + 'static,
{
    pub(super) fn new(name: &'static str, readiness: Readiness, changed: F) -> (Self, Store<K>) {
        let writer = Writer::<K>::default();
        let store = writer.as_reader();
        (
            Self {
                name,
                store: store.clone(),
                writer,
                readiness,
                changed,
                patience: LIST_PATIENCE.0,
                before: HashMap::new(),
            },
            store,
        )
    }

    pub(super) async fn run(mut self, begin: impl Fn() -> Events<K>, mut pulse: Pulse, stop: CancellationToken) {
        let mut pauses = Pauses::new();
        telemetry::WATCH_AGE.begin(self.name);
        for count in [&telemetry::WATCH_FAILURES, &telemetry::MALFORMED_OBJECTS] {
            // From zero on, or Prometheus would not see the first of them as an increase.
            count.with_label_values(&[self.name]);
        }
        loop {
            match self.follow(begin(), &mut pulse, &mut pauses, &stop).await {
                End::Stopped => return,
                End::Returned => {
                    pauses = Pauses::new();
                    self.patience = LIST_PATIENCE.0;
                }
                End::Broken(why) => {
                    let pause = pauses.next();
                    warn!(watch = self.name, error = why, ?pause, "watch failed; it is repeated");
                    telemetry::WATCH_FAILURES.with_label_values(&[self.name]).inc();
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = pulse.returned() => {
                            pauses = Pauses::new();
                            self.patience = LIST_PATIENCE.0;
                        }
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Follows one stream of events for as long as it is any good.
    async fn follow(
        &mut self,
        mut events: Events<K>,
        pulse: &mut Pulse,
        pauses: &mut Pauses,
        stop: &CancellationToken,
    ) -> End {
        // It begins with a list.
        let mut listing = true;
        let patience = self.patience;
        loop {
            let next = async {
                if !listing {
                    return Ok(events.next().await);
                }
                tokio::time::timeout(patience, events.next()).await
            };
            let event = tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                () = pulse.returned() => return End::Returned,
                event = next => event,
            };
            match event {
                Err(_) => {
                    self.patience = (self.patience * 2).min(LIST_PATIENCE.1);
                    return End::Broken(format!("the list was silent for {} s", patience.as_secs()));
                }
                Ok(None) => return End::Broken("it ended".into()),
                Ok(Some(Ok(event))) => {
                    listing = match event {
                        // `Init` only says that a list is going to be tried.
                        Event::Init | Event::InitApply(_) => true,
                        Event::InitDone | Event::Apply(_) | Event::Delete(_) => false,
                    };
                    if !listing {
                        *pauses = Pauses::new();
                    }
                    self.handle(event);
                }
                // kube would go on with a resourceVersion that is gone, if the server says so with a plain status.
                Ok(Some(Err(error))) if is_expired(&error) => return End::Broken(chain(&error)),
                Ok(Some(Err(error))) => {
                    // kube's stream goes on by itself: with a watch where it stood, or with a list.
                    let pause = pauses.next();
                    debug!(watch = self.name, error = chain(&error), ?pause, "watch failed; it is repeated");
                    telemetry::WATCH_FAILURES.with_label_values(&[self.name]).inc();
                    tokio::select! {
                        () = stop.cancelled() => return End::Stopped,
                        () = pulse.returned() => return End::Returned,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    fn handle(&mut self, event: Event<Entry<K>>) {
        // `Init` comes of us alone.
        if !matches!(event, Event::Init) {
            telemetry::WATCH_AGE.hear(self.name);
        }
        match event {
            Event::Init => {
                let versions = |object: Arc<K>| {
                    let version = object.meta().resource_version.clone();
                    (ObjectRef::from_obj(object.as_ref()), (object, version))
                };
                self.before = self.store.state().into_iter().map(versions).collect();
                self.writer.apply_watcher_event(&Event::Init);
            }
            Event::InitApply(entry) => {
                if let Some(object) = self.readable(entry) {
                    self.writer.apply_watcher_event(&Event::InitApply(object));
                }
            }
            Event::InitDone => {
                self.writer.apply_watcher_event(&Event::InitDone);
                self.readiness.set(self.name, true);
                self.patience = LIST_PATIENCE.0;
                debug!(watch = self.name, objects = self.store.len(), "listed");
                self.tell_differences();
            }
            Event::Apply(entry) => {
                let known = self.known(&entry.meta);
                match self.readable(entry) {
                    Some(object) => {
                        self.tell_replaced(known.as_ref(), &object);
                        self.apply(Event::Apply(object));
                    }
                    None => known.map(|object| self.apply(Event::Delete(object))).unwrap_or_default(),
                }
            }
            Event::Delete(entry) => {
                let known = self.known(&entry.meta);
                if let Some(object) = entry.object.ok().or(known) {
                    self.apply(Event::Delete(object));
                }
            }
        }
    }

    fn apply(&mut self, event: Event<K>) {
        self.writer.apply_watcher_event(&event);
        match &event {
            Event::Apply(object) => (self.changed)(object, Change::Is),
            Event::Delete(object) => (self.changed)(object, Change::Gone),
            Event::Init | Event::InitApply(_) | Event::InitDone => {}
        }
    }

    fn known(&self, meta: &ObjectMeta) -> Option<K> {
        let name = meta.name.as_deref().unwrap_or_default();
        super::get(&self.store, meta.namespace.as_deref(), name).map(|object| K::clone(&object))
    }

    fn readable(&self, entry: Entry<K>) -> Option<K> {
        let Entry { meta, object } = entry;
        object
            .inspect_err(|error| {
                let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
                warn!(watch = self.name, namespace, name, error, "an object cannot be read; it is left alone");
                telemetry::MALFORMED_OBJECTS.with_label_values(&[self.name]).inc();
            })
            .ok()
    }

    /// A namesake with another UID is another object: the old one is gone.
    fn tell_replaced(&self, old: Option<&K>, new: &K) {
        if let Some(old) = old.filter(|old| old.meta().uid != new.meta().uid) {
            (self.changed)(old, Change::Gone);
        }
    }

    fn tell_differences(&mut self) {
        let mut before = std::mem::take(&mut self.before);
        for object in self.store.state() {
            let known = before.remove(&ObjectRef::from_obj(object.as_ref()));
            let same = known.as_ref().is_some_and(|(old, version)| {
                *version == object.meta().resource_version && old.meta().uid == object.meta().uid
            });
            if !same {
                self.tell_replaced(known.as_ref().map(|(old, _)| old.as_ref()), &object);
                (self.changed)(&object, Change::Is);
            }
        }
        for (object, _) in before.values() {
            (self.changed)(object, Change::Gone);
        }
    }
}

fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

struct Pauses(backon::ExponentialBackoff);

impl Pauses {
    fn new() -> Self {
        let doubling = backon::ExponentialBuilder::default().with_min_delay(BACKOFF.0).with_max_delay(BACKOFF.1);
        Self(doubling.with_jitter().without_max_times().build())
    }

    fn next(&mut self) -> Duration {
        self.0.next().unwrap_or(BACKOFF.1).min(BACKOFF.1)
    }
}
