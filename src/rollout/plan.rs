//! Which node may change next. Pure.
//!
//! - One node of a guest is leaving at a time, and nobody begins to while another one is not ready.
//! - What is not ready and has to change anyway goes first, and waits for nobody: nothing is lost with it.
//! - The control plane comes before the workers, and while it is outdated no worker is made or replaced: a kubelet must never
//!   be newer than its API server.
//! - What is wanted no more waits for nobody to be ready: it may have to make room for just that one.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

/// A node of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it carries the control plane.
    pub control_plane: bool,
    /// Whether it should be there.
    pub wanted: bool,
    /// Its machine, if there is one.
    pub vm: Option<Vm>,
}

/// A node's machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vm {
    /// Whether its guest answers.
    pub ready: bool,
    /// Whether it is what it should be.
    pub fit: Fit,
    /// Whether it is being powered off already.
    pub going: bool,
    /// Whether it is meant to be replaced or removed, and why.
    pub leaving: Option<Leaving>,
    /// The host that it is on, if that one is cordoned.
    pub cordoned: Option<String>,
}

/// Whether a machine is what it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// It is.
    #[default]
    Current,
    /// It was made for another wish.
    Outdated,
    /// Its host is dead: nothing can be done with it.
    Lost,
}

/// An intent that is written down on a node's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Since when.
    pub since: Timestamp,
    /// Why, in words.
    pub why: String,
}

/// Why a node has to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was made for another wish.
    Outdated,
    /// It should not be there any more.
    Unwanted,
    /// The host of this name is cordoned.
    Cordoned(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outdated => f.write_str("it is outdated"),
            Self::Unwanted => f.write_str("it is wanted no more"),
            Self::Cordoned(host) => write!(f, "its host {host} is cordoned"),
        }
    }
}

/// What a plan comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The node that begins to leave now.
    pub leave: Option<(String, Why)>,
    /// Why the next one does not yet.
    pub waits: Option<Wait>,
    /// Whether no worker may be made or replaced.
    pub holds_workers: bool,
}

/// A node that has to leave and may not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The node.
    pub node: String,
    /// Whether it carries the control plane.
    pub control_plane: bool,
    /// Why it has to leave.
    pub why: Why,
    /// What it waits for.
    pub until: String,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, why, until, .. } = self;
        write!(f, "{until}, then node {node} is replaced ({why})")
    }
}

impl Node {
    /// Whether nothing can be done with its machine, since its host is dead.
    pub fn is_lost(&self) -> bool {
        self.vm.as_ref().is_some_and(|vm| vm.fit == Fit::Lost)
    }

    /// Why it has to leave, unless it does already or cannot.
    fn reason(&self) -> Option<Why> {
        let vm = self.vm.as_ref().filter(|vm| !vm.going && vm.leaving.is_none() && vm.fit != Fit::Lost)?;
        if !self.wanted {
            return Some(Why::Unwanted);
        }
        if vm.fit == Fit::Outdated {
            return Some(Why::Outdated);
        }
        vm.cordoned.clone().map(Why::Cordoned)
    }

    fn is_ready(&self) -> bool {
        self.vm.as_ref().is_some_and(|vm| vm.ready && vm.fit != Fit::Lost)
    }

    fn is_leaving(&self) -> bool {
        self.vm.as_ref().is_some_and(|vm| vm.leaving.is_some() && vm.fit != Fit::Lost)
    }

    fn holds_workers(&self) -> bool {
        let changes = |vm: &Vm| vm.fit == Fit::Outdated || vm.leaving.is_some();
        self.control_plane && self.vm.as_ref().is_some_and(changes)
    }
}

/// Whether nodes of the control plane may come that nothing was made of yet: not before those that are there are as they should
/// be. One that was made to be alone finds no others, and its controllers elect no leader.
pub fn may_grow<'a>(masters: impl IntoIterator<Item = &'a Node>) -> bool {
    !masters.into_iter().any(|node| node.holds_workers() || node.is_lost())
}

