use serde_json::{Value, json};

use super::*;
use crate::{
    network::places::Place,
    pki::{
        leaf::Authority,
        plan::plan as plan_of,
        roots::Root,
        rotation::{Told, turns},
    },
    supervisor::consumers::Met,
    testing::valid,
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn later(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// Fingerprints of roots of a generation.
fn made(generation: u32) -> BTreeMap<String, String> {
    Root::ALL.into_iter().map(|root| (root.record(), format!("{} {generation}", root.name()))).collect()
}

fn holding(generation: u32, rotated_for: u32) -> SecretMeta {
    SecretMeta { fingerprints: made(generation), rotated_for, ..SecretMeta::default() }
}

/// A guest that lives, of one control-plane node and a worker.
fn living() -> World {
    let mut world = World {
        namespace: true,
        endpoint: Some("https://10.0.0.1:6443".into()),
        records: made(1),
        workers: vec!["a-0".into()],
        places: [("a-0".to_owned(), Place(64))].into(),
        ..World::default()
    };
    world.secrets.insert(roots::secret_of(1), holding(1, 0));
    world
}

fn cluster(pki: Value) -> Valid {
    valid(json!({"pki": pki, "nodePools": [{"name": "a"}]}))
}

fn both() -> Both {
    let told = |generation: &str| {
        let all = |what: &str| Authority::ALL.map(|of| (of, format!("{what} {of} {generation}"))).into();
        Told { names: all("name"), certificates: all("certificate") }
    };
    Both { old: told("old"), new: told("new") }
}

/// Carries out a plan, as far as metadata shows it.
fn carry_out(world: &mut World, plan: &Plan, asked: u32, now: Timestamp) {
    let issued = |hash: &String, mark| SecretMeta {
        hash: Some(hash.clone()),
        renew_at: Some(later(1_000_000)),
        mark,
        ..SecretMeta::default()
    };
    for step in &plan.steps {
        match step {
            Step::MakeNext { generation, .. } => {
                let made = world.secrets.insert(roots::secret_of(*generation), holding(*generation, asked));
                assert_eq!(made, None, "they were made twice");
            }
            Step::RecordNext { generation } => world.next_records = made(*generation),
            Step::NoteStage { record } => {
                assert!(record.since <= now && record.generation == world.generation() + 1, "{record:?}");
                world.rotation = Some(record.clone());
            }
            Step::Adopt { generation } => {
                (world.records, world.generation) = (made(*generation), Some(*generation));
                let record = Record { generation: *generation, stage: Stage::Drop, since: now, alone: false };
                world.rotation = Some(record);
                world.next_records.clear();
            }
            Step::RemoveRoots { generation } => {
                assert_eq!(*generation + 1, world.generation(), "they are in use");
                world.secrets.remove(&roots::secret_of(*generation));
                world.rotation = None;
            }
            Step::IssueNode { node, hash, standing, worker, .. } => {
                let mark = standing.map(|standing| standing.mark);
                let worker = worker.then(|| node.clone());
                world.secrets.insert(names::node_secret(node), SecretMeta { worker, ..issued(hash, mark) });
            }
            Step::IssueKubeconfig { hash, .. } => {
                world.secrets.insert(names::kubeconfig_secret("demo"), issued(hash, None));
            }
            Step::RemoveWorker { node } => drop(world.secrets.remove(&names::node_secret(node))),
            Step::MakeRoots | Step::ImportRoots { .. } | Step::RecordRoots => {
                panic!("{step:?}")
            }
        }
    }
}

/// What is seen of a guest whose nodes all follow at once.
fn seen(world: &World, cluster: &Valid) -> Option<Observed> {
    use crate::pki::rotation::{add_ons_for, trusted};
    if world.next_records.is_empty() {
        return None;
    }
    let began_alone = world.rotation.as_ref().is_some_and(|record| record.alone);
    let (alone, generation, both) = (began_alone || cluster.has_one_master(), world.generation() + 1, both());
    let phase_of = |node: &str| {
        let mark = world.secrets.get(&names::node_secret(node)).and_then(|secret| secret.mark);
        mark.filter(|mark| mark.generation == generation).map_or(Phase::Before, |mark| mark.phase)
    };
    let told = |of: Authority, phase, by_name: bool| {
        let trusted = trusted(of, phase, alone);
        let pick = |told: &Told| if by_name { told.names[&of].clone() } else { told.certificates[&of].clone() };
        let old = trusted.holds_old().then(|| pick(&both.old));
        old.into_iter().chain(trusted.holds_new().then(|| pick(&both.new))).collect::<BTreeSet<_>>()
    };
    let answer = |node: &str| {
        let phase = phase_of(node);
        let signer = |of, new: bool| if new { &both.new } else { &both.old }.names[&of].clone();
        let met = |asks, of, new| Met { asks, signer: signer(of, new), well: true };
        let (kubernetes, servers) = (told(Authority::Kubernetes, phase, true), phase >= Phase::Serve);
        let mut all = BTreeMap::from([("kubelet".to_owned(), met(kubernetes.clone(), Authority::Kubernetes, servers))]);
        let control_plane = names::master_index(node).is_some();
        if control_plane {
            let clients = &kubernetes | &told(Authority::FrontProxy, phase, true);
            all.insert("kube-apiserver".into(), met(clients, Authority::Kubernetes, servers));
            let etcd = told(Authority::Etcd, phase, true);
            all.insert("etcd".into(), met(etcd, Authority::Etcd, phase >= Phase::Reissue));
        }
        let turns = turns(Mark { generation, phase }, control_plane, alone).into_iter();
        Answer { met: all, started: turns.map(|(unit, mark)| (unit.to_owned(), mark)).collect() }
    };
    let nodes: Vec<_> = super::nodes(cluster, world).collect();
    let front = nodes.iter().map(|node| phase_of(node)).max().unwrap();
    let kubernetes = told(Authority::Kubernetes, front, false);
    let published = Published {
        extensions: &kubernetes | &told(Authority::FrontProxy, front, false),
        roots: kubernetes,
        add_ons: add_ons_for(Mark { generation, phase: front }).map(|mark| mark.to_string()),
    };
    Some(Observed {
        both: both.clone(),
        answers: nodes.iter().map(|node| (node.clone(), answer(node))).collect(),
        running: nodes.into_iter().collect(),
        published: Some(published),
        busy: None,
        keys: crate::pki::keys::decide::Seen::default(),
    })
}

/// Looks until nothing more is done. Answers the last plan.
fn settle(world: &mut World, cluster: &Valid, now: Timestamp) -> Plan {
    settle_with(world, cluster, now, |_, _| {})
}

/// The same, with a look at each plan.
fn settle_with(world: &mut World, cluster: &Valid, now: Timestamp, mut look: impl FnMut(&World, &Plan)) -> Plan {
    for _ in 0..60 {
        world.observed = seen(world, cluster);
        let plan = plan_of(cluster, world, now);
        look(world, &plan);
        let told = crate::pki::rotate::facts(cluster, world, &plan).map(|facts| facts.status);
        if let Some(until) = told.as_ref().and_then(|told| told.until.as_ref()) {
            assert_eq!(
                told.as_ref().and_then(|told| told.stage.as_deref()),
                Some("Overlap"),
                "time that is over: {until}"
            );
            let began = world.rotation.as_ref().unwrap().since;
            assert_eq!(*until, ends(began, cluster.pki.overlap).to_string());
        }
        assert!(!plan.lost, "{world:?}");
        if plan.steps.is_empty() {
            return plan;
        }
        carry_out(world, &plan, cluster.pki.rotate, now);
    }
    panic!("it does not come to rest: {world:?}");
}

fn mark_of(world: &World, node: &str) -> Option<String> {
    Some(world.secrets[&names::node_secret(node)].mark?.to_string())
}

#[test]
fn what_is_noted_is_read_as_it_was_written() {
    for (stage, alone) in Stage::ALL.into_iter().flat_map(|stage| [(stage, false), (stage, true)]) {
        let record = Record { generation: 2, stage, since: later(1_800_000_000), alone };
        assert_eq!(Record::read(&record.write()), Some(record));
    }
    for text in ["", "2", "2 Trust", "2 Other 2026-01-01T00:00:00Z", "x Trust 2026-01-01T00:00:00Z", "2 Trust soon"] {
        assert_eq!(Record::read(text), None, "{text}");
    }
}

#[test]
fn without_a_wish_nothing_is_rotated_and_with_one_all_of_it_and_once() {
    let mut world = living();
    let rests = settle(&mut world, &cluster(json!({})), NOW);
    assert_eq!((rests.rotating, world.next_records.len()), (None, 0));
    let before = world.clone();

    let asked = cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}}));
    let overlap = settle(&mut world, &asked, NOW).rotating.unwrap();
    assert_eq!((overlap.decision.stage, overlap.until), (Stage::Overlap, Some(later(600))));
    assert_eq!(
        [mark_of(&world, "master-0"), mark_of(&world, "a-0")],
        [Some("2.reissue".into()), Some("2.reissue".into())]
    );
    assert_eq!(world.records, made(1), "the former ones are recorded until the end");
    settle(&mut world, &asked, later(599));
    assert_eq!(mark_of(&world, "a-0").as_deref(), Some("2.reissue"), "users have time");

    // The time that they have may be changed meanwhile.
    let longer = cluster(json!({"ca": {"rotate": 1, "overlap": "20m"}}));
    assert!(settle(&mut world, &longer, later(700)).rotating.is_some());
    let over = settle(&mut world, &asked, later(600));
    assert_eq!((over.rotating, world.generation(), world.records.clone()), (None, 2, made(2)));
    assert_eq!(mark_of(&world, "master-0"), None);
    assert!(!world.secrets.contains_key(&roots::secret_of(1)), "the former keys are there");
    assert_ne!(world.secrets[&names::kubeconfig_secret("demo")], before.secrets[&names::kubeconfig_secret("demo")]);
    assert_eq!(settle(&mut world, &asked, later(700)).rotating, None, "it was carried out");
    let more = cluster(json!({"ca": {"rotate": 7, "overlap": "10m"}}));
    assert_eq!(settle(&mut world, &more, later(800)).rotating.unwrap().generation, 3);
}

