//! Offers `giantnetes.io/kvm` to kubelet on a host where a guest was seen to start on KVM.
//!
//! ```text
//!  start ─► probe ─── failed ──► nothing is offered; the log and /readyz say why; probed again later
//!             │ a guest came up
//!             ▼
//!           socket ─► Register ─► kubelet asks: ListAndWatch (all healthy), Allocate (/dev/kvm)
//!             ▲                      │ a later probe fails: all unhealthy, until one succeeds
//!             └── kubelet.sock is another one: kubelet restarted and has forgotten us
//! ```
//!
//! - [`api`]: kubelet's API
//! - [`probing`]: whether guests start on this host
//! - [`service`]: what kubelet is answered
//! - [`kubelet`]: being registered, whatever becomes of kubelet

pub mod api;
pub mod kubelet;
pub mod probing;
pub mod service;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::{kubelet::Offer, probing::Verdict};
use crate::{
    runtime::http,
    supervisor::{
        QEMU_ID,
        accelerator::{self, Accel, PROBE_TIMEOUT},
        qemu::NodeImage,
    },
};

/// What a plugin is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder with kubelet's socket and ours.
    pub folder: PathBuf,
    /// How many VM pods may use the device at a time.
    pub devices: u16,
    /// Pause between probes, while they succeed.
    pub probe_every: Duration,
    /// Folder with the node image that is probed with.
    pub node: PathBuf,
    /// Address of /livez, /readyz and /metrics.
    pub listen: SocketAddr,
}

/// Why a plugin ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The signals that end it.
    #[error("listen for SIGTERM")]
    Signal(#[source] std::io::Error),
    /// `/readyz` and the others.
    #[error("serve health on {address}")]
    Health {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A defect of ours.
    #[error("a part of the device plugin ended by itself")]
    Ended,
}

/// Runs the plugin until SIGTERM, which takes its socket away.
///
/// # Errors
/// [`Error`]
pub async fn run(options: Options) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let stop = CancellationToken::new();
    let _stop_tasks = stop.clone().drop_guard();
    let (verdict, seen) = watch::channel(Verdict::Unknown);
    let image = NodeImage::in_folder(&options.node);
    let probe = move || {
        let image = image.clone();
        async move {
            accelerator::hand_over(QEMU_ID)?;
            accelerator::probe(Accel::Kvm, &image, QEMU_ID, PROBE_TIMEOUT).await
        }
    };
    let offer = Offer::new(&options.folder, options.devices, seen);
    let routes = http::routes(Arc::new(Vec::new), offer.readiness());
    let mut server = tokio::spawn(http::serve(options.listen, routes, stop.clone()));
    let mut probing = tokio::spawn(probing::again_and_again(probe, options.probe_every, verdict, stop.clone()));
    let mut offering = tokio::spawn(offer.keep(stop.clone()));
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        served = &mut server => Err(match served {
            Ok(Err(source)) => Error::Health { address: options.listen, source },
            Ok(Ok(())) | Err(_) => Error::Ended,
        }),
        _ = &mut probing => Err(Error::Ended),
        _ = &mut offering => return Err(Error::Ended),
    };
    info!("stopping");
    stop.cancel();
    // It takes the socket away.
    let _ = offering.await;
    ended
}
