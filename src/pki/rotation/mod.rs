//! Rotation of a guest's authorities: which of two generations a node trusts and which signs for it, and who goes on when. Pure.
//!
//! ```text
//!  Trust ──► Reissue ──► Overlap ──► Serve ──► Drop ──► the former ones are deleted
//!  both       clients     users      servers    the new
//!  trusted    show new    renew      show new   alone trusted
//! ```
//!
//! Nothing is shown that was not seen to be trusted everywhere, and nothing is trusted no more that is still shown. A node's phase
//! is on its Secret and never goes back; who is ahead of the others waits for them. What is read at a start only (etcd's trust,
//! and the API server's in etcd) makes a turn of a node: one control-plane node at a time, when all of them are well.
//!
//! No certificate crosses the generations: the roots allow no authority below them (path length 0), which Go checks.
//!
//! - [`phase`]: what a node holds in each phase
//! - [`seen`]: what of that is seen
//! - here: who goes on

mod phase;
mod seen;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;

use self::phase::starts_clients;
pub use self::{
    phase::{Mark, Phase, Trusted, is_turn, signs_new, trusted, turns, users_get_new},
    seen::{Both, Lack, Published, Told, add_ons_for, lacks, unpublished, unwell},
};

/// One in so many workers starts units anew at a time.
const SHARE: usize = 4;

/// A node that is meant to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub node: String,
    /// Whether it is of the control plane.
    pub control_plane: bool,
    /// Whether its VM pod runs.
    pub runs: bool,
    /// Its phase; none: it has no Secret yet.
    pub phase: Option<Phase>,
    /// What it does not show yet of its phase; without one, why it is not well.
    pub lacks: Option<Lack>,
    /// Whether its etcd and API server are started anew by what it is given, if it has no Secret.
    pub turns: bool,
}

impl Member {
    /// What of it is waited for.
    fn waits(&self) -> Option<String> {
        self.lacks.as_ref().map(|lack| lack.what.clone())
    }

    /// Whether its etcd and its API server may be away.
    fn is_away(&self) -> bool {
        self.lacks.as_ref().is_some_and(|lack| lack.away)
    }
}

/// What decides who goes on.
#[derive(Clone, Debug, Default)]
pub struct Situation<'a> {
    /// The nodes.
    pub members: &'a [Member],
    /// Whether the control plane is one node.
    pub alone: bool,
    /// What is not published yet inside the guest of the phase of the foremost.
    pub unpublished: Option<String>,
    /// Whether the administrator's kubeconfig is what users are to be given now.
    pub issued: bool,
    /// Until when users have time. None: that is not written down yet.
    pub until: Option<Timestamp>,
    /// Who of the control plane is being replaced, or comes.
    pub busy: Option<String>,
}

/// What a rotation is at, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Every node learns to trust both generations.
    Trust,
    /// Clients get what the new one signed.
    Reissue,
    /// Users have time.
    Overlap,
    /// Servers get what the new one signed.
    Serve,
    /// Every node forgets the former one.
    Drop,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Trust, Self::Reissue, Self::Overlap, Self::Serve, Self::Drop];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trust => "Trust",
            Self::Reissue => "Reissue",
            Self::Overlap => "Overlap",
            Self::Serve => "Serve",
            Self::Drop => "Drop",
        }
    }
}

/// Who goes on, or why nobody does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What the rotation is at.
    pub stage: Stage,
    /// The nodes that enter their next phase now, or that of the foremost.
    pub enter: BTreeMap<String, Phase>,
    /// Nodes that are given no Secret yet.
    pub held: BTreeSet<String>,
    /// Whose etcd and API server are started anew by that, or were and are not seen to be through.
    pub turning: Option<String>,
    /// What is waited for.
    pub waits: Option<String>,
    /// Whether nobody needs the former generation any more.
    pub is_over: bool,
}

/// The phase of the foremost node. One whose phase cannot be read counts for nothing.
pub fn front(phases: impl IntoIterator<Item = Option<Phase>>) -> Phase {
    phases.into_iter().flatten().max().unwrap_or_default()
}

