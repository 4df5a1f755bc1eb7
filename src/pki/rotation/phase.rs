//! How far a node is in a rotation, and what it holds of the two generations. Pure.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::pki::leaf::{Authority, Leaf, Usage};

/// How far a node is. What it holds of the authorities follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It knows nothing of others.
    #[default]
    Before,
    /// It trusts both generations.
    Trust,
    /// Its clients show what the new ones signed, and so does its etcd.
    Reissue,
    /// Its servers do, too.
    Serve,
    /// It trusts the new ones alone.
    Drop,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Before, Self::Trust, Self::Reissue, Self::Serve, Self::Drop];

    /// The one that follows.
    pub fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| *phase > self)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Trust => "trust",
            Self::Reissue => "reissue",
            Self::Serve => "serve",
            Self::Drop => "drop",
        }
    }
}

/// A phase of the rotation to a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The generation of the roots that come.
    pub generation: u32,
    /// The phase.
    pub phase: Phase,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.phase.name())
    }
}

impl FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (generation, name) = text.split_once('.').ok_or(())?;
        let phase = Phase::ALL.into_iter().find(|phase| phase.name() == name).ok_or(())?;
        Ok(Self { generation: generation.parse().map_err(drop)?, phase })
    }
}

/// Which generations are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trusted {
    /// The recorded one.
    Old,
    /// Both.
    Both,
    /// The one that takes its place.
    New,
}

impl Trusted {
    /// Whether the recorded one is.
    pub fn holds_old(self) -> bool {
        self != Self::New
    }

    /// Whether the other one is.
    pub fn holds_new(self) -> bool {
        self != Self::Old
    }
}

/// Whom a node in this phase trusts. One that is `alone` turns once: nobody else has to trust its etcd meanwhile.
pub fn trusted(of: Authority, phase: Phase, alone: bool) -> Trusted {
    match (of, phase) {
        (Authority::Etcd, Phase::Before | Phase::Trust) if alone => Trusted::Old,
        (Authority::Etcd, _) if alone => Trusted::New,
        (_, Phase::Before) => Trusted::Old,
        (_, Phase::Drop) => Trusted::New,
        (_, Phase::Trust | Phase::Reissue | Phase::Serve) => Trusted::Both,
    }
}

/// Whether the new generation signs a leaf of a node in this phase.
pub fn signs_new(leaf: &Leaf, phase: Phase) -> bool {
    // Users' kubeconfigs know the former authority, and meet no server but the API's; what kubelets show only API servers verify.
    let from = if leaf.usage == Usage::Server { Phase::Serve } else { Phase::Reissue };
    phase >= from
}

/// Whether users are given what the new generation signed, where the foremost node is in this phase.
pub fn users_get_new(front: Phase) -> bool {
    front >= Phase::Reissue
}

/// Whether a control-plane node that enters this phase starts etcd and its API server anew.
pub fn is_turn(phase: Phase, alone: bool) -> bool {
    if alone { phase == Phase::Reissue } else { matches!(phase, Phase::Trust | Phase::Drop) }
}

/// Whether a node that enters this phase starts kubelet and other clients of the API anew.
pub fn starts_clients(phase: Phase) -> bool {
    matches!(phase, Phase::Trust | Phase::Reissue | Phase::Drop)
}

/// What a node starts anew for a phase: units, each with the mark of the phase that it has to have been started for.
pub fn turns(mark: Mark, control_plane: bool, alone: bool) -> BTreeMap<&'static str, String> {
    let last = |starts: &dyn Fn(Phase) -> bool| {
        let phase = Phase::ALL.into_iter().rev().find(|phase| *phase <= mark.phase && starts(*phase))?;
        Some(Mark { phase, ..mark }.to_string())
    };
    // Kubelet names whose certificates it wants as it did when it started, and kube-controller-manager publishes the authority that
    // it read then; all have to be seen to show their new certificates, and to have forgotten.
    let of_clients = last(&starts_clients);
    let of_turn = last(&|phase| is_turn(phase, alone));
    let everywhere = ["kube-proxy", "kubelet"].map(|unit| (unit, of_clients.clone()));
    let controllers = ["kube-controller-manager", "kube-scheduler"].map(|unit| (unit, of_clients.clone()));
    let servers = ["etcd", "kube-apiserver"].map(|unit| (unit, of_turn.clone()));
    let of_master = controllers.into_iter().chain(servers).filter(|_| control_plane);
    everywhere.into_iter().chain(of_master).filter_map(|(unit, mark)| Some((unit, mark?))).collect()
}
