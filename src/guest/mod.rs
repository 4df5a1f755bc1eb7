//! Client of guest APIs: what must be inside every guest, and how its nodes are.
//!
//! - [`addons`]: what runs in every guest's pods; pure
//! - [`client`]: a connection with a short-lived certificate
//! - [`dress`]: labels and taints of pools on their Nodes; pure
//! - [`plan`]: the objects that every guest gets; pure
//! - [`reconcile`]: the effects

pub mod addons;
pub mod client;
pub mod dress;
pub mod plan;
pub mod reconcile;

use crate::api::NodeCounts;

/// What the guest operator tells the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFacts {
    /// Nodes that the guest's API lists.
    pub nodes: NodeCounts,
}
