//! Faults on purpose: a host without power, a host without network, an API server that is gone or does not answer, a Vault
//! that is gone or sealed.
//! `lab up` undoes them all.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Record, stop};
use crate::state::Lock;
use crate::topology::{CGROUP, Host};
use crate::{Lab, cgroup, network};

/// How long the lock's holder may take.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(60);

impl Lab {
    /// Cuts a host's power: its servers and pods are gone at once, and its address answers no more. Volumes stay.
    ///
    /// # Errors
    /// If a process is left.
    pub fn stop_host(&self, host: &Host) -> Result<()> {
        let _lock = Lock::take(&self.paths, LOCK_PATIENCE)?;
        network::plug(&host.room, false)?;
        cgroup::kill_all(&format!("{CGROUP}/{}", host.name()), Duration::from_secs(10))
    }

    /// Unplugs a host from the network; all that runs on it goes on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn isolate_host(&self, host: &Host) -> Result<()> {
        let _lock = Lock::take(&self.paths, LOCK_PATIENCE)?;
        network::plug(&host.room, false)
    }

    /// Plugs an isolated host in again.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn heal_host(&self, host: &Host) -> Result<()> {
        let _lock = Lock::take(&self.paths, LOCK_PATIENCE)?;
        network::plug(&host.room, true)
    }

    /// Ends the API server.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop_apiserver(&self) -> Result<()> {
        let _lock = Lock::take(&self.paths, LOCK_PATIENCE)?;
        stop(&[self.apiserver_record()?], Duration::from_secs(10))
    }

    /// Holds the API server where it is: connections are accepted, nothing answers.
    ///
    /// # Errors
    /// If it was never started.
    pub fn freeze_apiserver(&self) -> Result<()> {
        self.apiserver_record().map(|record| record.freeze())
    }

    /// Lets a frozen API server go on.
    ///
    /// # Errors
    /// If it was never started.
    pub fn thaw_apiserver(&self) -> Result<()> {
        self.apiserver_record().map(|record| record.thaw())
    }

    /// Seals Vault: it runs, and answers nothing but that it is sealed.
    ///
    /// # Errors
    /// If it does not answer, or is sealed already.
    pub fn seal_vault(&self) -> Result<()> {
        let _lock = Lock::take(&self.paths, LOCK_PATIENCE)?;
        self.vault().seal()
    }

    /// Unseals Vault.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn unseal_vault(&self) -> Result<()> {
        let _lock = Lock::take(&self.paths, LOCK_PATIENCE)?;
        self.vault().unseal()
    }

    /// Ends Vault. What it stored stays.
    ///
    /// # Errors
    /// If it does not end, or was never started.
    pub fn stop_vault(&self) -> Result<()> {
        let _lock = Lock::take(&self.paths, LOCK_PATIENCE)?;
        let record = self.vault().server().record(&self.paths).context("Vault was never started")?;
        stop(&[record], Duration::from_secs(10))
    }

    fn apiserver_record(&self) -> Result<Record> {
        self.control_plane().apiserver().record(&self.paths).context("the API server was never started")
    }
}
