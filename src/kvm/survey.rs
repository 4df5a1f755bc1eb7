//! What decisions about a guest's nodes need, as the cache has it.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    plan::{self, Known},
    reconcile::KvmOperator,
    vm_pod::VmPod,
};
use crate::{
    api::names,
    cluster::{Identity, Report, Valid, valid::NodePool},
    pki::Turning,
    rollout::{self, Fit, Gate, Node, Plan, Vm, wish},
};

/// Pause before it is looked again whether any host is well.
const ALL_SILENT_POLL: SignedDuration = SignedDuration::from_secs(30);
/// Shortest pause before time alone is looked at again.
const SHORTEST: Duration = Duration::from_millis(200);

/// A guest's nodes.
#[derive(Debug)]
pub(super) struct Survey<'a> {
    /// Nodes of the control plane that there should be now, in order.
    pub masters: Vec<(u32, String)>,
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
    /// What is wrong with the hosts of nodes, by node.
    pub trouble: BTreeMap<String, Trouble>,
    /// When it was made.
    pub now: Timestamp,
    /// When time alone changes something of it.
    pub next: Option<Duration>,
}

/// What is wrong with the host that a node's VM pod is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It was silent for too long, and others are well.
    Dead {
        /// The host.
        host: String,
        /// Since when it is silent.
        since: Timestamp,
    },
    /// It is silent, and people say that it is off for certain.
    OutOfService {
        /// The host.
        host: String,
    },
}

