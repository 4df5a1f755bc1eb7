//! Authorities that are not made in Vault but come there with their keys: imported from another guest, or made here so that they can
//! be exported.
//!
//! ```text
//!  mount ─► key and certificate made here ─► written down (escrow) ─► imported ─► what the mount has is the authority
//! ```
//!
//! A mount's authority is the first root that came into it. Whoever dies in between leaves a mount without a root, or with one whose
//! key is written down; the next try makes another in the one case, and takes that one in the other.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde_json::json;
use tracing::info;

use super::{Error, Vault, VaultError, client::Action, lock};
use crate::{
    cluster::Identity,
    pki::{
        embedded::{self, Pair, PkiError},
        leaf::Authority,
        roots::Root,
    },
};

impl Vault {
    /// Makes an authority whose key can be exported, or finds what an earlier try left of it. Answers its certificate (PEM).
    ///
    /// # Errors
    /// [`Error`]
    pub async fn make_exportable(
        &self,
        identity: &Identity,
        authority: Authority,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<String, Error> {
        let (mount, root) = self.mounted(identity, authority, ttl).await?;
        let root = match root {
            Some(root) => root,
            None => {
                let make = || embedded::root(Root::Ca(authority).name(), &identity.key.to_string(), now, ttl);
                let pair = self.once(&mount, make)?;
                self.write_down(identity, authority, &pair).await?;
                self.import(&mount, &pair).await?;
                // Not what was made here: a former leader's last request may have been the first.
                self.root(&mount).await?.ok_or_else(|| VaultError::NoMount(mount.clone()))?
            }
        };
        lock(&self.made).remove(&mount);
        Ok(root)
    }

    /// Brings an authority of another guest into a new one's mount, or finds that an earlier try did. Its certificate is encoded as all
    /// of ours are.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn bring(
        &self,
        identity: &Identity,
        authority: Authority,
        pair: &Pair,
        ttl: Duration,
        exportable: bool,
    ) -> Result<(), Error> {
        let (mount, mut root) = self.mounted(identity, authority, ttl).await?;
        if root.is_none() {
            if exportable {
                self.write_down(identity, authority, pair).await?;
            }
            self.import(&mount, pair).await?;
            root = self.root(&mount).await?;
        }
        match root {
            Some(root) if root == pair.certificate => Ok(()),
            Some(_) => Err(Error::Occupied(mount)),
            None => Err(VaultError::NoMount(mount).into()),
        }
    }

    /// What was made for a mount and is not known to be in it: made once by this process, so that what is written down does not become
    /// more with every try.
    fn once(&self, mount: &str, make: impl FnOnce() -> Result<Pair, PkiError>) -> Result<Pair, PkiError> {
        let mut made = lock(&self.made);
        if let Some(pair) = made.get(mount) {
            return Ok(pair.clone());
        }
        let pair = make()?;
        made.insert(mount.to_owned(), pair.clone());
        Ok(pair)
    }

    async fn import(&self, mount: &str, pair: &Pair) -> Result<(), VaultError> {
        let bundle = format!("{}\n{}", pair.key.expose_secret().trim_end(), pair.certificate);
        let path = format!("{mount}/issuers/import/bundle");
        self.connection.ask(Action::Write, &path, json!({"pem_bundle": bundle})).await?;
        info!(mount, "a root was imported");
        Ok(())
    }
}
