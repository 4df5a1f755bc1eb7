//! What decisions about a guest's nodes need, as the cache has it.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{
    plan::{self, Known},
    reconcile::KvmOperator,
    vm_pod::VmPod,
};
use crate::{
    api::names,
    cluster::{Valid, valid::NodePool},
    rollout::{self, Fit, Gate, Node, Plan, Vm, wish},
};

/// Shortest pause before time alone is looked at again.
const SHORTEST: Duration = Duration::from_millis(200);

/// A guest's nodes.
#[derive(Debug)]
pub(super) struct Survey<'a> {
    /// Workers that there should be, with their pools.
    pub workers: Vec<(&'a NodePool, String)>,
    /// Workers that something of is there and that are wanted no more.
    pub unwanted: Vec<String>,
    /// Everything known of workers.
    pub known: Vec<Known>,
    /// All nodes, the control plane first.
    pub nodes: Vec<Node>,
    /// Who of them changes next.
    pub rollout: Plan,
    /// When it was made.
    pub now: Timestamp,
    /// When time alone changes something of it.
    pub next: Option<Duration>,
}

impl Survey<'_> {
    /// Whether a node of the control plane (or a worker) is not what it should be.
    pub(super) fn is_changing(&self, control_plane: bool) -> bool {
        let changes = |vm: &Vm| vm.fit == Fit::Outdated || vm.leaving.is_some() || vm.cordoned.is_some();
        let mut of_role = self.nodes.iter().filter(|node| node.control_plane == control_plane);
        of_role.any(|node| node.vm.as_ref().is_some_and(|vm| !node.wanted || changes(vm)))
    }

    /// Whether every node of the control plane is ready, and as it should be.
    pub(super) fn has_arrived(&self) -> bool {
        let good = |vm: &Vm| vm.ready && vm.fit == Fit::Current && vm.leaving.is_none();
        let mut masters = self.nodes.iter().filter(|node| node.control_plane);
        masters.all(|node| node.vm.as_ref().is_some_and(good))
    }

    /// What the next node of the control plane (or worker) that has to change waits for.
    pub(super) fn waits(&self, control_plane: bool) -> Option<String> {
        let wait = self.rollout.waits.as_ref().filter(|wait| wait.control_plane == control_plane)?;
        Some(wait.to_string())
    }

    /// Whether a node should be there.
    pub(super) fn wants(&self, node: &str) -> bool {
        self.nodes.iter().any(|known| known.name == node && known.wanted)
    }
}

impl KvmOperator {
    /// Looks at all nodes of a guest. Without effect.
    pub(super) fn survey<'a>(&self, valid: &'a Valid, now: Timestamp) -> Survey<'a> {
        let (identity, owner) = (&valid.identity, valid.identity.owner());
        let pods = self.context.vm_pods(identity);
        let pods: Vec<_> = pods.into_iter().filter(|pod| owner.owns(&pod.metadata)).collect();
        let known = self.context.known_workers(identity);
        let workers = plan::workers(valid, &known);
        let unwanted = plan::unwanted(&workers, &known);
        let pod = |name: &str| pods.iter().find(|pod| pod.node() == name);
        let master = names::master(0);
        let vm = pod(&master).map(|pod| self.vm(pod, &wish::control_plane(valid)));
        let mut nodes = vec![Node { name: master, control_plane: true, wanted: true, vm }];
        let wishes: Vec<_> = valid.pools.iter().map(|pool| (&pool.name, wish::worker(valid, pool))).collect();
        for (pool, name) in &workers {
            let wish = wishes.iter().find(|(of, _)| **of == pool.name).map(|(_, wish)| wish.as_str());
            let vm = pod(name).map(|pod| self.vm(pod, wish.unwrap_or_default()));
            nodes.push(Node { name: name.clone(), control_plane: false, wanted: true, vm });
        }
        for name in &unwanted {
            // What does not run is removed without further ado.
            let vm = pod(name).filter(|pod| pod.runs()).map(|pod| self.vm(pod, ""));
            nodes.push(Node { name: name.clone(), control_plane: false, wanted: false, vm });
        }
        let rollout = rollout::plan(&nodes);
        let next = pods.iter().filter_map(|pod| self.left(pod, now)).min();
        let next = next.map(|left| Duration::try_from(left).unwrap_or_default().max(SHORTEST));
        Survey { workers, unwanted, known, nodes, rollout, now, next }
    }

    fn vm(&self, pod: &Arc<VmPod>, wish: &str) -> Vm {
        // One that was made before there were wishes is taken for what it should be.
        let outdated = pod.wish().is_some_and(|made_for| made_for != wish);
        Vm {
            ready: pod.is_ready() && !pod.is_going(),
            fit: if outdated { Fit::Outdated } else { Fit::Current },
            going: pod.is_going(),
            leaving: pod.leaving(),
            cordoned: None,
        }
    }

    /// The time after which something is done about a pod by the clock alone.
    fn left(&self, pod: &VmPod, now: Timestamp) -> Option<SignedDuration> {
        let leaving = pod.leaving().filter(|_| !pod.is_going())?;
        match rollout::gate(leaving.since, false, now, self.context.settings.rollout.drain_timeout) {
            Gate::Closed(left) => Some(left),
            Gate::Open | Gate::Overdue => None,
        }
    }
}
