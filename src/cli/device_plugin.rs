//! `giantnetes device-plugin`

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::run::duration;
use crate::{
    device_plugin::{Options, api},
    supervisor::paths,
};

#[derive(Debug, clap::Args)]
pub(super) struct DevicePluginArgs {
    /// Folder with kubelet's socket for device plugins.
    #[arg(long, default_value = api::FOLDER)]
    folder: PathBuf,
    /// How many VM pods may use KVM on this host at a time.
    #[arg(long, env = "GIANTNETES_KVM_DEVICES", default_value_t = 110, value_parser = clap::value_parser!(u16).range(1..=1000))]
    devices: u16,
    /// Pause between probes. Where no guest starts it becomes longer.
    #[arg(long, env = "GIANTNETES_PROBE_EVERY", default_value = "10m", value_parser = duration)]
    probe_every: Duration,
    /// Folder with the node image's vmlinuz and initrd.img.
    #[arg(long, default_value = paths::NODE)]
    node: PathBuf,
    /// Address of /livez, /readyz, /metrics and /loglevel.
    #[arg(long, env = "GIANTNETES_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
}

impl DevicePluginArgs {
    pub(super) fn options(self) -> Options {
        let Self { folder, devices, probe_every, node, listen } = self;
        Options { folder, devices, probe_every, node, listen }
    }
}