#[test]
fn a_guest_that_is_born_with_a_wish_is_not_rotated() {
    let asked = cluster(json!({"ca": {"rotate": 5}}));
    let mut world = living();
    world.secrets.insert(roots::secret_of(1), holding(1, 5));
    assert_eq!(settle(&mut world, &asked, NOW).rotating, None);
}

#[test]
fn a_wish_that_comes_meanwhile_is_carried_out_afterwards() {
    let (mut world, one) = (living(), cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}})));
    settle(&mut world, &one, NOW);
    let two = cluster(json!({"ca": {"rotate": 2, "overlap": "10m"}}));
    assert_eq!(settle(&mut world, &two, later(10)).rotating.unwrap().generation, 2);
    let next = settle(&mut world, &two, later(600));
    assert_eq!((next.rotating.unwrap().generation, world.generation()), (3, 2));
    assert_eq!(world.secrets[&roots::secret_of(3)].rotated_for, 2);
}

#[test]
fn in_a_pause_it_stands_where_it_is() {
    let asked = cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}}));
    let mut world = World { paused: true, ..living() };
    settle(&mut world, &asked, NOW);
    assert!(world.next_records.is_empty() && !world.secrets.contains_key(&roots::secret_of(2)), "it begins");
    world.paused = false;
    settle(&mut world, &asked, NOW);
    let stood = [mark_of(&world, "master-0"), mark_of(&world, "a-0")];
    assert!(settle(&mut world, &asked, later(1)).rotating.unwrap().is_known);
    world.paused = true;
    assert!(!settle(&mut world, &asked, later(1000)).rotating.unwrap().is_known, "nobody looks");
    assert_eq!([mark_of(&world, "master-0"), mark_of(&world, "a-0")], stood);
}

