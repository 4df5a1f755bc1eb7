//! The lab: a real Kubernetes management cluster on one machine, for tests and for trying things out.
//!
//! ```text
//!   lab up ─ preflight ─ certificates ─ cgroups ─ mount namespaces ─ bridge, network namespaces ─ servers ─ add-ons ─ Vault
//!   lab down ─ servers recorded ─ containers ─ all in the cgroup ─ mounts ─ network ─ cgroups ─ state folder
//! ```
//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler and Vault run in the room `control`; every host is a
//! room with containerd, kubelet and kube-proxy. Calico, CoreDNS and Traefik run as pods. In the machine's own network
//! namespace nothing listens but two ports of its loopback device, which lead to Traefik; and what `lab up` leaves on the
//! machine is found again by `lab down`, wherever it was killed.
//!
//! Tests use [`Lab`] to reach the cluster, [`wait_for`] to await what they expect, and [`Snapshot`] to compare what the
//! machine has before and after.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub mod addons;
pub mod cgroup;
pub mod command;
pub mod control_plane;
pub mod down;
pub mod facts;
pub mod faults;
pub mod host;
pub mod http;
pub mod images;
pub mod mounts;
pub mod network;
pub mod paths;
pub mod pki;
pub mod preflight;
pub mod process;
mod range;
pub mod snapshot;
pub mod state;
pub mod status;
pub mod tools;
pub mod topology;
pub mod up;
pub mod vault;
pub mod wait;

pub use snapshot::{Snapshot, snapshot};
pub use wait::{wait_every, wait_for};

use control_plane::ControlPlane;
use host::HostServers;
use paths::{Paths, write_whole};
use tools::Tools;
use vault::Vault;

/// A lab that was set up, at least in part.
#[derive(Debug)]
pub struct Lab {
    paths: Paths,
    settings: Settings,
}

/// What a lab was set up with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) tools: Tools,
    /// Reference of the image of pods' sandboxes.
    pub(crate) pause: String,
}

impl Settings {
    fn file(paths: &Paths) -> PathBuf {
        paths.state.join("lab.json")
    }

    pub(crate) fn write(&self, paths: &Paths) -> Result<()> {
        write_whole(&Self::file(paths), &serde_json::to_string_pretty(self)?, 0o644)
    }
}

impl Lab {
    /// The lab of this machine, if one was set up (it may be half made, or its servers dead).
    pub fn found() -> Option<Self> {
        let paths = Paths::of_machine().ok()?;
        let settings = std::fs::read_to_string(Settings::file(&paths)).ok()?;
        Some(Self { settings: serde_json::from_str(&settings).ok()?, paths })
    }

    /// As [`found`](Self::found), with what to do if there is none.
    ///
    /// # Errors
    /// If none was set up.
    pub fn existing() -> Result<Self> {
        Self::found().context("no lab is set up; `lab up` sets one up")
    }

    /// The lab of this machine, if its API server is ready.
    pub fn running() -> Option<Self> {
        Self::found().filter(|lab| lab.control_plane().check_apiserver().is_ok())
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.paths.kubeconfig()
    }

    /// The kubectl that the lab's Kubernetes came with.
    pub fn kubectl_binary(&self) -> PathBuf {
        self.settings.tools.kubernetes.join("kubectl")
    }

    /// The state folder.
    pub fn state(&self) -> &Path {
        &self.paths.state
    }

    /// Runs kubectl as administrator, for at most 30 s, and returns what it printed.
    ///
    /// # Errors
    /// If kubectl fails, with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.control_plane().kubectl(args).output()
    }

    /// As [`kubectl`](Self::kubectl), for at most `limit`.
    ///
    /// # Errors
    /// If kubectl fails, with what it said.
    pub fn kubectl_within(&self, limit: Duration, args: &[&str]) -> Result<String> {
        self.control_plane().kubectl(args).timeout(limit).output()
    }

    /// Applies a manifest (YAML or JSON).
    ///
    /// # Errors
    /// If kubectl fails, with what it said.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.control_plane().kubectl(&["apply", "--server-side", "-f", "-"]).input(manifest).output()
    }

    /// As [`apply`](Self::apply), into this namespace; the manifest names none or the same.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn apply_in(&self, namespace: &str, manifest: &str) -> Result<String> {
        let words = ["--namespace", namespace, "apply", "--server-side", "-f", "-"];
        self.control_plane().kubectl(&words).input(manifest).output()
    }

    /// Imports an archive's images into every host, unless they are there already. Says whether it imported any.
    ///
    /// # Errors
    /// If the archive cannot be read or containerd refuses it.
    pub fn load(&self, archive: &Path) -> Result<bool> {
        // One at a time: each notes in the cache what it imported.
        let _lock = state::Lock::take(&self.paths, Duration::from_secs(600))?;
        Ok(images::load_everywhere(&self.hosts(), &[archive.to_path_buf()])? > 0)
    }

    /// The lab's Vault.
    pub fn vault(&self) -> Vault<'_> {
        let address = (topology::CONTROL.address, vault::PORT).into();
        Vault { paths: &self.paths, tools: &self.settings.tools, address }
    }

    pub(crate) fn control_plane(&self) -> ControlPlane<'_> {
        ControlPlane { paths: &self.paths, tools: &self.settings.tools }
    }

    pub(crate) fn hosts(&self) -> Vec<HostServers<'_>> {
        topology::HOSTS.iter().map(|host| self.host(host)).collect()
    }

    pub(crate) fn host<'a>(&'a self, host: &'a topology::Host) -> HostServers<'a> {
        HostServers { paths: &self.paths, tools: &self.settings.tools, host, pause: &self.settings.pause }
    }
}
