//! What is made, recorded and removed when other authorities take the place of a guest's. Pure.
//!
//! ```text
//!  spec.pki.ca.rotate is raised, or another of the wishes of `keys`
//!   ─► Secret roots-2 ─► recorded beside the others ─► nodes go on, phase by phase ─► recorded in their place ─► roots-1 is deleted
//! ```
//!
//! How far it is follows from what is there: roots with records, and the phase that each node's Secret was made for. What is noted
//! beside that (the stage, and since when) is for people, and for the time that users have; that it names the recorded generation says
//! that the former one is to go.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;

use super::{
    keys::{self, Subject, decide::waits_until},
    leaf::Authority,
    plan::{Plan, SecretMeta, Step, World, is_due, of_kubeconfig},
    roots::{self, Root, agree},
    rotation::{
        Both, Decision, Lack, Mark, Member, Phase, Published, Situation, Stage, decide, ends, front, lacks, turns,
        unpublished, unwell,
    },
};
use crate::{api::names, cluster::Valid, supervisor::consumers::Answer};

/// The unit of etcd.
const ETCD: &str = "etcd";

/// What is written down of a rotation on the guest's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Generation of the roots that come.
    pub generation: u32,
    /// What it is at.
    pub stage: Stage,
    /// Since when.
    pub since: Timestamp,
    /// Whether a lone control-plane node carries it out. From `Reissue` on that stays so, whoever joins it: what its etcd and theirs
    /// trust fits, and who would go by the other rules would have to start it anew.
    pub alone: bool,
}

/// What a note says at its end of a rotation that a lone control-plane node carries out.
const ALONE: &str = " alone";

impl Record {
    /// As an annotation.
    pub fn write(&self) -> String {
        let alone = if self.alone { ALONE } else { "" };
        format!("{} {} {}{alone}", self.generation, self.stage.name(), self.since)
    }

    /// Until when users have time from now on, in the rotation to this generation. None: they have none, or not yet.
    pub fn users_until(&self, generation: u32, overlap: Duration, now: Timestamp) -> Option<Timestamp> {
        let overlaps = self.generation == generation && self.stage == Stage::Overlap;
        Some(ends(self.since, overlap)).filter(|until| overlaps && now < *until)
    }

    /// What an annotation says. None: nothing that can be read.
    pub fn read(text: &str) -> Option<Self> {
        let (text, alone) = text.strip_suffix(ALONE).map_or((text, false), |text| (text, true));
        let mut words = text.split(' ');
        let generation = words.next()?.parse().ok()?;
        let name = words.next()?;
        let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name)?;
        Some(Self { generation, stage, since: words.next()?.parse().ok()?, alone })
    }
}

/// What is seen of a rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// How both generations are told.
    pub both: Both,
    /// What supervisors say, by node.
    pub answers: BTreeMap<String, Answer>,
    /// Nodes whose VM pod runs.
    pub running: BTreeSet<String>,
    /// What the guest's own objects say.
    pub published: Option<Published>,
    /// Who of the control plane is being replaced.
    pub busy: Option<String>,
    /// What is seen of keys, where these are rotated.
    pub keys: keys::decide::Seen,
}

/// A rotation that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotating {
    /// Generation of the roots that come.
    pub generation: u32,
    /// What is rotated.
    pub subject: Subject,
    /// The phase of the foremost node.
    pub front: Phase,
    /// The phase of the last.
    pub low: Phase,
    /// Whether it is carried out as by a lone control-plane node.
    pub alone: bool,
    /// Phases of the nodes that have one, after this look.
    pub phases: BTreeMap<String, Phase>,
    /// Who goes on, and why nobody does.
    pub decision: Decision,
    /// What is written down of it.
    pub record: Option<Record>,
    /// Until when users have time.
    pub until: Option<Timestamp>,
    /// How both generations are told.
    pub both: Both,
    /// Whether it is known who turns: the nodes were looked at, or all had been before users' time began.
    pub is_known: bool,
}

impl Rotating {
    /// The phase that a node is to be in. One that comes is where the foremost is: that fits all others.
    pub fn phase_of(&self, node: &str) -> Phase {
        self.phases.get(node).copied().unwrap_or(self.front)
    }

    /// The phase of the foremost node, as a mark.
    pub fn mark(&self) -> Mark {
        Mark { generation: self.generation, phase: self.front }
    }

    /// The phase of the last node, as a mark.
    pub fn last(&self) -> Mark {
        Mark { generation: self.generation, phase: self.low }
    }
}

/// The generation of the recorded roots: what is written down, or else whose Secret holds what is recorded. Where no authority is recorded
/// any more, that of the roots that are there. Of two that fit the latter if every node trusts it alone, and the former else.
pub(super) fn generation(
    noted: Option<u32>,
    secrets: &BTreeMap<String, SecretMeta>,
    records: &BTreeMap<String, String>,
) -> Option<u32> {
    // Without one of an authority: what is the same in both of a rotation may be all that is left.
    let tells = Authority::ALL.iter().any(|of| records.contains_key(&Root::Ca(*of).record()));
    let fits = |secret: &SecretMeta| !tells || agree(&secret.fingerprints, records);
    let there = secrets.iter().filter(|(_, secret)| fits(secret));
    noted.or_else(|| one_of(&there.filter_map(|(name, _)| roots::generation_of(name)).collect(), secrets))
}