#[test]
fn nothing_is_made_or_issued_where_what_was_recorded_or_handed_out_is_lost() {
    let asked = cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}}));
    let mut whole = living();
    settle(&mut whole, &asked, NOW);
    let broken = |change: &dyn Fn(&mut World)| {
        let mut world = whole.clone();
        change(&mut world);
        let plan = plan_of(&asked, &world, later(10_000));
        assert!(plan.lost && plan.steps.is_empty(), "{:?}", plan.steps);
    };
    broken(&|world| drop(world.secrets.remove(&roots::secret_of(2))));
    broken(&|world| drop(world.secrets.insert(roots::secret_of(2), holding(9, 1))));
    broken(&|world| drop(world.secrets.remove(&roots::secret_of(1))));
    // The records went with them, and certificates tell that there were some.
    broken(&|world| {
        world.secrets.remove(&roots::secret_of(2));
        world.next_records.clear();
    });
    // What is left of the records is enough, and is completed before anything is issued.
    let mut world = whole.clone();
    world.next_records.pop_first();
    assert_eq!(plan_of(&asked, &world, NOW).steps, [Step::RecordNext { generation: 2 }]);
}

#[test]
fn a_change_of_the_spec_and_lost_notes_leave_every_node_in_its_phase() {
    let asked = |extra: Value| {
        let mut pki = json!({"ca": {"rotate": 1, "overlap": "10m"}});
        pki["apiServer"] = extra;
        cluster(pki)
    };
    let (mut world, plain) = (living(), asked(json!({})));
    settle(&mut world, &plain, NOW);
    let named = asked(json!({"altNames": ["api.example.com"]}));
    world.observed = None;
    for change in [&named, &plain] {
        let plan = plan_of(change, &world, later(5));
        for step in &plan.steps {
            if let Step::IssueNode { standing, .. } = step {
                assert_eq!(standing.unwrap().mark.phase, Phase::Reissue, "{step:?}");
            }
        }
    }
    // Only what is not as it was before is looked into for what it was.
    let unmarked = crate::pki::rotate::unmarked;
    assert_eq!(unmarked(&plain, &world), Vec::<String>::new());
    let mut taken = world.clone();
    taken.rotation = None;
    taken.secrets.values_mut().for_each(|secret| secret.mark = None);
    assert_eq!(unmarked(&plain, &taken), ["master-0", "a-0"]);
    let (mut before, none) = (living(), cluster(json!({})));
    settle(&mut before, &none, NOW);
    before.rotation = world.rotation.clone();
    assert_eq!(unmarked(&plain, &before), Vec::<String>::new(), "they wait for their turn");
    // Without the note the overlap begins anew, and nothing else does.
    world.rotation = None;
    let again = settle(&mut world, &plain, later(500)).rotating.unwrap();
    assert_eq!((again.decision.stage, again.until), (Stage::Overlap, Some(later(1100))));
    // The generation is where the records are.
    settle(&mut world, &plain, later(1100));
    assert_eq!(generation(None, &world.secrets, &world.records), Some(2));
    assert_eq!(generation(Some(1), &world.secrets, &world.records), Some(1));
    // Without any record it is that of the roots that are there.
    let none = BTreeMap::new();
    assert_eq!(generation(None, &world.secrets, &none), Some(2));
    assert_eq!(generation(None, &living().secrets, &none), Some(1));
    assert_eq!(generation(None, &BTreeMap::new(), &none), None);
    let mut both = world.secrets.clone();
    both.insert(roots::secret_of(1), holding(1, 0));
    assert_eq!(generation(None, &both, &none), Some(1), "no node says that it trusts the latter alone");
    let marked = |phase| SecretMeta {
        hash: Some("h".into()),
        mark: Some(Mark { generation: 2, phase }),
        ..SecretMeta::default()
    };
    for node in ["master-0", "a-0"] {
        both.insert(names::node_secret(node), marked(Phase::Drop));
    }
    assert_eq!(generation(None, &both, &none), Some(2));
    both.insert(names::node_secret("a-0"), marked(Phase::Serve));
    assert_eq!(generation(None, &both, &none), Some(1));
    // And it goes on by it: they are recorded, and nothing else is taken for lost.
    let mut wiped = World { records: BTreeMap::new(), generation: generation(None, &world.secrets, &none), ..world };
    wiped.observed = None;
    let plan = plan_of(&plain, &wiped, later(1200));
    assert_eq!((plan.lost, plan.steps), (false, vec![Step::RecordRoots]));
}

