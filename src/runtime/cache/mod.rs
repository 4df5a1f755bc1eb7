//! One watch per kind into a store.
//!
//! A watch never ends by itself: it is repeated with a back-off of its own for as long as the process lives, and begun
//! anew when the server is back after an outage ([`Pulse`]). For every object that came, changed or went a call-back is
//! called *after* the store has changed; after a new list it is called for every object that differs from what was known,
//! so nothing that happened during an outage is missed. An object that cannot be read is left out, with a word in the
//! log; the others are served.

mod entry;
mod index;
mod pulse;
mod watch;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api, Client, Resource,
    api::PartialObjectMeta,
    runtime::{
        reflector::{self, Lookup, ObjectRef, Store},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use self::entry::Entry;
pub use self::index::Index;
pub use self::pulse::Pulse;

/// Seconds after which the server ends a watch, and it begins anew. The client's read time-out is a little longer.
pub const WATCH_SECONDS: u32 = 60;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It came or changed.
    Is,
    /// It went, or cannot be read any more.
    Gone,
}

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

/// Where watches begin.
#[derive(Clone)]
pub struct Watches {
    client: Client,
    pulse: Pulse,
    readiness: Readiness,
    stop: CancellationToken,
}

impl Watches {
    /// Watches over `client`, until `stop`.
    pub fn new(client: Client, stop: CancellationToken) -> Self {
        let pulse = Pulse::start(client.clone(), stop.clone());
        Self { client, pulse, readiness: Readiness::default(), stop }
    }

    /// Which watches have seen their first list.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Watches those objects of a kind that carry the label `label` (all, if there is none) in all namespaces.
    ///
    /// `name`, the plural of the kind, is for logs, metrics and readiness; `changed` is called for every object that came, changed or went.
    pub fn objects<K>(
        &self,
        name: &'static str,
        label: Option<&str>,
        changed: impl Fn(&K, Change) + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = ()>
            + Lookup<DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let (client, config) = (self.client.clone(), config(label));
        self.follow(name, changed, move || {
            watcher::watcher(Api::<Entry<K>>::all(client.clone()), config.clone()).boxed()
        })
    }

    /// The same, but of each object its metadata alone, which is all that is asked of the server.
    pub fn metadata<K>(
        &self,
        name: &'static str,
        label: Option<&str>,
        changed: impl Fn(&PartialObjectMeta<K>, Change) + Send + 'static,
    ) -> Store<PartialObjectMeta<K>>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (client, config) = (self.client.clone(), config(label));
        self.follow(name, changed, move || {
            let events = watcher::watcher(Api::<PartialObjectMeta<K>>::all(client.clone()), config.clone());
            events.map_ok(readable).boxed()
        })
    }

    fn follow<K>(
        &self,
        name: &'static str,
        changed: impl Fn(&K, Change) + Send + 'static,
        begin: impl Fn() -> watch::Events<K> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    {
        self.readiness.set(name, false);
        let (task, store) = watch::Watch::new(name, self.readiness.clone(), changed);
        tokio::spawn(task.run(begin, self.pulse.clone(), self.stop.clone()));
        store
    }
}

fn config(label: Option<&str>) -> watcher::Config {
    let all = watcher::Config::default().timeout(WATCH_SECONDS).page_size(250);
    match label {
        Some(label) => all.labels(label),
        None => all,
    }
}

fn readable<K>(event: Event<PartialObjectMeta<K>>) -> Event<Entry<PartialObjectMeta<K>>>
where
    K: Resource<DynamicType = ()> + Clone,
{
    let entry = |mut object: PartialObjectMeta<K>| {
        object.metadata.managed_fields = None;
        Entry { meta: object.metadata.clone(), object: Ok(object) }
    };
    match event {
        Event::Apply(object) => Event::Apply(entry(object)),
        Event::Delete(object) => Event::Delete(entry(object)),
        Event::InitApply(object) => Event::InitApply(entry(object)),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
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
