//! Every guarantee of a rotation, over random orders of events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    pki::leaf::{self, Authority, Leaf, Usage},
    supervisor::consumers::{Answer, Met},
    testing::valid,
};

const GENERATION: u32 = 2;

impl From<&str> for Lack {
    fn from(what: &str) -> Self {
        Self { what: what.into(), away: !what.contains("kubelet") }
    }
}

fn both() -> Both {
    let told = |generation: &str| {
        let all = |what: &str| Authority::ALL.map(|of| (of, format!("{what} {of} {generation}"))).into();
        Told { names: all("name"), certificates: all("certificate") }
    };
    Both { old: told("old"), new: told("new") }
}

fn mark(phase: Phase) -> Mark {
    Mark { generation: GENERATION, phase }
}

/// What a node answers that is through this phase.
fn through(node: &str, phase: Phase, alone: bool) -> Answer {
    let control_plane = node.starts_with("master-");
    let both = both();
    let asks = |authorities: &[Authority]| {
        let of = |authority: &Authority| {
            let trusted = trusted(*authority, phase, alone);
            let old = trusted.holds_old().then(|| both.old.names[authority].clone());
            let new = trusted.holds_new().then(|| both.new.names[authority].clone());
            old.into_iter().chain(new).collect::<Vec<_>>()
        };
        authorities.iter().flat_map(of).collect()
    };
    let signer = |of, new: bool| if new { &both.new } else { &both.old }.names[&of].clone();
    let (servers, etcd) = (phase >= Phase::Serve, phase >= Phase::Reissue);
    let (kubernetes, proxy) = (Authority::Kubernetes, Authority::FrontProxy);
    let mut met = BTreeMap::from([(
        "kubelet".to_owned(),
        Met { asks: asks(&[kubernetes]), signer: signer(kubernetes, servers), well: true },
    )]);
    if control_plane {
        let api = Met { asks: asks(&[kubernetes, proxy]), signer: signer(kubernetes, servers), well: true };
        let etcd = Met { asks: asks(&[Authority::Etcd]), signer: signer(Authority::Etcd, etcd), well: true };
        met.extend([("kube-apiserver".to_owned(), api), ("etcd".to_owned(), etcd)]);
    }
    let started = turns(mark(phase), control_plane, alone);
    Answer { met, started: started.into_iter().map(|(unit, mark)| (unit.to_owned(), mark)).collect() }
}

#[test]
fn who_shows_all_of_its_phase_lacks_nothing_and_of_any_other_something() {
    for alone in [false, true] {
        for node in ["master-0", "a-0"] {
            for phase in Phase::ALL {
                let answer = through(node, phase, alone);
                assert_eq!(lacks(node, mark(phase), alone, &both(), Some(&answer)), None, "{node} {phase:?}");
                for other in Phase::ALL.into_iter().filter(|other| *other != phase) {
                    let lacks = lacks(node, mark(other), alone, &both(), Some(&answer));
                    assert!(lacks.is_some(), "{node} {phase:?} passes for {other:?}");
                }
            }
        }
    }
    let silent = lacks("master-0", mark(Phase::Trust), false, &both(), None).unwrap();
    assert!(silent.away && silent.what.starts_with("master-0: its VM pod"), "{silent:?}");
    assert!(silent.what.contains("when they are rolled"), "{silent:?}");
}

#[test]
fn every_single_thing_that_is_missing_is_named() {
    let alone = false;
    for phase in Phase::ALL {
        let whole = through("master-1", phase, alone);
        for name in whole.met.keys() {
            let check = |change: &dyn Fn(&mut Answer), word: &str| {
                let mut answer = whole.clone();
                change(&mut answer);
                let lacks = lacks("master-1", mark(phase), alone, &both(), Some(&answer)).unwrap();
                assert_eq!(lacks.away, name != "kubelet", "{lacks:?}");
                let lacks = lacks.what;
                assert!(lacks.starts_with(&format!("master-1: {name} ")) && lacks.contains(word), "{phase:?}: {lacks}");
            };
            check(&|answer| drop(answer.met.remove(name)), "answer");
            check(&|answer| answer.met.get_mut(name).unwrap().well = false, "well");
            check(&|answer| answer.met.get_mut(name).unwrap().signer = "other".into(), "show");
            check(&|answer| answer.met.get_mut(name).unwrap().asks.clear(), "trust");
        }
        for unit in whole.started.keys() {
            let mut answer = whole.clone();
            answer.started.insert(unit.clone(), "1.drop".into());
            let lack = lacks("master-1", mark(phase), alone, &both(), Some(&answer)).unwrap();
            assert!(lack.what.contains(unit.as_str()), "{lack:?}");
            assert_eq!(lack.away, ["etcd", "kube-apiserver"].contains(&unit.as_str()), "{lack:?}");
            // That etcd is not there counts more than whatever else.
            answer.met.remove("etcd");
            assert!(lacks("master-1", mark(phase), alone, &both(), Some(&answer)).unwrap().away);
        }
    }
}