/// Decides who goes on at `now`.
pub fn decide(situation: &Situation, now: Timestamp) -> Decision {
    let Situation { members, alone, .. } = situation;
    let front = front(members.iter().map(|member| member.phase));
    let there = || members.iter().filter_map(|member| Some((member, member.phase?)));
    let low = there().map(|(_, phase)| phase).min().unwrap_or_default();
    let behind = there().find(|(member, _)| member.lacks.is_some()).map(|(member, _)| member);
    let stage = |overlap| match front {
        Phase::Before | Phase::Trust => Stage::Trust,
        Phase::Reissue if overlap => Stage::Overlap,
        Phase::Reissue => Stage::Reissue,
        Phase::Serve => Stage::Serve,
        Phase::Drop => Stage::Drop,
    };
    let mut decision = Decision::of(stage(false));
    // One without a VM starts nothing anew, and comes when others are replaced: these must not wait for it.
    let turns = |member: &Member, phase| member.control_plane && member.runs && is_turn(phase, *alone);
    // Nor for one of which something else is missing: nobody could replace it.
    let turned = there().find(|(member, phase)| member.is_away() && turns(member, *phase));
    decision.turning = turned.map(|(member, _)| member.node.clone());
    bring_back(situation, front, &mut decision);
    if low == front {
        let homeless = members.iter().find(|member| member.phase.is_none());
        decision.waits = behind
            .and_then(Member::waits)
            .or_else(|| homeless.map(|member| format!("{}: its certificates", member.node)));
        if decision.waits.is_none() {
            let overlap = front == Phase::Reissue && situation.unpublished.is_none() && situation.issued;
            decision.stage = stage(overlap);
            decision.waits = gate(situation, front, now);
        }
        if decision.waits.is_some() {
            return decision;
        }
    }
    let Some(next) = low.next() else {
        decision.is_over = true;
        return decision;
    };
    let mut room = [false, true].map(|control_plane| room(members, control_plane, next));
    // Who is ahead has passed the gate; nobody passes it whose own phase was not seen.
    for (member, _) in there().filter(|(_, phase)| *phase == low) {
        let turns = member.control_plane && is_turn(next, *alone);
        let held = if turns { held_back(situation, member, &decision) } else { member.waits() };
        let room = &mut room[usize::from(member.control_plane)];
        match held {
            Some(why) => decision.waits = decision.waits.or(Some(why)),
            // Who is on the way is told below.
            None if member.runs && *room == 0 => {}
            None => {
                if turns {
                    decision.turning = Some(member.node.clone());
                }
                *room -= usize::from(member.runs);
                decision.enter.insert(member.node.clone(), next);
            }
        }
    }
    if decision.enter.is_empty() && decision.waits.is_none() {
        decision.waits = behind.and_then(Member::waits);
    }
    decision
}

impl Decision {
    /// Nobody goes on.
    pub fn of(stage: Stage) -> Self {
        let (enter, held) = (BTreeMap::new(), BTreeSet::new());
        Self { stage, enter, held, turning: None, waits: None, is_over: false }
    }
}

/// How many more nodes may begin to start units anew: where all kubelets do at once, every pod may be taken for unready at once.
fn room(members: &[Member], control_plane: bool, next: Phase) -> usize {
    if !starts_clients(next) {
        return usize::MAX;
    }
    let of_role = || members.iter().filter(|member| member.control_plane == control_plane && member.runs);
    let under_way = of_role().filter(|member| member.phase == Some(next) && member.lacks.is_some()).count();
    let at_a_time = if control_plane { 1 } else { of_role().count().div_ceil(SHARE).max(1) };
    at_a_time.saturating_sub(under_way)
}

/// Lets control-plane nodes whose Secret is gone have one. That is a turn of those whose etcd would be started anew by it.
fn bring_back(situation: &Situation, front: Phase, decision: &mut Decision) {
    let masters = || situation.members.iter().filter(|member| member.control_plane);
    for member in masters().filter(|member| member.phase.is_none() && member.turns) {
        let unwell = || masters().any(|other| other.lacks.is_some() && other.node != member.node);
        if decision.turning.is_some() || situation.busy.is_some() || unwell() {
            decision.held.insert(member.node.clone());
        } else {
            decision.turning = Some(member.node.clone());
            decision.enter.insert(member.node.clone(), front);
        }
    }
}

/// Why a control-plane node must not turn now: all of them have to be there, well and through.
fn held_back(situation: &Situation, member: &Member, decision: &Decision) -> Option<String> {
    if let Some(other) = decision.turning.as_ref().filter(|other| **other != member.node) {
        let lacks = situation.members.iter().find(|member| member.node == *other).and_then(Member::waits);
        return Some(lacks.unwrap_or_else(|| format!("{other} to be started anew")));
    }
    let mut masters = situation.members.iter().filter(|member| member.control_plane);
    let unfit = masters.find_map(|master| match master.phase {
        None => Some(format!("{}: its certificates", master.node)),
        Some(_) => master.waits(),
    });
    unfit.or_else(|| situation.busy.clone())
}

/// What has to be so before anybody leaves the phase that all are in.
fn gate(situation: &Situation, phase: Phase, now: Timestamp) -> Option<String> {
    match phase {
        Phase::Before | Phase::Serve => None,
        Phase::Trust | Phase::Drop => situation.unpublished.clone(),
        Phase::Reissue => {
            if let Some(what) = &situation.unpublished {
                return Some(what.clone());
            }
            if !situation.issued {
                return Some("the administrator's kubeconfig to be issued anew".into());
            }
            match situation.until {
                None => Some("the overlap to begin".into()),
                Some(until) if now < until => Some(waits_for_users(until)),
                Some(_) => None,
            }
        }
    }
}

/// That users have time until then.
pub fn waits_for_users(until: Timestamp) -> String {
    format!("users to renew their kubeconfigs, until {until}")
}

/// When an overlap that began at `since` is over.
pub fn ends(since: Timestamp, overlap: Duration) -> Timestamp {
    since.checked_add(overlap).unwrap_or(Timestamp::MAX)
}