#[test]
fn a_node_that_comes_is_where_the_others_are() {
    let (mut world, asked) = (living(), cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}})));
    settle(&mut world, &asked, NOW);
    world.workers.push("a-1".into());
    world.places.insert("a-1".into(), Place(65));
    settle(&mut world, &asked, later(20));
    assert_eq!(mark_of(&world, "a-1").as_deref(), Some("2.reissue"));
}

/// Its host is dead, and another worker has its part: its VM pod says for ever that it runs.
#[test]
fn a_worker_that_was_given_up_is_not_waited_for() {
    let (mut world, asked) = (living(), cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}})));
    settle(&mut world, &asked, NOW);
    world.workers = vec!["a-1".into()];
    world.places.insert("a-1".into(), Place(65));
    world.vm_pods = ["master-0", "a-0", "a-1"].map(str::to_owned).into();
    world.lost = ["a-0".to_owned()].into();
    settle(&mut world, &asked, NOW);
    settle(&mut world, &asked, later(700));
    assert_eq!(
        (world.generation(), mark_of(&world, "a-0").as_deref()),
        (2, Some("2.reissue")),
        "nothing is issued to it"
    );
}

/// Two watches bring what was adopted and what was deleted, in whatever order.
#[test]
fn former_roots_go_when_the_adoption_was_seen_and_only_by_what_is_noted() {
    let (mut world, asked) = (living(), cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}})));
    settle(&mut world, &asked, NOW);
    let mut removed = 0;
    for _ in 0..20 {
        world.observed = seen(&world, &asked);
        let plan = plan_of(&asked, &world, later(700));
        if plan.steps.contains(&Step::RemoveRoots { generation: 1 }) {
            assert_eq!((world.generation(), &world.records), (2, &made(2)));
            // The process may end between the deletion and what is noted, and labels may be gone.
            let mut hidden = world.clone();
            hidden.secrets.remove(&roots::secret_of(1));
            assert!(plan_of(&asked, &hidden, later(700)).steps.contains(&Step::RemoveRoots { generation: 1 }));
            let unnoted = World { rotation: None, ..world.clone() };
            let steps = plan_of(&asked, &unnoted, later(700)).steps;
            assert!(!steps.iter().any(|step| matches!(step, Step::RemoveRoots { .. })), "{steps:?}");
            removed += 1;
        }
        carry_out(&mut world, &plan, 1, later(700));
    }
    assert_eq!((removed, &world.rotation), (1, &None));
}

