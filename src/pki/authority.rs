//! Who signs for a guest: its own Secret, or Vault.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use rcgen::PublicKeyData as _;

use super::{
    embedded::{self, Pair},
    leaf::{self, Leaf},
    reconcile::Error,
    request::SigningRequest,
    vault::{self, InVault, Vault},
};
use crate::{api::VaultPlace, cluster::Identity, context::Context};

/// A root of a guest, as it is kept.
#[derive(Clone, Debug)]
pub enum Kept {
    /// Here, with its key.
    Here(Pair),
    /// In Vault: what is known of it here is its certificate.
    InVault {
        /// The certificate (PEM).
        certificate: String,
        /// Path of its mount.
        mount: String,
    },
}

impl Kept {
    /// Its certificate (PEM), or the public key of service accounts.
    pub fn certificate(&self) -> &str {
        match self {
            Self::Here(pair) => &pair.certificate,
            Self::InVault { certificate, .. } => certificate,
        }
    }

    /// Itself and its key, if that is here.
    pub fn pair(&self) -> Option<&Pair> {
        match self {
            Self::Here(pair) => Some(pair),
            Self::InVault { .. } => None,
        }
    }

    /// The authority in Vault, if it is there.
    pub fn in_vault(&self) -> Option<InVault<'_>> {
        match self {
            Self::Here(_) => None,
            Self::InVault { certificate, mount } => Some(InVault { mount, certificate }),
        }
    }
}

/// The Vault of this installation.
///
/// # Errors
/// [`Error::NoVault`]
pub(super) fn vault(context: &Context) -> Result<&Vault, Error> {
    context.vault.as_deref().ok_or(Error::NoVault)
}

/// The Vault of this installation, if it is where a guest's authorities are recorded to be.
///
/// # Errors
/// [`Error::NoVault`], [`Error::ElsewhereInVault`]
pub(super) fn vault_at<'a>(
    context: &'a Context,
    identity: &Identity,
    recorded: Option<&VaultPlace>,
) -> Result<&'a Vault, Error> {
    let vault = vault(context)?;
    let set = vault.place(identity);
    match recorded.filter(|recorded| **recorded != set) {
        Some(recorded) => Err(Error::ElsewhereInVault { recorded: Box::new(recorded.clone()), set: Box::new(set) }),
        None => Ok(vault),
    }
}

/// Makes a key for `holder`, such as a node, and has its certificate signed by a guest's authority.
///
/// # Errors
/// [`Error`]
pub async fn sign(
    context: &Context,
    authority: &Kept,
    holder: &str,
    leaf: &Leaf,
    now: Timestamp,
    ttl: Duration,
) -> Result<Pair, Error> {
    match authority {
        Kept::Here(root) => Ok(embedded::sign(root, leaf, now, ttl)?),
        Kept::InVault { certificate, mount } => {
            Ok(vault(context)?.sign(InVault { mount, certificate }, holder, leaf, now, ttl).await?)
        }
    }
}

/// Has what somebody asked for inside a guest signed (PEM) by the guest's authority.
///
/// # Errors
/// [`Error`]
pub async fn sign_request(
    context: &Context,
    authority: &Kept,
    request: &SigningRequest,
    now: Timestamp,
    ttl: Duration,
) -> Result<String, Error> {
    let SigningRequest { leaf, pem, key } = request;
    match authority {
        Kept::Here(root) => Ok(embedded::certify(root, leaf, key, now, ttl)?),
        Kept::InVault { certificate, mount } => {
            let request = vault::Request { leaf, pem, key: key.der_bytes() };
            let authority = InVault { mount, certificate };
            let sign = || async {
                vault(context)?.sign_request(authority, leaf::REQUESTED, request, now, ttl).await.map_err(Error::from)
            };
            // One role for all of them, pinned anew for each. Should somebody have changed it, it is written again.
            match sign().await {
                Err(error) if error.is_refusal() => sign().await,
                answer => answer,
            }
        }
    }
}

/// Takes from Vault the right to these certificates of `holder`; for an authority that is here nothing is written down of it.
///
/// # Errors
/// [`Error`]
pub async fn forget(context: &Context, authority: &Kept, holder: &str, certificates: &[&str]) -> Result<(), Error> {
    if let Some(InVault { mount, .. }) = authority.in_vault() {
        vault(context)?.forget(mount, holder, certificates).await.map_err(vault::Error::from)?;
    }
    Ok(())
}

/// Takes note that what was signed for `holder` is stored: what is asked for next is signed anew.
pub fn stored(context: &Context, identity: &Identity, holder: &str) {
    if let Some(vault) = &context.vault {
        vault.stored(identity, holder);
    }
}
