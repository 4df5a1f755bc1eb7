//! Network namespaces, the bridge that joins them, and the machine's routes to pods and Services.
//!
//! Of the machine's own namespace the lab takes a bridge, one cable per room, and the routes: nothing listens there.
//!
//! ```text
//!   machine    g8s-lab 10.231.0.1 ── bridge ─┬─ eth0 10.231.0.2   g8s-control
//!              routes to pods, Services      ├─ eth0 10.231.0.11  g8s-host1 ── cali… ── pods 10.232.1.0/24
//!                                            └─ …                 g8s-host2 …
//! ```

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::command::Run;
use crate::mounts::is_mounted;
use crate::paths::Paths;
use crate::state::{Trace, make_foreign_folder, remember};
use crate::topology::{BRIDGE, CONTROL, GATEWAY, Room, rooms, routes};

const NETNS_FOLDER: &str = "/run/netns";

/// Makes the bridge.
///
/// # Errors
/// If the kernel refuses.
pub fn ensure_bridge() -> Result<()> {
    if !link_exists(BRIDGE) {
        Run::line("ip link add").args([BRIDGE, "type", "bridge"]).output()?;
    }
    ip(&format!("address replace {GATEWAY}/24 dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))
}

/// Makes a room's network namespace.
///
/// # Errors
/// If the kernel refuses.
pub fn ensure_namespace(paths: &Paths, room: &Room) -> Result<()> {
    let name = room.netns();
    let folder = Path::new(NETNS_FOLDER);
    if !is_mounted(folder)? {
        // `ip netns add` makes this folder and mounts it on itself, for good.
        make_foreign_folder(paths, folder)?;
        remember(paths, &Trace::Mount(folder.into()))?;
    }
    let file = netns_file(room);
    if !is_mounted(&file)? {
        if file.exists() {
            // Left by an `ip netns add` that was killed before it mounted the namespace there.
            ip(&format!("netns delete {name}"))?;
        }
        ip(&format!("netns add {name}"))?;
    }
    ip(&format!("-n {name} link set lo up"))
}

/// Joins a room to the bridge, with its address and routes.
///
/// # Errors
/// If the kernel refuses.
pub fn ensure_cable(room: &Room) -> Result<()> {
    let Room { address, .. } = *room;
    let (veth, netns) = (room.veth(), room.netns());
    let plugged = Run::line(&format!("ip -n {netns} link show eth0")).succeeds();
    if !(plugged && link_exists(&veth)) {
        if link_exists(&veth) {
            ip(&format!("link delete {veth}"))?;
        }
        ip(&format!("link add {veth} type veth peer name eth0 netns {netns}"))?;
    }
    ip(&format!("link set {veth} master {BRIDGE} up"))?;
    ip(&format!("-n {netns} address replace {address}/24 dev eth0"))?;
    ip(&format!("-n {netns} link set eth0 up"))?;
    ip(&format!("-n {netns} route replace default via {GATEWAY}"))?;
    if *room != CONTROL {
        let netns = format!("--net={}", netns_file(room).display());
        Run::new("nsenter").args([&netns, "--", "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]).output()?;
    }
    Ok(())
}

/// Routes to pods and Services, from the machine and the control plane. Hosts have theirs from Calico and kube-proxy.
///
/// # Errors
/// If the kernel refuses.
pub fn ensure_routes() -> Result<()> {
    for (range, via) in routes() {
        ip(&format!("route replace {range} via {via}"))?;
        ip(&format!("-n {} route replace {range} via {via}", CONTROL.netns()))?;
    }
    Ok(())
}

/// Unplugs a room's cable, or plugs it in again.
///
/// # Errors
/// If the kernel refuses, for example because there is no such room now.
pub fn plug(room: &Room, plugged: bool) -> Result<()> {
    ip(&format!("link set {} {}", room.veth(), if plugged { "up" } else { "down" }))
}

/// Removes cables, bridge (and with it the routes) and namespaces, as far as they are there.
///
/// # Errors
/// If one of them cannot be removed.
pub fn remove() -> Result<()> {
    for room in rooms() {
        // Before the namespace: the kernel removes a namespace's devices only some time after it.
        if link_exists(&room.veth()) {
            ip(&format!("link delete {}", room.veth()))?;
        }
        if netns_file(&room).exists() {
            ip(&format!("netns delete {}", room.netns()))?;
        }
    }
    if link_exists(BRIDGE) {
        ip(&format!("link delete {BRIDGE}"))?;
    }
    Ok(())
}

/// The file that holds a room's network namespace.
pub fn netns_file(room: &Room) -> PathBuf {
    Path::new(NETNS_FOLDER).join(room.netns())
}

fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn ip(words: &str) -> Result<()> {
    Run::line(&format!("ip {words}")).output().map(drop)
}
