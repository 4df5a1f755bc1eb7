//! VM pods and their volumes.
//!
//! - [`plan`]: the objects of a node, and which workers there should be; pure
//! - [`pod`]: the VM pod's specification
//! - [`vm_pod`]: the slim type that the cache keeps of it; [`host`]: that of the hosts
//! - `without`: what it would have of its host, and does without
//! - [`reconcile`]: the effects; `masters`: those on the control plane, `workers`: on node pools; `leave`: nodes that are replaced or
//!   removed; `lost`: those whose host is dead
//! - `survey`: what decisions need, as the cache has it

pub mod host;
mod leave;
mod lost;
mod masters;
pub mod plan;
pub mod pod;
pub mod reconcile;
mod survey;
pub mod vm_pod;
mod without;
mod workers;

use crate::cluster::valid::Version;

/// What the kvm operator tells the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmFacts {
    /// Control-plane VM pods whose guest API answers.
    pub ready: usize,
    /// Control-plane VM pods that should be.
    pub wanted: usize,
    /// What all of them run, if they are ready and current.
    pub runs: Option<Version>,
    /// Whether one is being replaced, or has to be.
    pub changing: bool,
}

/// What the kvm operator tells of node pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFacts {
    /// VM pods of workers whose kubelet answers.
    pub ready: usize,
    /// Workers that should be.
    pub wanted: usize,
    /// Whether one is being replaced or removed, or has to be.
    pub changing: bool,
}
