//! KVM where a guest was seen to start on it, TCG elsewhere.
//!
//! A `/dev/kvm` that opens proves nothing: on some machines (nested or para-virtualised ones) a stock kernel hangs on it.
//! So `Auto` boots the node's kernel and initial RAM disk once, without any disk, and waits for the line that the image's
//! initial RAM disk prints as its first act.

use std::{
    fmt, io,
    os::unix::fs::{PermissionsExt as _, chown},
    process::Stdio,
    time::Duration,
};

use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{
    paths,
    qemu::{self, NodeImage},
};
use crate::api::Accelerator;

/// What the initial RAM disk of the node image prints on the console as its first act; see images/node.
pub const UP_LINE: &str = "giantnetes: guest is up";

/// Most memory that translated code takes under emulation, in MiB. A control plane's programs fill QEMU's own default of
/// 1 GiB before they have started, and then all is translated anew; 2 GiB is the most that QEMU takes.
pub const TRANSLATIONS_MIB: u32 = 2048;

/// How long a guest on KVM may take to print [`UP_LINE`]. A healthy one needs about two seconds.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// How QEMU runs guest instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accel {
    /// QEMU's argument.
    pub fn argument(self) -> String {
        match self {
            Self::Kvm => "kvm".into(),
            Self::Tcg => format!("tcg,thread=multi,tb-size={TRANSLATIONS_MIB}"),
        }
    }

    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        })
    }
}

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The accelerator.
    pub accel: Accel,
    /// Why this one.
    pub reason: String,
}

/// The VM may only run on KVM, and there is none that works.
#[derive(Debug, thiserror::Error)]
#[error("accelerator KVM is asked for, but {0}")]
pub struct Error(String);

/// Chooses the accelerator; runs [`probe`] if the answer depends on it.
///
/// # Errors
/// If KVM is asked for and does not work.
pub async fn choose(wanted: Accelerator, image: &NodeImage, user: u32) -> Result<Choice, Error> {
    decide(wanted, probe(Accel::Kvm, image, user, PROBE_TIMEOUT)).await
}

/// As [`choose`], in a VM pod: the pod's `/dev/kvm` is [handed over](hand_over) to `user` before it is probed.
///
/// # Errors
/// If KVM is asked for and does not work.
pub async fn choose_in_pod(wanted: Accelerator, image: &NodeImage, user: u32) -> Result<Choice, Error> {
    let probed = async {
        hand_over(user)?;
        probe(Accel::Kvm, image, user, PROBE_TIMEOUT).await
    };
    decide(wanted, probed).await
}

/// What follows from a probe of KVM, which runs only if it is awaited.
async fn decide(wanted: Accelerator, probed: impl Future<Output = Result<Duration, String>>) -> Result<Choice, Error> {
    if wanted == Accelerator::TCG {
        return Ok(Choice { accel: Accel::Tcg, reason: "the Cluster asks for it".into() });
    }
    match (wanted, probed.await) {
        (_, Ok(took)) => {
            let reason = format!("a probe guest started on KVM in {:.1} s", took.as_secs_f64());
            Ok(Choice { accel: Accel::Kvm, reason })
        }
        (Accelerator::KVM, Err(reason)) => Err(Error(reason)),
        (_, Err(reason)) => Ok(Choice { accel: Accel::Tcg, reason }),
    }
}

/// Lets QEMU's group open this container's own `/dev/kvm`, which has the owner and mode of the host's: on most hosts root and
/// a group of the host's alone. Not for the host itself, whose file is everybody's.
///
/// # Errors
/// If the file is there and cannot be given to the group; in words for people.
pub fn hand_over(group: u32) -> Result<(), String> {
    let given = chown(paths::KVM, None, Some(group))
        .and_then(|()| std::fs::set_permissions(paths::KVM, std::fs::Permissions::from_mode(0o660)));
    match given {
        // The probe says so better.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        given => given.map_err(|error| format!("{} cannot be given to QEMU's group: {error}", paths::KVM)),
    }
}

/// Boots a guest without any disk. Answers how long it took to say that it is up, or why it did not.
///
/// # Errors
/// The reason, in words for people.
pub async fn probe(accel: Accel, image: &NodeImage, user: u32, timeout: Duration) -> Result<Duration, String> {
    if accel == Accel::Kvm && !std::path::Path::new(paths::KVM).exists() {
        return Err(format!("there is no {}", paths::KVM));
    }
    let started = tokio::time::Instant::now();
    let mut command = qemu::unprivileged("qemu-system-x86_64", user);
    command
        .args(qemu::machine(accel, image, 1, 512, "console=ttyS0 panic=-1"))
        .arg("-no-reboot")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("QEMU did not start: {error}"))?;
    let up = async {
        let mut console = BufReader::new(child.stdout.take()?).split(b'\n');
        while let Ok(Some(line)) = console.next_segment().await {
            if String::from_utf8_lossy(&line).contains(UP_LINE) {
                return Some(());
            }
        }
        None
    };
    let outcome = tokio::time::timeout(timeout, up).await;
    // It has served its purpose either way; `kill_on_drop` is there for a cancelled probe.
    let _ = child.kill().await;
    match outcome {
        Ok(Some(())) => Ok(started.elapsed()),
        Err(_) => Err(format!("a probe guest on {accel} did not say that it is up within {} s", timeout.as_secs())),
        Ok(None) => {
            let words = match child.wait_with_output().await {
                Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(error) => error.to_string(),
            };
            Err(format!("QEMU ended while a probe guest was to start on {accel}: {words}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn what_is_wanted_and_what_the_probe_says_decide() {
        let works = || Ok(Duration::from_millis(1840));
        let hangs = || Err("there is no /dev/kvm".to_owned());
        let on = |accel, reason: &str| Ok(Choice { accel, reason: reason.to_owned() });
        let started = "a probe guest started on KVM in 1.8 s";
        for (wanted, verdict, expected) in [
            (Accelerator::Auto, works(), on(Accel::Kvm, started)),
            (Accelerator::KVM, works(), on(Accel::Kvm, started)),
            (Accelerator::Auto, hangs(), on(Accel::Tcg, "there is no /dev/kvm")),
            (Accelerator::KVM, hangs(), Err("accelerator KVM is asked for, but there is no /dev/kvm".to_owned())),
        ] {
            let decided = decide(wanted, ready(verdict.clone())).await.map_err(|error| error.to_string());
            assert_eq!(decided, expected, "{wanted:?}, {verdict:?}");
        }
    }

    #[tokio::test]
    async fn who_wants_emulation_waits_for_no_probe() {
        let choice = decide(Accelerator::TCG, async { panic!("it was probed") }).await.unwrap();
        assert_eq!(choice, Choice { accel: Accel::Tcg, reason: "the Cluster asks for it".into() });
    }
}