#[test]
fn marks_are_read_as_they_were_written() {
    for phase in Phase::ALL {
        assert_eq!(mark(phase).to_string().parse(), Ok(mark(phase)));
    }
    for text in ["", "2", "2.", ".trust", "x.trust", "2.other", "-1.trust", "2.trust.x"] {
        assert_eq!(text.parse::<Mark>(), Err(()), "{text}");
    }
}

#[test]
fn a_lone_api_server_is_started_anew_once_and_others_twice() {
    for (alone, times) in [(true, 1), (false, 2)] {
        let starts: std::collections::BTreeSet<_> = Phase::ALL
            .into_iter()
            .filter_map(|phase| turns(mark(phase), true, alone).get("kube-apiserver").cloned())
            .collect();
        assert_eq!(starts.len(), times, "{starts:?}");
        let of_turns = Phase::ALL.into_iter().filter(|phase| is_turn(*phase, alone)).count();
        assert_eq!(of_turns, times);
    }
    assert_eq!(turns(mark(Phase::Drop), false, false).keys().copied().collect::<Vec<_>>(), ["kube-proxy", "kubelet"]);
}

#[test]
fn nobody_begins_the_next_stage_of_what_is_not_published() {
    let published = |phase: Phase| {
        let trusted = trusted(Authority::Kubernetes, phase, false);
        let of = |authorities: &[Authority]| {
            let both = both();
            let old = authorities.iter().filter(|_| trusted.holds_old()).map(|of| both.old.certificates[of].clone());
            let new = authorities.iter().filter(|_| trusted.holds_new()).map(|of| both.new.certificates[of].clone());
            old.chain(new).collect()
        };
        Published {
            roots: of(&[Authority::Kubernetes]),
            extensions: of(&[Authority::Kubernetes, Authority::FrontProxy]),
            add_ons: add_ons_for(mark(phase)).map(|mark| mark.to_string()),
        }
    };
    for phase in Phase::ALL {
        let whole = published(phase);
        let check = |published: Option<&Published>| unpublished(mark(phase), false, &both(), published);
        assert_eq!(check(Some(&whole)), None, "{phase:?}");
        assert!(check(None).is_some());
        assert!(
            check(Some(&Published { roots: Default::default(), ..whole.clone() })).unwrap().contains("kube-root-ca")
        );
        let lacking = Published { extensions: Default::default(), ..whole.clone() };
        assert!(check(Some(&lacking)).unwrap().contains("extension-apiserver"));
        if phase >= Phase::Reissue {
            assert!(check(Some(&Published { add_ons: None, ..whole.clone() })).unwrap().contains("add-ons"));
        }
    }
    assert!(unpublished(mark(Phase::Drop), false, &both(), Some(&published(Phase::Serve))).is_some());
}

/// A node as it runs: what its Secret says, what its files say, and what its processes read when they started.
#[derive(Clone, Debug)]
struct Running {
    secret: Phase,
    files: Phase,
    /// What etcd and the API server trust of etcd, and what kubelet and the others have started for.
    etcd: Phase,
    clients: Phase,
    /// Whether etcd and the API server are up.
    up: bool,
}

impl Running {
    fn at(phase: Phase) -> Self {
        Self { secret: phase, files: phase, etcd: phase, clients: phase, up: true }
    }

    /// The phase whose mark a process carries that was started in one.
    fn last(starts: impl Fn(Phase) -> bool, phase: Phase) -> Option<Phase> {
        Phase::ALL.into_iter().rev().find(|last| *last <= phase && starts(*last))
    }
}

