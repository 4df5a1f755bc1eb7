//! What every micro-operator is given: the cache, the reports of the others, a client and the settings.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::{
    Metadata as _,
    api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Secret, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::PartialObjectMeta,
    runtime::{
        reflector::{Lookup, Store},
        watcher,
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Cluster, NetworkClaim, names},
    cluster::{ClusterKey, Identity, Reports, Valid, Violation},
    kvm::vm_pod::VmPod,
    runtime::{
        cache::{self, Readiness, watch},
        queue::Queue,
    },
    settings::Settings,
};

/// Seconds after which the server ends a watch, and it begins anew. The client's read time-out is a little longer, so a
/// server that has gone silent is noticed.
const WATCH_SECONDS: u32 = 60;

/// One watch per kind; of most kinds the metadata is enough.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each field is the store of the kind that its type names")]
pub struct Cache {
    pub clusters: Store<Cluster>,
    pub claims: Store<NetworkClaim>,
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    pub services: Store<Service>,
    pub secrets: Store<PartialObjectMeta<Secret>>,
    pub config_maps: Store<PartialObjectMeta<ConfigMap>>,
    pub volume_claims: Store<PartialObjectMeta<PersistentVolumeClaim>>,
    pub pods: Store<VmPod>,
}

/// Wakes every micro-operator for a Cluster.
#[derive(Clone, Debug, Default)]
pub struct Wake {
    queues: Vec<Queue<ClusterKey>>,
    /// Which Cluster a guest's id belongs to.
    ids: Arc<Mutex<HashMap<String, ClusterKey>>>,
}

impl Wake {
    /// Wakes whoever works on one of `queues`.
    pub fn new(queues: Vec<Queue<ClusterKey>>) -> Self {
        Self { queues, ids: Arc::default() }
    }

    /// Wakes all for the Cluster with this key.
    pub fn cluster(&self, key: &ClusterKey) {
        for queue in &self.queues {
            queue.add(key.clone());
        }
    }

    fn changed(&self, cluster: &Cluster) {
        let identity = Identity::of(cluster);
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(identity.id, identity.key.clone());
        self.cluster(&identity.key);
    }

    /// Wakes all for the Cluster that an object is labelled with.
    fn labelled(&self, meta: &ObjectMeta) {
        let id = meta.labels.as_ref().and_then(|labels| labels.get(names::CLUSTER_LABEL));
        let key = id.and_then(|id| self.ids.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned());
        if let Some(key) = key {
            self.cluster(&key);
        }
    }
}

impl Cache {
    /// Starts all watches.
    pub fn start(client: &Client, wake: &Wake, readiness: &Readiness, stop: &CancellationToken) -> Self {
        let clusters = {
            let wake = wake.clone();
            let events = watcher::watcher(Api::<Cluster>::all(client.clone()), everything());
            watch("clusters", events, readiness, stop.clone(), move |cluster| wake.changed(cluster))
        };
        let claims = {
            let wake = wake.clone();
            let events = watcher::watcher(Api::<NetworkClaim>::all(client.clone()), everything());
            watch("networkclaims", events, readiness, stop.clone(), move |claim: &NetworkClaim| {
                let holder = &claim.spec.cluster_ref;
                wake.cluster(&ClusterKey { namespace: holder.namespace.clone(), name: holder.name.clone() });
            })
        };
        let services = {
            let wake = wake.clone();
            let events = watcher::watcher(Api::<Service>::all(client.clone()), ours());
            watch("services", events, readiness, stop.clone(), move |s: &Service| wake.labelled(&s.metadata))
        };
        let pods = {
            let wake = wake.clone();
            let events = watcher::watcher(Api::<VmPod>::all(client.clone()), ours());
            watch("pods", events, readiness, stop.clone(), move |pod: &VmPod| wake.labelled(&pod.metadata))
        };
        Self {
            clusters,
            claims,
            services,
            pods,
            namespaces: metadata("namespaces", client, wake, readiness, stop),
            secrets: metadata("secrets", client, wake, readiness, stop),
            config_maps: metadata("configmaps", client, wake, readiness, stop),
            volume_claims: metadata("persistentvolumeclaims", client, wake, readiness, stop),
        }
    }
}

fn everything() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

/// What carries a guest's label.
fn ours() -> watcher::Config {
    everything().labels(names::CLUSTER_LABEL)
}

/// Watches the metadata of those objects of a kind that carry a guest's label.
fn metadata<K>(
    name: &'static str,
    client: &Client,
    wake: &Wake,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> Store<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let api = Api::<PartialObjectMeta<K>>::all(client.clone());
    let events = watcher::watcher(api, ours());
    let wake = wake.clone();
    watch(name, events, readiness, stop.clone(), move |object: &PartialObjectMeta<K>| wake.labelled(&object.metadata))
}

/// What every micro-operator is given. Clones share it.
#[derive(Clone)]
pub struct Context {
    /// Client of the management cluster.
    pub client: Client,
    /// The operator's settings.
    pub settings: Arc<Settings>,
    /// What is known of the management cluster.
    pub cache: Cache,
    /// What the other micro-operators said.
    pub reports: Reports,
}

/// A Cluster as a micro-operator looks at it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The object.
    pub cluster: Arc<Cluster>,
    /// What the guest is called.
    pub identity: Identity,
    /// The checked spec.
    pub valid: Result<Valid, Vec<Violation>>,
}

impl Target {
    /// Whether the user has deleted the Cluster.
    pub fn is_deleting(&self) -> bool {
        self.cluster.metadata.deletion_timestamp.is_some()
    }

    /// The checked spec, if work may begin: the finalizer must be there before anything that it protects.
    pub fn workable(&self) -> Option<&Valid> {
        let protected = self.cluster.finalizers().iter().any(|name| name == names::CLUSTER_FINALIZER);
        self.valid.as_ref().ok().filter(|_| protected)
    }
}

impl Context {
    /// The Cluster with this key, if there is one.
    pub fn target(&self, key: &ClusterKey) -> Option<Target> {
        let cluster = cache::get(&self.cache.clusters, Some(&key.namespace), &key.name)?;
        let identity = Identity::of(&cluster);
        let valid = Valid::new(&cluster, &self.settings);
        Some(Target { cluster, identity, valid })
    }

    /// The guest's namespace, if it is there, ours, not going, and the very one that is pinned.
    pub fn namespace(&self, identity: &Identity) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        let found = cache::get(&self.cache.namespaces, None, &identity.namespace)?;
        let meta = &found.metadata;
        let pinned = identity.namespace_uid.is_some() && identity.namespace_uid == meta.uid;
        let usable = pinned && identity.owner().owns(meta) && meta.deletion_timestamp.is_none();
        usable.then_some(found)
    }

    /// Metadata of an object of the guest's namespace, if the cache has it.
    pub fn meta<K>(&self, store: &Store<K>, namespace: &str, name: &str) -> Option<ObjectMeta>
    where
        K: Lookup<DynamicType = ()> + Resource<DynamicType = ()> + Clone + 'static,
    {
        cache::get(store, Some(namespace), name).map(|object| object.meta().clone())
    }

    /// The guest's Service in front of its API.
    pub fn master_service(&self, identity: &Identity) -> Option<Arc<Service>> {
        cache::get(&self.cache.services, Some(&identity.namespace), names::MASTER_SERVICE)
    }

    /// The guest's VM pods.
    pub fn vm_pods(&self, identity: &Identity) -> Vec<Arc<VmPod>> {
        self.cache.pods.state_filter(|pod| pod.metadata().namespace.as_ref() == Some(&identity.namespace))
    }
}
