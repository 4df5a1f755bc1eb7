//! What is seen of a rotation: by the supervisors of VM pods, and inside the guest. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::phase::{Mark, Phase, Trusted, trusted, turns};
use crate::{
    api::names::master_index,
    pki::leaf::Authority,
    supervisor::consumers::{Answer, Met},
};

/// How the authorities of a generation are told on the wire: SHA-256 of their names' DER, and of their certificates' for what is
/// published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Names, by authority.
    pub names: BTreeMap<Authority, String>,
    /// Certificates, by authority.
    pub certificates: BTreeMap<Authority, String>,
}

/// Both generations, as they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Both {
    /// The recorded one.
    pub old: Told,
    /// The one that takes its place.
    pub new: Told,
}

/// What is missing for a set to hold what is trusted, and no more of the two.
fn missing(both: &Both, trusted: &[(Authority, Trusted)], held: &BTreeSet<String>, by_name: bool) -> Option<String> {
    let of = |told: &Told, authority: Authority| {
        let all = if by_name { &told.names } else { &told.certificates };
        all.get(&authority).cloned().unwrap_or_default()
    };
    for (authority, trusted) in trusted {
        for (told, wanted, which) in
            [(&both.old, trusted.holds_old(), "former"), (&both.new, trusted.holds_new(), "new")]
        {
            match (wanted, held.contains(&of(told, *authority))) {
                (true, false) => return Some(format!("to trust the {which} {authority} authority")),
                (false, true) => return Some(format!("to trust the {which} {authority} authority no more")),
                _ => {}
            }
        }
    }
    None
}

/// What of a node is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// For people.
    pub what: String,
    /// Whether its etcd and its API server may be away.
    pub away: bool,
}

impl Lack {
    fn of(node: &str, component: &str, what: &str) -> Self {
        Self { what: format!("{node}: {component} {what}"), away: TURNING.contains(&component) }
    }

    fn answer(node: &str) -> Self {
        let what = format!("{node}: its VM pod to say what its components trust ({WHEN_ROLLED})");
        Self { what, away: true }
    }

    /// What counts most of several.
    fn first(all: impl IntoIterator<Item = Self>) -> Option<Self> {
        all.into_iter().reduce(|first, other| if other.away && !first.away { other } else { first })
    }
}

/// What is started anew in a turn.
const TURNING: [&str; 2] = ["etcd", "kube-apiserver"];
/// What to do about nodes that do not know of rotations.
const WHEN_ROLLED: &str = "nodes of an earlier version do that when they are rolled";

/// What a node does not show yet of its phase, by what its supervisor saw. The answer has to be younger than the phase, which it is
/// if it fits: nothing that was seen before a phase fits it.
pub fn lacks(node: &str, mark: Mark, alone: bool, both: &Both, seen: Option<&Answer>) -> Option<Lack> {
    let control_plane = master_index(node).is_some();
    let Some(answer) = seen else { return Some(Lack::answer(node)) };
    let turns = turns(mark, control_plane, alone).into_iter();
    let stale = turns.filter(|(unit, started)| answer.started.get(*unit) != Some(started));
    let stale = stale.map(|(unit, _)| Lack::of(node, unit, &format!("to be started anew ({WHEN_ROLLED})")));
    let trust = |of| (of, trusted(of, mark.phase, alone));
    let server_new = mark.phase >= Phase::Serve;
    let kubernetes = trust(Authority::Kubernetes);
    let mut parts = vec![("kubelet", vec![kubernetes], Authority::Kubernetes, server_new)];
    if control_plane {
        let clients = vec![kubernetes, trust(Authority::FrontProxy)];
        parts.push(("kube-apiserver", clients, Authority::Kubernetes, server_new));
        parts.push(("etcd", vec![trust(Authority::Etcd)], Authority::Etcd, mark.phase >= Phase::Reissue));
    }
    let unseen = parts.into_iter().filter_map(|(name, trust, signer, new)| {
        let expected = if new { &both.new } else { &both.old }.names.get(&signer);
        let what = match answer.met.get(name) {
            None => Some("to answer".to_owned()),
            Some(Met { well: false, .. }) => Some("to be well".into()),
            Some(met) if Some(&met.signer) != expected => {
                Some(format!("to show what the {} authority signed", if new { "new" } else { "former" }))
            }
            Some(met) => missing(both, &trust, &met.asks, true),
        };
        what.map(|what| Lack::of(node, name, &what))
    });
    Lack::first(stale.chain(unseen))
}

/// Why a node is not well, whatever it trusts, by what its supervisor saw.
pub fn unwell(node: &str, seen: Option<&Answer>) -> Option<Lack> {
    let Some(answer) = seen else { return Some(Lack::answer(node)) };
    let servers = TURNING.into_iter().filter(|_| master_index(node).is_some());
    let all = ["kubelet"].into_iter().chain(servers);
    Lack::first(all.filter_map(|name| match answer.met.get(name) {
        None => Some(Lack::of(node, name, "to answer")),
        Some(met) => (!met.well).then(|| Lack::of(node, name, "to be well")),
    }))
}

/// What a guest's own objects say of its authorities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Certificates of what pods trust the API by (`kube-root-ca.crt`).
    pub roots: BTreeSet<String>,
    /// Certificates of what extensions of the API trust clients and the API by (`extension-apiserver-authentication`).
    pub extensions: BTreeSet<String>,
    /// The mark that add-ons' pods were all started for.
    pub add_ons: Option<String>,
}

/// The mark that add-ons' pods have to have been started for, in a phase of the foremost node.
pub fn add_ons_for(mark: Mark) -> Option<Mark> {
    let phase = match mark.phase {
        Phase::Before | Phase::Trust => return None,
        Phase::Reissue | Phase::Serve => Phase::Trust,
        Phase::Drop => Phase::Drop,
    };
    Some(Mark { phase, ..mark })
}

/// What is not published yet inside the guest that has to be in this phase.
pub fn unpublished(mark: Mark, alone: bool, both: &Both, published: Option<&Published>) -> Option<String> {
    let Some(published) = published else { return Some("the guest to say which authorities it publishes".into()) };
    let trust = |of| (of, trusted(of, mark.phase, alone));
    let (kubernetes, proxy) = (trust(Authority::Kubernetes), trust(Authority::FrontProxy));
    if let Some(what) = missing(both, &[kubernetes], &published.roots, false) {
        return Some(format!("pods of the guest {what} (ConfigMap kube-root-ca.crt)"));
    }
    if let Some(what) = missing(both, &[kubernetes, proxy], &published.extensions, false) {
        return Some(format!("extensions of the guest's API {what} (ConfigMap extension-apiserver-authentication)"));
    }
    let due = add_ons_for(mark).map(|mark| mark.to_string());
    let started = due.is_none() || published.add_ons == due;
    (!started).then(|| "the guest's add-ons to be started anew".into())
}
