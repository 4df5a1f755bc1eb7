//! What is to be made, issued or renewed. Pure: time and all that was observed come in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{
    PkiFacts,
    generations::Standing,
    keys::{Subject, Wishes},
    leaf::{self, Authority, Leaf},
    roots::{self, Root},
    rotation::{Mark, Phase, users_get_new},
    turnover::{self, Observed, Record, Rotating},
};
use crate::{
    api::names,
    cluster::{Report, Valid, valid::DEFAULT_LEAF_TTL},
    network::places::Place,
    runtime::apply::hash,
};

/// What is known of a Secret without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretMeta {
    /// [`names::HASH_ANNOTATION`]
    pub hash: Option<String>,
    /// [`names::RENEW_AT_ANNOTATION`]
    pub renew_at: Option<Timestamp>,
    /// [`names::ENDS_AT_ANNOTATION`]
    pub ends_at: Option<Timestamp>,
    /// Fingerprints of the roots that it holds, by [`Root::record`].
    pub fingerprints: BTreeMap<String, String>,
    /// The worker whose keys it holds.
    pub worker: Option<String>,
    /// [`names::AUTHORITIES_ANNOTATION`]
    pub mark: Option<Mark>,
    /// [`names::ROTATED_FOR_ANNOTATION`]
    pub rotated_for: u32,
    /// How often keys had been asked to be rotated when it was made, if it has roots.
    pub keys_for: Wishes,
}

/// What was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Whether the guest's namespace is there.
    pub namespace: bool,
    /// Fingerprints of roots that the namespace records, by [`Root::record`].
    pub records: BTreeMap<String, String>,
    /// Secrets of the guest, by name; the kubeconfig Secret among them.
    pub secrets: BTreeMap<String, SecretMeta>,
    /// URL of the guest's API, when it is known.
    pub endpoint: Option<String>,
    /// Workers that there should be.
    pub workers: Vec<String>,
    /// Places that are written down, by worker.
    pub places: BTreeMap<String, Place>,
    /// Whether a provider is at work, who writes down the places that are missing.
    pub provider: bool,
    /// VM pods that are there.
    pub vm_pods: BTreeSet<String>,
    /// Workers that were given up with their hosts: their VM pods say for ever what they said last.
    pub lost: BTreeSet<String>,
    /// Generation of the recorded roots, if it is not the first.
    pub generation: Option<u32>,
    /// Fingerprints of the roots that are to take their place, by [`Root::record`], once they are recorded.
    pub next_records: BTreeMap<String, String>,
    /// What is written down of the rotation that goes on.
    pub rotation: Option<Record>,
    /// What is seen of it.
    pub observed: Option<Observed>,
    /// Whether nothing but renewing certificates is done.
    pub paused: bool,
}

impl World {
    /// Generation of the recorded roots.
    pub fn generation(&self) -> u32 {
        self.generation.unwrap_or(1)
    }

    /// The Secret of the recorded roots.
    pub fn roots(&self) -> Option<&SecretMeta> {
        self.secrets.get(&roots::secret_of(self.generation()))
    }

    /// What is rotated, as the records have it.
    pub(super) fn rotated(&self) -> Subject {
        Subject::of(&self.records, &self.next_records)
    }

    fn has_roots(&self) -> bool {
        self.secrets.keys().any(|name| roots::generation_of(name).is_some())
    }

    /// Workers that are wanted no more and have a VM still: in a rotation they go on with the others, whose API servers and whose
    /// users reach them until they are gone. Those that were given up do not.
    pub(super) fn leaving(&self) -> impl Iterator<Item = &String> {
        let kept = self.secrets.values().filter_map(|secret| secret.worker.as_ref());
        let is_there = |node: &String| self.vm_pods.contains(node) && self.places.contains_key(node);
        kept.filter(move |node| !self.workers.contains(*node) && is_there(node) && !self.lost.contains(*node))
    }