/// Who begins to leave now. The order of `nodes` is that in which equals do.
pub fn plan(nodes: &[Node]) -> Plan {
    let mut plan = Plan { holds_workers: nodes.iter().any(Node::holds_workers), ..Plan::default() };
    if nodes.iter().any(Node::is_leaving) {
        return plan;
    }
    let due: Vec<_> = nodes.iter().filter_map(|node| Some((node, node.reason()?))).collect();
    let first = |fits: &dyn Fn(&Node) -> bool| due.iter().find(|(node, _)| fits(node));
    // Its API does not answer, and its etcd may nevertheless be what the others need.
    let broken_master = first(&|node| node.control_plane && !node.is_ready() && !is_another_away(node, nodes));
    let unwanted = first(&|node| !node.wanted && !node.is_ready()).or_else(|| first(&|node| !node.wanted));
    if let Some((node, why)) = broken_master.or(unwanted) {
        plan.leave = Some((node.name.clone(), why.clone()));
        return plan;
    }
    let master = first(&|node| node.control_plane);
    let broken_worker = first(&|node| !node.is_ready()).filter(|_| !plan.holds_workers);
    let (next, until) = match (broken_worker, master) {
        (Some(broken), _) => (Some(broken), None),
        (None, Some(master)) => (Some(master), awaited_by_master(master.0, nodes)),
        (None, None) => {
            let worker = due.first().filter(|_| !plan.holds_workers);
            (worker, worker.and_then(|(worker, _)| awaited_by_worker(worker, nodes)))
        }
    };
    match (next, until) {
        (Some((node, why)), None) => plan.leave = Some((node.name.clone(), why.clone())),
        (Some((node, why)), Some(until)) => {
            let (name, why) = (node.name.clone(), why.clone());
            plan.waits = Some(Wait { node: name, control_plane: node.control_plane, why, until });
        }
        (None, _) => {}
    }
    plan
}

/// Whether another node of the control plane is away and will come back as it is.
fn is_another_away(master: &Node, nodes: &[Node]) -> bool {
    let mut others = nodes.iter().filter(|node| node.control_plane && node.wanted && node.name != master.name);
    others.any(|node| !node.is_ready() && node.reason().is_none())
}

/// Whom a node of the control plane has to wait for: who is there, should be ready and is not. A worker that is to be made or
/// replaced itself comes after it, and would wait for ever.
fn awaited_by_master(master: &Node, nodes: &[Node]) -> Option<String> {
    let others = nodes.iter().filter(|node| node.wanted && node.name != master.name);
    let mut awaited = others.filter(|node| {
        let comes_later = !node.control_plane && (node.vm.is_none() || node.reason().is_some());
        !node.is_ready() && !comes_later
    });
    awaited.next().map(ready)
}

/// Whom a worker has to wait for: everybody else.
fn awaited_by_worker(worker: &Node, nodes: &[Node]) -> Option<String> {
    nodes.iter().find(|node| node.wanted && node.name != worker.name && !node.is_ready()).map(ready)
}

fn ready(node: &Node) -> String {
    format!("node {} to be ready", node.name)
}

/// Whether a leaving node may be powered off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may: nothing runs there that could go elsewhere.
    Open,
    /// It may, since its time is over.
    Overdue,
    /// Not yet, but after this time in any case.
    Closed(SignedDuration),
}

