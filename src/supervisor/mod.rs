//! What runs inside a VM pod beside QEMU.
//!
//! ```text
//!  start ─► network ─► disks ─► accelerator ─► QEMU runs ─── SIGTERM ──► power button ─► QEMU ends ─► exit 0
//!                                  │ probe        │                         │ in time? no
//!                                  ▼              ▼ QEMU ends by itself     ▼
//!                                 KVM or TCG     exit 1 (kubelet restarts)  quit, kill
//! ```
//!
//! One task owns QEMU and its monitor ([`vm`]); others only read what it says ([`health`]). QEMU runs as a user of its
//! own without any capability; whatever it may not open by itself it is handed as an open file.
//!
//! - `addons`: the manifests that the VM image carries
//! - [`client`]: asking all of this, for the controller manager
//! - [`config`]: what the controller says about the VM
//! - [`flannel`]: flanneld, where the overlay is Flannel's, in a container of its own
//! - [`network`]: bridge, VXLAN, tap and the rules that hold the guest in its place
//! - [`peers`]: the guest's other VM pods
//! - [`path_mtu`]: how large packets pass whole to them, at `/path-mtu`
//! - [`disks`]: root overlay, etcd's disk, cloud-init's seed
//! - [`accelerator`]: KVM where a guest was seen to start on it
//! - [`qemu`], [`qmp`]: arguments, process and monitor
//! - [`proxy`]: the pod's API port, forwarded to the guest
//! - [`health`]: `/livez`, `/readyz`, `/status`, `/metrics`
//! - [`consumers`]: whose certificates the guest's components show and want, at `/authorities`
//! - [`keys`]: which keys API servers verify tokens with, and what is stored with another than a certain one, at `/keys`, `/stored`
//! - [`reach`]: what the pod reaches, at `/isolation`
//! - [`scrape`]: what the guest's components count, at `/guest/<component>/metrics`
//! - `kept`: what of it is passed on
//! - `line`: how the guest's components are called

pub mod accelerator;
pub mod addons;
pub mod client;
pub mod config;
pub mod consumers;
pub mod disks;
pub mod flannel;
pub mod health;
mod kept;
pub mod keys;
mod line;
pub mod network;
pub mod path_mtu;
pub mod peers;
pub mod proxy;
pub mod qemu;
pub mod qmp;
pub mod reach;
pub mod scrape;
pub mod vm;

/// User and group id of QEMU inside the VM pod. Secret volumes belong to this group.
pub const QEMU_ID: u32 = 107;

/// Where things lie in a VM pod.
pub mod paths {
    /// The node's ConfigMap.
    pub const CONFIG: &str = "/etc/giantnetes";
    /// The node's keys and certificates.
    pub const PKI: &str = "/pki";
    /// etcd's volume.
    pub const ETCD: &str = "/etcd";
    /// Scratch space: root overlay and seed.
    pub const WORK: &str = "/work";
    /// The node image: disk, kernel and initial RAM disk.
    pub const NODE: &str = "/node";
    /// The device that tap interfaces are made with.
    pub const TUN: &str = "/dev/net/tun";
    /// The guest's certificate to Flannel's etcd, in the container of flanneld alone.
    pub const FLANNEL: &str = "/etc/flannel";
    /// What flanneld writes, which nobody else reads.
    pub const FLANNEL_RUN: &str = "/run/flannel";
    /// The device that guests run on with hardware virtualisation. Only pods that ask for it have it.
    pub const KVM: &str = "/dev/kvm";
}

/// Why a VM cannot be run. Each says which step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error("read the VM's configuration {path}")]
    Config {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The configuration's shape.
    #[error("parse the VM's configuration {path}")]
    Parse {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The network.
    #[error("set up the VM's network")]
    Network(#[from] network::Error),
    /// The disks.
    #[error("prepare the VM's disks")]
    Disks(#[from] disks::Error),
    /// The accelerator.
    #[error("choose the accelerator")]
    Accelerator(#[from] accelerator::Error),
    /// QEMU.
    #[error("run QEMU")]
    Qemu(#[from] qemu::Error),
    /// QEMU's monitor.
    #[error("talk to QEMU's monitor")]
    Qmp(#[from] qmp::Error),
    /// A signal handler or a listener.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// QEMU ended by itself.
    #[error("QEMU ended by itself: {0}")]
    Ended(std::process::ExitStatus),
}
