//! The operator kit and the micro-operators that need no VM, against a real etcd and kube-apiserver, with a proxy between
//! them and every controller manager that does what networks and servers do on bad days.
//!
//! CONTROLLER=all takes every crash point; else a sample. CONTROLLER=long takes outages in full length; else a tenth.
//! CONTROLLER_SEED=N repeats the random moments of a run that printed N.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod access;
mod apart;
mod aws;
mod bench;
mod certificates;
mod children;
mod claims;
mod crash;
mod crowd;
mod escrow;
mod example;
mod exposure;
mod flannel;
mod isolation;
mod key_rotation;
mod largest;
mod leadership;
mod manager;
mod masters;
mod namesakes;
mod nodes;
mod outage;
mod pause;
mod people;
mod pools;
mod proxy;
mod ranges;
mod release;
mod rights;
mod rollout;
mod rotation;
mod servers;
mod steady;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod told;
mod vault;
mod world;

/// Whether the whole of something is asked for.
fn asked_for(what: &str) -> bool {
    std::env::var("CONTROLLER").is_ok_and(|asked| asked.split(',').any(|word| word == what))
}

/// Runs a test on servers of its own.
fn on_servers(name: &str, test: impl AsyncFnOnce(&servers::Servers, world::World)) {
    on_servers_that(servers::Record::Writes, name, test);
}

/// Runs a test on servers of its own that keep this record.
fn on_servers_that(record: servers::Record, name: &str, test: impl AsyncFnOnce(&servers::Servers, world::World)) {
    // The client's TLS must know which of the built-in implementations to take.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let started = std::time::Instant::now();
    let servers = servers::Servers::start(name, record).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let world = world::World { client: servers.client().await };
        test(&servers, world).await;
    });
    println!("    {name}: {:.1?}", started.elapsed());
}