/// Whether a node that is leaving since `since` may be powered off at `now`. `drained` is whether its pods are elsewhere by
/// now; a node of the control plane, or one whose machine does not run, has none that could be.
pub fn gate(since: Timestamp, drained: bool, now: Timestamp, timeout: SignedDuration) -> Gate {
    // A clock that was set back must not make it wait longer than from now on.
    let left = timeout - now.duration_since(since).max(SignedDuration::ZERO);
    if drained {
        Gate::Open
    } else if left <= SignedDuration::ZERO {
        Gate::Overdue
    } else {
        Gate::Closed(left)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A node as a few words say it: its name, then any of `!` unready, `old`, `lost`, `unwanted`, `going`, `leaving`, `h`
    /// for a cordoned host, `none` for no machine.
    fn node(words: &str) -> Node {
        let mut words = words.split(' ');
        let name = words.next().unwrap().to_owned();
        let mut vm = Vm { ready: true, ..Vm::default() };
        let (mut wanted, mut there) = (true, true);
        for word in words {
            match word {
                "!" => vm.ready = false,
                "old" => vm.fit = Fit::Outdated,
                "lost" => vm.fit = Fit::Lost,
                "unwanted" => wanted = false,
                "going" => (vm.ready, vm.going) = (false, true),
                "leaving" => vm.leaving = Some(Leaving { since: at(0), why: String::new() }),
                "none" => there = false,
                host => vm.cordoned = Some(host.into()),
            }
        }
        Node { control_plane: name.starts_with('m'), name, wanted, vm: there.then_some(vm) }
    }

    fn plan_of(nodes: &str) -> Plan {
        plan(&nodes.split(", ").map(node).collect::<Vec<_>>())
    }

    #[test]
    fn who_goes_next() {
        for (nodes, expected) in [
            ("m, a, b", ""),
            ("m old, a, b", "m"),
            ("m old, a old, b old", "m"),
            ("m, a old, b old", "a"),
            // What is broken and outdated goes first, and whatever else is broken does not hold it.
            ("m, a old, b old !", "b"),
            ("m ! old, a !, b", "m"),
            ("m !, a old !, b", "a"),
            // Nobody leaves while another is not ready, is missing, or is leaving.
            ("m, a old, b !", "b to be ready"),
            ("m, a old, b none", "b to be ready"),
            ("m, a old, b going", "b to be ready"),
            ("m !, a old, b", "m to be ready"),
            ("m none, a old, b", "m to be ready"),
            ("m old, a !, b", "a to be ready"),
            ("m, a old leaving, b old", ""),
            ("m leaving, a old, b old !", ""),
            // Workers that come after the control plane do not hold it.
            ("m old, a none, b", "m"),
            ("m old, a ! old, b", "m"),
            ("m going old, a old, b ! old", ""),
            // A cordoned host is a reason like another.
            ("m h1, a h1, b", "m"),
            ("m, a h1, b h1", "a"),
            ("m, a h1 !, b h1", "a"),
            ("m h1, a ! old, b", "a"),
            ("m, a h1, b !", "b to be ready"),
            // What is wanted no more waits for nobody, and goes before what is replaced.
            ("m, a !, b unwanted", "b"),
            ("m, a old, b unwanted, c unwanted !", "c"),
            ("m old, a, b unwanted", "b"),
            ("m, a leaving, b unwanted", ""),
            // What is lost holds nobody, and cannot be replaced; its successor is waited for.
            ("m, a lost unwanted, b old, c", "b"),
            ("m, a lost leaving unwanted, b old, c", "b"),
            ("m, a lost unwanted, b old, c !", "c to be ready"),
            ("m lost, a old, b", "m to be ready"),
        ] {
            let plan = plan_of(nodes);
            let said = plan.leave.map(|(node, _)| node).or_else(|| plan.waits.map(|wait| wait.until));
            let said = said.unwrap_or_default();
            assert_eq!(said.trim_start_matches("node "), expected, "{nodes}");
        }
    }

    #[test]
    fn no_kubelet_becomes_newer_than_its_api_server() {
        for (nodes, held) in [
            ("m, a old", false),
            ("m old, a none", true),
            ("m leaving, a none", true),
            ("m old going, a none", true),
            // It comes back as what it should be, and workers may begin to boot beside it.
            ("m none, a none", false),
            ("m !, a none", false),
        ] {
            assert_eq!(plan_of(nodes).holds_workers, held, "{nodes}");
        }
    }

    #[test]
    fn a_control_plane_grows_when_what_is_there_was_replaced() {
        for (masters, expected) in [
            ("m-0 none, m-1 none, m-2 none", true),
            ("m-0 old, m-1 none, m-2 none", false),
            ("m-0 old leaving, m-1 none, m-2 none", false),
            ("m-0, m-1 !, m-2 none", true),
            ("m-0 lost, m-1 none, m-2 none", false),
        ] {
            let masters: Vec<_> = masters.split(", ").map(node).collect();
            assert_eq!(may_grow(&masters), expected);
        }
        // Those that are there wait for each other: etcd keeps its quorum.
        assert_eq!(plan_of("m-0 old, m-1 !, m-2").waits.unwrap().until, "node m-1 to be ready");
        assert_eq!(plan_of("m-0 old, m-1 none, m-2").waits.unwrap().until, "node m-1 to be ready");
        assert_eq!(plan_of("m-0 old, m-1 old, m-2").leave.unwrap().0, "m-0");
        assert_eq!(plan_of("m-0, m-1 old, m-2 ! old").leave.unwrap().0, "m-2");
        assert_eq!(plan_of("m-0 !, m-1 old !, m-2").waits.unwrap().until, "node m-0 to be ready");
        assert_eq!(plan_of("m-0 none, m-1 old !, m-2").waits.unwrap().until, "node m-0 to be ready");
        assert_eq!(plan_of("m-0 ! old, m-1 old !, m-2").leave.unwrap().0, "m-0");
    }

    #[test]
    fn a_wait_says_who_for_whom_and_why() {
        let wait = plan_of("m, a h1, b !").waits.unwrap();
        assert_eq!(wait.to_string(), "node b to be ready, then node a is replaced (its host h1 is cordoned)");
    }

    #[test]
    fn a_drain_ends_with_the_pods_or_with_the_time() {
        let ten = SignedDuration::from_secs(10);
        assert_eq!(gate(at(100), true, at(100), ten), Gate::Open);
        assert_eq!(gate(at(100), false, at(103), ten), Gate::Closed(SignedDuration::from_secs(7)));
        assert_eq!(gate(at(100), false, at(110), ten), Gate::Overdue);
        assert_eq!(gate(at(100), true, at(900), ten), Gate::Open);
        assert_eq!(gate(at(100), false, at(7), ten), Gate::Closed(ten));
    }

    fn any_vm() -> impl Strategy<Value = Vm> {
        let fit = prop_oneof![3 => Just(Fit::Current), 3 => Just(Fit::Outdated), 1 => Just(Fit::Lost)];
        let host = prop_oneof![3 => Just(None), 1 => Just(Some("h".to_owned()))];
        (any::<bool>(), fit, prop::bool::weighted(0.1), prop::bool::weighted(0.1), host).prop_map(
            |(ready, fit, going, leaving, cordoned)| {
                let leaving = leaving.then(|| Leaving { since: at(0), why: String::new() });
                Vm { ready: ready && !going, fit, going, leaving, cordoned }
            },
        )
    }

    fn any_nodes() -> impl Strategy<Value = Vec<Node>> {
        let one = (prop::bool::weighted(0.8), prop::option::weighted(0.9, any_vm()));
        prop::collection::vec(one, 1..6).prop_map(|all| {
            let node = |(index, (wanted, vm)): (usize, (bool, Option<Vm>))| {
                let control_plane = index == 0;
                let name = if control_plane { "m".to_owned() } else { format!("a-{index}") };
                Node { name, control_plane, wanted: wanted || control_plane, vm }
            };
            all.into_iter().enumerate().map(node).collect()
        })
    }

    proptest! {
        #[test]
        fn whoever_leaves_may(nodes in any_nodes()) {
            let plan = plan(&nodes);
            let Some((name, _)) = plan.leave else { return Ok(()) };
            prop_assert!(!nodes.iter().any(Node::is_leaving));
            let node = nodes.iter().find(|node| node.name == name).unwrap();
            let vm = node.vm.as_ref().unwrap();
            prop_assert!(!vm.going && vm.fit != Fit::Lost);
            prop_assert!(!node.wanted || vm.fit == Fit::Outdated || vm.cordoned.is_some());
            if node.wanted && !node.control_plane {
                prop_assert!(!plan.holds_workers);
            }
            if node.wanted && vm.ready && !node.control_plane {
                prop_assert!(nodes.iter().all(|other| !other.wanted || other.is_ready()));
            }
        }

        /// Rounds of plan and world: what leaves goes and comes back current, and what is not ready becomes so. Every node is
        /// what it should be in the end, one at a time, and at no moment is a worker made while the control plane is outdated.
        #[test]
        fn everybody_has_changed_in_the_end(mut nodes in any_nodes()) {
            for node in &mut nodes {
                let lost = node.vm.as_ref().is_some_and(|vm| vm.fit == Fit::Lost);
                // One that is lost ends with its host, which is not told here.
                if lost {
                    node.vm = None;
                }
            }
            let settled = |nodes: &[Node]| nodes.iter().all(|node| {
                node.wanted == node.vm.is_some() && node.reason().is_none() && !node.is_leaving()
                    && (!node.wanted || node.is_ready())
            });
            for _ in 0..nodes.len() * 8 {
                let plan = plan(&nodes);
                if let Some((name, _)) = &plan.leave {
                    let node = nodes.iter_mut().find(|node| node.name == *name).unwrap();
                    node.vm.as_mut().unwrap().leaving = Some(Leaving { since: at(0), why: String::new() });
                    continue;
                }
                for node in &mut nodes {
                    match &mut node.vm {
                        Some(vm) if vm.going || vm.leaving.is_some() => node.vm = None,
                        // An outdated machine that is broken stays so.
                        Some(vm) if vm.fit == Fit::Current => vm.ready = true,
                        None if node.wanted && (node.control_plane || !plan.holds_workers) => {
                            node.vm = Some(Vm::default());
                        }
                        _ => {}
                    }
                }
            }
            prop_assert!(settled(&nodes), "{nodes:?}");
        }
    }
}
