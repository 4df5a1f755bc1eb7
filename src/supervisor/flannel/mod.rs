//! flanneld beside a VM, in a container of its own: nothing of the VM's may see its key.
//!
//! ```text
//!  certificate and device there? ─► our subnet leased to us alone? ─► flanneld runs ─┐ ends, or is at fault
//!            ▲                                  │ no                      │ look      │
//!            └──────────────────────────────────┴─────────────────────────┴───────────┘
//! ```
//!
//! flanneld decides nothing here: the controller writes every node's lease into etcd, and the supervisor makes the device
//! ([`super::network`]). What is left for flanneld is to keep routes, neighbours and forwarding entries in step with the leases.
//! While etcd is silent, everything stays as it is.
//!
//! - `judge`: what is to become of flanneld; pure
//! - `process`: flanneld itself, and the kernel's routes

mod judge;
mod process;

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use self::{
    judge::{Memory, Seen, left_over, may_start},
    process::Flanneld,
};
use super::{
    Error as SupervisorError,
    config::{FlannelConfig, OverlayConfig},
    network, paths, vm,
};
use crate::{
    flannel::{
        etcd::{Client, EtcdError, Span, Target},
        lease::{self, Lease, Vtep},
    },
    pki::embedded::Pair,
    runtime::chain,
};

/// Pause between two looks while flanneld waits for something.
const WAITING: Duration = Duration::from_secs(1);
/// Pause between two looks while it runs.
const RUNNING: Duration = Duration::from_secs(30);
/// The same, after a look that failed: etcd may come back as another.
const FAILED: Duration = Duration::from_secs(5);

/// Files of the mounted Secret.
pub mod files {
    /// The authority that signs etcd's certificates.
    pub const AUTHORITY: &str = "ca.crt";
    /// The guest's certificate, whose common name is its user.
    pub const CERTIFICATE: &str = "tls.crt";
    /// Its key.
    pub const KEY: &str = "tls.key";
    /// URL of etcd.
    pub const ENDPOINT: &str = "endpoint";
}