/// A guest, its nodes by name.
#[derive(Clone, Debug)]
struct World {
    nodes: BTreeMap<String, Running>,
    alone: bool,
    published: Phase,
    add_ons: Phase,
    issued: bool,
    until: Option<i64>,
    now: i64,
    leaving: Option<String>,
    over: bool,
}

#[derive(Clone, Debug)]
enum Event {
    /// The manager looks, and does the first so many of what it decides, or all. It keeps nothing between two looks.
    Look(Option<usize>),
    /// A node's files follow its Secret.
    Sync(usize),
    /// A node's units are started as its files ask for.
    Start(usize),
    /// What began to start is up.
    Up(usize),
    /// A node's VM is replaced, as it stands.
    Replace(usize),
    /// A worker comes.
    Join,
    /// A worker goes.
    Leave,
    /// The guest publishes what its controllers read.
    Publish,
    /// Add-ons are started anew, and the kubeconfig is issued.
    Renew,
    /// Time passes.
    Wait(i64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => prop_oneof![Just(None), (0_usize..3).prop_map(Some)].prop_map(Event::Look),
        4 => (0_usize..6).prop_map(Event::Sync),
        4 => (0_usize..6).prop_map(Event::Start),
        4 => (0_usize..6).prop_map(Event::Up),
        1 => (0_usize..6).prop_map(Event::Replace),
        1 => Just(Event::Join),
        1 => Just(Event::Leave),
        2 => Just(Event::Publish),
        2 => Just(Event::Renew),
        2 => (1_i64..40).prop_map(Event::Wait),
    ]
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

impl World {
    fn new(masters: usize) -> Self {
        let masters = (0..masters).map(|n| format!("master-{n}"));
        let names = masters.clone().chain(["a-0".into(), "a-1".into()]);
        Self {
            nodes: names.map(|name| (name, Running::at(Phase::Before))).collect(),
            alone: masters.count() == 1,
            published: Phase::Before,
            add_ons: Phase::Before,
            issued: false,
            until: None,
            now: 0,
            leaving: None,
            over: false,
        }
    }

    fn turn_of(&self, phase: Phase) -> Option<Phase> {
        Running::last(|phase| is_turn(phase, self.alone), phase)
    }

    fn start_of(phase: Phase) -> Option<Phase> {
        Running::last(|phase| matches!(phase, Phase::Trust | Phase::Reissue | Phase::Drop), phase)
    }

    /// What a supervisor would see, from the processes.
    fn answer(&self, name: &str, node: &Running) -> Answer {
        let mut answer = through(name, node.files, self.alone);
        // Kubelet names the issuers of its start; etcd likewise.
        let of_start = through(name, node.clients, self.alone);
        answer.met.get_mut("kubelet").unwrap().asks = of_start.met["kubelet"].asks.clone();
        for (unit, mark) in turns(mark(node.clients), name.starts_with('m'), self.alone) {
            if !["etcd", "kube-apiserver"].contains(&unit) {
                answer.started.insert(unit.into(), mark);
            }
        }
        if Self::start_of(node.clients).is_none() {
            answer.started.retain(|unit, _| ["etcd", "kube-apiserver"].contains(&unit.as_str()));
        }
        if name.starts_with('m') {
            let of_turn = through(name, node.etcd, self.alone);
            answer.met.get_mut("etcd").unwrap().asks = of_turn.met["etcd"].asks.clone();
            for unit in ["etcd", "kube-apiserver"] {
                match self.turn_of(node.etcd) {
                    Some(phase) => answer.started.insert(unit.into(), mark(phase).to_string()),
                    None => answer.started.remove(unit),
                };
                answer.met.get_mut(unit).unwrap().well = node.up;
            }
        }
        answer
    }