fn one_of(there: &BTreeSet<u32>, secrets: &BTreeMap<String, SecretMeta>) -> Option<u32> {
    let (first, last) = (*there.first()?, *there.last()?);
    let last_alone = Mark { generation: last, phase: Phase::Drop };
    let mut nodes = secrets.iter().filter(|(name, secret)| secret.hash.is_some() && names::is_node_secret(name));
    let nodes_trust = nodes.clone().next().is_some() && nodes.all(|(_, secret)| secret.mark == Some(last_alone));
    Some(if nodes_trust { last } else { first })
}

/// Decides on the steps of a rotation. The recorded roots are there. Answers whether certificates may be issued now.
pub(super) fn plan(cluster: &Valid, world: &World, now: Timestamp, plan: &mut Plan) -> bool {
    let (current, next) = (world.generation(), world.generation() + 1);
    // Seen to be recorded: whoever misses the former ones from now on looks at a namespace that does not speak of them.
    let is_noted = world.rotation.as_ref().is_some_and(|record| record.generation == current);
    plan.steps.extend(is_noted.then_some(Step::RemoveRoots { generation: current.saturating_sub(1) }));
    let Some(made) = next_roots(world, next) else {
        // Recorded, or handed out: others of that generation would not fit.
        let marked = world.secrets.values().any(|secret| secret.mark.is_some_and(|mark| mark.generation == next));
        plan.lost = marked || !world.next_records.is_empty();
        let asked = keys::asked(cluster, world.roots()).into_iter().next().filter(|_| !plan.lost);
        let name = roots::secret_of(next);
        if asked.is_some() && world.secrets.contains_key(&name) {
            plan.waiting
                .push(format!("Secret {}/{name}, which no wish made, to be deleted", cluster.identity.namespace));
        } else if let Some(subject) = asked.filter(|_| !world.paused) {
            plan.steps.push(Step::MakeNext { generation: next, subject });
        }
        return !plan.lost;
    };
    if !agree(&made.fingerprints, &world.next_records) {
        plan.lost = true;
        return false;
    }
    if made.fingerprints != world.next_records {
        plan.steps.push(Step::RecordNext { generation: next });
        return false;
    }
    let rotating = rotating(cluster, world, next, now);
    if rotating.decision.is_over {
        plan.steps.push(Step::Adopt { generation: next });
    } else if let Some(record) = to_note(&rotating, now).filter(|_| world.observed.is_some()) {
        plan.steps.push(Step::NoteStage { record });
    }
    plan.rotating = Some(rotating);
    true
}

/// The roots that are to take the recorded ones' place: those that are recorded for that, or that a later wish made. A copy of the recorded
/// ones beside them is none.
fn next_roots(world: &World, next: u32) -> Option<&SecretMeta> {
    let (carried_out, keys_for) =
        world.roots().map_or_else(Default::default, |roots| (roots.rotated_for, roots.keys_for));
    let made = world.secrets.get(&roots::secret_of(next))?;
    let is_later = made.rotated_for > carried_out || made.keys_for.is_later_than(keys_for);
    (!world.next_records.is_empty() || is_later).then_some(made)
}

/// What is to be written down now, if that is not so already.
fn to_note(rotating: &Rotating, now: Timestamp) -> Option<Record> {
    let Rotating { generation, alone, decision: Decision { stage, .. }, .. } = *rotating;
    let since = Timestamp::from_second(now.as_second()).unwrap_or(now);
    match &rotating.record {
        Some(noted) if noted.stage >= stage => (noted.alone != alone).then(|| Record { alone, ..noted.clone() }),
        _ => Some(Record { generation, stage, since, alone }),
    }
}

/// The nodes that should be there, by name, and workers that are still there.
fn nodes<'a>(cluster: &Valid, world: &'a World) -> impl Iterator<Item = String> + use<'a> {
    let placed = world.workers.iter().filter(|node| world.places.contains_key(*node));
    (0..cluster.control_plane.replicas).map(names::master).chain(placed.chain(world.leaving()).cloned())
}

/// How long what is signed by the former ones is good for, after all show what the new ones signed.
pub(super) fn overlap(cluster: &Valid, subject: Subject) -> Duration {
    match subject {
        Subject::Authorities => cluster.pki.overlap,
        Subject::ServiceAccountKey => cluster.pki.token_overlap,
        // What is stored is rewritten, however long that takes.
        Subject::EncryptionKey => Duration::ZERO,
    }
}

