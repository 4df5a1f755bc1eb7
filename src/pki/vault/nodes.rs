//! What nodes that log in to Vault by themselves find there: roles of an auth method, roles that sign for them, and keys that
//! nobody signs. What is written says whoever calls; nothing is written twice.

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tracing::info;

use super::{Vault, VaultError, client::Action, lock};
use crate::runtime::apply::hash;

impl Vault {
    /// The role of an auth method at this path. None: there is none.
    ///
    /// # Errors
    /// [`VaultError`]
    pub async fn login_role(&self, path: &str) -> Result<Option<Value>, VaultError> {
        match self.connection.ask(Action::Read, path, Value::Null).await {
            Ok(answer) => Ok(Some(answer["data"].clone())),
            Err(error) if error.says(404, "") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the role of an auth method, whatever is there.
    ///
    /// # Errors
    /// [`VaultError`]
    pub async fn put_login_role(&self, path: &str, role: Value) -> Result<(), VaultError> {
        self.connection.ask(Action::Write, path, role).await?;
        info!(path, "written");
        Ok(())
    }

    /// Writes a role that signs, unless this process did.
    ///
    /// # Errors
    /// [`VaultError`]
    pub async fn put_signer(&self, path: &str, role: Value) -> Result<(), VaultError> {
        self.allow(path, role).await
    }

    /// Writes keys that nobody signs, by their names, unless this process did.
    ///
    /// # Errors
    /// [`VaultError`]
    pub async fn put_keys(&self, path: &str, keys: &[(&str, SecretString)]) -> Result<(), VaultError> {
        let body: Value = keys.iter().map(|(name, key)| ((*name).to_owned(), json!(key.expose_secret()))).collect();
        let asked = hash(&body);
        if lock(&self.roles).get(path) == Some(&asked) {
            return Ok(());
        }
        self.connection.ask(Action::Write, path, body).await?;
        lock(&self.roles).insert(path.into(), asked);
        info!(path, "keys written");
        Ok(())
    }

    /// Deletes what is at this path; that there is nothing is as good.
    ///
    /// # Errors
    /// [`VaultError`]
    pub async fn delete_at(&self, path: &str) -> Result<(), VaultError> {
        match self.connection.ask(Action::Delete, path, Value::Null).await {
            Ok(_) | Err(VaultError::NoMount(_)) => {}
            Err(error) if error.says(404, "") => {}
            Err(error) => return Err(error),
        }
        lock(&self.roles).remove(path);
        Ok(())
    }
}