    /// Whether certificates were issued: then there were roots, whatever became of their records.
    fn has_issued(&self) -> bool {
        self.secrets.values().any(|secret| secret.hash.is_some())
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Make the roots, for the first and only time.
    MakeRoots,
    /// Take the roots from a Secret beside the Cluster, for the first and only time.
    ImportRoots {
        /// Its name.
        secret: String,
    },
    /// Record the fingerprints of the roots that the guest was given.
    RecordRoots,
    /// Make the roots that are to take the recorded ones' place.
    MakeNext {
        /// Their generation.
        generation: u32,
        /// Which of them are others.
        subject: Subject,
    },
    /// Record their fingerprints.
    RecordNext {
        /// Their generation.
        generation: u32,
    },
    /// Write down what the rotation is at.
    NoteStage {
        /// What is written.
        #[serde(skip)]
        record: Record,
    },
    /// Record them instead of the former ones, which nobody needs any more.
    Adopt {
        /// Their generation.
        generation: u32,
    },
    /// Delete the Secret of former roots.
    RemoveRoots {
        /// Their generation.
        generation: u32,
    },
    /// Issue all certificates of a node into its Secret.
    IssueNode {
        /// The node.
        node: String,
        /// Its certificates.
        leaves: Vec<Leaf>,
        /// How long they live, unless their roots end before.
        #[serde(serialize_with = "minutes")]
        ttl: Duration,
        /// Hash of this wish.
        hash: String,
        /// Whether it is a worker: such a node gets no key but its own.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        worker: bool,
        /// Where it is in a rotation.
        #[serde(skip)]
        standing: Option<Standing>,
    },
    /// Delete the Secret of a worker that is wanted no more, and whose VM pod is gone.
    RemoveWorker {
        /// The worker.
        node: String,
    },
    /// Issue the administrator's kubeconfig.
    IssueKubeconfig {
        /// URL that it points to.
        endpoint: String,
        /// How long its certificate lives, unless its root ends before.
        #[serde(serialize_with = "minutes")]
        ttl: Duration,
        /// Hash of this wish.
        hash: String,
        /// The phase of the foremost node.
        #[serde(skip)]
        front: Phase,
    },
}

/// A lifetime as specs have it: hours, or minutes where those are none.
fn minutes<S: Serializer>(ttl: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let minutes = ttl.as_secs() / 60;
    serializer.collect_str(&if minutes.is_multiple_of(60) {
        format!("{}h", minutes / 60)
    } else {
        format!("{minutes}m")
    })
}

/// What to do now, and why no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What it waits for.
    pub waiting: Vec<String>,
    /// Whether a live guest seems to have lost its roots: they are not seen, or do not say that they are what is recorded.
    pub lost: bool,
    /// The rotation that goes on.
    #[serde(skip)]
    pub rotating: Option<Rotating>,
}

impl Plan {
    /// Whether all that is to be done takes the place of what is there and good for so long: nobody lacks anything meanwhile.
    pub fn replaces(&self, cluster: &Valid, world: &World) -> bool {
        let is_there = |name: String| world.secrets.contains_key(&name);
        let replaces = |step: &Step| match step {
            Step::IssueNode { node, .. } => is_there(names::node_secret(node)),
            Step::IssueKubeconfig { .. } => is_there(names::kubeconfig_secret(&cluster.identity.key.name)),
            Step::MakeNext { .. } | Step::RecordNext { .. } | Step::NoteStage { .. } => true,
            Step::Adopt { .. } | Step::RemoveRoots { .. } => true,
            Step::MakeRoots | Step::ImportRoots { .. } | Step::RecordRoots | Step::RemoveWorker { .. } => false,
        };
        self.waiting.is_empty() && !self.lost && self.steps.iter().all(replaces)
    }

    /// What there is to say when all of it was done.
    pub fn report(&self, cluster: &Valid, world: &World, facts: PkiFacts) -> Report<PkiFacts> {
        if self.replaces(cluster, world) {
            return Report::Ready(facts);
        }
        let what = match self.waiting.join(", ") {
            none if none.is_empty() => "keys and certificates to be stored".into(),
            waiting => waiting,
        };
        Report::Waiting { what, facts: Some(facts) }
    }

    /// Whether there is nothing to do and to wait for, but what a rotation waits for.
    pub fn is_fulfilled(&self) -> bool {
        self.steps.is_empty() && self.waiting.is_empty() && !self.lost
    }
}

