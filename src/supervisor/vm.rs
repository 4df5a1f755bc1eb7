//! The one task that owns QEMU.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use axum::Router;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::UnixStream,
    process::{Child, ChildStdout},
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Error, QEMU_ID,
    accelerator::{self, UP_LINE},
    addons,
    config::VmConfig,
    consumers::{self, Started},
    disks,
    health::{Asked, Health, REFUSED},
    keys, network,
    path_mtu::{self, Paths, Trial},
    paths, peers, proxy,
    qemu::{self, NodeImage},
    qmp::Monitor,
    reach, scrape,
};
use crate::{
    api::names::{API_PORT, INGRESS_PORTS, SUPERVISOR_PORT},
    runtime::{chain, http},
};

/// How often QEMU is asked how it is.
const QEMU_PERIOD: Duration = Duration::from_secs(2);
/// How long a guest has to power off: the pod's grace period less what ends QEMU otherwise.
const POWER_OFF: Duration = Duration::from_secs(100);
/// Connections to the API that are forwarded at a time.
const API_CONNECTIONS: usize = 4096;
/// Connections to each port of the ingress controller that are forwarded at a time: anybody may make them, and the pod's memory
/// is the VM's.
const INGRESS_CONNECTIONS: usize = 1024;
/// Descriptors that may be open: each forwarded connection has two ends, and a container begins with a thousand.
const OPEN_FILES: u64 = 2 * (API_CONNECTIONS + 2 * INGRESS_CONNECTIONS) as u64 + 1024;
/// Longest piece of the console's output that is held at a time, in bytes.
const CONSOLE_LINE: u64 = 4096;
/// What a line of the console begins with in our log.
pub const CONSOLE_PREFIX: &str = "console: ";
/// A guest that has not yet started the service that hears the power button misses it: it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(10);

/// Runs the VM until it ends or this process is told to stop (SIGTERM), which powers the guest off.
///
/// # Errors
/// [`Error`] names the step that failed, or that QEMU ended by itself.
pub async fn supervise(config: &Path, pod_address: IpAddr) -> Result<(), Error> {
    let vm = read(config)?;
    if let Err(error) = may_open(OPEN_FILES) {
        warn!(%error, "the limit of open files stays as it is; connections beyond it are refused");
    }
    let io = |what| move |source| Error::Io { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(io("listen for SIGTERM"))?;
    let stop = CancellationToken::new();
    let _stop_tasks = stop.clone().drop_guard();
    let health = Health::default();

    let pod = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let guest = IpAddr::from(vm.overlay.node.ip.addr());
    // A worker reaches its API by way of its pod.
    let asked = if vm.api_address.is_some() { Asked::Kubelet(vm.node.clone()) } else { Asked::Api };
    let api = SocketAddr::from((vm.api_address.unwrap_or(guest), API_PORT));
    let scraped = scrape::routes(&vm.node, vm.api_address.is_some(), guest);
    let started = Started::default();
    let authorities = consumers::routes(&vm.node, vm.api_address.is_some(), guest, started.clone());
    let of_keys = if vm.api_address.is_some() { Router::new() } else { keys::routes(&vm.node, guest) };
    let paths_to_peers = Paths::default();
    let reached = reach::routes(Some(network::INTERFACE)).merge(paths_to_peers.routes());
    let routes =
        health.routes(&asked).merge(addons::routes()).merge(reached).merge(scraped).merge(authorities).merge(of_keys);
    let mut server = tokio::spawn(http::serve(pod(SUPERVISOR_PORT), routes, stop.clone()));
    let known = GuestApi { health: health.clone(), is_here: asked == Asked::Api };
    let mut proxy = tokio::spawn(proxy::forward(pod(API_PORT), api, API_CONNECTIONS, known, stop.clone()));
    // Where the guest has an ingress controller; elsewhere the policy lets nobody in, and nobody answers in the VM.
    for (_, _, port) in INGRESS_PORTS {
        let forwarding = proxy::forward(
            pod(port),
            SocketAddr::from((guest, port)),
            INGRESS_CONNECTIONS,
            Duration::ZERO,
            stop.clone(),
        );
        tokio::spawn(async move {
            if let Err(error) = forwarding.await {
                warn!(port, %error, "nothing is forwarded to the guest's ingress controller");
            }
        });
    }

    let network = network::set_up(&vm.overlay, pod_address).await?;
    info!(vni = vm.overlay.vni, mtu = network.mtu, "network is set up");
    let (known, siblings) = watch::channel(BTreeSet::new());
    tokio::spawn(peers::follow(vm.overlay.clone(), pod_address, known, stop.clone()));
    if vm.overlay.peers.is_some() {
        let answers = path_mtu::serve(pod_address, stop.clone());
        tokio::spawn(async move {
            if let Err(error) = answers.await {
                warn!(%error, "peers are not told how large their packets come");
            }
        });
        tokio::spawn(paths_to_peers.follow(Trial::new(pod_address, network.mtu), siblings, stop.clone()));
    }
    let disks = disks::prepare(&vm).await?;
    let image = NodeImage::in_folder(Path::new(paths::NODE));
    let choice = accelerator::choose_in_pod(vm.accelerator, &image, QEMU_ID).await?;
    info!(accelerator = %choice.accel, reason = choice.reason, "accelerator is chosen");
    health.chose(&choice);

    let (mut qemu, socket) = qemu::start(&vm, choice.accel, disks, network)?;
    if let Some(console) = qemu.stdout.take() {
        tokio::spawn(show_console(console, health.clone(), started));
    }
    let socket = UnixStream::from_std(socket).map_err(io("use the monitor's socket"))?;
    let mut monitor = Monitor::open(socket).await?;
    info!(node = vm.node, cpus = vm.cpus, memory_mib = vm.memory_mib, "QEMU runs");
    tokio::spawn(health.clone().watch(asked, guest, stop.clone()));

    let mut tick = tokio::time::interval(QEMU_PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            status = qemu.wait() => return Err(Error::Ended(status.map_err(io("wait for QEMU"))?)),
            _ = terminate.recv() => return power_off(&mut qemu, &mut monitor).await,
            _ = tick.tick() => ask(&mut monitor, &health).await,
            ended = &mut server => return ended_early("serve health", ended),
            ended = &mut proxy => return ended_early("forward the API", ended),
        }
    }
}

