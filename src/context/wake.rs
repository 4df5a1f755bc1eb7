//! Who is woken by what the cache sees.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{
    access::AccessKey,
    api::{Cluster, names},
    cluster::{ClusterKey, Identity},
    runtime::{
        cache::{Change, Index},
        lease::Leadership,
        queue::Queue,
    },
};

/// Wakes every micro-operator for a Cluster.
#[derive(Clone, Debug, Default)]
pub struct Wake {
    queues: Vec<Queue<ClusterKey>>,
    /// Of the network operator: it is one of them, and woken alone for what concerns no other. Likewise the next.
    networks: Option<Queue<ClusterKey>>,
    /// Of the guest operator.
    guests: Option<Queue<ClusterKey>>,
    accesses: Option<Queue<AccessKey>>,
    /// ClusterAccesses by the Cluster (`namespace/name`) that they lead to.
    pub(super) accesses_by_cluster: Index,
    leadership: Leadership,
    /// Which Cluster a guest's id belongs to.
    ids: Arc<Mutex<HashMap<String, ClusterKey>>>,
}

impl Wake {
    /// Wakes whoever works on one of `queues`, of which `networks` and `guests` are two, or on `accesses`, while this process
    /// leads: a new leader looks at everything anyway.
    pub fn new(
        queues: Vec<Queue<ClusterKey>>,
        networks: Queue<ClusterKey>,
        guests: Queue<ClusterKey>,
        accesses: Queue<AccessKey>,
        leadership: Leadership,
    ) -> Self {
        Self {
            queues,
            networks: Some(networks),
            guests: Some(guests),
            accesses: Some(accesses),
            leadership,
            ..Self::default()
        }
    }

    /// Wakes all for the Cluster with this key.
    pub fn cluster(&self, key: &ClusterKey) {
        if !self.leadership.holds() {
            return;
        }
        for queue in &self.queues {
            queue.add(key.clone());
        }
        for name in self.accesses_by_cluster.names(&key.to_string()) {
            self.access(AccessKey { namespace: key.namespace.clone(), name });
        }
    }

    /// Wakes whoever works on a ClusterAccess.
    pub(super) fn access(&self, key: AccessKey) {
        if let Some(queue) = self.accesses.as_ref().filter(|_| self.leadership.holds()) {
            queue.add(key);
        }
    }

    /// Wakes the guest operator for users' rights inside a guest.
    pub(super) fn rights(&self, key: ClusterKey) {
        if let Some(queue) = self.guests.as_ref().filter(|_| self.leadership.holds()) {
            queue.add(key);
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
        let Some(queue) = self.networks.as_ref().filter(|_| self.leadership.holds()) else { return };
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.values().for_each(|key| queue.add(key.clone()));
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