/// Why flanneld cannot be run. All but the first two are tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM's configuration.
    #[error("read what the overlay is to be")]
    Config(#[source] Box<SupervisorError>),
    /// The VM's configuration knows of no Flannel, or the pod's network of no IPv4.
    #[error("{0}")]
    NotFlannel(&'static str),
    /// The mounted Secret.
    #[error("read {file} of Flannel's Secret")]
    Secret {
        /// The file.
        file: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// etcd.
    #[error("read the guest's leases")]
    Etcd(#[from] EtcdError),
    /// The kernel's routes.
    #[error("look at the overlay's routes")]
    Routes(#[source] network::Error),
    /// The kernel's routes are not as `ip` writes them.
    #[error("read the overlay's routes, as `ip` shows them")]
    Shown(#[source] serde_json::Error),
    /// A route that leads nowhere any more.
    #[error("remove the route to {subnet}, which no node has any more")]
    Route {
        /// The network.
        subnet: Ipv4Net,
        /// Why not.
        #[source]
        source: network::Error,
    },
    /// flanneld.
    #[error("start flanneld")]
    Start(#[source] io::Error),
    /// A signal handler.
    #[error("listen for SIGTERM")]
    Signal(#[source] io::Error),
}

/// Where things are that flanneld needs.
#[derive(Clone, Debug)]
pub struct Places {
    /// Its program.
    pub program: PathBuf,
    /// Folder of [`files`].
    pub secret: PathBuf,
    /// Folder for what it writes.
    pub run: PathBuf,
}

impl Default for Places {
    /// In a VM pod.
    fn default() -> Self {
        Self { program: "flanneld".into(), secret: paths::FLANNEL.into(), run: paths::FLANNEL_RUN.into() }
    }
}

/// Runs flanneld beside a VM until this process is told to stop (SIGTERM).
///
/// # Errors
/// If there is nothing to run flanneld for.
pub async fn run(config: &Path, pod_address: IpAddr) -> Result<(), Error> {
    let overlay = vm::read(config).map_err(|error| Error::Config(Box::new(error)))?.overlay;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    tokio::select! {
        ended = carry(overlay, pod_address, Places::default()) => ended,
        _ = terminate.recv() => {
            info!("stops: the overlay stays as it is");
            Ok(())
        }
    }
}

/// Runs flanneld, again and again if need be, for as long as this is waited for.
///
/// # Errors
/// If there is nothing to run flanneld for.
pub async fn carry(overlay: OverlayConfig, pod_address: IpAddr, places: Places) -> Result<(), Error> {
    let Some(FlannelConfig { guest }) = overlay.flannel.clone() else {
        return Err(Error::NotFlannel("the overlay of this VM is not Flannel's"));
    };
    let IpAddr::V4(address) = pod_address else {
        return Err(Error::NotFlannel("Flannel needs an IPv4 address, and this pod's is an IPv6 one"));
    };
    let own = Vtep { public_ip: address, vni: overlay.vni, mac: overlay.node.vtep_mac() };
    let mut carrier = Carrier { overlay, guest, own, places, access: None, running: None, told: None };
    loop {
        carrier.step().await;
    }
}

/// What leads to etcd.
#[derive(Clone)]
struct Access {
    endpoint: String,
    authority: String,
    certificate: String,
    key: SecretString,
}

impl Access {
    fn read(folder: &Path) -> Result<Self, Error> {
        let read = |file| fs::read_to_string(folder.join(file)).map_err(|source| Error::Secret { file, source });
        Ok(Self {
            endpoint: read(files::ENDPOINT)?.trim().to_owned(),
            authority: read(files::AUTHORITY)?,
            certificate: read(files::CERTIFICATE)?,
            key: read(files::KEY)?.into(),
        })
    }

    /// A key is never exchanged without its certificate.
    fn is(&self, other: &Self) -> bool {
        (&self.endpoint, &self.authority, &self.certificate) == (&other.endpoint, &other.authority, &other.certificate)
    }

    fn client(&self) -> Result<Client, EtcdError> {
        let identity = Pair { certificate: self.certificate.clone(), key: self.key.clone() };
        let target = Target { endpoint: &self.endpoint, authority: &self.authority, identity: &identity };
        Client::new(&target, None)
    }
}

struct Carrier {
    overlay: OverlayConfig,
    guest: String,
    own: Vtep,
    places: Places,
    access: Option<(Access, Client)>,
    running: Option<(Flanneld, Memory)>,
    /// What was last said to be wrong, or waited for.
    told: Option<String>,
}

impl Carrier {
    /// Looks, and pauses until the next look.
    async fn step(&mut self) {
        match self.look().await {
            Ok(None) if self.told.take().is_some() => info!("flanneld runs, and all is well"),
            Ok(None) => {}
            Ok(Some(wait)) => self.tell(format!("flanneld waits for {wait}")),
            Err(error) => self.tell(chain(&error)),
        }
        let pause = if self.told.is_some() { FAILED } else { RUNNING };
        let Some((flanneld, _)) = &mut self.running else { return tokio::time::sleep(WAITING).await };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            ended = flanneld.ended() => {
                warn!(%ended, "flanneld ended; it is started anew");
                self.running = None;
                tokio::time::sleep(WAITING).await;
            }
        }
    }

    /// Once for as long as it lasts.
    fn tell(&mut self, what: String) {
        if self.told.as_ref() != Some(&what) {
            warn!("{what}");
            self.told = Some(what);
        }
    }

    /// Starts flanneld if it may, ends it if it is at fault. Answers what it waits for.
    async fn look(&mut self) -> Result<Option<String>, Error> {
        let (device, subnet) = (self.overlay.device(), self.overlay.node.subnet());
        if !Path::new("/sys/class/net").join(&device).exists() {
            return Ok(Some(format!("the supervisor to make device {device}")));
        }
        let access = Access::read(&self.places.secret)?;
        // flanneld reads its certificate once.
        if !self.access.as_ref().is_some_and(|(known, _)| known.is(&access)) {
            if self.running.take().is_some() {
                info!("flanneld's way to etcd is another now; it is started anew");
            }
            let client = access.client()?;
            self.access = Some((access, client));
        }
        let Some((access, client)) = &self.access else { return Ok(None) };
        let endpoint = access.endpoint.clone();
        let seen = look_at(client, &self.guest, &device).await?;
        for subnet in left_over(&seen) {
            process::forget(&device, subnet).await.map_err(|source| Error::Route { subnet, source })?;
        }
        let now = Instant::now();
        if let Some((_, memory)) = &mut self.running {
            let Some(fault) = memory.judge(&seen, subnet, now) else { return Ok(None) };
            warn!(%fault, "flanneld is started anew");
            self.running = None;
        }
        if let Err(wait) = may_start(&seen, subnet, self.own) {
            return Ok(Some(wait.to_string()));
        }
        let flanneld =
            Flanneld::start(&self.places, &self.guest, &endpoint, self.own.public_ip).map_err(Error::Start)?;
        self.running = Some((flanneld, Memory::new(&seen, subnet, now)));
        Ok(None)
    }
}

async fn look_at(client: &Client, guest: &str, device: &str) -> Result<Seen, Error> {
    let read = client.read(&Span::prefix(&lease::subnets(guest))).await?;
    let mut seen = Seen { revision: read.revision, routes: process::routes(device).await?, ..Seen::default() };
    for entry in &read.entries {
        let Some(subnet) = lease::subnet(guest, &entry.key) else { continue };
        match Lease::parse(&entry.value) {
            Ok(Lease::Vxlan(vtep)) => drop(seen.leases.insert(subnet, (vtep, entry.mod_revision))),
            Ok(Lease::Guard) => seen.is_whole = true,
            // What is no lease of flanneld's does not concern it.
            Err(_) => {}
        }
    }
    Ok(seen)
}