#[test]
fn a_copy_of_the_roots_is_no_wish() {
    let mut world = living();
    settle(&mut world, &cluster(json!({})), NOW);
    world.secrets.insert(roots::secret_of(2), holding(1, 0));
    assert_eq!(plan_of(&cluster(json!({})), &world, NOW), Plan::default());
    let asked = plan_of(&cluster(json!({"ca": {"rotate": 1}})), &world, NOW);
    assert!(asked.steps.is_empty() && asked.waiting[0].contains("roots-2"), "{asked:?}");
    // Only authorities tell which of two is recorded: the rest is the same in both.
    world.secrets.insert(roots::secret_of(2), holding(2, 1));
    for root in Root::ALL {
        let of_next = BTreeMap::from([(root.record(), made(2)[&root.record()].clone())]);
        let expected = if matches!(root, Root::Ca(_)) { 2 } else { 1 };
        assert_eq!(generation(None, &world.secrets, &of_next), Some(expected), "{root:?}");
    }
}

/// What the last node still trusts is published, and while nothing is known nothing is changed by it.
#[test]
fn what_is_published_follows_the_last_node() {
    let (mut world, asked) = (living(), cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}})));
    settle(&mut world, &asked, NOW);
    let mut fronts = BTreeSet::new();
    settle_with(&mut world, &asked, later(700), |world, plan| {
        let Some(facts) = crate::pki::rotate::facts(&asked, world, plan) else { return };
        let Some(going) = facts.going else { return };
        let marks = ["master-0", "a-0"].map(|node| world.secrets[&names::node_secret(node)].mark.unwrap().phase);
        assert_eq!((going.mark.phase, going.last.phase), (*marks.iter().max().unwrap(), *marks.iter().min().unwrap()));
        assert_eq!(going.kept_out.is_empty(), going.last.phase != Phase::Drop, "{going:?}");
        fronts.insert((going.mark.phase, going.last.phase));
    });
    assert!(fronts.contains(&(Phase::Drop, Phase::Drop)), "{fronts:?}");
}

