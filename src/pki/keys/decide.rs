//! Who goes on in a rotation of a key, and why nobody does. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::{Subject, next, turns};
use crate::{
    pki::rotation::{Decision, Mark, Member, Phase, Stage, front, waits_for_users},
    supervisor::{consumers::Answer, keys::Stored},
};

/// What is seen of keys, later than what is seen of nodes' components was written for them; but [`Self::stored`] is seen earlier than
/// those are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How API servers name the former and the new public key of service-account tokens.
    pub ids: Option<(String, String)>,
    /// Public keys that the API server of a control-plane node verifies tokens with, by node.
    pub verifies: BTreeMap<String, BTreeSet<String>>,
    /// What etcd holds that is not encrypted with the new key.
    pub stored: Option<Stored>,
    /// Why something of it could not be rewritten.
    pub unwritten: Option<String>,
}

/// What a node does not show yet of its phase.
pub fn lacks(subject: Subject, node: &str, mark: Mark, answer: Option<&Answer>, seen: &Seen) -> Option<String> {
    let Some(answer) = answer else { return Some(format!("{node}: its VM pod to say what its components do")) };
    for (unit, started) in turns(subject, mark) {
        if answer.started.get(unit) != Some(&started) {
            return Some(format!(
                "{node}: {unit} to be started anew (nodes of an earlier version do that when they are rolled)"
            ));
        }
    }
    for name in ["kube-apiserver", "etcd"] {
        match answer.met.get(name) {
            None => return Some(format!("{node}: {name} to answer")),
            Some(met) if !met.well => return Some(format!("{node}: {name} to be well")),
            Some(_) => {}
        }
    }
    if subject != Subject::ServiceAccountKey || mark.phase == Phase::Before {
        return None;
    }
    let Some((old, new)) = &seen.ids else { return Some(format!("{node}: its keys to be read")) };
    let Some(verifies) = seen.verifies.get(node) else {
        return Some(format!("{node}: kube-apiserver to say which keys it verifies tokens with"));
    };
    if !verifies.contains(new) {
        return Some(format!("{node}: kube-apiserver to verify tokens with the new key"));
    }
    let forgets = mark.phase == Phase::Drop;
    (verifies.contains(old) == forgets).then(|| {
        let more = if forgets { " no more" } else { "" };
        format!("{node}: kube-apiserver to verify tokens with the former key{more}")
    })
}

/// What decides who goes on.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// What is rotated.
    pub subject: Subject,
    /// The nodes of the control plane.
    pub members: &'a [Member],
    /// Until when tokens of the former key are good. None: that is not written down yet.
    pub until: Option<Timestamp>,
    /// What is seen.
    pub seen: &'a Seen,
    /// Who of the control plane is being replaced, or comes.
    pub busy: Option<String>,
}

/// Decides who goes on at `now`: one node, when all of them are well and show what they were given.
pub fn decide(situation: &Situation, now: Timestamp) -> Decision {
    let members = situation.members;
    let front = front(members.iter().map(|member| member.phase));
    let there = || members.iter().filter_map(|member| Some((member, member.phase?)));
    let low = there().map(|(_, phase)| phase).min().unwrap_or_default();
    let unfit = members.iter().find_map(|member| match member.phase {
        None => Some(format!("{}: its certificates", member.node)),
        Some(_) => member.lacks.as_ref().map(|lack| lack.what.clone()),
    });
    // One without a VM starts nothing anew, and comes when others are replaced: these must not wait for it.
    let turning = there().find(|(member, phase)| member.lacks.is_some() && member.runs && *phase > Phase::Before);
    let all_use_it = unfit.is_none() && low == front && front == Phase::Reissue;
    let stage = match front {
        Phase::Before | Phase::Trust => Stage::Trust,
        Phase::Reissue | Phase::Serve if all_use_it => Stage::Overlap,
        Phase::Reissue | Phase::Serve => Stage::Reissue,
        Phase::Drop => Stage::Drop,
    };
    let turning = turning.map(|(member, _)| member.node.clone());
    let decision = Decision { turning, ..Decision::of(stage) };
    if let Some(what) = unfit.or_else(|| gate(situation, low, front, now)) {
        return Decision { waits: Some(what), ..decision };
    }
    let Some(next) = next(low) else {
        return Decision { is_over: true, ..decision };
    };
    if let Some(what) = &situation.busy {
        return Decision { waits: Some(what.clone()), ..decision };
    }
    let mut behind = there().filter(|(_, phase)| *phase == low);
    match behind.next() {
        Some((member, _)) => Decision {
            turning: Some(member.node.clone()),
            enter: [(member.node.clone(), next)].into(),
            // Who is to follow waits for it.
            waits: behind.next().map(|_| format!("{} to be started anew", member.node)),
            ..decision
        },
        None => decision,
    }
}

/// What has to be so before anybody leaves the lowest phase, and before the former key is deleted.
fn gate(situation: &Situation, low: Phase, front: Phase, now: Timestamp) -> Option<String> {
    let uses = low >= Phase::Reissue;
    match situation.subject {
        Subject::EncryptionKey if uses => unwritten(situation.seen),
        // Who is ahead has had that time.
        Subject::ServiceAccountKey if low == Phase::Reissue && front == Phase::Reissue => match situation.until {
            None => Some("the overlap to begin".into()),
            Some(until) if now < until => Some(waits_for_tokens(until)),
            Some(_) => None,
        },
        _ => None,
    }
}

/// What of the stored is not encrypted with the new key, or may not be.
fn unwritten(seen: &Seen) -> Option<String> {
    match &seen.stored {
        None => Some("etcd to say what of the stored is encrypted with the former key".into()),
        Some(stored) if stored.others > 0 => {
            let why = seen.unwritten.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            Some(format!("{} of {} Secrets to be rewritten with the new key{why}", stored.others, stored.all))
        }
        Some(_) => None,
    }
}

/// That tokens are renewed until then.
fn waits_for_tokens(until: Timestamp) -> String {
    format!("tokens of the former key to be renewed, until {until}")
}

/// What is waited for while nobody looks, because users have time.
pub fn waits_until(subject: Subject, until: Timestamp) -> String {
    match subject {
        Subject::Authorities => waits_for_users(until),
        Subject::ServiceAccountKey | Subject::EncryptionKey => waits_for_tokens(until),
    }
}
