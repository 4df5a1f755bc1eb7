//! Which keys and certificates must exist, and the authority that makes them.
//!
//! - [`plan`]: what is to be made, issued or renewed; pure
//! - [`leaf`]: subjects, names, usages of every certificate
//! - [`embedded`]: the built-in authority: keys and certificates by rcgen, roots in Secrets of the guest's namespace
//! - [`kubeconfig`]: the administrator's kubeconfig
//! - `secrets`: how all of it lies in Secrets
//! - [`store`]: how they are stored, and looked at again
//! - `issue`, [`reconcile`]: the effects
//!
//! A root that was ever recorded for a guest is never made a second time: without it the guest is `Degraded`.

pub mod embedded;
mod issue;
pub mod kubeconfig;
pub mod leaf;
pub mod plan;
pub mod reconcile;
pub(crate) mod secrets;
pub mod store;

/// What the pki operator tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PkiFacts {
    /// When (RFC 3339) the next certificate is renewed.
    pub renew_at: Option<String>,
}
