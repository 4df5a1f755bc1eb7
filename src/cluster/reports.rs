//! What each micro-operator last said about each Cluster. In memory: what must survive a restart lives in an object.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{ClusterKey, Identity};
use crate::{
    access::rights::AllBound,
    api::{NodeCounts, Reason},
    guest::GuestFacts,
    kvm::{KvmFacts, PoolFacts},
    network::NetworkFacts,
    pki::PkiFacts,
    runtime::{chain, queue::Outcome},
};

/// An error that a condition can show.
pub trait Blames {
    /// Of which sort it is.
    fn reason(&self) -> Reason;
}

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
        /// What was known before.
        facts: Option<T>,
    },
    /// It has nothing to do, and does not know when it will: what is missing is not ours to make.
    Pending {
        /// Of which sort.
        reason: Reason,
        /// What is missing.
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

    /// Waits for what comes by itself, or, if it is of a sort that somebody must mend, cannot go on.
    pub fn held_up(obstacle: Option<Reason>, what: String, facts: Option<T>) -> Self {
        match obstacle {
            Some(reason) => Self::Failed { reason, message: what, facts },
            None => Self::Waiting { what, facts },
        }
    }

    /// It cannot go on; what was known stays known, so that one failed call does not stop the others.
    pub fn failed(reason: Reason, message: impl Into<String>, before: Option<&Self>) -> Self
    where
        T: Clone,
    {
        Self::Failed { reason, message: message.into(), facts: before.and_then(Self::facts).cloned() }
    }

    /// What is known.
    pub fn facts(&self) -> Option<&T> {
        match self {
            Self::Ready(facts) => Some(facts),
            Self::Waiting { facts, .. } | Self::Failed { facts, .. } => facts.as_ref(),
            Self::Pending { .. } | Self::Gone => None,
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
    /// network; of a guest on AWS aws, as the next two
    pub network: Option<Report<NetworkFacts>>,
    /// flannel; nothing of a guest with another overlay. Its fact is that VM pods find what they need.
    pub flannel: Option<Report<()>>,
    /// pki
    pub pki: Option<Report<PkiFacts>>,
    /// kvm, of the control plane
    pub kvm: Option<Report<KvmFacts>>,
    /// kvm, of the node pools
    pub pools: Option<Report<PoolFacts>>,
    /// isolation; nothing while nobody could be asked.
    pub isolation: Option<Report<()>>,
    /// isolation, of the ways between VM pods; nothing while nobody could be asked.
    pub ways: Option<Report<()>>,
    /// guest
    pub guest: Option<Report<GuestFacts>>,
    /// guest, of the rights that ClusterAccesses ask for; no part of the Cluster's status.
    pub bound: Option<Arc<AllBound>>,
}

impl ClusterReports {
    /// Whether every operator has said something: until then a status made of it would say less than is known.
    pub fn are_complete(&self) -> bool {
        let machines = self.kvm.is_some() && self.pools.is_some();
        self.network.is_some() && self.pki.is_some() && machines && self.guest.is_some()
    }

    /// Nodes that the guest's API lists.
    pub fn nodes(&self) -> Option<NodeCounts> {
        self.guest.as_ref().and_then(Report::facts).map(|facts| facts.nodes)
    }
}

type Wake = Box<dyn Fn(&ClusterKey) + Send + Sync>;

/// All reports. Clones share them.
#[derive(Clone)]
pub struct Reports {
    /// With the UID of the Cluster that they are about: a namesake inherits nothing.
    all: Arc<Mutex<HashMap<ClusterKey, (String, ClusterReports)>>>,
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

    fn lock(&self) -> MutexGuard<'_, HashMap<ClusterKey, (String, ClusterReports)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said about a Cluster.
    pub fn of(&self, cluster: &Identity) -> ClusterReports {
        let all = self.lock();
        let found = all.get(&cluster.key).filter(|(uid, _)| *uid == cluster.uid);
        found.map(|(_, reports)| reports.clone()).unwrap_or_default()
    }

    /// Says something about a Cluster; whoever reads reports is woken if it is new.
    pub fn update(&self, cluster: &Identity, change: impl FnOnce(&mut ClusterReports)) {
        let is_new = {
            let mut all = self.lock();
            let (uid, reports) = all.entry(cluster.key.clone()).or_default();
            if *uid != cluster.uid {
                (*uid, *reports) = (cluster.uid.clone(), ClusterReports::default());
            }
            let before = reports.clone();
            change(reports);
            before != *reports
        };
        if is_new {
            (self.wake)(&cluster.key);
        }
    }

    /// What a micro-operator's look came to: its report is kept, and what becomes of the key is answered.
    ///
    /// # Errors
    /// The error of the look, after it was reported.
    pub fn conclude<T, E>(
        &self,
        cluster: &Identity,
        slot: fn(&mut ClusterReports) -> &mut Option<Report<T>>,
        look: Result<(Report<T>, Outcome), E>,
    ) -> Result<Outcome, E>
    where
        T: Clone,
        E: Blames + std::error::Error,
    {
        let (report, result) = match look {
            Ok((report, outcome)) => (report, Ok(outcome)),
            Err(error) => {
                let mut known = self.of(cluster);
                (Report::failed(error.reason(), chain(&error), slot(&mut known).as_ref()), Err(error))
            }
        };
        self.update(cluster, |reports| *slot(reports) = Some(report));
        result
    }

    /// Forgets everything: what is said next comes of a fresh look.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Forgets a Cluster that is gone.
    pub fn forget(&self, key: &ClusterKey) {
        self.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namesake_inherits_no_report() {
        let reports = Reports::new(|_| {});
        let key = ClusterKey { namespace: "a".into(), name: "b".into() };
        let (old, new) = (Identity::new(key.clone(), "1".into()), Identity::new(key, "2".into()));
        reports.update(&old, |reports| reports.kvm = Some(Report::Gone));
        assert!(reports.of(&old).kvm.is_some());
        assert_eq!(reports.of(&new), ClusterReports::default());
        reports.update(&new, |reports| reports.pki = Some(Report::Gone));
        assert!(reports.of(&new).kvm.is_none() && reports.of(&old).kvm.is_none());
    }
}
