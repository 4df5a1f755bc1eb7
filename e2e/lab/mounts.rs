//! Mount namespaces of the rooms, in which folders of the lab lie over those that software hard-codes.
//!
//! A namespace is held by a file on a private mount of its own (`unshare --mount=FILE` demands that) and entered with
//! `nsenter --mount=FILE`. Nothing that is mounted in it reaches the machine, and it all vanishes with the namespace.
//! Inside, every mount is shared, so that kubelet's volumes reach containerd's containers.
//!
//! `mount -n`, since `mount` alone leaves a folder /run/mount behind on a machine that has none.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::Run;
use crate::paths::{Paths, make_folder, write_whole};
use crate::state::make_foreign_folder;
use crate::topology::{CONTROL, HOSTS, Host, Room};

/// A line of a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount point.
    pub target: PathBuf,
    /// The type of the file system.
    pub fstype: String,
    /// Whether mounts on it are propagated to peers.
    pub shared: bool,
}

/// Reads a mount table, in the order of mounting.
///
/// # Errors
/// If the file cannot be read.
pub fn mountinfo(file: &Path) -> Result<Vec<Mount>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let target = left.split(' ').nth(4)?;
        let shared = left.split(' ').skip(6).any(|tag| tag.starts_with("shared:"));
        let fstype = right.split(' ').next()?.to_owned();
        Some(Mount { target: PathBuf::from(unescape(target)), fstype, shared })
    };
    text.lines().filter_map(line).collect()
}

/// Blanks in mount points are written as three octal digits.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Whether something is mounted at exactly this path in the machine's own mount namespace.
///
/// # Errors
/// If the mount table cannot be read.
pub fn is_mounted(path: &Path) -> Result<bool> {
    Ok(mountinfo(Path::new("/proc/self/mountinfo"))?.iter().any(|mount| mount.target == path))
}

/// One folder or file of the lab (`source`) that covers `target` in a room.
#[derive(Debug)]
struct Cover {
    source: PathBuf,
    target: PathBuf,
}

/// Kernel settings that kubelet insists on and would change for the whole machine: it is shown these instead.
const SYSCTLS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// What covers what in a room, in the order of mounting.
fn covers(paths: &Paths, room: &Room) -> Vec<Cover> {
    let own = paths.room(room);
    let cover = |source: &str, target: &str| Cover { source: own.join(source), target: target.into() };
    let mut covers = vec![
        // All of /run and /tmp: sockets, locks, pods' network namespaces and left-overs of every server stay here.
        cover("run", "/run"),
        cover("tmp", "/tmp"),
        Cover { source: paths.volumes(), target: "/tmp/hostpath_pv".into() },
    ];
    if let Some(host) = HOSTS.iter().find(|host| host.room == *room) {
        covers.extend(host_covers(paths, host, cover));
    }
    covers
}

fn host_covers(paths: &Paths, host: &Host, cover: impl Fn(&str, &str) -> Cover) -> Vec<Cover> {
    let mut covers = vec![
        cover("kubelet", "/var/lib/kubelet"),
        cover("cni-state", "/var/lib/cni"),
        cover("calico", "/var/lib/calico"),
        Cover { source: paths.image_store(host), target: "/var/lib/containerd".into() },
        cover("log-pods", "/var/log/pods"),
        cover("log-containers", "/var/log/containers"),
        cover("log-calico", "/var/log/calico"),
        cover("etc-cni", "/etc/cni"),
        cover("opt-cni", "/opt/cni"),
    ];
    let sysctls = SYSCTLS.iter().map(|(name, _)| cover(&format!("sysctl/{name}"), &format!("/proc/sys/{name}")));
    covers.extend(sysctls);
    covers
}

/// Makes the private mount that the namespaces' files lie on.
///
/// # Errors
/// If mounting fails.
pub fn ensure_holder(paths: &Paths) -> Result<()> {
    let folder = paths.namespaces();
    make_folder(&folder)?;
    if !is_mounted(&folder)? {
        Run::line("mount -n --bind").arg(&folder).arg(&folder).output()?;
    }
    Run::line("mount -n --make-private").arg(&folder).output().map(drop)
}

