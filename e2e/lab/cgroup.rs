//! The cgroup `giantnetes-lab`, which holds every process of the lab.
//!
//! A server joins it before it executes, so its children (containerd's shims too) are born in it, and "what did the
//! lab start" is answered by the kernel, even after a `kill -9` between any two lines.
//!
//! cgroup v1 keeps one tree per controller: the group is made in each of them. cgroup v2 keeps one, in which a group's
//! controllers have to be switched on in its parent. Both are written here from one list of hierarchies; **only v1
//! (and the hybrid layout) was tried so far**, since the machines that run our tests have it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::mounts::mountinfo;
use crate::topology::CGROUP;
use crate::wait::wait_for;

/// One mounted cgroup tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub root: PathBuf,
    /// Whether it is a v2 tree.
    pub v2: bool,
}

/// All cgroup trees of the machine.
///
/// # Errors
/// If the mount table cannot be read or has none.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let found: Vec<_> = mountinfo(Path::new("/proc/self/mountinfo"))?
        .into_iter()
        .filter(|mount| mount.fstype == "cgroup" || mount.fstype == "cgroup2")
        .map(|mount| Hierarchy { root: mount.target, v2: mount.fstype == "cgroup2" })
        .collect();
    if found.is_empty() {
        bail!("no cgroup file system is mounted; mount one (on Debian systemd does)");
    }
    Ok(found)
}

/// Makes a cgroup (a path relative to the hierarchies' roots), with its parents, in every hierarchy.
///
/// # Errors
/// If the kernel refuses.
pub fn ensure(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut folder = hierarchy.root.clone();
        for part in group.split('/') {
            if hierarchy.v2 {
                enable_controllers(&folder)?;
            }
            let parent = folder.clone();
            folder.push(part);
            if !folder.exists() {
                std::fs::create_dir(&folder).with_context(|| format!("cannot make the cgroup {}", folder.display()))?;
            }
            // A new v1 cpuset is empty, and nothing can join it until it has CPUs and memory nodes.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                copy_if_empty(&parent.join(file), &folder.join(file), hierarchy.v2)?;
            }
        }
    }
    Ok(())
}

fn enable_controllers(folder: &Path) -> Result<()> {
    let controllers = read(&folder.join("cgroup.controllers"))?;
    let wanted: Vec<_> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    write(&folder.join("cgroup.subtree_control"), &wanted.join(" "))
}

fn copy_if_empty(from: &Path, to: &Path, v2: bool) -> Result<()> {
    if v2 || !to.exists() || !read(to)?.trim().is_empty() {
        return Ok(());
    }
    write(to, read(from)?.trim())
}

/// Moves this process into a cgroup in every hierarchy.
///
/// # Errors
/// If the cgroup is missing or the kernel refuses.
pub fn join(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        // "0" is the writer itself.
        write(&hierarchy.root.join(group).join("cgroup.procs"), "0")?;
    }
    Ok(())
}

/// Every process in a cgroup (relative path) and below it, in any hierarchy.
///
/// # Errors
/// If the mount table cannot be read.
pub fn processes(group: &str) -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies()? {
        for folder in tree(&hierarchy.root.join(group)) {
            // The group may vanish while it is read: then it holds nothing.
            let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
    }
    Ok(found)
}

/// Kills whatever is in a cgroup and below it until nothing is left, however fast it forks.
///
/// # Errors
/// If processes are left after `limit`.
pub fn kill_all(group: &str, limit: Duration) -> Result<()> {
    wait_for(limit, &format!("the end of every process in cgroup {group}"), || {
        let alive = processes(group)?;
        for pid in alive.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if alive.is_empty() { Ok(()) } else { bail!("processes {alive:?} are still there") }
    })
}

/// Removes the lab's cgroups from every hierarchy; they must be empty by now.
///
/// # Errors
/// If one cannot be removed within `limit`: the kernel takes a moment after the last process.
pub fn remove(limit: Duration) -> Result<()> {
    for hierarchy in hierarchies()? {
        let root = hierarchy.root.join(CGROUP);
        wait_for(limit, &format!("the removal of the cgroup {}", root.display()), || {
            for folder in tree(&root).into_iter().rev() {
                std::fs::remove_dir(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A cgroup's folders, a parent before its children; none if it does not exist.
pub(crate) fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if root.is_dir() {
        found.push(root.to_path_buf());
    }
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        next += 1;
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        found.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    found
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write \"{text}\" to {}", path.display()))
}
