//! Lets the nodes of a guest into Vault, and has it hand them what is theirs.
//!
//! ```text
//!  before the stack    ensure ─► login's role, for nobody ─► its id ─► user data ─► stack ─► ARN of the nodes' role
//!  after it            ensure ─► login's role, for that ARN; roles that sign for the instances that there are;
//!                                for the control plane: keys that nobody signs
//!  before it goes      remove
//! ```
//!
//! Everything is called after the login, whose id Vault makes up, and the one policy of all nodes goes by that
//! ([decision 12](../../docs/decisions/0012-one-policy-for-all-nodes.md)). The id outlives every change of the role.
//!
//! - [`plan`]: what Vault is to have; pure

pub mod plan;

use self::plan::Group;
use super::{
    identity::{Nodes, NotARole},
    tags::Owner,
};
use crate::{
    cluster::Identity,
    pki::{
        leaf::Authority,
        roots::Roots,
        vault::{Vault, VaultError},
    },
};

/// Why nodes were not let in, or not shut out.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// Vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Their role is none.
    #[error(transparent)]
    Role(#[from] NotARole),
    /// Vault's answer has no id.
    #[error("Vault says no id of {0}")]
    Id(String),
}

/// A guest, and the Vault that its nodes log in to.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// The Vault.
    pub vault: &'a Vault,
    /// The guest.
    pub identity: &'a Identity,
    /// Whose its stacks are.
    pub owner: &'a Owner,
}

impl Admission<'_> {
    /// Lets these nodes in, and hands them what `roots` has for them, if they are to have that: control-plane nodes alone are.
    /// Answers the id of their login, of which user data is made; it is the same at every call.
    ///
    /// What is as it should be is not written: that costs one read.
    ///
    /// # Errors
    /// [`AdmissionError`]; another try goes on where this one ended.
    pub async fn ensure(&self, group: &Group<'_>, roots: Option<&Roots>) -> Result<String, AdmissionError> {
        let id = self.login(group).await?;
        for signer in plan::signers(group, &id) {
            let mount = self.vault.mount(self.identity, signer.authority);
            self.vault.put_signer(&format!("{mount}/roles/{}", signer.name), signer.role).await?;
        }
        if let (Nodes::ControlPlane, Some(roots)) = (group.nodes, roots) {
            self.vault.put_keys(&plan::keys_path(&id), &plan::keys(roots)).await?;
        }
        Ok(id)
    }

    async fn login(&self, group: &Group<'_>) -> Result<String, AdmissionError> {
        let (path, wanted) = (plan::login_path(self.owner, group.nodes), plan::login(group)?);
        let found = self.vault.login_role(&path).await?;
        let found = match found.filter(|found| plan::is_as_wanted(found, &wanted)) {
            Some(found) => found,
            None => {
                self.vault.put_login_role(&path, wanted).await?;
                self.vault.login_role(&path).await?.ok_or_else(|| AdmissionError::Id(path.clone()))?
            }
        };
        let id = found["role_id"].as_str().filter(|id| !id.is_empty());
        id.map(ToOwned::to_owned).ok_or(AdmissionError::Id(path))
    }

    /// Shuts these nodes out, and removes what was there for them: the roles of `certificates`, and keys. The login goes last,
    /// since everything else is called after it.
    ///
    /// # Errors
    /// [`AdmissionError`]; another try goes on where this one ended.
    pub async fn remove(&self, nodes: Nodes<'_>, certificates: &[(Authority, &str)]) -> Result<(), AdmissionError> {
        let path = plan::login_path(self.owner, nodes);
        let Some(found) = self.vault.login_role(&path).await? else { return Ok(()) };
        let id =
            found["role_id"].as_str().filter(|id| !id.is_empty()).ok_or_else(|| AdmissionError::Id(path.clone()))?;
        if nodes == Nodes::ControlPlane {
            self.vault.delete_at(&plan::keys_path(id)).await?;
        }
        for (authority, certificate) in certificates {
            let mount = self.vault.mount(self.identity, *authority);
            self.vault.delete_at(&plan::signer_path(&mount, id, certificate)).await?;
        }
        Ok(self.vault.delete_at(&path).await?)
    }
}
