use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use proptest::{prelude::*, test_runner::TestCaseError};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{
    decide::{Seen, Situation, decide, lacks},
    *,
};
use crate::{
    network::places::Place,
    pki::{
        embedded,
        generations::Generations,
        plan::{Plan, Step, World as Observed_, plan},
        roots::{self, Roots},
        rotation::{Lack, Member},
        turnover::{Observed, Record},
    },
    supervisor::{
        consumers::{Answer, Met},
        keys::Stored,
    },
    testing::{self, valid},
};

const KEYS: [Subject; 2] = [Subject::ServiceAccountKey, Subject::EncryptionKey];

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn mark(phase: Phase) -> Mark {
    Mark { generation: 2, phase }
}

// What a node holds.

/// Two generations that differ in one key.
fn two(subject: Subject) -> Generations {
    let current = testing::roots();
    let mut next = current.clone();
    match subject {
        Subject::ServiceAccountKey => next.service_account = embedded::key_pair().unwrap(),
        _ => next.encryption = embedded::encryption_config("key2").unwrap(),
    }
    Generations { current, next: Some(next) }
}

/// Names of the keys of a configuration: the first writes, all read.
fn names_of(config: &str) -> Vec<String> {
    let config: Value = serde_saphyr::from_str(config).unwrap();
    assert_eq!(
        (&config["kind"], &config["resources"][0]["resources"]),
        (&json!("EncryptionConfiguration"), &json!(["secrets"]))
    );
    let providers = config["resources"][0]["providers"].as_array().unwrap();
    assert_eq!((providers.len(), &providers[1]), (2, &json!({"identity": {}})), "what was never encrypted is read");
    let keys = providers[0]["secretbox"]["keys"].as_array().unwrap();
    assert!(keys.iter().all(|key| key["secret"].as_str().unwrap().len() == 44));
    keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_a_node_holds_of_encryption_keys_in_each_phase() {
    let roots = two(Subject::EncryptionKey);
    let secret = |roots: &Roots| {
        let config: Value = serde_saphyr::from_str(roots.encryption.expose_secret()).unwrap();
        config.pointer("/resources/0/providers/0/secretbox/keys/0/secret").unwrap().as_str().unwrap().to_owned()
    };
    for (phase, names) in [
        (Phase::Before, &["key1"][..]),
        (Phase::Trust, &["key1", "key2"]),
        (Phase::Reissue, &["key2", "key1"]),
        (Phase::Serve, &["key2", "key1"]),
        (Phase::Drop, &["key2"]),
    ] {
        let held = files::of(&roots, phase).unwrap();
        let text = held.encryption.expose_secret();
        assert_eq!(names_of(text), names, "{phase:?}");
        for (name, of) in [("key1", &roots.current), ("key2", roots.next.as_ref().unwrap())] {
            assert_eq!(text.contains(&secret(of)), names.contains(&name), "{phase:?} {name}");
        }
        assert_eq!(held.verify, roots.current.service_account.certificate);
    }
    assert_eq!(
        files::of(&roots, Phase::Before).unwrap().encryption.expose_secret(),
        roots.current.encryption.expose_secret()
    );
}

#[test]
fn what_a_node_holds_of_service_account_keys_in_each_phase() {
    let roots = two(Subject::ServiceAccountKey);
    let (old, new) = (&roots.current.service_account, &roots.next.as_ref().unwrap().service_account);
    for (phase, verify, sign) in [
        (Phase::Before, vec![old], old),
        (Phase::Trust, vec![old, new], old),
        (Phase::Reissue, vec![new, old], new),
        (Phase::Drop, vec![new], new),
    ] {
        let held = files::of(&roots, phase).unwrap();
        let ids: Vec<_> =
            pem::parse_many(&held.verify).unwrap().iter().map(|one| files::key_id(&one.to_string()).unwrap()).collect();
        let wanted: Vec<_> = verify.iter().map(|pair| files::key_id(&pair.certificate).unwrap()).collect();
        assert_eq!(ids, wanted, "{phase:?}");
        assert!(held.verify.lines().all(|line| !line.is_empty()), "{}", held.verify);
        assert_eq!(held.sign.expose_secret(), sign.key.expose_secret(), "{phase:?}");
        assert_eq!(held.encryption.expose_secret(), roots.current.encryption.expose_secret());
    }
}

#[test]
fn authorities_that_are_rotated_change_no_key_and_keys_no_authority() {
    let mut roots = two(Subject::EncryptionKey);
    let other = testing::roots();
    roots.next = Some(Roots { kubernetes: other.kubernetes, ..roots.current.clone() });
    for phase in Phase::ALL {
        let held = files::of(&roots, phase).unwrap();
        assert_eq!(held.verify, roots.current.service_account.certificate);
        assert_eq!(held.encryption.expose_secret(), roots.current.encryption.expose_secret());
    }
    for subject in KEYS {
        let roots = two(subject);
        let certificate = roots.current.kubernetes.certificate();
        let users = roots.clone().for_users(Phase::Drop);
        assert_eq!([users.bundle.as_str(), users.all.as_str()], [certificate; 2], "one authority is told twice");
        let standing =
            crate::pki::generations::Standing { mark: mark(Phase::Trust), subject, control_plane: true, alone: false };
        assert_eq!(roots.bundle(Authority::Etcd, Some(standing)), roots.current.etcd.certificate());
        assert_eq!(standing.turns(), "kube-apiserver=2.trust\n");
    }
}

#[test]
fn a_key_that_comes_has_a_name_of_its_own_whatever_was_imported() {
    let of = |name: &str| embedded::encryption_config(name).unwrap();
    assert_eq!(files::name_of_next(&of("key1"), 2).unwrap(), "key2");
    assert_eq!(files::name_of_next(&of("key2"), 2).unwrap(), "key2-next");
    assert_eq!(files::key_name(&of("key2-next")).unwrap(), "key2-next");
    let several = "kind: EncryptionConfiguration\nresources: [{providers: [{secretbox: {keys: [{name: a, secret: x}, {name: key2, secret: y}]}}]}]";
    assert_eq!(files::name_of_next(&several.to_owned().into(), 2).unwrap(), "key2-next");
    let odd = files::key_name(&"kind: [secret".to_owned().into()).unwrap_err().to_string();
    assert!(!odd.contains("secret"), "{odd}");
}

#[test]
fn what_cannot_be_read_as_a_key_has_no_name() {
    assert!(files::key_id("no key").is_err());
    let id = files::key_id(&embedded::key_pair().unwrap().certificate).unwrap();
    assert!(id.len() == 43 && !id.contains(['+', '/', '=']), "{id}");
}

// Wishes.

fn fingerprints() -> BTreeMap<String, String> {
    Root::ALL.into_iter().map(|root| (root.record(), root.name().to_owned())).collect()
}

fn with_other(mut all: BTreeMap<String, String>, subject: Subject, generation: u32) -> BTreeMap<String, String> {
    let changed: &[Root] = match subject {
        Subject::Authorities => &Root::ALL[..3],
        Subject::ServiceAccountKey => &[Root::ServiceAccount],
        Subject::EncryptionKey => &[Root::Encryption],
    };
    all.extend(changed.iter().map(|root| (root.record(), format!("{} {generation}", root.name()))));
    all
}

#[test]
fn what_differs_tells_what_is_rotated() {
    for subject in Subject::ALL {
        assert_eq!(Subject::of(&fingerprints(), &with_other(fingerprints(), subject, 2)), subject);
    }
    let all = with_other(with_other(fingerprints(), Subject::EncryptionKey, 2), Subject::Authorities, 2);
    assert_eq!(Subject::of(&fingerprints(), &all), Subject::Authorities);
}

#[test]
fn wishes_are_read_as_they_were_written_and_none_says_nothing() {
    let wishes = Wishes { service_account: 3, encryption: 7 };
    let annotations: BTreeMap<_, _> = wishes.annotations().collect();
    assert_eq!(Wishes::noted(|name| annotations.get(name).cloned()), wishes);
    let data: BTreeMap<_, _> = wishes.data().map(|(key, text)| (key, String::from_utf8(text.0).unwrap())).collect();
    assert_eq!(Wishes::held(|key| data.get(key).cloned()), Some(wishes));
    assert_eq!(Wishes::held(|_| Some("x".into())), None);
    assert_eq!(Wishes::held(|_| None), Some(Wishes::default()));
    assert_eq!(Wishes::default().data().count() + Wishes::default().annotations().count(), 0);
}

// Whole rotations, as the plan has them.

/// A guest that lives.
fn living(replicas: u32) -> (Valid, Observed_) {
    let cluster =
        |pki: Value| valid(json!({"pki": pki, "nodePools": [{"name": "a"}], "controlPlane": {"replicas": replicas}}));
    let mut world = Observed_ {
        namespace: true,
        endpoint: Some("https://10.0.0.1:6443".into()),
        records: fingerprints(),
        workers: vec!["a-0".into()],
        places: [("a-0".to_owned(), Place(64))].into(),
        ..Observed_::default()
    };
    world.secrets.insert(roots::SECRET.into(), SecretMeta { fingerprints: fingerprints(), ..SecretMeta::default() });
    let calm = cluster(json!({}));
    settle(&calm, &mut world, at(0));
    let asks = json!({"ca": {"rotate": 0}, "serviceAccountKey": {"rotate": 1, "overlap": "1h"}, "encryptionKey": {"rotate": 2}});
    (cluster(asks), world)
}

/// How often each node's Secret was issued, and what was done beside that.
#[derive(Debug, Default)]
struct Done {
    issued: BTreeMap<String, usize>,
    made: Vec<Subject>,
    kubeconfigs: usize,
}

fn carry_out(cluster: &Valid, world: &mut Observed_, plan: &Plan, done: &mut Done) {
    let issued = |hash: &String, mark| SecretMeta {
        hash: Some(hash.clone()),
        renew_at: Some(at(1_000_000)),
        mark,
        ..SecretMeta::default()
    };
    for step in &plan.steps {
        match step {
            Step::MakeNext { generation, subject } => {
                done.made.push(*subject);
                let mut made = world.roots().unwrap().clone();
                made.fingerprints = with_other(made.fingerprints, *subject, *generation);
                match subject {
                    Subject::Authorities => made.rotated_for = cluster.pki.rotate,
                    Subject::ServiceAccountKey => made.keys_for.service_account = cluster.pki.keys.service_account,
                    Subject::EncryptionKey => made.keys_for.encryption = cluster.pki.keys.encryption,
                }
                assert!(world.secrets.insert(roots::secret_of(*generation), made).is_none(), "they were made twice");
            }
            Step::RecordNext { generation } => {
                world.next_records = world.secrets[&roots::secret_of(*generation)].fingerprints.clone();
            }
            Step::NoteStage { record } => {
                world.rotation = Some(record.clone());
            }
            Step::Adopt { generation } => {
                world.records = std::mem::take(&mut world.next_records);
                let over = Record { generation: *generation, stage: Stage::Drop, since: at(0), alone: false };
                (world.generation, world.rotation) = (Some(*generation), Some(over));
            }
            Step::RemoveRoots { generation } => {
                assert_eq!(*generation + 1, world.generation(), "they are in use");
                world.secrets.remove(&roots::secret_of(*generation));
                world.rotation = None;
            }
            Step::IssueNode { node, hash, standing, worker, .. } => {
                *done.issued.entry(node.clone()).or_default() += 1;
                let worker = worker.then(|| node.clone());
                let mark = standing.map(|standing| standing.mark);
                world.secrets.insert(names::node_secret(node), SecretMeta { worker, ..issued(hash, mark) });
            }
            Step::IssueKubeconfig { hash, .. } => {
                done.kubeconfigs += 1;
                world.secrets.insert(names::kubeconfig_secret("demo"), issued(hash, None));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What is seen of nodes that follow at once, and of an etcd all of whose objects are rewritten.
fn look(cluster: &Valid, world: &mut Observed_) {
    world.observed = None;
    if world.next_records.is_empty() {
        return;
    }
    let (subject, generation) = (world.rotated(), world.generation() + 1);
    let masters: Vec<_> = (0..cluster.control_plane.replicas).map(names::master).collect();
    let phase = |node: &String| {
        let mark = world.secrets.get(&names::node_secret(node)).and_then(|secret| secret.mark);
        mark.filter(|mark| mark.generation == generation).map_or(Phase::Before, |mark| mark.phase)
    };
    let of = |node: &String| (node.clone(), answer(subject, Mark { generation, phase: phase(node) }, true));
    let keys = Seen {
        ids: Some(("old".into(), "new".into())),
        verifies: masters.iter().map(|node| (node.clone(), verifies(phase(node)))).collect(),
        stored: Some(Stored { all: 3, ..Stored::default() }),
        unwritten: None,
    };
    let answers = masters.iter().map(of).collect();
    world.observed = Some(Observed { answers, running: masters.into_iter().collect(), keys, ..Observed::default() });
}

fn answer(subject: Subject, mark: Mark, well: bool) -> Answer {
    let met = ["kube-apiserver", "etcd"].map(|name| (name.to_owned(), Met { well, ..Met::default() }));
    let started = turns(subject, mark).into_iter().map(|(unit, mark)| (unit.to_owned(), mark));
    Answer { met: met.into(), started: started.collect() }
}

fn verifies(phase: Phase) -> std::collections::BTreeSet<String> {
    let (old, new) = (phase < Phase::Drop, phase > Phase::Before);
    [("old", old), ("new", new)].into_iter().filter(|(_, is)| *is).map(|(name, _)| name.to_owned()).collect()
}

/// Looks until nothing is left to do.
fn settle(cluster: &Valid, world: &mut Observed_, now: Timestamp) -> (Plan, Done) {
    let mut done = Done::default();
    for _ in 0..80 {
        look(cluster, world);
        let plan = plan(cluster, world, now);
        assert!(!plan.lost, "{world:?}");
        if plan.steps.is_empty() {
            return (plan, done);
        }
        carry_out(cluster, world, &plan, &mut done);
    }
    panic!("it does not come to rest: {world:?}");
}

#[test]
fn keys_are_rotated_one_after_the_other_and_workers_and_users_notice_nothing() {
    for replicas in [1, 3] {
        let (cluster, mut world) = living(replicas);
        let kubeconfig = world.secrets[&names::kubeconfig_secret("demo")].clone();
        let worker = world.secrets[&names::node_secret("a-0")].clone();
        let (plan, done) = settle(&cluster, &mut world, at(10));
        assert_eq!(done.made, [Subject::ServiceAccountKey], "one at a time");
        let rotating = plan.rotating.clone().unwrap();
        assert_eq!(
            (rotating.subject, rotating.decision.stage, rotating.until),
            (Subject::ServiceAccountKey, Stage::Overlap, Some(at(3610)))
        );
        let told = crate::pki::rotate::facts(&cluster, &world, &plan).unwrap().status;
        assert_eq!(
            (told.subject.as_deref(), told.stage.as_deref(), told.queued),
            (Some("ServiceAccountKey"), Some("Overlap"), vec!["EncryptionKey".to_owned()])
        );
        assert_eq!((told.until, told.service_account_key_carried_out), (Some(at(3610).to_string()), 0));
        assert_eq!(done.issued, (0..replicas).map(|index| (names::master(index), 2)).collect());
        assert_eq!((done.kubeconfigs, &world.secrets[&names::kubeconfig_secret("demo")]), (0, &kubeconfig));

        let (plan, done) = settle(&cluster, &mut world, at(3610));
        assert_eq!((plan.rotating, world.generation()), (None, 3), "both are through");
        assert_eq!(
            (done.made, world.secrets[&names::node_secret("a-0")].clone()),
            (vec![Subject::EncryptionKey], worker)
        );
        let made = &world.secrets[&roots::secret_of(3)];
        assert_eq!(made.keys_for, Wishes { service_account: 1, encryption: 2 });
        assert_eq!(
            made.fingerprints,
            with_other(with_other(fingerprints(), Subject::ServiceAccountKey, 2), Subject::EncryptionKey, 3)
        );
        assert!(!world.secrets.contains_key(&roots::secret_of(2)) && !world.secrets.contains_key(roots::SECRET));
        let told = crate::pki::rotate::facts(&cluster, &world, &plan_of(&cluster, &world)).unwrap().status;
        assert_eq!(
            (told.service_account_key_carried_out, told.encryption_key_carried_out, told.stage, told.subject),
            (1, 2, None, None)
        );
        assert_eq!(settle(&cluster, &mut world, at(9999)).1.made, [], "a wish is carried out once");
    }
}

fn plan_of(cluster: &Valid, world: &Observed_) -> Plan {
    plan(cluster, world, at(3610))
}

#[test]
fn authorities_go_first_and_a_pause_or_no_wish_makes_nothing() {
    let (cluster, mut world) = living(1);
    let with_ca = Valid { pki: crate::cluster::valid::Pki { rotate: 1, ..cluster.pki.clone() }, ..cluster.clone() };
    assert_eq!(asked(&with_ca, world.roots()), Subject::ALL);
    let in_vault = Valid {
        pki: crate::cluster::valid::Pki { backend: PkiBackend::Vault, ..with_ca.pki.clone() },
        ..cluster.clone()
    };
    assert_eq!(asked(&in_vault, world.roots()), KEYS);
    world.paused = true;
    assert_eq!(plan(&cluster, &world, at(10)).steps, []);
    world.paused = false;
    // In the midst of it a pause holds everybody where he is.
    for _ in 0..5 {
        look(&cluster, &mut world);
        let plan = plan(&cluster, &world, at(10));
        carry_out(&cluster, &mut world, &plan, &mut Done::default());
    }
    world.paused = true;
    let held = plan(&cluster, &world, at(10));
    assert_eq!((held.steps, held.rotating.unwrap().decision.waits.as_deref()), (vec![], Some("the pause to end")));
    let (calm, calm_world) = (valid(json!({"nodePools": [{"name": "a"}]})), living(1).1);
    assert_eq!(plan(&calm, &calm_world, at(10)).steps, []);
}

// What decides.

fn member(name: &str, phase: Phase, lacks: Option<&str>) -> Member {
    Member {
        node: name.into(),
        control_plane: true,
        runs: true,
        phase: Some(phase),
        lacks: lacks.map(|what| Lack { what: what.into(), away: true }),
        turns: false,
    }
}

fn clean() -> Seen {
    Seen { stored: Some(Stored { all: 9, ..Stored::default() }), ..Seen::default() }
}

fn of_encryption<'a>(members: &'a [Member], seen: &'a Seen) -> Situation<'a> {
    Situation { subject: Subject::EncryptionKey, members, until: None, seen, busy: None }
}

#[test]
fn a_former_encryption_key_is_neither_dropped_nor_deleted_while_anything_may_be_stored_with_it() {
    let left = Stored { all: 9, others: 1, named: vec!["a/b".into()] };
    let refused = Some("a webhook refuses it".to_owned());
    for (phases, who) in [
        ([Phase::Reissue; 3], "nobody has dropped it"),
        ([Phase::Drop, Phase::Reissue, Phase::Reissue], "one has"),
        ([Phase::Drop; 3], "all have, and it is there still"),
    ] {
        let members: Vec<_> =
            (0..).map(names::master).zip(phases).map(|(node, phase)| member(&node, phase, None)).collect();
        for stored in [None, Some(left.clone())] {
            let seen = Seen { stored, unwritten: refused.clone(), ..Seen::default() };
            let decision = decide(&of_encryption(&members, &seen), at(0));
            assert!(decision.enter.is_empty() && !decision.is_over, "{who}: {decision:?}");
            let waits = decision.waits.unwrap();
            let wanted = if seen.stored.is_some() {
                "1 of 9 Secrets to be rewritten with the new key: a webhook refuses it"
            } else {
                "etcd to say"
            };
            assert!(waits.starts_with(wanted), "{waits}");
        }
        let decision = decide(&of_encryption(&members, &clean()), at(0));
        assert_eq!(
            (decision.enter.len(), decision.is_over),
            if phases == [Phase::Drop; 3] { (0, true) } else { (1, false) },
            "{who}"
        );
    }
    // Nor while one of those that write is not seen, or comes: it may write with the former one.
    for odd in [
        member("master-1", Phase::Reissue, Some("master-1: kube-apiserver to be started anew")),
        member("master-1", Phase::Trust, None),
        Member { phase: None, runs: false, ..member("master-1", Phase::Reissue, None) },
    ] {
        let members = [member("master-0", Phase::Reissue, None), odd];
        let decision = decide(&of_encryption(&members, &clean()), at(0));
        assert!(
            decision.enter.values().all(|phase| *phase < Phase::Drop) && decision.stage < Stage::Overlap,
            "{decision:?}"
        );
    }
}

#[test]
fn one_node_turns_at_a_time_and_none_while_another_is_replaced_or_not_well() {
    for subject in KEYS {
        for (low, next) in [(Phase::Before, Phase::Trust), (Phase::Trust, Phase::Reissue)] {
            let members = ["master-0", "master-1", "master-2"].map(|node| member(node, low, None));
            let seen = clean();
            let situation = Situation { subject, ..of_encryption(&members, &seen) };
            let decision = decide(&situation, at(0));
            assert_eq!(
                (decision.enter, decision.turning.as_deref()),
                ([("master-0".to_owned(), next)].into(), Some("master-0"))
            );
            let busy = decide(&Situation { busy: Some("master-1 to be replaced".into()), ..situation.clone() }, at(0));
            assert_eq!((busy.enter.len(), busy.waits.as_deref()), (0, Some("master-1 to be replaced")));
            let mut ill = members.clone();
            ill[2].lacks = Some("master-2: etcd to be well".into());
            let decision = decide(&Situation { members: &ill, ..situation }, at(0));
            assert_eq!((decision.enter.len(), decision.waits.as_deref()), (0, Some("master-2: etcd to be well")));
            assert_eq!(
                decision.turning.is_some(),
                low > Phase::Before,
                "it is told who turns, for who would be replaced"
            );
        }
    }
}

#[test]
fn a_node_has_to_show_what_it_was_given() {
    let (sa, encryption) = (Subject::ServiceAccountKey, Subject::EncryptionKey);
    let seen = |verifies: &[&str]| Seen {
        ids: Some(("old".into(), "new".into())),
        verifies: [("master-0".to_owned(), verifies.iter().map(|id| (*id).to_owned()).collect())].into(),
        ..Seen::default()
    };
    let both = seen(&["old", "new", "a user's"]);
    for (subject, phase, started, well, seen, lack) in [
        (encryption, Phase::Trust, Phase::Trust, true, &both, None),
        (encryption, Phase::Reissue, Phase::Trust, true, &both, Some("kube-apiserver to be started anew")),
        (encryption, Phase::Reissue, Phase::Reissue, false, &both, Some("kube-apiserver to be well")),
        (sa, Phase::Before, Phase::Before, true, &Seen::default(), None),
        (sa, Phase::Trust, Phase::Trust, true, &both, None),
        (
            sa,
            Phase::Trust,
            Phase::Trust,
            true,
            &seen(&["old"]),
            Some("kube-apiserver to verify tokens with the new key"),
        ),
        (
            sa,
            Phase::Reissue,
            Phase::Reissue,
            true,
            &seen(&["new"]),
            Some("kube-apiserver to verify tokens with the former key"),
        ),
        (sa, Phase::Reissue, Phase::Trust, true, &both, Some("kube-apiserver to be started anew")),
        (
            sa,
            Phase::Drop,
            Phase::Drop,
            true,
            &both,
            Some("kube-apiserver to verify tokens with the former key no more"),
        ),
        (sa, Phase::Drop, Phase::Drop, true, &seen(&["new"]), None),
        (
            sa,
            Phase::Trust,
            Phase::Trust,
            true,
            &Seen { ids: both.ids.clone(), ..Seen::default() },
            Some("kube-apiserver to say"),
        ),
    ] {
        let answer = answer(subject, mark(started), well);
        let found = lacks(subject, "master-0", mark(phase), Some(&answer), seen);
        let wanted = lack.map(|lack| format!("master-0: {lack}"));
        assert!(
            match (&found, &wanted) {
                (Some(found), Some(wanted)) => found.starts_with(wanted),
                (None, None) => true,
                _ => false,
            },
            "{found:?} {wanted:?}"
        );
    }
    assert!(lacks(sa, "master-0", mark(Phase::Trust), None, &both).is_some());
    // The controller manager signs, from the phase in which that is the new key on.
    assert_eq!(
        turns(sa, mark(Phase::Drop)),
        [("kube-apiserver", "2.drop".to_owned()), ("kube-controller-manager", "2.reissue".to_owned())].into()
    );
    assert_eq!(turns(encryption, mark(Phase::Before)), BTreeMap::new());
}

// Every order of events.

/// A control-plane node: what its Secret says, what it has of that, and what its API server started with.
#[derive(Clone, Debug)]
struct Running {
    secret: Phase,
    files: Phase,
    runs: Phase,
    up: bool,
}

#[derive(Clone, Debug)]
struct Model {
    subject: Subject,
    nodes: BTreeMap<String, Running>,
    now: i64,
    until: Option<i64>,
    /// Tokens: of the new key, and until when they are good.
    tokens: Vec<(bool, i64)>,
    /// What is stored: with the new key.
    stored: Vec<bool>,
    over: bool,
}

/// Seconds that a token is good for, and that users have.
const LIFE: i64 = 100;

#[derive(Clone, Debug)]
enum Event {
    Look,
    Sync(usize),
    Start(usize),
    Up(usize),
    /// Its VM boots: with what its Secret holds, or with what its volume held before.
    Boot(usize, bool),
    /// The control plane grows to three.
    Grow,
    /// Somebody writes, or is given a token.
    Write(usize),
    Token(usize),
    /// A Secret is stored anew.
    Rewrite(usize),
    Wait(i64),
}

fn event() -> impl Strategy<Value = Event> {
    let place = 0_usize..3;
    prop_oneof![
        4 => Just(Event::Look),
        3 => place.clone().prop_map(Event::Sync),
        3 => place.clone().prop_map(Event::Start),
        3 => place.clone().prop_map(Event::Up),
        1 => (place.clone(), any::<bool>()).prop_map(|(place, stale)| Event::Boot(place, stale)),
        1 => Just(Event::Grow),
        3 => place.clone().prop_map(Event::Write),
        3 => place.clone().prop_map(Event::Token),
        3 => place.prop_map(Event::Rewrite),
        2 => (1_i64..60).prop_map(Event::Wait),
    ]
}

impl Model {
    fn new(subject: Subject, masters: u32) -> Self {
        let at = Running { secret: Phase::Before, files: Phase::Before, runs: Phase::Before, up: true };
        let nodes = (0..masters).map(|index| (names::master(index), at.clone())).collect();
        Self { subject, nodes, now: 0, until: None, tokens: vec![], stored: vec![false; 3], over: false }
    }

    fn seen(&self) -> Seen {
        let others = self.stored.iter().filter(|new| !**new).count();
        Seen {
            ids: Some(("old".into(), "new".into())),
            verifies: self.nodes.iter().map(|(name, node)| (name.clone(), verifies(node.runs))).collect(),
            stored: Some(Stored { all: self.stored.len(), others, named: vec![] }),
            unwritten: None,
        }
    }

    fn look(&mut self) {
        let seen = self.seen();
        let members: Vec<_> = self
            .nodes
            .iter()
            .map(|(name, node)| {
                let answer = answer(self.subject, mark(node.runs), node.up);
                let lacks = lacks(self.subject, name, mark(node.secret), Some(&answer), &seen);
                Member {
                    node: name.clone(),
                    control_plane: true,
                    runs: true,
                    phase: Some(node.secret),
                    lacks: lacks.map(|what| Lack { what, away: true }),
                    turns: false,
                }
            })
            .collect();
        let until = self.until.map(at);
        let decision = decide(
            &Situation { subject: self.subject, members: &members, until, seen: &seen, busy: None },
            at(self.now),
        );
        assert!(decision.is_over || !decision.enter.is_empty() || decision.waits.is_some(), "it says nothing");
        if decision.stage == Stage::Overlap && self.until.is_none() {
            self.until = Some(self.now + LIFE);
        }
        self.over |= decision.is_over;
        for (node, phase) in decision.enter {
            let node = self.nodes.get_mut(&node).unwrap();
            assert_eq!(next(node.secret), Some(phase), "a phase is left out, or gone back");
            node.secret = phase;
        }
    }

    fn nth(&mut self, place: usize) -> &mut Running {
        let place = place % self.nodes.len();
        self.nodes.values_mut().nth(place).unwrap()
    }

    fn happen(&mut self, event: &Event) {
        let now = self.now;
        match event {
            Event::Look => self.look(),
            Event::Sync(place) => {
                let node = self.nth(*place);
                node.files = node.secret;
            }
            Event::Start(place) => {
                let node = self.nth(*place);
                if node.runs != node.files {
                    (node.runs, node.up) = (node.files, false);
                }
            }
            Event::Up(place) => self.nth(*place).up = true,
            Event::Boot(place, stale) => {
                let node = self.nth(*place);
                node.files = if *stale { node.files } else { node.secret };
                node.runs = node.files;
            }
            Event::Grow if self.nodes.len() == 1 => {
                let front = self.nodes["master-0"].secret;
                for index in 1..3 {
                    let at = Running { secret: front, files: front, runs: front, up: true };
                    self.nodes.insert(names::master(index), at);
                }
            }
            Event::Grow => {}
            Event::Write(place) => {
                let node = self.nth(*place).clone();
                if node.up {
                    self.stored.push(node.runs >= Phase::Reissue);
                }
            }
            Event::Token(place) => {
                let node = self.nth(*place).clone();
                if node.up {
                    self.tokens.push((node.runs >= Phase::Reissue, now + LIFE));
                }
            }
            Event::Rewrite(place) => {
                let node = self.nth(*place).clone();
                if let Some(first) = self.stored.iter_mut().find(|new| !**new).filter(|_| node.up) {
                    *first = node.runs >= Phase::Reissue;
                }
            }
            Event::Wait(seconds) => self.now += seconds,
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let down = self.nodes.values().filter(|node| !node.up).count();
        prop_assert!(down <= 1, "{down} API servers are away");
        let knows = |node: &Running, new: bool| verifies(node.runs).contains(if new { "new" } else { "old" });
        for (name, node) in self.nodes.iter().filter(|(_, node)| node.up) {
            if self.subject == Subject::ServiceAccountKey {
                let good = self.tokens.iter().filter(|(_, until)| self.now < *until);
                prop_assert!(good.clone().all(|(new, _)| knows(node, *new)), "{name} refuses a token that is good");
            } else {
                prop_assert!(self.stored.iter().all(|new| knows(node, *new)), "{name} cannot read what is stored");
            }
        }
        if self.over && self.subject == Subject::EncryptionKey {
            prop_assert!(self.stored.iter().all(|new| *new), "the key is deleted, and with it what it encrypted");
        }
        Ok(())
    }
}

fn subjects() -> impl Strategy<Value = Subject> {
    prop_oneof![Just(KEYS[0]), Just(KEYS[1])]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_loses_a_secret_or_refuses_a_token(
        subject in subjects(),
        masters in prop_oneof![Just(1_u32), Just(3)],
        events in proptest::collection::vec(event(), 1..300),
    ) {
        let mut model = Model::new(subject, masters);
        for event in &events {
            model.happen(event);
            if let Err(error) = model.check() {
                return Err(TestCaseError::fail(format!("after {event:?}: {error}\n{model:#?}")));
            }
            if model.over {
                break;
            }
        }
    }

    #[test]
    fn it_comes_to_an_end_whatever_was_before(
        subject in subjects(),
        masters in prop_oneof![Just(1_u32), Just(3)],
        events in proptest::collection::vec(event(), 0..150),
    ) {
        let mut model = Model::new(subject, masters);
        events.iter().for_each(|event| model.happen(event));
        for _ in 0..60 {
            model.look();
            for place in 0..model.nodes.len() {
                [Event::Sync(place), Event::Start(place), Event::Up(place)].iter().for_each(|event| model.happen(event));
            }
            let all = model.stored.len();
            (0..all).for_each(|place| model.happen(&Event::Rewrite(place)));
            model.now += 10;
        }
        prop_assert!(model.over, "{model:#?}");
    }
}

/// A property that could not fail would show nothing: events reach the end by themselves.
#[test]
fn the_model_gets_through() {
    for subject in KEYS {
        let mut model = Model::new(subject, 3);
        for _ in 0..80 {
            for event in [Event::Look, Event::Write(1), Event::Token(2)] {
                model.happen(&event);
            }
            for place in 0..3 {
                [Event::Sync(place), Event::Start(place), Event::Up(place), Event::Rewrite(place)]
                    .iter()
                    .for_each(|event| model.happen(event));
            }
            model.now += 5;
            model.check().unwrap();
            if model.over {
                break;
            }
        }
        assert!(model.over, "{model:#?}");
    }
    assert_eq!(Duration::from_secs(25 * 3600), valid(json!({})).pki.token_overlap);
}
