//! What users of a guest notice of a change.

use std::{collections::BTreeSet, fmt};

use super::{Change, Outcome, State};
use crate::{
    api::names,
    network::{exposure, tls_route},
};

/// All of it, the gravest first. Nothing: no node stops, and who is led to the API still is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disruption(BTreeSet<Effect>);

/// Something that users notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effect {
    /// The only control-plane node is replaced.
    ApiAway,
    /// The way to the API is another one.
    ApiMoves,
    /// One of several control-plane nodes is replaced.
    ControlPlane,
    /// Workers are replaced or removed.
    Workers,
    /// The way to the guest's ingress controller is another one.
    IngressMoves,
}

impl Disruption {
    /// What a plan comes to.
    pub(super) fn of(outcome: &Outcome) -> Self {
        let wanted = outcome.valid.control_plane.replicas;
        let is_master = |name: &str| (0..wanted).any(|index| names::master(index) == name);
        let is_there = |change: &&Change| matches!(change.state, State::Unchanged | State::Changed | State::Removed);
        let masters =
            outcome.changes.iter().filter(is_there).filter(|change| pod(change).is_some_and(is_master)).count();
        let effect = |change: &Change| {
            if !matches!(change.state, State::Changed | State::Removed) {
                return None;
            }
            match pod(change) {
                Some(name) if is_master(name) && masters == 1 => Some(Effect::ApiAway),
                Some(name) if is_master(name) => Some(Effect::ControlPlane),
                Some(_) => Some(Effect::Workers),
                None => moves(change),
            }
        };
        Self(outcome.changes.iter().filter_map(effect).collect())
    }
}

/// The name of the VM pod that a change is about.
fn pod(change: &Change) -> Option<&str> {
    let object = &change.step.object;
    (object.resource.kind == "Pod").then_some(object.name.as_str())
}

fn moves(change: &Change) -> Option<Effect> {
    let object = &change.step.object;
    match (object.resource.kind.as_str(), object.name.as_str()) {
        ("Ingress", exposure::INGRESS) | ("TLSRoute", tls_route::ROUTE) | ("Service", names::BALANCED_SERVICE) => {
            Some(Effect::ApiMoves)
        }
        ("Service", names::INGRESS_SERVICE) => Some(Effect::IngressMoves),
        _ => None,
    }
}

impl fmt::Display for Disruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |effect: &Effect| match effect {
            Effect::ApiAway => "the API is away while the only control-plane node is replaced",
            Effect::ApiMoves => "the way to the API from outside changes",
            Effect::ControlPlane => "control-plane nodes are replaced one at a time and answer for each other",
            Effect::IngressMoves => "the way to the guest's ingress controller changes",
            Effect::Workers => "workers go one at a time, drained before for as long as rollout.drainTimeout at most",
        };
        let said: Vec<_> = self.0.iter().map(words).collect();
        f.write_str(if said.is_empty() { "none" } else { "" })?;
        f.write_str(&said.join("; "))
    }
}