fn rotating(cluster: &Valid, world: &World, generation: u32, now: Timestamp) -> Rotating {
    let subject = world.rotated();
    // Workers hold none of the keys.
    let has_part = |node: &String| subject == Subject::Authorities || names::master_index(node).is_some();
    let nodes = || nodes(cluster, world).filter(has_part);
    let secret_of = |node: &str| world.secrets.get(&names::node_secret(node));
    let phase_of = |secret: &SecretMeta| match secret.mark {
        Some(mark) if mark.generation == generation => mark.phase,
        _ => Phase::Before,
    };
    let record = world.rotation.clone().filter(|record| record.generation == generation);
    let mut phases: BTreeMap<_, _> =
        nodes().filter_map(|node| Some((node.clone(), phase_of(secret_of(&node)?)))).collect();
    let front = front(phases.values().copied().map(Some));
    let low = phases.values().min().copied().unwrap_or_default();
    // Who has turned alone does not have to again, whoever joins; a control plane never shrinks.
    let has_turned_alone = front >= Phase::Reissue && record.as_ref().is_some_and(|record| record.alone);
    let alone = has_turned_alone || cluster.has_one_master();
    let users_until = record.as_ref().and_then(|record| record.users_until(generation, overlap(cluster, subject), now));
    let had_time = record.as_ref().filter(|record| record.stage >= Stage::Overlap);
    let until = had_time.map(|record| ends(record.since, overlap(cluster, subject)));
    let mark = Mark { generation, phase: front };
    // Whether etcd is started anew for the phase of the foremost, and was not seen to have been.
    let etcds = || turns(mark, true, alone).remove(ETCD);
    let would_turn = |seen: Option<&Answer>| {
        etcds().is_some_and(|wanted| seen.and_then(|answer| answer.started.get(ETCD)) != Some(&wanted))
    };
    let decision = match &world.observed {
        Some(observed) if !world.paused => {
            let member = |node: String| {
                let (control_plane, phase) = (names::master_index(&node).is_some(), phases.get(&node).copied());
                let mark = Mark { generation, phase: phase.unwrap_or_default() };
                // A worker whose VM does not run starts with what its Secret holds then.
                let runs = observed.running.contains(&node);
                let counts = control_plane || runs;
                let seen = observed.answers.get(&node);
                let shows = || match (subject, phase) {
                    (Subject::Authorities, Some(_)) => lacks(&node, mark, alone, &observed.both, seen),
                    (Subject::Authorities, None) => unwell(&node, seen),
                    (subject, _) => {
                        let what = keys::decide::lacks(subject, &node, mark, seen, &observed.keys);
                        what.map(|what| Lack { what, away: true })
                    }
                };
                let lacks = counts.then(shows).flatten();
                let turns = runs && phase.is_none() && would_turn(seen);
                Member { node, control_plane, runs, phase, lacks, turns }
            };
            let members: Vec<_> = nodes().map(member).collect();
            let kubeconfig = world.secrets.get(&names::kubeconfig_secret(&cluster.identity.key.name));
            let issued = |endpoint: &String| !is_due(kubeconfig, &of_kubeconfig(cluster, world, endpoint, front), now);
            let situation = Situation {
                members: &members,
                alone,
                unpublished: unpublished(mark, alone, &observed.both, observed.published.as_ref()),
                issued: world.endpoint.as_ref().is_some_and(issued),
                // Only of an overlap that is written down: a stage that began a moment ago says nothing of it.
                until,
                busy: observed.busy.clone(),
            };
            if subject == Subject::Authorities {
                decide(&situation, now)
            } else {
                let (seen, busy) = (&observed.keys, situation.busy);
                keys::decide::decide(&keys::decide::Situation { subject, members: &members, until, seen, busy }, now)
            }
        }
        _ => Decision {
            // While users have time it was seen before that all are through.
            held: if users_until.is_none() && etcds().is_some() { homeless(cluster, world) } else { BTreeSet::new() },
            waits: Some(match users_until {
                _ if world.paused => "the pause to end".to_owned(),
                Some(until) => waits_until(subject, until),
                None => "the nodes to be looked at".into(),
            }),
            ..Decision::of(record.as_ref().map_or(Stage::Trust, |record| record.stage))
        },
    };
    phases.extend(decision.enter.iter().map(|(node, phase)| (node.clone(), *phase)));
    let both = world.observed.as_ref().map(|observed| observed.both.clone()).unwrap_or_default();
    let is_known = !world.paused && (world.observed.is_some() || users_until.is_some());
    Rotating { generation, subject, front, low, alone, phases, decision, record, until, both, is_known }
}

/// Control-plane nodes that have a VM and no Secret.
fn homeless(cluster: &Valid, world: &World) -> BTreeSet<String> {
    let masters = (0..cluster.control_plane.replicas).map(names::master);
    masters
        .filter(|node| world.vm_pods.contains(node) && !world.secrets.contains_key(&names::node_secret(node)))
        .collect()
}

#[cfg(test)]
mod tests;
