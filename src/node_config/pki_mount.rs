//! Keys and certificates by mount.
//!
//! The VM pod's Secret volume is a live 9p mount. 9p delivers no inotify events for changes on the host's side, and the
//! API server and kubelet reload only on such events, so a timer copies what changed, by rename, into a tmpfs.

use super::{
    File,
    paths::{PKI, PKI_MOUNT_TAG, PKI_SOURCE},
};

const SYNC: &str = "/usr/local/sbin/giantnetes-pki";
/// The tmpfs that keys and certificates are read in.
pub(super) const MOUNT: &str = "etc-kubernetes-pki.mount";
/// The unit after which they are there.
pub(super) const SERVICE: &str = "giantnetes-pki.service";
/// The unit that has them looked at again.
pub(super) const TIMER: &str = "giantnetes-pki.timer";

pub(super) fn files() -> Vec<File> {
    vec![
        File::script(
            SYNC,
            format!(
                r#"#!/bin/sh
set -eu
# One process where nothing changed, few where something did. Names of two dots are the Secret volume's own.
diff -rq --exclude='..*' {PKI_SOURCE} {PKI} >/dev/null && exit
rm -rf {PKI}/.new
mkdir {PKI}/.new
install -m 0600 {PKI_SOURCE}/* {PKI}/.new/
for new in {PKI}/.new/*; do
  old={PKI}/${{new##*/}}
  if [ -e "$old" ] && cmp -s "$new" "$old"; then rm "$new"; fi
done
set -- {PKI}/.new/*
[ ! -e "$1" ] || mv "$@" {PKI}/
rmdir {PKI}/.new
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
    ]
}

pub(super) fn unit(name: &str) -> String {
    format!("/etc/systemd/system/{name}")
}
