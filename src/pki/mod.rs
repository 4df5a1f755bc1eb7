//! Which keys and certificates must exist, and the authority that makes them.
//!
//! - [`plan`]: what is to be made, issued or renewed; pure
//! - [`leaf`]: subjects, names, usages of every certificate
//! - [`roots`]: what is made once in a guest's life, and the Secret of the guest's namespace that has it
//! - [`embedded`]: the built-in authority: keys and certificates by rcgen
//! - [`vault`]: Vault as the authority: roots in PKI mounts of the guest's own
//! - [`authority`]: which of the two signs for a guest
//! - [`kubeconfig`]: the administrator's kubeconfig
//! - [`escrow`]: roots outside of a guest: sealed bundles, and what is checked of those that come back
//! - `import`: roots of a new guest that come from such a bundle
//! - [`request`]: what users and kubelets of a guest ask to have signed; pure
//! - `secrets`: how all of it lies in Secrets
//! - [`store`]: how they are stored, and looked at again
//! - `make`, `issue`, [`reconcile`]: the effects
//!
//! A root that was ever recorded for a guest is never made a second time: without it the guest is `Degraded`.

pub mod authority;
pub mod embedded;
pub mod escrow;
mod import;
mod issue;
pub mod kubeconfig;
pub mod leaf;
mod make;
pub mod plan;
pub mod reconcile;
pub mod request;
pub mod roots;
pub(crate) mod secrets;
pub mod store;
pub mod vault;

use crate::api::VaultPlace;

/// What the pki operator tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PkiFacts {
    /// When (RFC 3339) the next certificate is renewed.
    pub renew_at: Option<String>,
    /// When (RFC 3339) the first certificate ends, if it is not renewed.
    pub end_at: Option<String>,
    /// Where the authorities are to be, if it is Vault.
    pub vault: Option<VaultPlace>,
}
