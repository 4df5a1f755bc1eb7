//! The script that installs what a machine lacks, on one without Rust and Go: they come from where their projects publish
//! them, and nothing else than that is run. What it fetches is served by a program of the test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use lab::command::Run;

/// What the script calls. That of the machine's which is not here it has not.
const COMMANDS: [&str; 14] = [
    "bash",
    "chmod",
    "dirname",
    "env",
    "gzip",
    "id",
    "mkdir",
    "mktemp",
    "mv",
    "rm",
    "sha256sum",
    "tail",
    "tar",
    "uname",
];
/// All of Debian's packages are there.
const DPKG_QUERY: &str = "#!/bin/bash\necho -n installed\n";
/// Notes what it is told to do.
const RUSTUP: &str = "#!/bin/bash\necho \"$*\" >\"$HOME/rustup-was-told\"\n";

/// A machine's home and all of its commands.
struct Machine(PathBuf);

impl Machine {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("giantnetes-deps-{}", std::process::id()));
        let machine = Self(folder);
        for part in ["bin", "home", "served", "temporary"] {
            fs::create_dir_all(machine.0.join(part)).unwrap();
        }
        for command in COMMANDS {
            let there = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(command));
            let found = there.iter().find(|path| path.exists()).unwrap();
            symlink(found, machine.0.join("bin").join(command)).unwrap();
        }
        machine.program("bin/dpkg-query", DPKG_QUERY);
        machine
    }

    fn program(&self, path: &str, text: &str) {
        fs::write(self.0.join(path), text).unwrap();
        fs::set_permissions(self.0.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What is fetched from a place comes from the file of that name in `served`.
    fn serves(&self) {
        let served = self.0.join("served");
        self.program(
            "bin/curl",
            &format!(
                "#!/bin/bash\nwhile [[ $1 != -o ]]; do shift; done\n/bin/cp \"{}/${{3##*/}}\" \"$2\" || exit 22\n",
                served.display()
            ),
        );
    }

    /// Runs the script with these words of it put in the place of others.
    fn install(&self, instead: &[(&str, String)]) -> Result<String> {
        let mut script = fs::read_to_string(support::root().join("e2e/deps.sh")).unwrap();
        for (line, other) in instead {
            let found = script.find(line).unwrap() + line.len();
            script.replace_range(found..found + other.len(), other);
        }
        fs::write(self.0.join("deps.sh"), script).unwrap();
        let set = |name: &str, folder: &str| format!("{name}={}", self.0.join(folder).display());
        Run::new("env")
            .args(["-i".into(), set("PATH", "bin"), set("HOME", "home"), set("TMPDIR", "temporary")])
            .arg(self.0.join("bin/bash"))
            .arg(self.0.join("deps.sh"))
            .output()
    }

    fn sha256(&self, served: &str) -> String {
        let file = self.0.join("served").join(served);
        Run::new("sha256sum").arg(file).output().unwrap().chars().take(64).collect()
    }

    fn has(&self, path: &str) -> bool {
        self.0.join(path).exists()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn rust_and_go_come_from_their_projects_and_are_what_they_should_be() {
    let machine = Machine::new();
    machine.serves();
    let error = machine.install(&[]).unwrap_err().to_string();
    assert!(error.contains("deps: rustup 1.28.2 could not be fetched from https://static.rust-lang.org/"), "{error}");

    machine.program("served/rustup-init", RUSTUP);
    let error = machine.install(&[]).unwrap_err().to_string();
    assert!(
        error.contains("rustup-init serves is not the rustup 1.28.2 that this script knows: its SHA-256"),
        "{error}"
    );
    assert!(!machine.has("home/rustup-was-told"), "what nobody knows was run");

    fs::create_dir_all(machine.0.join("served/go/bin")).unwrap();
    machine.program("served/go/bin/go", "#!/bin/bash\necho go version\n");
    let served = machine.0.join("served");
    let archive = served.join("go1.26.8.linux-amd64.tar.gz");
    Run::new("tar").arg("-czf").arg(archive).arg("-C").arg(served).args(["go"]).output().unwrap();
    let known = [
        ("rustup_sha256=", machine.sha256("rustup-init")),
        ("go_sha256=", machine.sha256("go1.26.8.linux-amd64.tar.gz")),
    ];
    let error = machine.install(&known[..1]).unwrap_err().to_string();
    assert!(error.contains("is not the Go 1.26.8 that this script knows"), "{error}");
    assert!(!machine.has("home/.cache/giantnetes/go"), "what nobody knows was unpacked");

    machine.install(&known).unwrap();
    let told = fs::read_to_string(machine.0.join("home/rustup-was-told")).unwrap();
    assert_eq!(told, "-y --quiet --no-modify-path --profile minimal --default-toolchain none\n");
    assert!(Run::new(machine.0.join("home/.cache/giantnetes/go/bin/go")).succeeds());
    assert_eq!(fs::read_dir(machine.0.join("temporary")).unwrap().count(), 0, "something of the way is left");

    // A machine that has both fetches nothing.
    fs::remove_file(machine.0.join("bin/curl")).unwrap();
    machine.program("bin/cargo", "#!/bin/bash\n");
    symlink(machine.0.join("home/.cache/giantnetes/go/bin/go"), machine.0.join("bin/go")).unwrap();
    assert_eq!(machine.install(&[]).unwrap(), "");
}