/// Decides what to do now.
pub fn plan(cluster: &Valid, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if !world.namespace {
        plan.waiting.push(format!("namespace {}", cluster.identity.namespace));
        return plan;
    }
    match world.roots().map(|secret| &secret.fingerprints) {
        None if world.records.is_empty() && !world.has_issued() && !world.has_roots() => {
            plan.steps.push(first_roots(cluster));
        }
        Some(made) if roots::agree(made, &world.records) => {
            if *made != world.records {
                plan.steps.push(Step::RecordRoots);
            }
        }
        _ => {
            // Whatever would be issued now would not fit what the guest was built on.
            plan.lost = true;
            return plan;
        }
    }
    if !plan.steps.is_empty() {
        plan.waiting.push("the roots".into());
        return plan;
    }
    if turnover::plan(cluster, world, now, &mut plan) {
        leaves(cluster, world, now, &mut plan);
    }
    plan
}

/// How a guest that has none comes by its roots.
fn first_roots(cluster: &Valid) -> Step {
    match &cluster.pki.import_from {
        Some(secret) => Step::ImportRoots { secret: secret.clone() },
        None => Step::MakeRoots,
    }
}

fn leaves(cluster: &Valid, world: &World, now: Timestamp, plan: &mut Plan) {
    let ttl = cluster.pki.leaf_ttl;
    for index in 0..cluster.control_plane.replicas {
        let (node, leaves) = (names::master(index), leaf::of_master(cluster, index));
        if plan.rotating.as_ref().is_some_and(|rotating| rotating.decision.held.contains(&node)) {
            continue;
        }
        let standing = standing(plan, &node);
        let hash = of_master(world, &leaves, ttl, standing);
        if is_due(world.secrets.get(&names::node_secret(&node)), &hash, now) {
            plan.steps.push(Step::IssueNode { node, leaves, ttl, hash, worker: false, standing });
        }
    }
    workers(cluster, world, now, plan);
    match &world.endpoint {
        None => plan.waiting.push("the API's address".into()),
        Some(endpoint) => {
            // Clients of the API hold none of the keys.
            let of_authorities = plan.rotating.as_ref().filter(|rotating| rotating.subject == Subject::Authorities);
            let front = of_authorities.map_or(Phase::Before, |rotating| rotating.front);
            let hash = of_kubeconfig(cluster, world, endpoint, front);
            if is_due(world.secrets.get(&names::kubeconfig_secret(&cluster.identity.key.name)), &hash, now) {
                plan.steps.push(Step::IssueKubeconfig { endpoint: endpoint.clone(), ttl, hash, front });
            }
        }
    }
}

/// Where a node is in the rotation that goes on.
fn standing(plan: &Plan, node: &str) -> Option<Standing> {
    let rotating = plan.rotating.as_ref()?;
    let (phase, generation) = (rotating.phase_of(node), rotating.generation);
    let control_plane = names::master_index(node).is_some();
    let has_part = control_plane || rotating.subject == Subject::Authorities;
    let (mark, subject) = (Mark { generation, phase }, rotating.subject);
    let standing = Standing { mark, subject, control_plane, alone: rotating.alone };
    (phase > Phase::Before && has_part).then_some(standing)
}

/// Hash of what a control-plane node wants.
fn of_master(world: &World, leaves: &[Leaf], ttl: Duration, standing: Option<Standing>) -> String {
    of_node(json!({"leaves": leaves, "roots": world.records}), ttl, standing)
}

/// Hash of what a worker wants. Of the roots, it knows one.
fn of_worker(world: &World, leaves: &[Leaf], ttl: Duration, standing: Option<Standing>) -> String {
    let root = world.records.get(&Root::Ca(Authority::Kubernetes).record());
    of_node(json!({"leaves": leaves, "root": root}), ttl, standing)
}

/// Whether a node's Secret is what it was given before it learned of others: such a one has no phase.
pub(super) fn is_before(cluster: &Valid, world: &World, node: &str, secret: &SecretMeta) -> bool {
    let ttl = cluster.pki.leaf_ttl;
    let wanted = match (names::master_index(node), world.places.get(node)) {
        (Some(index), _) => of_master(world, &leaf::of_master(cluster, index), ttl, None),
        (None, Some(place)) => of_worker(world, &leaf::of_worker(cluster, node, *place), ttl, None),
        (None, None) => return false,
    };
    secret.hash.as_deref() == Some(&wanted)
}

