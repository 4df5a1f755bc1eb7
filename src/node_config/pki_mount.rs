//! Keys and certificates by mount.
//!
//! The VM pod's Secret volume is a live 9p mount. 9p delivers no inotify events for changes on the host's side, and the
//! API server and kubelet reload only on such events, so a timer copies what changed, by rename, into a tmpfs.
//!
//! What reads authorities at its start only is started anew when the Secret asks for it, as long as authorities are rotated; and
//! the node says on its console what was.

use super::{
    File,
    paths::{CA, PKI, PKI_MOUNT_TAG, PKI_SOURCE, TURN},
};

/// What a node's word on the units that it started for other authorities begins with: `UNIT=MARK`, separated by blanks, follows.
pub const TURN_LINE: &str = "giantnetes-turn: ";

const SYNC: &str = "/usr/local/sbin/giantnetes-pki";
/// Starts units anew.
const START: &str = "/usr/local/sbin/giantnetes-turn";
/// What units were started for.
const STARTED: &str = "/run/giantnetes-turn";
/// The tmpfs that keys and certificates are read in.
pub(super) const MOUNT: &str = "etc-kubernetes-pki.mount";
/// The unit after which they are there.
pub(super) const SERVICE: &str = "giantnetes-pki.service";
/// The unit that has them looked at again.
const TIMER: &str = "giantnetes-pki.timer";
/// All units that are wanted of these.
pub(super) const TIMERS: &str = "giantnetes-pki.timer giantnetes-turn.timer";

pub(super) fn files() -> Vec<File> {
    vec![
        File::script(
            SYNC,
            format!(
                r#"#!/bin/sh
set -eu
# One process where nothing changed, few where something did. Names of two dots are the Secret volume's own.
diff -rq --exclude='..*' {PKI_SOURCE} {PKI} >/dev/null && exit
[ -e {PKI}/{CA} ] && first= || first=yes
# Should the volume have changed halfway, what was copied is of two Secrets.
until
  rm -rf {PKI}/.new
  mkdir {PKI}/.new
  install -m 0600 {PKI_SOURCE}/* {PKI}/.new/
  diff -rq --exclude='..*' {PKI_SOURCE} {PKI}/.new >/dev/null
do sleep 1; done
# What is there no more, or nothing would ever be the same again.
for old in {PKI}/*; do
  [ -e "{PKI}/.new/${{old##*/}}" ] || rm -f "$old"
done
# Nothing runs yet that could have read anything else.
[ -z "$first" ] || [ ! -e {PKI}/.new/{TURN} ] || cp {PKI}/.new/{TURN} {STARTED}
for new in {PKI}/.new/*; do
  old={PKI}/${{new##*/}}
  if [ -e "$old" ] && cmp -s "$new" "$old"; then rm "$new"; fi
