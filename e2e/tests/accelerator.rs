//! The accelerator's probe, on the machine itself: KVM is trusted only where a guest was seen to start on it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use lab::command::Run;
use support::{giantnetes, image_path};

type Verdict = Result<String, String>;

fn probe(args: &[&str], timeout: u64) -> (Verdict, Duration) {
    let started = Instant::now();
    let output = Run::new(giantnetes())
        .args(["probe", "--user", "0", "--node"])
        .arg(image_path("node"))
        .args(args.iter().copied())
        .timeout(Duration::from_secs(timeout + 30))
        .output();
    (output.map_err(|error| error.to_string()), started.elapsed())
}

fn probe_on(accelerator: &str, timeout: u64) -> (Verdict, Duration) {
    probe(&["--accelerator", accelerator, "--timeout", &timeout.to_string()], timeout)
}

/// Without this the next test could not tell a KVM that hangs from an image that never speaks.
#[test]
fn the_image_speaks_under_emulation() {
    let (verdict, took) = probe_on("tcg", 120);
    println!("TCG: {verdict:?} after {took:.1?}");
    assert!(verdict.unwrap().starts_with("TCG works: a probe guest came up in "));
}

#[test]
fn kvm_is_trusted_only_if_a_guest_says_that_it_is_up() {
    let (verdict, took) = probe_on("kvm", 20);
    println!("KVM: {verdict:?} after {took:.1?}");
    match &verdict {
        Ok(said) => assert!(said.starts_with("KVM works: a probe guest came up in "), "{said}"),
        Err(said) => {
            assert!(KVM_FAILS.iter().any(|reason| said.contains(reason)), "{said}");
            if said.contains(SILENT) {
                assert!(took >= Duration::from_secs(20), "it gave up early: {took:?}");
            }
        }
    }
    let (chosen, _) = probe(&["--choose"], 20);
    println!("Auto: {chosen:?}");
    auto_agrees(&verdict, &chosen.unwrap());
    assert!(support::processes("qemu-system-x86_64\0-nodefaults\0").unwrap().is_empty(), "a probe's QEMU is left");
}

const SILENT: &str = "a probe guest on KVM did not say that it is up within 20 s";

/// All that may be wrong with KVM: it is missing, a guest hangs on it, or QEMU ends on it, for a reason that it says: it may
/// not use it, or misses something in it.
const KVM_FAILS: [&str; 3] =
    ["there is no /dev/kvm", SILENT, "QEMU ended while a probe guest was to start on KVM: qemu"];

/// `Auto` emulates where KVM fails, for the same reason, and nowhere else.
fn auto_agrees(verdict: &Verdict, chosen: &str) {
    let Err(said) = verdict else {
        return assert!(chosen.starts_with("KVM: a probe guest started on KVM in "), "{chosen}");
    };
    let reason = KVM_FAILS.iter().find(|reason| said.contains(*reason)).unwrap();
    assert!(chosen.starts_with("TCG: ") && chosen.contains(reason), "{said}, but Auto chooses {chosen}");
}

#[test]
fn a_probe_that_cannot_work_says_why() {
    let output = Run::new(giantnetes()).args(["probe", "--accelerator", "tcg", "--user", "0", "--node", "/nowhere"]);
    let said = output.timeout(Duration::from_secs(60)).output().unwrap_err().to_string();
    assert!(said.contains("QEMU ended while a probe guest was to start on TCG"), "{said}");
}
