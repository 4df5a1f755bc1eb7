//! A guest's network: its VNI, its addresses, and the Service in front of its API.
//!
//! - [`addresses`]: static addresses on the overlay
//! - [`claims`]: which VNI a guest gets, and what becomes of one that is given back; pure
//! - [`exposure`]: the way to its API from outside; pure
//! - [`guest_ingress`]: the way to the guest's own ingress controller; pure
//! - `holdings`: effects of claims
//! - `outside`: the effects of the way from outside
//! - [`places`]: which worker has which place on the overlay; pure
//! - [`plan`]: which objects there are; pure
//! - [`policies`]: what may reach a guest, and what it may reach; pure
//! - [`reconcile`]: the effects
//! - [`tls_route`]: the way by a gateway; pure
//! - [`underlay`]: which addresses of the management cluster no overlay may cover; pure

pub mod addresses;
pub mod claims;
pub mod exposure;
pub mod guest_ingress;
mod holdings;
mod outside;
pub mod places;
pub mod plan;
pub mod policies;
pub mod reconcile;
pub mod tls_route;
pub mod underlay;

use std::net::IpAddr;

/// What of a guest's network is in the management cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The guest's VXLAN network identifier; a claim of the guest's holds it.
    pub vni: u32,
    /// Address of the Service in front of the guest's API.
    pub api_address: IpAddr,
}

/// What the network operator tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFacts {
    /// What of it is in the management cluster. None: the guest is on AWS.
    pub inside: Option<Inside>,
    /// URL of the guest's API for people; none while its host name belongs to somebody else, or its load balancer
    /// has no address yet.
    pub endpoint: Option<String>,
    /// Address of the guest's ingress controller, if it has one.
    pub ingress: Option<String>,
}
