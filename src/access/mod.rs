//! Access of users: a certificate and a kubeconfig for every ClusterAccess.
//!
//! - [`plan`]: what one asks for, checked; what there is to do for it, and its status; pure
//! - [`reconcile`]: the effects
//! - [`rights`]: the bindings inside guests that they ask for, which the guest operator makes; pure

pub mod plan;
pub mod reconcile;
pub mod rights;

use std::fmt;

use kube::ResourceExt as _;

use crate::{api::ClusterAccess, cluster::ClusterKey, runtime::queue};

/// Namespace and name of a ClusterAccess: the key of its queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AccessKey {
    /// Its namespace, which is its Cluster's.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl AccessKey {
    /// The key of an object.
    pub fn of(access: &ClusterAccess) -> Self {
        Self { namespace: access.namespace().unwrap_or_default(), name: access.name_any() }
    }
}

impl fmt::Display for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl queue::Key for AccessKey {
    fn group(&self) -> &str {
        &self.namespace
    }
}

/// The key of the Cluster that a ClusterAccess leads to.
pub fn cluster_of(access: &ClusterAccess) -> ClusterKey {
    ClusterKey { namespace: access.namespace().unwrap_or_default(), name: access.spec.cluster_ref.name.clone() }
}
