//! A guest's mounts in Vault: made, known for the guest's, and removed.

use std::time::Duration;

use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Error, Vault, VaultError, certificate, client::Action, escrow, lock, role, seconds};
use crate::{cluster::Identity, pki::leaf::Authority};

impl Vault {
    /// Makes an authority's mount, if there is none. Answers its path, and its root if there is one.
    pub(super) async fn mounted(
        &self,
        identity: &Identity,
        authority: Authority,
        ttl: Duration,
    ) -> Result<(String, Option<String>), Error> {
        let mount = self.mount(identity, authority);
        match self.owned(identity, &mount).await? {
            Some(true) => {}
            Some(false) => return Err(Error::Foreign(mount)),
            None => self.enable(identity, &mount, ttl).await?,
        }
        let root = self.root(&mount).await?;
        if root.is_none() {
            // What Vault keeps of certificates goes three days after they have expired.
            let tidy = json!({
                "enabled": true, "tidy_cert_store": true, "tidy_revoked_certs": true, "safety_buffer": "72h",
            });
            self.connection.ask(Action::Write, &format!("{mount}/config/auto-tidy"), tidy).await?;
        }
        Ok((mount, root))
    }

    /// Removes a guest's authorities, and their keys after them. Answers the mounts that were still there.
    ///
    /// # Errors
    /// [`VaultError`]
    pub async fn remove(&self, identity: &Identity) -> Result<Vec<String>, VaultError> {
        let mut left = Vec::new();
        let authorities = Authority::ALL.into_iter().map(|authority| self.mount(identity, authority));
        for mount in authorities.chain([escrow::mount(&self.settings.prefix, identity)]) {
            match self.owned(identity, &mount).await? {
                None => {}
                Some(true) => {
                    self.connection.ask(Action::Delete, &format!("sys/mounts/{mount}"), Value::Null).await?;
                    info!(mount, "removed");
                    left.push(mount);
                }
                Some(false) => warn!(mount, "left alone: its description says that it is not this Cluster's"),
            }
        }
        if left.is_empty() {
            let guest = format!("{}/", self.place(identity).path);
            lock(&self.roles).retain(|path, _| !path.starts_with(&guest));
            lock(&self.seen).retain(|path, _| !path.starts_with(&guest));
            lock(&self.signed).retain(|path, _| !path.starts_with(&guest));
            lock(&self.made).retain(|mount, _| !mount.starts_with(&guest));
        }
        Ok(left)
    }

    /// Whether a mount is this guest's. None: there is none.
    pub(super) async fn owned(&self, identity: &Identity, mount: &str) -> Result<Option<bool>, VaultError> {
        let path = format!("sys/mounts/{mount}");
        match self.connection.ask(Action::Read, &path, Value::Null).await {
            Ok(answer) => {
                let lacks = VaultError::Answer { action: Action::Read.name(), path, lacks: "description" };
                let description = answer["data"]["description"].as_str().ok_or(lacks)?;
                Ok(Some(description == role::description(identity)))
            }
            Err(error) if error.says(400, "No secret engine mount at") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn enable(&self, identity: &Identity, mount: &str, ttl: Duration) -> Result<(), VaultError> {
        let config = json!({"default_lease_ttl": seconds(ttl), "max_lease_ttl": seconds(ttl)});
        let body = json!({"type": "pki", "description": role::description(identity), "config": config});
        self.connection.ask(Action::Write, &format!("sys/mounts/{mount}"), body).await?;
        Ok(())
    }

    /// A mount's root (PEM), if one was made in it.
    pub(super) async fn root(&self, mount: &str) -> Result<Option<String>, Error> {
        // The certificate of a mount without issuers is an error of its own in each version; their list is not found in all.
        match self.connection.ask(Action::List, &format!("{mount}/issuers"), Value::Null).await {
            Ok(_) => {}
            Err(error) if error.says(404, "") => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        certificate(&self.connection, mount).await.map(Some)
    }
}