impl Survey<'_> {
    /// Whether a worker was given up.
    pub(super) fn has_lost(&self, node: &str) -> bool {
        self.known.iter().any(|known| known.lost && known.node == node)
    }

    /// Whether a node of the control plane (or a worker) is not what it should be.
    pub(super) fn is_changing(&self, control_plane: bool) -> bool {
        let changes = |vm: &Vm| vm.fit == Fit::Outdated || vm.leaving.is_some() || vm.cordoned.is_some();
        // What is lost goes when its host is back, if ever.
        let mut of_role = self.nodes.iter().filter(|node| node.control_plane == control_plane && !node.is_lost());
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
        let trouble: BTreeMap<_, _> =
            pods.iter().filter_map(|pod| Some((pod.node().to_owned(), self.trouble(pod, now)?))).collect();
        let is_dead = |node: &str| matches!(trouble.get(node), Some(Trouble::Dead { .. }));
        let mut known = self.context.known_workers(identity);
        for worker in &mut known {
            // Given up now; it is written down before anything follows from it.
            worker.lost |= is_dead(&worker.node) && self.config_of(identity, &worker.node).is_some();
        }
        let workers = plan::workers(valid, &known);
        let unwanted = plan::unwanted(&workers, &known);
        let turning = self.turning(identity);
        let vm = |name: &str, wish: &str| {
            let pod = pods.iter().find(|pod| pod.node() == name)?;
            let lost = is_dead(name) || known.iter().any(|known| known.lost && known.node == name);
            let vm = self.vm(pod, wish, lost);
            // One whose etcd is started anew is away, whatever it says in between.
            let ready = vm.ready && !matches!(&turning, Turning::Node(node) if node == name);
            Some(Vm { ready, ..vm })
        };
        let wish = wish::control_plane(valid);
        let master = |index| {
            let name = names::master(index);
            (index, Node { vm: vm(&name, &wish), name, control_plane: true, wanted: true })
        };
        let mut masters: Vec<_> = (0..valid.control_plane.replicas).map(master).collect();
        if !rollout::may_grow(masters.iter().map(|(_, node)| node)) {
            // What something of is there is waited for, or a roll would go on without it.
            let is_made = |node: &Node| {
                let volume = self.volume_of(identity, &node.name).is_some();
                volume || node.vm.is_some() || self.config_of(identity, &node.name).is_some()
            };
            masters.retain(|(index, node)| *index == 0 || is_made(node));
        }
        let mut nodes: Vec<_> = masters.iter().map(|(_, node)| node.clone()).collect();
        let masters = masters.into_iter().map(|(index, node)| (index, node.name)).collect();
        let wishes: Vec<_> = valid.pools.iter().map(|pool| (&pool.name, wish::worker(valid, pool))).collect();
        for (pool, name) in &workers {
            let wish = wishes.iter().find(|(of, _)| **of == pool.name).map(|(_, wish)| wish.as_str());
            let vm = vm(name, wish.unwrap_or_default());
            nodes.push(Node { name: name.clone(), control_plane: false, wanted: true, vm });
        }
        for name in &unwanted {
            // What does not run is removed without further ado.
            let runs = pods.iter().any(|pod| pod.node() == name && pod.runs());
            let vm = vm(name, "").filter(|_| runs);
            nodes.push(Node { name: name.clone(), control_plane: false, wanted: false, vm });
        }
        let rollout = rollout::plan(&nodes);
        let next = pods.iter().flat_map(|pod| [self.drains_in(pod, now), self.dies_in(pod, now)]).flatten().min();
        let next = next.map(|left| Duration::try_from(left).unwrap_or_default().max(SHORTEST));
        Survey { masters, workers, unwanted, known, nodes, rollout, trouble, now, next }
    }

    /// The node of the control plane whose etcd and API server are started anew for other authorities.
    pub(super) fn turning(&self, identity: &Identity) -> Turning {
        let (reports, namespace) = (self.context.reports.of(identity), self.context.namespace(identity));
        let noted = namespace.as_ref().and_then(|namespace| namespace.metadata.annotations.as_ref());
        Turning::of(noted, reports.pki.as_ref().and_then(Report::facts))
    }

    fn vm(&self, pod: &VmPod, wish: &str, lost: bool) -> Vm {
        // One that was made before there were wishes is taken for what it should be.
        let outdated = pod.wish().is_some_and(|made_for| made_for != wish);
        let host = self.context.host_of(pod).unwrap_or_default();
        Vm {
            ready: pod.is_ready() && !pod.is_going(),
            fit: match (lost, outdated) {
                (true, _) => Fit::Lost,
                (false, true) => Fit::Outdated,
                (false, false) => Fit::Current,
            },
            going: pod.is_going(),
            leaving: pod.leaving(),
            // On one that is silent nothing can be powered off.
            cordoned: pod.host().filter(|_| host.cordoned && host.silent_since.is_none()).map(str::to_owned),
        }
    }

    /// What is wrong with the host of a VM pod.
    fn trouble(&self, pod: &VmPod, now: Timestamp) -> Option<Trouble> {
        let (host, state) = (pod.host()?.to_owned(), self.context.host_of(pod)?);
        let since = state.silent_since?;
        if state.out_of_service {
            return Some(Trouble::OutOfService { host });
        }
        let is_over = state.gives_up_in(now, self.context.settings.kvm.host_timeout)?.is_zero();
        // Where all are silent it is more likely that they are not heard, and there is nowhere to go.
        let elsewhere = || self.context.cache.hosts.state().iter().any(|host| host.state().silent_since.is_none());
        (is_over && elsewhere()).then_some(Trouble::Dead { host, since })
    }

    /// The claim on a volume of etcd that a node has.
    pub(super) fn volume_of(&self, identity: &Identity, node: &str) -> Option<ObjectMeta> {
        let name = names::etcd_claim(node);
        let found = self.context.meta(&self.context.cache.volume_claims, &identity.namespace, &name);
        found.filter(|meta| identity.owner().owns(meta))
    }

    /// The ConfigMap of a worker.
    pub(super) fn config_of(&self, identity: &Identity, node: &str) -> Option<ObjectMeta> {
        let name = names::node_config_map(node);
        let found = self.context.meta(&self.context.cache.config_maps, &identity.namespace, &name);
        found.filter(|meta| identity.owner().owns(meta))
    }

    /// The time after which a leaving node is powered off in any case.
    fn drains_in(&self, pod: &VmPod, now: Timestamp) -> Option<SignedDuration> {
        let leaving = pod.leaving().filter(|_| !pod.is_going())?;
        match rollout::gate(leaving.since, false, now, self.context.settings.rollout.drain_timeout) {
            Gate::Closed(left) => Some(left),
            Gate::Open | Gate::Overdue => None,
        }
    }

    /// The time after which a silent host is given up; a while, if it is over and no other host is well yet.
    fn dies_in(&self, pod: &VmPod, now: Timestamp) -> Option<SignedDuration> {
        let left = self.context.host_of(pod)?.gives_up_in(now, self.context.settings.kvm.host_timeout)?;
        match (left.is_zero(), self.trouble(pod, now)) {
            (true, None) => Some(ALL_SILENT_POLL),
            (true, Some(_)) => None,
            (false, _) => Some(left),
        }
    }
}