/// Makes a room's mount namespace.
///
/// # Errors
/// If the kernel refuses.
pub fn ensure_namespace(paths: &Paths, room: &Room) -> Result<()> {
    let file = paths.mount_namespace(room);
    if !is_mounted(&file)? {
        write_whole(&file, "", 0o600)?;
        let mut flag = std::ffi::OsString::from("--mount=");
        flag.push(&file);
        Run::line("unshare --propagation private").arg(Path::new(&flag)).arg("true").output()?;
    }
    if !inside(paths, room)?.iter().any(|mount| mount.target == Path::new("/") && mount.shared) {
        enter(paths, room).args(["mount", "-n", "--make-rshared", "/"]).output()?;
    }
    Ok(())
}

/// Puts the lab's folders over the machine's in a room.
///
/// # Errors
/// If a folder cannot be made or mounted.
pub fn ensure_covers(paths: &Paths, room: &Room) -> Result<()> {
    for (name, value) in SYSCTLS.iter().filter(|_| *room != CONTROL) {
        write_whole(&paths.room(room).join("sysctl").join(name), value, 0o644)?;
    }
    let mode: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    make_folder(&paths.room(room).join("tmp/hostpath_pv"))?;
    std::fs::set_permissions(paths.room(room).join("tmp"), mode).context("cannot open the room's /tmp to all")?;
    for Cover { source, target } in covers(paths, room) {
        if !source.exists() {
            make_folder(&source)?;
        }
        if inside(paths, room)?.iter().any(|mount| mount.target == target) {
            continue;
        }
        // /tmp/hostpath_pv lies in the room's own /tmp, made above.
        if !target.starts_with("/tmp") {
            make_foreign_folder(paths, &target)?;
        }
        enter(paths, room).args(["mount", "-n", "--bind"]).arg(&source).arg(&target).output()?;
    }
    Ok(())
}

/// The mount table inside a room.
fn inside(paths: &Paths, room: &Room) -> Result<Vec<Mount>> {
    Ok(parse(&enter(paths, room).args(["cat", "/proc/self/mountinfo"]).output()?))
}

/// A command inside a room's mount namespace; its words are still to be added.
pub fn enter(paths: &Paths, room: &Room) -> Run {
    Run::new("nsenter").args([format!("--mount={}", paths.mount_namespace(room).display()), "--".to_owned()])
}

/// Unmounts, in the machine's own namespace, everything at and below a folder, the deepest first.
///
/// # Errors
/// If something stays mounted: the folder must not be removed then.
pub fn unmount_below(folder: &Path) -> Result<()> {
    let below = || -> Result<Vec<PathBuf>> {
        let mounts = mountinfo(Path::new("/proc/self/mountinfo"))?;
        Ok(mounts.into_iter().map(|mount| mount.target).filter(|target| target.starts_with(folder)).collect())
    };
    for target in below()?.into_iter().rev() {
        Run::line("umount -n").arg(&target).output()?;
    }
    match below()?.as_slice() {
        [] => Ok(()),
        left => bail!("still mounted: {left:?}; unmount them, then run `lab down` again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_is_read() {
        let text = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                    31 23 0:28 / /mnt/a\\040b rw - tmpfs tmpfs rw,mode=755\n";
        let mounts = parse(text);
        assert_eq!(mounts[0], Mount { target: "/".into(), fstype: "ext4".into(), shared: true });
        assert_eq!(mounts[1], Mount { target: "/mnt/a b".into(), fstype: "tmpfs".into(), shared: false });
    }

    #[test]
    fn nothing_in_the_machines_tmp_or_run_is_touched() {
        let paths = Paths { state: "/s".into(), cache: "/c".into() };
        for room in crate::topology::rooms() {
            let targets: Vec<_> = covers(&paths, &room).into_iter().map(|cover| cover.target).collect();
            assert_eq!(targets[..3], ["/run", "/tmp", "/tmp/hostpath_pv"].map(PathBuf::from));
        }
    }
}
