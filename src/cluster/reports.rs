//! What each micro-operator last said about each Cluster. In memory: what must survive a restart lives in an object.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::ClusterKey;
use crate::{
    api::{NodeCounts, Reason},
    guest::GuestFacts,
    kvm::KvmFacts,
    network::NetworkFacts,
    pki::PkiFacts,
};

/// What one micro-operator says about one Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report<T> {
    /// Everything is as it should be.
    Ready(T),
    /// It goes on when something else is there.
    Waiting {
        /// What it waits for.
        what: String,
        /// What is known already.
        facts: Option<T>,
    },
    /// It cannot go on.
    Failed {
        /// Of which sort.
        reason: Reason,
        /// What failed on which object, and what to do.
        message: String,
    },
    /// The Cluster is being deleted, and this operator has nothing left of it.
    Gone,
}

impl<T> Report<T> {
    /// Waits, with nothing known yet.
    pub fn waiting(what: impl Into<String>) -> Self {
        Self::Waiting { what: what.into(), facts: None }
    }

    /// What is known.
    pub fn facts(&self) -> Option<&T> {
        match self {
            Self::Ready(facts) => Some(facts),
            Self::Waiting { facts, .. } => facts.as_ref(),
            Self::Failed { .. } | Self::Gone => None,
        }
    }

    /// Whether the clean-up was seen to be complete.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }
}

/// All reports about one Cluster. `None`: the operator has said nothing yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterReports {
    /// network
    pub network: Option<Report<NetworkFacts>>,
    /// pki
    pub pki: Option<Report<PkiFacts>>,
    /// kvm
    pub kvm: Option<Report<KvmFacts>>,
    /// guest
    pub guest: Option<Report<GuestFacts>>,
}

impl ClusterReports {
    /// Nodes that the guest's API lists.
    pub fn nodes(&self) -> Option<NodeCounts> {
        self.guest.as_ref().and_then(Report::facts).map(|facts| facts.nodes)
    }
}

type Wake = Box<dyn Fn(&ClusterKey) + Send + Sync>;

/// All reports. Clones share them.
#[derive(Clone)]
pub struct Reports {
    all: Arc<Mutex<HashMap<ClusterKey, ClusterReports>>>,
    wake: Arc<Wake>,
}

impl std::fmt::Debug for Reports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reports").field("all", &self.all).finish_non_exhaustive()
    }
}

impl Reports {
    /// No reports yet. `wake` is called with every Cluster that something new was said about.
    pub fn new(wake: impl Fn(&ClusterKey) + Send + Sync + 'static) -> Self {
        Self { all: Arc::default(), wake: Arc::new(Box::new(wake)) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClusterKey, ClusterReports>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said about a Cluster.
    pub fn of(&self, key: &ClusterKey) -> ClusterReports {
        self.lock().get(key).cloned().unwrap_or_default()
    }

    /// Says something about a Cluster; whoever reads reports is woken if it is new.
    pub fn update(&self, key: &ClusterKey, change: impl FnOnce(&mut ClusterReports)) {
        let is_new = {
            let mut all = self.lock();
            let reports = all.entry(key.clone()).or_default();
            let before = reports.clone();
            change(reports);
            before != *reports
        };
        if is_new {
            (self.wake)(key);
        }
    }

    /// Forgets a Cluster that is gone.
    pub fn forget(&self, key: &ClusterKey) {
        self.lock().remove(key);
    }
}
