//! VM pods and their volumes.
//!
//! - [`plan`]: the objects of a node, and which workers there should be; pure
//! - [`pod`]: the VM pod's specification
//! - [`host`]: which hosts offer KVM
//! - [`vm_pod`]: the slim type that the cache keeps of it
//! - [`reconcile`]: the effects; `workers`: those of node pools

pub mod host;
pub mod plan;
pub mod pod;
pub mod reconcile;
pub mod vm_pod;
mod workers;

/// What the kvm operator tells the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmFacts {
    /// Control-plane VM pods whose guest API answers.
    pub ready: usize,
    /// Control-plane VM pods that should be.
    pub wanted: usize,
}

/// What the kvm operator tells of node pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFacts {
    /// VM pods of workers whose kubelet answers.
    pub ready: usize,
    /// Workers that should be.
    pub wanted: usize,
}