/// A pool of one shrinks while authorities are rotated, and its worker takes its time to go.
#[test]
fn a_worker_that_is_leaving_goes_on_with_the_others_until_it_is_gone() {
    let (mut world, asked) = (living(), cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}})));
    settle(&mut world, &asked, NOW);
    world.workers.clear();
    world.vm_pods = ["master-0".to_owned(), "a-0".to_owned()].into();
    // It does not answer, so nothing is taken from it.
    world.observed = seen(&world, &asked);
    world.observed.as_mut().unwrap().answers.remove("a-0");
    let mut late = plan_of(&asked, &world, later(700));
    for _ in 0..5 {
        carry_out(&mut world, &late, 1, later(700));
        world.observed = seen(&world, &asked);
        world.observed.as_mut().unwrap().answers.remove("a-0");
        late = plan_of(&asked, &world, later(700));
    }
    let waits = late.rotating.as_ref().and_then(|rotating| rotating.decision.waits.clone());
    assert!(waits.unwrap().starts_with("a-0: its VM pod to say"), "{world:?}");
    assert_eq!(world.generation(), 1, "the former authorities are needed");
    // It answers again: it goes on, and nothing keeps the rotation from its end.
    settle(&mut world, &asked, later(701));
    assert_eq!((world.generation(), mark_of(&world, "a-0").as_deref()), (2, Some("2.drop")));
    // Outside a rotation nothing is issued to it, and its keys go with its VM.
    assert_eq!(settle(&mut world, &asked, later(800)).steps, []);
    world.vm_pods.remove("a-0");
    settle(&mut world, &asked, later(900));
    assert!(!world.secrets.contains_key(&names::node_secret("a-0")));
}

fn of_three() -> Valid {
    let pki = json!({"ca": {"rotate": 1, "overlap": "10m"}});
    valid(json!({"pki": pki, "controlPlane": {"replicas": 3}, "nodePools": [{"name": "a"}]}))
}

/// What etcd is to have been started for, by what is issued to control-plane nodes in a plan.
fn etcds(plan: &Plan) -> Vec<String> {
    let standing = |step: &Step| match step {
        Step::IssueNode { standing, worker: false, .. } => *standing,
        _ => None,
    };
    let turns = plan.steps.iter().filter_map(standing).map(super::super::generations::Standing::turns);
    turns.filter_map(|turns| turns.lines().find(|line| line.starts_with("etcd=")).map(str::to_owned)).collect()
}

#[test]
fn etcd_is_not_started_anew_because_others_join_who_turned_alone() {
    let (one, three) = (cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}})), of_three());
    let mut world = living();
    settle(&mut world, &one, NOW);
    assert!(world.rotation.as_ref().unwrap().alone);
    let began = world.rotation.clone();
    let only = |wanted: &'static str| {
        move |_: &World, plan: &Plan| assert!(etcds(plan).iter().all(|etcd| etcd == wanted), "{:?}", plan.steps)
    };
    settle_with(&mut world, &three, later(100), only("etcd=2.reissue"));
    assert_eq!((mark_of(&world, "master-2").as_deref(), &world.rotation), (Some("2.reissue"), &began));
    settle_with(&mut world, &three, later(700), only("etcd=2.reissue"));
    assert_eq!(world.generation(), 2);

    // Nor because somebody wrote something else down.
    let mut world = living();
    settle(&mut world, &one, NOW);
    world.rotation.as_mut().unwrap().alone = false;
    settle_with(&mut world, &one, later(100), |_, plan| assert_eq!(etcds(plan), Vec::<String>::new()));
    assert_eq!(world.rotation, began);

    // Before anybody turned, those who come turn with the others, and the stage stands since when it did.
    let mut world = living();
    let silent = |world: &mut World, cluster: &Valid, now| {
        for _ in 0..8 {
            world.observed = seen(world, cluster);
            if let Some(observed) = &mut world.observed {
                observed.answers.remove("a-0");
            }
            let plan = plan_of(cluster, world, now);
            carry_out(world, &plan, 1, now);
        }
        world.rotation.clone().unwrap()
    };
    let noted = silent(&mut world, &one, NOW);
    assert_eq!((noted.stage, noted.alone), (Stage::Trust, true));
    assert_eq!(silent(&mut world, &three, later(50)), Record { alone: false, ..noted });
    settle(&mut world, &three, later(60));
    assert_eq!(world.rotation.as_ref().map(|record| (record.stage, record.alone)), Some((Stage::Overlap, false)));
}

