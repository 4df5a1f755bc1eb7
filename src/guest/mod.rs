//! Client of guest APIs: what must be inside every guest, and how its nodes are.
//!
//! - [`addons`]: what runs in every guest's pods; pure
//! - [`client`]: a connection with a short-lived certificate
//! - `drain`: cordons and drains workers that are to go, and opens those that are back
//! - [`dress`]: labels and taints of pools on their Nodes; pure
//! - [`plan`]: the objects that every guest gets; pure
//! - [`reconcile`]: the effects
//! - `renew`: what has to learn of other authorities while they are rotated
//! - [`requests`]: signs the certificates that were asked for inside the guest and approved there
//! - `rewrite`: has Secrets stored anew, once they are encrypted with another key
//! - `rights`: binds what ClusterAccesses ask for
//! - `setup`: applies add-ons

pub mod addons;
pub mod client;
mod drain;
pub mod dress;
pub mod plan;
pub mod reconcile;
mod renew;
pub mod requests;
mod rewrite;
mod rights;
mod setup;

use std::collections::BTreeMap;

use crate::{api::NodeCounts, pki::rotation::Published};

/// What the guest operator tells the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestFacts {
    /// Nodes that the guest's API lists.
    pub nodes: NodeCounts,
    /// Workers that are leaving, by the UID of their VM pod: which pods have yet to go elsewhere (`namespace/name`).
    pub drains: BTreeMap<String, Vec<String>>,
    /// What the guest's own objects say of its authorities, while they are rotated.
    pub published: Option<Published>,
    /// Why some Secret could not be stored anew, while the encryption key is rotated.
    pub unwritten: Option<String>,
}
