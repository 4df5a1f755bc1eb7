//! Who is woken by what the cache sees.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Queues;
use crate::{
    access::AccessKey,
    api::{Cluster, names},
    cluster::{ClusterKey, Identity},
    runtime::{
        cache::{Change, Index},
        lease::Leadership,
    },
};

/// Wakes micro-operators.
#[derive(Clone, Debug)]
pub struct Wake {
    queues: Queues,
    /// ClusterAccesses by the Cluster (`namespace/name`) that they lead to.
    pub(super) accesses_by_cluster: Index,
    leadership: Leadership,
    /// Which Cluster a guest's id belongs to.
    ids: Arc<Mutex<HashMap<String, ClusterKey>>>,
}

impl Wake {
    /// Wakes whoever works on one of `queues` while this process leads: a new leader looks at everything anyway.
    pub fn new(queues: Queues, leadership: Leadership) -> Self {
        Self { queues, accesses_by_cluster: Index::default(), leadership, ids: Arc::default() }
    }

    /// Wakes all for the Cluster with this key.
    pub fn cluster(&self, key: &ClusterKey) {
        if !self.leadership.holds() {
            return;
        }
        for queue in self.queues.of_clusters() {
            queue.add(key.clone());
        }
        for name in self.accesses_by_cluster.names(&key.to_string()) {
            self.access(AccessKey { namespace: key.namespace.clone(), name });
        }
    }

    /// Wakes whoever works on a ClusterAccess.
    pub(super) fn access(&self, key: AccessKey) {
        if self.leadership.holds() {
            self.queues.access.add(key);
        }
    }

    /// Wakes the guest operator for users' rights inside a guest.
    pub(super) fn rights(&self, key: ClusterKey) {
        if self.leadership.holds() {
            self.queues.guest.add(key);
        }
    }

    pub(super) fn changed(&self, cluster: &Cluster, change: Change) {
        let identity = Identity::of(cluster);
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Is => ids.insert(identity.id, identity.key.clone()),
            Change::Gone => ids.remove(&identity.id),
        };
        drop(ids);
        self.cluster(&identity.key);
    }

    /// Wakes all for the Cluster that an object is labelled with.
    pub(super) fn labelled(&self, meta: &ObjectMeta) {
        if let Some(id) = guest_of(meta) {
            self.guest(id);
        }
    }

    /// Wakes the network operator for every Cluster that is known.
    pub(super) fn all_networks(&self) {
        if !self.leadership.holds() {
            return;
        }
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.values().for_each(|key| self.queues.network.add(key.clone()));
    }

    /// Wakes all for the Cluster whose guest has this id.
    pub(super) fn guest(&self, id: &str) {
        let key = self.ids.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if let Some(key) = key {
            self.cluster(&key);
        }
    }
}

/// Id of the guest that an object belongs to.
pub(super) fn guest_of(meta: &ObjectMeta) -> Option<&String> {
    meta.labels.as_ref()?.get(names::CLUSTER_LABEL)
}
