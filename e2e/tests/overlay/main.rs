//! Conformance of overlays, without VMs: what a guest's nodes are promised of the network between them, by every backend.
//!
//! ```text
//!            net: the network between hosts (net0 10.99.0.1: the DNS server; 203.0.113.1: somewhere on the internet)
//!      ┌─────────────────────┼─────────────────────┐
//!   h1: cni0 10.99.1.1    h2: cni0 10.99.2.1    h3: cni0 10.99.3.1      hosts, which route
//!   ┌────┴────┐              …                     …
//!   a         x        VM pods: eth0, and what the supervisor makes: br0, tap0, the VXLAN device
//!   avm       xvm      VMs: `overlay`, a veth on br0
//! ```
//!
//! All of these are network namespaces. In each VM pod runs what the supervisor runs: its set-up of the network, and the loop
//! that follows peers. A veth stands in for QEMU: packets on a tap come from its owner, so the rules of the tap (forged
//! sources) are given to that veth. Needs root, and makes nothing outside of its namespaces.
//!
//! With Flannel there is more: its etcd in `net`, and beside each VM pod's supervisor what runs flanneld, with the real one.
//!
//! A case is a function of a world of its own, and asks the backend wherever backends differ. Each backend's file names the
//! cases that are tests of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod cases;
mod dns;
mod flannel;
mod forged;
mod namespace;
mod native;
// Another part of it is of use to other tests.
#[allow(dead_code)]
#[path = "../support/processes.rs"]
mod processes;
mod traffic;
mod world;

use std::{collections::BTreeSet, fs, time::Duration};

use giantnetes::{
    runtime::chain,
    supervisor::{
        config::OverlayConfig,
        flannel::{Places, carry},
        network,
        path_mtu::{self, Paths, Trial},
        peers,
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What this process is told when the test starts it again, to be a VM pod's supervisor as far as its network goes: its
/// configuration, the pod's address, and the file in which it says that the network is set up, and how large its packets are.
const CONFIG: &str = "OVERLAY_TEST_CONFIG";
const ADDRESS: &str = "OVERLAY_TEST_ADDRESS";
const READY: &str = "OVERLAY_TEST_READY";
/// Ending of the file beside that in which it says what it knows of the ways to its peers: to how many packets pass whole, and
/// the others.
const WAYS: &str = "ways";

/// Not a test by itself: see above.
#[test]
fn supervisor() {
    let [Ok(config), Ok(address), Ok(ready)] = [CONFIG, ADDRESS, READY].map(std::env::var) else { return };
    let overlay: OverlayConfig = serde_json::from_str(&config).unwrap();
    let address = address.parse().unwrap();
    // In one step: the test reads it as soon as it is there.
    let write = |file: &str, text: String| {
        let new = format!("{file}.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, file).unwrap();
    };
    let say = |text: String| write(&ready, text);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        match network::set_up(&overlay, address).await {
            Ok(network) => {
                say(network.mtu.to_string());
                let (known, siblings) = watch::channel(BTreeSet::new());
                let (paths, stop) = (Paths::default(), CancellationToken::new());
                // A look every second, which a person would not wait for either.
                let trial = Trial { period: Duration::from_secs(1), ..Trial::new(address, network.mtu) };
                tokio::spawn(path_mtu::serve(address, stop.clone()));
                tokio::spawn(paths.clone().follow(trial, siblings, stop.clone()));
                let tell = async {
                    loop {
                        let ways = serde_json::to_string(&(paths.whole(), paths.narrow())).unwrap();
                        write(&format!("{ready}.{WAYS}"), ways);
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                };
                tokio::join!(peers::follow(overlay, address, known, stop), tell);
                drop(network.tap);
            }
            Err(error) => say(chain(&error)),
        }
    });
}

/// Folder of what the container of flanneld has in a VM pod: its certificate in `secret`, what it writes in `run`, and the
/// program.
const FOLDER: &str = "OVERLAY_TEST_FLANNEL";

/// Not a test by itself either: what runs flanneld.
#[test]
fn flannels_container() {
    let [Ok(config), Ok(address), Ok(folder)] = [CONFIG, ADDRESS, FOLDER].map(std::env::var) else { return };
    let _ = rustls::crypto::ring::default_provider().install_default();
    giantnetes::runtime::telemetry::init_logs(giantnetes::runtime::telemetry::LogFormat::Text, "info");
    let overlay: OverlayConfig = serde_json::from_str(&config).unwrap();
    let folder = std::path::Path::new(&folder);
    let places = Places { program: folder.join("flanneld"), secret: folder.join("secret"), run: folder.join("run") };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(carry(overlay, address.parse().unwrap(), places)).unwrap();
}