/// What is known of the API that connections are forwarded to.
struct GuestApi {
    health: Health,
    /// Whether it is this VM's. A worker forwards to that of others, of which its own health says nothing.
    is_here: bool,
}

impl proxy::Known for GuestApi {
    /// As long as one that was ready counts as that. In the first boot whoever asks is better told that nobody is there.
    fn patience(&self) -> Duration {
        if self.health.has_answered() { REFUSED } else { Duration::ZERO }
    }

    fn refused(&self) {
        if self.is_here {
            self.health.api_refused();
        }
    }

    fn is_starting(&self) -> bool {
        self.is_here && self.health.api_starts()
    }
}

/// Raises the limit of open files to `count`, as far as the container's own goes.
fn may_open(count: u64) -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < count.min(hard) { setrlimit(Resource::RLIMIT_NOFILE, count.min(hard), hard) } else { Ok(()) }
}

pub(super) fn read(path: &Path) -> Result<VmConfig, Error> {
    let name = || path.display().to_string();
    let text = std::fs::read(path).map_err(|source| Error::Config { path: name(), source })?;
    serde_json::from_slice(&text).map_err(|source| Error::Parse { path: name(), source })
}

fn ended_early(what: &'static str, ended: Result<std::io::Result<()>, tokio::task::JoinError>) -> Result<(), Error> {
    let source = match ended {
        Ok(Ok(())) => std::io::Error::other("it ended"),
        Ok(Err(error)) => error,
        Err(join) => std::io::Error::other(join),
    };
    Err(Error::Io { what, source })
}

async fn ask(monitor: &mut Monitor, health: &Health) {
    match monitor.is_running().await {
        Ok(running) => health.qemu(running),
        Err(error) => {
            warn!(error = chain(&error), "QEMU does not answer");
            health.qemu(false);
        }
    }
}

/// Copies the guest's console to our standard output: `kubectl logs` shows it.
async fn show_console(console: ChildStdout, health: Health, started: Started) {
    let mut console = BufReader::new(console);
    loop {
        let mut line = Vec::new();
        // A guest may write without ever ending a line: what is kept of one is bounded.
        match (&mut console).take(CONSOLE_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line);
        if line.contains(UP_LINE) {
            health.guest_is_up();
        }
        started.read(line.trim_end());
        println!("{CONSOLE_PREFIX}{}", line.trim_end());
    }
}

async fn power_off(qemu: &mut Child, monitor: &mut Monitor) -> Result<(), Error> {
    let deadline = Instant::now() + POWER_OFF;
    info!("powering the guest off");
    while Instant::now() < deadline {
        if let Err(error) = monitor.power_button().await {
            warn!(error = chain(&error), "the power button does not work");
        }
        if tokio::time::timeout(PRESS_AGAIN, qemu.wait()).await.is_ok() {
            info!("the guest is off");
            return Ok(());
        }
    }
    warn!("the guest does not power off; ending QEMU");
    let _ = monitor.quit().await;
    if tokio::time::timeout(PRESS_AGAIN, qemu.wait()).await.is_err() {
        qemu.kill().await.map_err(|source| Error::Io { what: "kill QEMU", source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{proxy::Known as _, *};

    #[test]
    fn an_api_that_never_was_there_is_not_waited_for_and_one_that_was_is() {
        for asked in [Asked::Api, Asked::Kubelet("a-0".into())] {
            let health = Health::default();
            let known = GuestApi { health: health.clone(), is_here: asked == Asked::Api };
            let mut held = Vec::new();
            for ready in [false, true, false] {
                health.answers(&asked, ready);
                held.push(known.patience());
            }
            assert_eq!(held, [Duration::ZERO, REFUSED, REFUSED], "{asked:?}");
            known.refused();
            assert_eq!(known.is_starting(), known.is_here, "{asked:?}");
        }
    }

    #[test]
    fn the_limit_of_open_files_rises_as_far_as_it_may_and_never_falls() {
        let now = || getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let (soft, hard) = now();
        let wanted = soft.saturating_add(1).min(hard);
        may_open(wanted).unwrap();
        assert_eq!(now(), (wanted, hard));
        may_open(1).unwrap();
        may_open(u64::MAX).unwrap();
        assert_eq!(now(), (hard, hard));
    }
}