#[test]
fn a_secret_that_somebody_deleted_is_issued_where_the_others_are_and_no_two_members_turn_by_it() {
    let (cluster, mut world) = (of_three(), living());
    let masters = ["master-0", "master-1", "master-2"];
    world.vm_pods = masters.map(str::to_owned).into();
    let look = |world: &World, observed: Option<Observed>| {
        let world = World { observed, ..world.clone() };
        let plan = plan_of(&cluster, &world, NOW);
        let issued = |step: &Step| match step {
            Step::IssueNode { node, worker: false, .. } => Some(node.clone()),
            _ => None,
        };
        (plan.steps.iter().filter_map(issued).collect::<Vec<_>>(), plan)
    };
    // All of the control plane trust both, and a worker holds the rotation there.
    let without_worker = |world: &World| {
        let mut observed = seen(world, &cluster)?;
        if world.secrets.values().any(|secret| secret.mark.is_some()) {
            observed.answers.remove("a-0");
        }
        Some(observed)
    };
    for _ in 0..12 {
        let (_, plan) = look(&world, without_worker(&world));
        carry_out(&mut world, &plan, 1, NOW);
    }
    assert!(masters.iter().all(|node| mark_of(&world, node).as_deref() == Some("2.trust")), "{world:?}");
    let through = without_worker(&world);
    for node in &masters[1..] {
        world.secrets.remove(&names::node_secret(node));
    }
    assert_eq!(look(&world, through).0, ["master-1", "master-2"], "they were started for it already");
    // Neither was.
    let (issued, plan) = look(&world, without_worker(&world));
    assert_eq!(issued, ["master-1"]);
    assert_eq!(plan.rotating.as_ref().unwrap().turns(), Some("master-1"));
    let before = world.clone();
    carry_out(&mut world, &plan, 1, NOW);
    let mut turns = without_worker(&world);
    turns.as_mut().unwrap().answers.get_mut("master-1").unwrap().started.clear();
    assert_eq!(look(&world, turns).0, Vec::<String>::new());
    assert_eq!(look(&world, without_worker(&world)).0, ["master-2"]);
    // In a pause nobody looks at them.
    let paused = World { paused: true, ..before };
    assert_eq!(look(&paused, None).0, Vec::<String>::new());
    // While users have time all have been seen to be through.
    let mut overlap = living();
    overlap.vm_pods = masters.map(str::to_owned).into();
    settle(&mut overlap, &cluster, NOW);
    overlap.secrets.remove(&names::node_secret("master-1"));
    assert_eq!(look(&overlap, None).0, ["master-1"]);
}

#[test]
fn a_guest_whose_nodes_go_on_lacks_nothing_meanwhile() {
    let (mut world, asked) = (living(), cluster(json!({"ca": {"rotate": 1, "overlap": "10m"}})));
    let facts = || crate::pki::PkiFacts { renew_at: None, end_at: None, vault: None, rotation: None };
    settle(&mut world, &cluster(json!({})), NOW);
    for now in [NOW, later(600)] {
        settle_with(&mut world, &asked, now, |world, plan| {
            let told = plan.report(&asked, world, facts());
            assert!(matches!(told, crate::cluster::Report::Ready(_)), "{told:?} {:?}", plan.steps);
        });
    }
    assert_eq!(world.generation(), 2);
    // What is not there yet is waited for.
    world.secrets.remove(&names::node_secret("a-0"));
    let told = plan_of(&asked, &world, later(700)).report(&asked, &world, facts());
    assert!(matches!(told, crate::cluster::Report::Waiting { .. }), "{told:?}");
}