done
set -- {PKI}/.new/*
[ ! -e "$1" ] || mv "$@" {PKI}/
rmdir {PKI}/.new
# Apart from this, which what is started waits for.
[ -n "$first" ] || [ ! -e {PKI}/{TURN} ] || systemctl --no-block start giantnetes-turn.service
"#
            ),
        ),
        File::script(
            START,
            format!(
                r#"#!/bin/sh
set -eu
touch {STARTED}
# What comes while units start is for the next time.
wanted=$(cat {PKI}/{TURN})
failed=
# Each by itself, what others need first: who is through is left alone, whatever becomes of the rest. One that is down, as when what
# it needs did not start in time, is started, since nothing else does it.
for line in $wanted; do
  unit=${{line%%=*}}
  if grep -qxF "$line" {STARTED}; then
    # What it needs may have taken it down, when that was started after it.
    systemctl --no-block start "$unit" || :
    continue
  fi
  if systemctl restart "$unit"; then
    grep -v "^$unit=" {STARTED} >{STARTED}.new || :
    echo "$line" >>{STARTED}.new
    mv {STARTED}.new {STARTED}
  else
    failed=yes
  fi
done
# At a level that `quiet` lets through.
echo "<1>{TURN_LINE}$(tr '\n' ' ' <{STARTED})" >/dev/kmsg
[ -z "$failed" ]
"#
            ),
        ),
        File::new(
            unit("run-giantnetes-pki.mount"),
            format!(
                "[Unit]\nDescription=Keys and certificates, from outside\n\n[Mount]\nWhat={PKI_MOUNT_TAG}\nWhere={PKI_SOURCE}\nType=9p\nOptions=trans=virtio,version=9p2000.L,ro,cache=none,msize=65536,nosuid,nodev,noexec\nDirectoryMode=0700\n"
            ),
        ),
        File::new(
            unit(MOUNT),
            format!(
                "[Unit]\nDescription=Keys and certificates, inside\n\n[Mount]\nWhat=tmpfs\nWhere={PKI}\nType=tmpfs\nOptions=mode=0700,size=4m,nosuid,nodev,noexec\nDirectoryMode=0700\n"
            ),
        ),
        File::new(
            unit(SERVICE),
            format!(
                "[Unit]\nDescription=Copy keys and certificates that changed\nRequires=run-giantnetes-pki.mount etc-kubernetes-pki.mount\nAfter=run-giantnetes-pki.mount etc-kubernetes-pki.mount\n\n[Service]\nType=oneshot\nExecStart={SYNC}\nTimeoutStartSec=60\n"
            ),
        ),
        File::new(
            unit(TIMER),
            "[Unit]\nDescription=Look for changed keys and certificates\n\n[Timer]\nOnUnitInactiveSec=30\nAccuracySec=1\n",
        ),
        File::new(
            unit("giantnetes-turn.service"),
            // Not part of the copying, which what is started waits for.
            format!(
                "[Unit]\nDescription=Start anew what reads authorities at its start only\nConditionPathExists={PKI}/{TURN}\n\n[Service]\nType=oneshot\nExecStart={START}\nTimeoutStartSec=900\n"
            ),
        ),
        File::new(
            unit("giantnetes-turn.timer"),
            // By the clock: a service whose condition fails was never active, and nothing counts from when it no longer was.
            "[Unit]\nDescription=Look for what is to be started anew\n\n[Timer]\nOnCalendar=*:*:00/30\nAccuracySec=1\n",
        ),
    ]
}

pub(super) fn unit(name: &str) -> String {
    format!("/etc/systemd/system/{name}")
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt as _,
        path::{Path, PathBuf},
        process::Command,
    };

    use super::*;

    /// The scripts of a node, with a folder in the place of its paths.
    struct Node(PathBuf);

    impl Node {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("giantnetes-{name}-{}", std::process::id()));
            let node = Self(folder);
            for part in ["source", "pki", "bin"] {
                fs::create_dir_all(node.0.join(part)).unwrap();
            }
            fs::write(node.0.join("refuses"), "").unwrap();
            for file in files().into_iter().filter(|file| file.mode == 0o755) {
                let name = Path::new(&file.path).file_name().unwrap().to_owned();
                node.script(name.to_str().unwrap(), &node.here(&file.content));
            }
            // As a unit that does not start says it.
            let log = node.0.join("units").display().to_string();
            node.script(
                "systemctl",
                &format!("#!/bin/sh\necho \"$*\" >>{log}\n! grep -qxF \"$2\" {}/refuses\n", node.0.display()),
            );
            node
        }

        fn here(&self, text: &str) -> String {
            let of = |name: &str| self.0.join(name).display().to_string();
            text.replace(PKI_SOURCE, &of("source"))
                .replace(STARTED, &of("started"))
                .replace(PKI, &of("pki"))
                .replace("/dev/kmsg", &of("console"))
        }

        fn script(&self, name: &str, text: &str) {
            let path = self.0.join("bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn run(&self, name: &str) -> bool {
            let path = format!("{}:{}", self.0.join("bin").display(), std::env::var("PATH").unwrap());
            Command::new(self.0.join("bin").join(name)).env("PATH", path).status().unwrap().success()
        }

        fn holds(&self, files: &[(&str, &str)]) {
            fs::remove_dir_all(self.0.join("source")).unwrap();
            fs::create_dir(self.0.join("source")).unwrap();
            files.iter().for_each(|(name, text)| fs::write(self.0.join("source").join(name), text).unwrap());
            assert!(self.run("giantnetes-pki"));
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.0.join(name)).ok()
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_to_be_started_anew_is_once_and_told_and_what_starts_with_it_is_not() {
        let node = Node::new("turn");
        node.holds(&[("ca.crt", "old")]);
        assert_eq!((node.read("pki/ca.crt").as_deref(), node.read("pki/turn")), (Some("old"), None));

        node.holds(&[("ca.crt", "both"), ("turn", "etcd=2.trust\nkubelet=2.trust\n")]);
        assert!(node.run("giantnetes-turn"));
        let asked = "--no-block start giantnetes-turn.service\nrestart etcd\nrestart kubelet\n";
        let units = |node: &Node| {
            let asked = node.read("units");
            fs::write(node.0.join("units"), "").unwrap();
            asked.unwrap_or_default()
        };
        assert_eq!(units(&node), asked);
        let told = "<1>giantnetes-turn: etcd=2.trust kubelet=2.trust \n";
        assert_eq!(node.read("console").as_deref(), Some(told));
        // What went down since, as with what it needs, is started, and what runs is left alone.
        fs::write(node.0.join("refuses"), "start\n").unwrap();
        assert!(node.run("giantnetes-turn"), "it is told again, since a line may be lost");
        assert_eq!(units(&node), "--no-block start etcd\n--no-block start kubelet\n");
        fs::write(node.0.join("refuses"), "").unwrap();

        // Only what asks for it, and again until it started. Who is through is left alone.
        let turn = "etcd=2.trust\nkube-apiserver=2.drop\nkube-proxy=2.reissue\nkubelet=2.reissue\n";
        node.holds(&[("ca.crt", "both"), ("turn", turn)]);
        fs::write(node.0.join("refuses"), "kube-apiserver\n").unwrap();
        assert!(!node.run("giantnetes-turn"));
        let began = "--no-block start giantnetes-turn.service\n--no-block start etcd\n";
        assert_eq!(units(&node), format!("{began}restart kube-apiserver\nrestart kube-proxy\nrestart kubelet\n"));
        let last = |name: &str| node.read(name).unwrap().lines().last().unwrap().to_owned();
        let partly = "<1>giantnetes-turn: etcd=2.trust kube-proxy=2.reissue kubelet=2.reissue ";
        assert_eq!(last("console"), partly, "it is told of what did not start");
        fs::write(node.0.join("refuses"), "").unwrap();
        assert!(node.run("giantnetes-turn"));
        assert_eq!(last("console"), format!("{partly}kube-apiserver=2.drop "));
        let through = "--no-block start kube-proxy\n--no-block start kubelet\n";
        assert_eq!(units(&node), format!("--no-block start etcd\nrestart kube-apiserver\n{through}"));

        // The rotation is over, and with it what was only for it. From then on nothing is written.
        node.holds(&[("ca.crt", "both"), ("authorities", "2.drop"), ("turn", "etcd=2.trust\nkubelet=2.reissue\n")]);
        node.holds(&[("ca.crt", "new")]);
        assert_eq!((node.read("pki/ca.crt").as_deref(), node.read("pki/turn")), (Some("new"), None));
        assert_eq!(node.read("pki/authorities"), None);
        let written = || fs::metadata(node.0.join("pki")).unwrap().modified().unwrap();
        let before = written();
        assert!(node.run("giantnetes-pki"));
        assert_eq!(written(), before, "it copies what it has");

        // One that boots in the midst of it has started everything for what it found.
        let other = Node::new("boots");
        other.holds(&[("ca.crt", "both"), ("turn", "etcd=2.drop\n")]);
        assert!(other.run("giantnetes-turn"));
        assert_eq!(units(&other), "--no-block start etcd\n");
        assert_eq!(other.read("console").as_deref(), Some("<1>giantnetes-turn: etcd=2.drop \n"));
    }
}
