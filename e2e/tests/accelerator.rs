//! The accelerator's probe, on the machine itself: KVM is trusted only where a guest was seen to start on it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use lab::command::Run;
use support::{giantnetes, image_path};

fn probe(accelerator: &str, timeout: u64) -> (Result<String, String>, Duration) {
    let started = Instant::now();
    let output = Run::new(giantnetes())
        .args(["probe", "--user", "0", "--accelerator", accelerator, "--timeout", &timeout.to_string(), "--node"])
        .arg(image_path("node"))
        .timeout(Duration::from_secs(timeout + 30))
        .output();
    (output.map_err(|error| error.to_string()), started.elapsed())
}

/// Without this the next test could not tell a KVM that hangs from an image that never speaks.
#[test]
fn the_image_speaks_under_emulation() {
    let (verdict, took) = probe("tcg", 120);
    println!("TCG: {verdict:?} after {took:.1?}");
    assert!(verdict.unwrap().starts_with("TCG works: a probe guest came up in "));
}

#[test]
fn kvm_is_trusted_only_if_a_guest_says_that_it_is_up() {
    let (verdict, took) = probe("kvm", 20);
    println!("KVM: {verdict:?} after {took:.1?}");
    match verdict {
        Ok(said) => assert!(said.starts_with("KVM works: a probe guest came up in "), "{said}"),
        Err(said) => {
            let reasons = ["there is no /dev/kvm", "did not say that it is up within 20 s", "QEMU ended"];
            assert!(reasons.iter().any(|reason| said.contains(reason)), "{said}");
            if said.contains("within 20 s") {
                assert!(took >= Duration::from_secs(20), "it gave up early: {took:?}");
            }
        }
    }
    assert!(support::processes("qemu-system-x86_64\0-nodefaults\0").unwrap().is_empty(), "a probe's QEMU is left");
}

#[test]
fn a_probe_that_cannot_work_says_why() {
    let output = Run::new(giantnetes()).args(["probe", "--accelerator", "tcg", "--user", "0", "--node", "/nowhere"]);
    let said = output.timeout(Duration::from_secs(60)).output().unwrap_err().to_string();
    assert!(said.contains("QEMU ended while a probe guest was to start on TCG"), "{said}");
}
