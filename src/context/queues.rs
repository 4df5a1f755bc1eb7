//! What the micro-operators work on.

use crate::{access::AccessKey, cluster::ClusterKey, flannel::install::Installation, runtime::queue::Queue};

/// The isolation operator waits for what does not come about, so it has so many times the others' workers.
const WAITING: usize = 8;

/// A queue of each micro-operator. Clones share them.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is that of the operator of its name")]
pub struct Queues {
    pub cluster: Queue<ClusterKey>,
    pub network: Queue<ClusterKey>,
    pub flannel: Queue<ClusterKey>,
    pub flannel_etcd: Queue<Installation>,
    pub pki: Queue<ClusterKey>,
    pub kvm: Queue<ClusterKey>,
    #[cfg(feature = "aws")]
    pub aws: Queue<ClusterKey>,
    pub isolation: Queue<ClusterKey>,
    pub guest: Queue<ClusterKey>,
    pub access: Queue<AccessKey>,
}

impl Queues {
    /// Queues of operators with so many workers each.
    pub fn new(workers: usize) -> Self {
        Self {
            cluster: Queue::new(workers),
            network: Queue::new(workers),
            flannel: Queue::new(workers),
            flannel_etcd: Queue::new(1),
            pki: Queue::new(workers),
            kvm: Queue::new(workers),
            #[cfg(feature = "aws")]
            aws: Queue::new(workers),
            isolation: Queue::new(workers * WAITING),
            guest: Queue::new(workers),
            access: Queue::new(workers),
        }
    }

    /// Those in which every Cluster is looked at.
    pub(super) fn of_clusters(&self) -> impl Iterator<Item = &Queue<ClusterKey>> {
        let all = [&self.cluster, &self.network, &self.flannel, &self.pki, &self.kvm, &self.isolation, &self.guest];
        #[cfg(feature = "aws")]
        let all = all.into_iter().chain([&self.aws]);
        all.into_iter()
    }
}