/// Hash of what a node wants. Outside a rotation nothing is in it that was not before there were any.
fn of_node(mut wanted: Value, ttl: Duration, standing: Option<Standing>) -> String {
    if let Some(standing) = standing {
        // The shape decides on what a mark stands for.
        wanted["authorities"] = json!([standing.mark.to_string(), standing.alone]);
    }
    wish(wanted, ttl)
}

/// Hash of the administrator's kubeconfig, where the foremost node is in this phase.
pub(super) fn of_kubeconfig(cluster: &Valid, world: &World, endpoint: &str, front: Phase) -> String {
    let mut wanted = json!({"leaf": leaf::administrator(), "endpoint": endpoint, "roots": world.records});
    if users_get_new(front) {
        wanted["authorities"] = json!(world.generation() + 1);
    }
    wish(wanted, cluster.pki.leaf_ttl)
}

fn workers(cluster: &Valid, world: &World, now: Timestamp, plan: &mut Plan) {
    let mut homeless = 0;
    let wanted: BTreeSet<_> = world.workers.iter().collect();
    let leaving = world.leaving().filter(|node| standing(plan, node).is_some()).collect::<Vec<_>>();
    for node in world.workers.iter().chain(leaving) {
        let Some(place) = world.places.get(node) else {
            homeless += 1;
            continue;
        };
        let leaves = leaf::of_worker(cluster, node, *place);
        let ttl = cluster.pki.leaf_ttl;
        let standing = standing(plan, node);
        let hash = of_worker(world, &leaves, ttl, standing);
        if is_due(world.secrets.get(&names::node_secret(node)), &hash, now) {
            plan.steps.push(Step::IssueNode { node: node.clone(), leaves, ttl, hash, worker: true, standing });
        }
    }
    if homeless > 0 && world.provider {
        plan.waiting.push(format!("the places of {homeless} workers"));
    }
    let kept = world.secrets.values().filter_map(|secret| secret.worker.as_ref());
    let gone = kept.filter(|node| !wanted.contains(*node) && !world.vm_pods.contains(*node));
    plan.steps.extend(gone.map(|node| Step::RemoveWorker { node: node.clone() }));
}

/// Hash of a wish. The default lifetime is not in it: it was not when there was no other, and a newer manager alone issues
/// nothing anew.
fn wish(mut wanted: Value, ttl: Duration) -> String {
    if ttl != DEFAULT_LEAF_TTL {
        wanted["ttl"] = json!(ttl.as_secs());
    }
    hash(&wanted)
}

/// Whether a Secret has to be issued: it is missing, made for another wish, or its time has come.
pub fn is_due(secret: Option<&SecretMeta>, wish: &str, now: Timestamp) -> bool {
    match secret {
        None => true,
        Some(secret) => secret.hash.as_deref() != Some(wish) || secret.renew_at.is_none_or(|at| at <= now),
    }
}