    fn look(&mut self, most: Option<usize>) {
        let both = both();
        let members: Vec<_> = self
            .nodes
            .iter()
            .map(|(name, node)| Member {
                node: name.clone(),
                control_plane: name.starts_with('m'),
                runs: true,
                phase: Some(node.secret),
                lacks: lacks(name, mark(node.secret), self.alone, &both, Some(&self.answer(name, node))),
                turns: false,
            })
            .collect();
        let front = front(members.iter().map(|member| member.phase));
        let due = add_ons_for(mark(front)).map(|mark| mark.phase);
        let same =
            |a, b| trusted(Authority::Kubernetes, a, self.alone) == trusted(Authority::Kubernetes, b, self.alone);
        let is_published = same(self.published, front) && due.is_none_or(|due| due == self.add_ons);
        let situation = Situation {
            members: &members,
            alone: self.alone,
            unpublished: (!is_published).then(|| "published".into()),
            issued: self.issued,
            until: self.until.map(at),
            busy: self.leaving.clone(),
        };
        let decision = decide(&situation, at(self.now));
        assert!(decision.is_over || !decision.enter.is_empty() || decision.waits.is_some(), "it says nothing");
        if decision.stage == Stage::Overlap && self.until.is_none() {
            self.until = Some(self.now + 100);
        }
        self.over |= decision.is_over;
        for (node, phase) in decision.enter.into_iter().take(most.unwrap_or(usize::MAX)) {
            let node = self.nodes.get_mut(&node).unwrap();
            assert!(node.secret.next() == Some(phase), "a phase is left out, or gone back");
            node.secret = phase;
        }
    }

    fn nth(&mut self, place: usize) -> &mut Running {
        let place = place % self.nodes.len();
        self.nodes.values_mut().nth(place).unwrap()
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Look(most) => self.look(*most),
            Event::Sync(place) => {
                let node = self.nth(*place);
                node.files = node.secret;
            }
            Event::Start(place) => {
                let name = self.nodes.keys().nth(place % self.nodes.len()).unwrap().clone();
                let node = &self.nodes[&name];
                let turns = name.starts_with('m') && self.turn_of(node.files) != self.turn_of(node.etcd);
                let starts = Self::start_of(node.files) != Self::start_of(node.clients);
                let node = self.nodes.get_mut(&name).unwrap();
                if turns {
                    (node.etcd, node.up) = (node.files, false);
                }
                if starts {
                    node.clients = node.files;
                }
            }
            Event::Up(place) => self.nth(*place).up = true,
            Event::Replace(place) => {
                let name = self.nodes.keys().nth(place % self.nodes.len()).unwrap().clone();
                // Nobody is replaced while another turns: that is what the turn is told for.
                let turned = |world: &Self| {
                    world.nodes.iter().any(|(name, node)| {
                        name.starts_with('m') && (!node.up || world.turn_of(node.secret) != world.turn_of(node.etcd))
                    })
                };
                if !(name.starts_with('m') && turned(self)) {
                    let node = self.nodes.get_mut(&name).unwrap();
                    *node = Running { up: node.up, ..Running::at(node.secret) };
                }
            }
            Event::Join => {
                let front = front(self.nodes.values().map(|node| Some(node.secret)));
                let name = format!("a-{}", self.nodes.len());
                self.nodes.entry(name).or_insert(Running::at(front));
            }
            Event::Leave => {
                let last = self.nodes.keys().rev().find(|name| name.starts_with('a')).cloned();
                if let Some(last) = last.filter(|_| self.nodes.len() > 5) {
                    self.nodes.remove(&last);
                }
            }
            Event::Publish => {
                let masters = self.nodes.iter().filter(|(name, _)| name.starts_with('m'));
                // Whichever controller manager leads, the last to have started.
                self.published = masters.map(|(_, node)| node.clients).min().unwrap();
            }
            Event::Renew => {
                let front = front(self.nodes.values().map(|node| Some(node.secret)));
                self.issued = users_get_new(front);
                if let Some(due) = add_ons_for(mark(front)) {
                    self.add_ons = due.phase.min(self.published.max(Phase::Trust));
                }
            }
            Event::Wait(seconds) => self.now += seconds,
        }
    }

