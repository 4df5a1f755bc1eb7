//! The accelerator's probe, on the machine itself: KVM is trusted only where a guest was seen to start on it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use lab::command::Run;
use support::{giantnetes, image_path};

type Verdict = Result<String, String>;

fn probe(args: &[&str], timeout: u64) -> (Verdict, Duration) {
    probe_by(&std::env::var("PATH").unwrap(), args, timeout)
}

/// A probe that finds QEMU by this search path.
fn probe_by(path: &str, args: &[&str], timeout: u64) -> (Verdict, Duration) {
    let started = Instant::now();
    let output = Run::new("env")
        .arg(format!("PATH={path}"))
        .arg(giantnetes())
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
            let device = std::path::Path::new("/dev/kvm").exists();
            assert!(device != said.contains(KVM_FAILS[0]), "/dev/kvm exists: {device}, but {said}");
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

/// What a machine does that this test makes up: a QEMU that runs this script.
fn probe_with(script: &str) -> (Verdict, Duration) {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("giantnetes-qemu-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join("qemu-system-x86_64");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let probed = probe_by(&path, &["--accelerator", "tcg", "--timeout", "2"], 2);
    std::fs::remove_dir_all(&folder).unwrap();
    probed
}

#[test]
fn only_a_ready_message_in_time_counts() {
    let silent = "a probe guest on TCG did not say that it is up within 2 s";
    let (verdict, _) = probe_with("echo 'giantnetes: guest is up'; exec sleep 60");
    assert!(verdict.unwrap().starts_with("TCG works: a probe guest came up in "));
    for late in ["echo 'Booting Linux'; exec sleep 60", "sleep 3; echo 'giantnetes: guest is up'; exec sleep 60"] {
        let (verdict, took) = probe_with(late);
        let said = verdict.unwrap_err();
        assert!(said.contains(silent), "{late}: {said}");
        assert!(took >= Duration::from_secs(2), "it gave up early: {took:?}");
    }
}

#[test]
fn a_probe_that_cannot_work_says_why() {
    let output = Run::new(giantnetes()).args(["probe", "--accelerator", "tcg", "--user", "0", "--node", "/nowhere"]);
    let said = output.timeout(Duration::from_secs(60)).output().unwrap_err().to_string();
    assert!(said.contains("QEMU ended while a probe guest was to start on TCG"), "{said}");
}