/// The time at two thirds of a certificate's life, when it is renewed. Where the roots end before that, no renewal could make
/// it live longer: then it is the end of the roots, when all that is left is to say so.
pub fn renew_at(issued: Timestamp, ttl: Duration, roots_end: Timestamp) -> Timestamp {
    let at = issued.checked_add(ttl * 2 / 3).unwrap_or(Timestamp::MAX).min(roots_end);
    // Whole seconds: people read it.
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// When the next certificate is renewed.
pub fn next_renewal(world: &World) -> Option<Timestamp> {
    world.secrets.values().filter_map(|secret| secret.renew_at).min()
}

/// When the first certificate ends. None: not of all of them it is known, or there are none.
pub fn first_end(world: &World) -> Option<Timestamp> {
    let ends: Option<Vec<_>> =
        world.secrets.values().filter(|secret| secret.renew_at.is_some()).map(|secret| secret.ends_at).collect();
    ends?.into_iter().min()
}

/// How long nobody has to look at certificates of which the next is renewed then.
pub fn pause(renew_at: Option<Timestamp>, now: Timestamp) -> Duration {
    const LONGEST: Duration = Duration::from_secs(3600);
    let until = renew_at.map_or(LONGEST, |at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    until.clamp(Duration::from_secs(1), LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::valid;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn rooted() -> World {
        let mut world = World { namespace: true, endpoint: Some("https://10.0.0.1:6443".into()), ..World::default() };
        world.records = Root::ALL.into_iter().map(|root| (root.record(), root.name().into())).collect();
        world.secrets.insert(roots::SECRET.into(), holding(&world.records));
        world
    }

    /// The Secret of roots with these fingerprints.
    fn holding(fingerprints: &BTreeMap<String, String>) -> SecretMeta {
        SecretMeta { fingerprints: fingerprints.clone(), ..SecretMeta::default() }
    }

    /// Carries out a plan as the effects would, as far as metadata shows it.
    fn carry_out(world: &mut World, plan: &Plan, renew_at: Timestamp) {
        for step in &plan.steps {
            match step {
                Step::MakeRoots | Step::ImportRoots { .. } => {
                    let made = holding(&rooted().records);
                    assert!(world.secrets.insert(roots::SECRET.into(), made).is_none(), "they were made twice");
                }
                Step::RecordRoots => world.records = world.secrets[roots::SECRET].fingerprints.clone(),
                Step::MakeNext { .. }
                | Step::RecordNext { .. }
                | Step::NoteStage { .. }
                | Step::Adopt { .. }
                | Step::RemoveRoots { .. } => panic!("nobody asked for other roots: {step:?}"),
                Step::RemoveWorker { node } => {
                    assert!(world.secrets.remove(&names::node_secret(node)).is_some(), "{node}");
                }
                Step::IssueNode { node, hash, worker, .. } => {
                    let worker = worker.then(|| node.clone());
                    let (hash, renew_at) = (Some(hash.clone()), Some(renew_at));
                    let secret = SecretMeta { hash, renew_at, worker, ..SecretMeta::default() };
                    world.secrets.insert(names::node_secret(node), secret);
                }
                Step::IssueKubeconfig { hash, .. } => {
                    let secret =
                        SecretMeta { hash: Some(hash.clone()), renew_at: Some(renew_at), ..SecretMeta::default() };
                    world.secrets.insert(names::kubeconfig_secret("demo"), secret);
                }
            }
        }
    }

    #[test]
    fn it_converges_and_then_rests_until_renewal() {
        let cluster = valid(json!({}));
        let mut world = World { namespace: true, endpoint: Some("e".into()), ..World::default() };
        let mut rounds = 0;
        loop {
            let plan = plan(&cluster, &world, NOW);
            if plan.steps.is_empty() {
                break;
            }
            carry_out(&mut world, &plan, at(1000));
            rounds += 1;
            assert!(rounds < 10);
        }
        assert_eq!(rounds, 3, "make, record, issue");
        assert_eq!(plan(&cluster, &world, at(999)), Plan::default());
        assert_eq!(plan(&cluster, &world, at(1000)).steps.len(), 2);
    }

    #[test]
    fn recorded_roots_are_never_made_again() {
        let cluster = valid(json!({}));
        let mut missing = rooted();
        missing.secrets.remove(roots::SECRET);
        let mut lost = vec![missing.clone()];
        for root in Root::ALL {
            // One record is enough, whichever is left.
            let mut recorded = missing.clone();
            recorded.records.retain(|record, _| *record == root.record());
            let (mut exchanged, mut unsaid) = (rooted(), rooted());
            let said = |world: &mut World, fingerprint: Option<&str>| {
                let mut all = world.records.clone();
                all.remove(&root.record());
                all.extend(fingerprint.map(|other| (root.record(), other.to_owned())));
                world.secrets.insert(roots::SECRET.into(), holding(&all));
            };
            said(&mut exchanged, Some("other"));
            said(&mut unsaid, None);
            let mut unsaid_and_unrecorded = unsaid.clone();
            unsaid_and_unrecorded.records.remove(&root.record());
            lost.extend([recorded, exchanged, unsaid, unsaid_and_unrecorded]);
        }
        // The records went with them, and certificates tell that there were some.
        let mut issued = World { endpoint: None, ..missing.clone() };
        issued.records.clear();
        issued
            .secrets
            .insert(names::node_secret("master-0"), SecretMeta { hash: Some("h".into()), ..SecretMeta::default() });
        lost.push(issued);
        // Somebody took everything that the objects say of the roots.
        let mut unsaid = rooted();
        unsaid.records.clear();
        unsaid.secrets.insert(roots::SECRET.into(), SecretMeta::default());
        lost.push(unsaid);
        for world in lost {
            let plan = plan(&cluster, &world, NOW);
            assert_eq!((plan.lost, plan.steps), (true, vec![]), "{world:?}");
        }
    }

    #[test]
    fn roots_are_imported_where_they_would_be_made_and_nowhere_else() {
        let import = || valid(json!({"pki": {"importFrom": {"secretName": "kept"}}}));
        let mut world = World { namespace: true, endpoint: Some("e".into()), ..World::default() };
        let first = plan(&import(), &world, NOW);
        assert_eq!(first.steps, [Step::ImportRoots { secret: "kept".into() }]);
        carry_out(&mut world, &first, at(1000));
        assert_eq!(plan(&import(), &world, NOW).steps, [Step::RecordRoots]);
        // What is issued does not depend on where they came from.
        assert_eq!(plan(&import(), &rooted(), NOW), plan(&valid(json!({})), &rooted(), NOW));
        let mut lost = rooted();
        lost.secrets.remove(roots::SECRET);
        assert_eq!((plan(&import(), &lost, NOW).lost, plan(&import(), &lost, NOW).steps), (true, vec![]));
    }

    #[test]
    fn a_record_that_somebody_took_is_written_again() {
        for root in Root::ALL {
            let mut world = rooted();
            world.records.remove(&root.record());
            assert_eq!(plan(&valid(json!({})), &world, NOW).steps, [Step::RecordRoots]);
        }
    }

    #[test]
    fn a_worker_is_issued_at_its_place_and_removed_after_its_vm() {
        let cluster = valid(json!({"nodePools": [{"name": "a", "replicas": 2}]}));
        let mut world = World { workers: vec!["a-0".into(), "a-1".into()], ..rooted() };
        world.places.insert("a-0".into(), Place(64));
        assert_eq!(plan(&cluster, &world, NOW).waiting, Vec::<String>::new(), "nobody gives the other one a place");
        world.provider = true;
        let first = plan(&cluster, &world, NOW);
        assert_eq!((first.steps.len(), first.waiting), (3, vec!["the places of 1 workers".to_owned()]));
        world.places.insert("a-1".into(), Place(65));
        let second = plan(&cluster, &world, NOW);
        carry_out(&mut world, &second, at(1000));
        assert_eq!(plan(&cluster, &world, NOW), Plan::default());
        // Elsewhere on the overlay, its certificate would not fit.
        world.places.insert("a-1".into(), Place(70));
        assert_eq!(plan(&cluster, &world, NOW).steps.len(), 1);
        world.places.insert("a-1".into(), Place(65));
        let fewer = valid(json!({"nodePools": [{"name": "a", "replicas": 1}]}));
        world.workers.pop();
        world.vm_pods = ["a-0".to_owned(), "a-1".to_owned()].into();
        assert_eq!(plan(&fewer, &world, NOW), Plan::default());
        world.vm_pods.remove("a-1");
        assert_eq!(plan(&fewer, &world, NOW).steps, [Step::RemoveWorker { node: "a-1".into() }]);
    }

    #[test]
    fn a_worker_has_no_certificate_of_the_control_plane() {
        let leaves = leaf::of_worker(&valid(json!({})), "a-0", Place(64));
        assert_eq!(
            leaves.iter().map(|leaf| leaf.name).collect::<Vec<_>>(),
            ["kubelet", "kubelet-server", "kube-proxy", "metrics"]
        );
        assert!(leaves.iter().all(|leaf| leaf.authority == Authority::Kubernetes));
        assert_eq!(leaves[1].addresses, [std::net::IpAddr::from([172, 26, 0, 64])]);
        // Nor does it read what the API server counts.
        assert_eq!(leaves[3].organisations, [leaf::KUBELET_METRICS_GROUP]);
    }

    #[test]
    fn a_changed_endpoint_reissues_the_kubeconfig_alone() {
        let cluster = valid(json!({}));
        let mut world = rooted();
        let first = plan(&cluster, &world, NOW);
        carry_out(&mut world, &first, at(1000));
        world.endpoint = Some("https://10.0.0.2:6443".into());
        let steps = plan(&cluster, &world, NOW).steps;
        assert!(matches!(steps.as_slice(), [Step::IssueKubeconfig { .. }]), "{steps:?}");
    }

    #[test]
    fn no_certificate_carries_anothers_right() {
        for leaf in leaf::of_master(&valid(json!({})), 0) {
            assert!(!leaf.organisations.iter().any(|name| name == "system:masters"), "{}", leaf.name);
        }
        assert!(!leaf::administrator().organisations.iter().any(|name| name == "system:masters"));
    }

    #[test]
    fn renewal_is_at_two_thirds_or_when_the_roots_end() {
        let ttl = Duration::from_secs(90);
        assert_eq!(renew_at(NOW, ttl, Timestamp::MAX), at(60));
        assert_eq!(renew_at(at(100), ttl, at(160)), at(160));
        assert_eq!(renew_at(at(100), ttl, at(159)), at(159));
    }

    #[test]
    fn the_first_end_is_known_of_all_certificates_or_not_at_all() {
        let secret = |renew_at: Option<i64>, ends_at: Option<i64>| {
            let time = |second: Option<i64>| second.map(|second| Timestamp::from_second(second).unwrap());
            SecretMeta { renew_at: time(renew_at), ends_at: time(ends_at), ..SecretMeta::default() }
        };
        let end = |secrets: &[SecretMeta]| {
            let secrets = secrets.iter().enumerate().map(|(number, secret)| (number.to_string(), secret.clone()));
            first_end(&World { secrets: secrets.collect(), ..World::default() }).map(|end| end.as_second())
        };
        let roots = secret(None, None);
        assert_eq!(end(&[]), None);
        assert_eq!(end(&[roots.clone(), secret(Some(60), Some(90)), secret(Some(30), Some(80))]), Some(80));
        assert_eq!(end(&[roots, secret(Some(60), Some(90)), secret(Some(30), None)]), None);
    }

    #[test]
    fn another_lifetime_or_name_issues_anew_and_the_default_written_down_does_not() {
        let pki = |pki| valid(json!({"pki": pki}));
        let mut world = rooted();
        let first = plan(&pki(json!({})), &world, NOW);
        carry_out(&mut world, &first, at(1000));
        let issued = |pki| plan(&pki, &world, NOW).steps;
        assert_eq!(issued(pki(json!({"leaf": {"ttl": "2160h"}, "ca": {"ttl": "87600h"}}))), []);
        let steps = issued(pki(json!({"leaf": {"ttl": "10m"}})));
        let shown = serde_json::to_value(&steps).unwrap();
        assert_eq!(shown[0]["issue-node"]["ttl"], "10m");
        assert_eq!(shown[1]["issue-kubeconfig"]["ttl"], "10m");
        let steps = issued(pki(json!({"apiServer": {"altNames": ["api.example.com"]}})));
        assert!(matches!(steps.as_slice(), [Step::IssueNode { .. }]), "{steps:?}");
    }

    /// What guests have that were made by an earlier manager. Another hash would issue every certificate of every
    /// guest anew when the manager is updated.
    #[test]
    fn the_hash_of_the_default_wish_stays() {
        let steps = plan(&valid(json!({})), &rooted(), NOW).steps;
        let hashes: Vec<_> = steps
            .iter()
            .map(|step| match step {
                Step::IssueNode { hash, .. } | Step::IssueKubeconfig { hash, .. } => hash.as_str(),
                _ => panic!("{step:?}"),
            })
            .collect();
        assert_eq!(hashes, ["6114458176040d62", "d68d844e9a66ab5e"]);
    }
}