    /// Whether whoever shows what this phase shows is believed by who trusts as in the other.
    fn believes(&self, shown: &Leaf, shows: Phase, trusts: Phase) -> bool {
        let trusted = trusted(shown.authority, trusts, self.alone);
        if signs_new(shown, shows) { trusted.holds_new() } else { trusted.holds_old() }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let masters: Vec<_> = self.nodes.iter().filter(|(name, _)| name.starts_with('m')).collect();
        let down = masters.iter().filter(|(_, node)| !node.up).count();
        prop_assert!(down <= 1, "{down} members are away");
        let turning = masters.iter().filter(|(_, node)| self.turn_of(node.secret) != self.turn_of(node.etcd)).count();
        prop_assert!(turning <= 1, "{turning} members are to turn");
        let cluster = valid(serde_json::json!({}));
        let leaves = leaf::of_master(&cluster, 0);
        let leaf = |name: &str| leaves.iter().find(|leaf| leaf.name == name).unwrap();
        for (from, client) in &self.nodes {
            for (to, server) in &masters {
                // Certificates are read at every handshake. Whom an API server trusts it reads while it runs.
                for name in ["kubelet", "kube-proxy", "metrics"] {
                    prop_assert!(
                        self.believes(leaf(name), client.files, server.files),
                        "{to} refuses {name} of {from}"
                    );
                }
                let api = leaf("apiserver");
                // Whom a client trusts it read when it started, or reads while it runs.
                for trusts in [client.files, client.clients] {
                    prop_assert!(self.believes(api, server.files, trusts), "{from} does not believe {to}");
                }
            }
        }
        for (from, client) in &masters {
            for (to, server) in &self.nodes {
                let kubelet = leaf("kubelet-server");
                prop_assert!(
                    self.believes(kubelet, server.files, client.files),
                    "{from} does not believe kubelet {to}"
                );
                let client_leaf = leaf("apiserver-kubelet-client");
                prop_assert!(self.believes(client_leaf, client.files, server.files), "kubelet {to} refuses {from}");
            }
            for (to, server) in &masters {
                // Alone, what is read and what runs differ until it turns, which is its outage.
                let itself_turns = self.alone && self.turn_of(client.files) != self.turn_of(client.etcd);
                for name in ["etcd-peer", "etcd-server", "apiserver-etcd-client"] {
                    let well = self.believes(leaf(name), client.files, server.etcd);
                    prop_assert!(well || itself_turns, "etcd of {to} refuses {name} of {from}");
                }
            }
            // kube-apiserver as a client of extensions: these know what is published.
            let proxy = leaf("front-proxy-client");
            prop_assert!(self.believes(proxy, client.files, self.published.max(client.files.min(Phase::Trust))));
        }
        // What users are given opens every API server.
        let front = front(self.nodes.values().map(|node| Some(node.secret)));
        let are_let_in = |node: &Running| trusted(Authority::Kubernetes, node.files, self.alone).holds_new();
        prop_assert!(!users_get_new(front) || masters.iter().all(|(_, node)| are_let_in(node)), "users are refused");
        // Whoever held a kubeconfig of the former authority alone has until then.
        let over = self.until.is_some_and(|until| self.now >= until);
        let ends = masters.iter().any(|(_, node)| signs_new(leaf("apiserver"), node.secret));
        prop_assert!(!ends || over, "users were cut off");
        prop_assert!(!ends || self.issued);
        if self.over {
            let forgot = |node: &Running| {
                let (etcd, trusts) = (trusted(Authority::Etcd, node.etcd, self.alone), Authority::Kubernetes);
                !etcd.holds_old()
                    && !trusted(trusts, node.files, self.alone).holds_old()
                    && !trusted(trusts, node.clients, self.alone).holds_old()
            };
            prop_assert!(masters.iter().all(|(_, node)| forgot(node)), "somebody trusts the former authorities");
            let workers = self.nodes.iter().filter(|(name, _)| name.starts_with('a'));
            for (name, node) in workers {
                prop_assert!(
                    !trusted(Authority::Kubernetes, node.clients, self.alone).holds_old(),
                    "{name} trusts them"
                );
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_breaks_a_guarantee(
        masters in prop_oneof![Just(1_usize), Just(3)],
        events in proptest::collection::vec(event(), 1..250),
    ) {
        let mut world = World::new(masters);
        for event in &events {
            world.happen(event);
            if let Err(error) = world.check() {
                return Err(TestCaseError::fail(format!("after {event:?}: {error}\n{world:#?}")));
            }
            if world.over {
                break;
            }
        }
    }

    #[test]
    fn it_comes_to_an_end_whatever_was_before(
        masters in prop_oneof![Just(1_usize), Just(3)],
        events in proptest::collection::vec(event(), 0..120),
    ) {
        let mut world = World::new(masters);
        events.iter().for_each(|event| world.happen(event));
        for _ in 0..80 {
            world.look(None);
            for place in 0..world.nodes.len() {
                for event in [Event::Sync(place), Event::Start(place), Event::Up(place)] {
                    world.happen(&event);
                }
            }
            for event in [Event::Publish, Event::Renew, Event::Wait(20)] {
                world.happen(&event);
            }
        }
        prop_assert!(world.over, "{world:#?}");
    }
}

#[test]
fn nobody_turns_while_another_is_being_replaced() {
    let member = |name: &str| Member {
        node: name.into(),
        control_plane: name.starts_with('m'),
        runs: true,
        phase: Some(Phase::Before),
        lacks: None,
        turns: false,
    };
    let members: Vec<_> = ["master-0", "master-1", "master-2", "a-0"].map(member).into();
    let busy = Situation { members: &members, busy: Some("master-1 to be replaced".into()), ..Situation::default() };
    let decision = decide(&busy, at(0));
    assert_eq!(decision.enter.keys().collect::<Vec<_>>(), ["a-0"]);
    assert_eq!(decision.waits.as_deref(), Some("master-1 to be replaced"));
    let free = decide(&Situation { busy: None, ..busy }, at(0));
    assert_eq!(free.enter.keys().collect::<Vec<_>>(), ["a-0", "master-0"]);
    assert_eq!(free.turning.as_deref(), Some("master-0"));
}

#[test]
fn one_that_has_no_secret_yet_or_does_not_answer_is_waited_for_by_name() {
    let member = |name: &str, phase, lacks: Option<&str>| Member {
        node: name.into(),
        control_plane: true,
        runs: true,
        phase,
        lacks: lacks.map(Into::into),
        turns: false,
    };
    let trust = Some(Phase::Trust);
    for (odd, waits) in [
        (member("master-2", trust, Some("master-2: its VM pod to say")), "master-2: its VM pod to say"),
        (member("master-2", None, None), "master-2: its certificates"),
    ] {
        let members = [member("master-0", trust, None), member("master-1", trust, None), odd];
        let decision = decide(&Situation { members: &members, ..Situation::default() }, at(0));
        assert_eq!((decision.enter.len(), decision.waits.as_deref(), decision.is_over), (0, Some(waits), false));
    }
    let servers: Vec<_> = leaf::of_master(&valid(serde_json::json!({})), 0)
        .into_iter()
        .filter(|leaf| leaf.usage == Usage::Server)
        .map(|leaf| leaf.name)
        .collect();
    assert_eq!(servers, ["apiserver", "kubelet-server"], "what turns at the end is what users and API servers verify");
}

/// A control plane grows from one node to three: the first is replaced before the others get a VM, and waits for who turns.
#[test]
fn a_node_without_a_vm_does_not_turn_in_any_phase() {
    for phase in Phase::ALL {
        let member = |name: &str, runs, lacks: Option<&str>| Member {
            node: name.into(),
            control_plane: true,
            runs,
            phase: Some(phase),
            lacks: lacks.map(Into::into),
            turns: false,
        };
        let comes = |name| member(name, false, Some("its VM pod to say"));
        let turning = |first: Member| {
            let members = [first, comes("master-1"), comes("master-2")];
            let decision = decide(&Situation { members: &members, ..Situation::default() }, at(0));
            assert!(decision.enter.is_empty() && decision.waits.is_some() && !decision.is_over, "{phase:?}");
            decision.turning
        };
        assert_eq!(turning(member("master-0", true, None)), None, "{phase:?}");
        assert_eq!(turning(comes("master-0")), None, "{phase:?}");
        let starts = turning(member("master-0", true, Some("etcd to be started anew")));
        assert_eq!(starts.is_some(), is_turn(phase, false), "{phase:?}");
        // It may have to be replaced for that.
        assert_eq!(turning(member("master-0", true, Some("kubelet to answer"))), None, "{phase:?}");
    }
}

/// A Secret that somebody deletes is made anew where the others are, and whoever was not started for that yet turns.
#[test]
fn of_control_plane_nodes_that_lost_their_secrets_one_turns_at_a_time() {
    let member = |name: &str, phase, lacks: Option<&str>| Member {
        node: name.into(),
        control_plane: true,
        runs: true,
        phase,
        lacks: lacks.map(Into::into),
        turns: phase.is_none(),
    };
    let decide = |members: [Member; 3], busy: Option<&str>| {
        let busy = busy.map(str::to_owned);
        let decision = decide(&Situation { members: &members, busy, ..Situation::default() }, at(0));
        (decision.turning, decision.enter, decision.held.into_iter().collect::<Vec<_>>())
    };
    for front in [Phase::Trust, Phase::Drop] {
        let there = || member("master-0", Some(front), None);
        let gone = |name| member(name, None, None);
        let (turning, enter, held) = decide([there(), gone("master-1"), gone("master-2")], None);
        assert_eq!((turning.as_deref(), held), (Some("master-1"), vec!["master-2".to_owned()]));
        assert_eq!(enter, [("master-1".to_owned(), front)].into());
        let all = vec!["master-1".to_owned(), "master-2".to_owned()];
        // Nobody does while another turns, is not well, or is being replaced.
        let turns = member("master-0", Some(front), Some("etcd to be started anew"));
        let first = decide([turns, gone("master-1"), gone("master-2")], None);
        assert_eq!(first, (Some("master-0".into()), BTreeMap::new(), all.clone()));
        let unwell = member("master-2", None, Some("etcd to be well"));
        let (turning, enter, held) = decide([there(), gone("master-1"), unwell], None);
        assert_eq!((turning.as_deref(), held), (Some("master-2"), vec!["master-1".to_owned()]), "it is down already");
        assert_eq!(enter.len(), 1);
        let busy = decide([there(), gone("master-1"), gone("master-2")], Some("master-0 to be replaced"));
        assert_eq!(busy, (None, BTreeMap::new(), all));
        // Who was started for it already is given its Secret at once, by whoever asks for its phase.
        let started = |name| Member { turns: false, ..gone(name) };
        assert_eq!(decide([there(), started("master-1"), started("master-2")], None).2, Vec::<String>::new());
    }
}

#[test]
fn not_all_kubelets_are_started_anew_at_once() {
    let worker = |number: usize, phase, lacks: bool| Member {
        node: format!("a-{number:02}"),
        control_plane: false,
        runs: true,
        phase: Some(phase),
        lacks: lacks.then(|| "kubelet to be started anew".into()),
        turns: false,
    };
    let entered = |members: &[Member]| {
        let over = Some(at(0));
        let situation = Situation { members, issued: true, until: over, ..Situation::default() };
        decide(&situation, at(1)).enter.len()
    };
    for (low, next) in Phase::ALL.into_iter().zip(Phase::ALL.into_iter().skip(1)) {
        for (count, at_a_time) in [(1, 1), (4, 1), (5, 2), (10, 3), (400, 100)] {
            let all = |under_way: usize, through: usize| {
                let phase = |n| if n < under_way + through { next } else { low };
                (0..count).map(|n| worker(n, phase(n), n < under_way)).collect::<Vec<_>>()
            };
            if next == Phase::Serve {
                // For that nothing is started anew.
                assert_eq!(entered(&all(0, 0)), count);
                continue;
            }
            assert_eq!(entered(&all(0, 0)), at_a_time, "{next:?} {count}");
            let left = count - at_a_time;
            if left > 0 {
                assert_eq!(entered(&all(at_a_time, 0)), 0, "{next:?} {count}");
                assert_eq!(entered(&all(0, at_a_time)), at_a_time.min(left), "{next:?} {count}");
            }
        }
        // Who does not run starts nothing, and holds nobody up.
        let away: Vec<_> = (0..8).map(|n| Member { runs: n == 0, ..worker(n, low, false) }).collect();
        assert_eq!(entered(&away), 8, "{next:?}");
    }
    // Of control-plane nodes one, also where their etcd is not started anew with it.
    let masters: Vec<_> = (0..3)
        .map(|n| Member { control_plane: true, node: format!("master-{n}"), ..worker(n, Phase::Trust, false) })
        .collect();
    assert_eq!(entered(&masters), 1);
}
