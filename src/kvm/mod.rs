//! VM pods and their volumes.
//!
//! - [`plan`]: the objects of a node; pure
//! - [`pod`]: the VM pod's specification
//! - [`vm_pod`]: the slim type that the cache keeps of it
//! - [`reconcile`]: the effects

pub mod plan;
pub mod pod;
pub mod reconcile;
pub mod vm_pod;

/// What the kvm operator tells the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmFacts {
    /// Control-plane VM pods whose guest API answers.
    pub ready: usize,
    /// Control-plane VM pods that should be.
    pub wanted: usize,
}
