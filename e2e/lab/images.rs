//! Images in a host's containerd, which survive `lab down`, and containers of earlier lives, which must not.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::host::HostServers;
use crate::paths::write_whole;

/// What was loaded from an archive.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
struct Loaded {
    size: u64,
    /// Time of the archive's last change, in seconds and nanoseconds.
    changed: (i64, i64),
    images: Vec<String>,
}

/// Imports the images of archives, but for those that were imported before, unchanged, and are still there. Says how many
/// archives it imported.
///
/// # Errors
/// If an archive cannot be read or containerd refuses it.
pub fn load(servers: &HostServers<'_>, archives: &[PathBuf]) -> Result<usize> {
    let list = servers.paths.host_cache(servers.host).join("loaded.json");
    let mut loaded: BTreeMap<PathBuf, Loaded> =
        std::fs::read_to_string(&list).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let there = servers.ctr().args(["images", "list", "--quiet"]).output()?;
    let there: BTreeSet<_> = there.lines().collect();
    let mut imported = 0;
    for archive in archives {
        let archive = archive.canonicalize().with_context(|| format!("there is no archive {}", archive.display()))?;
        let metadata = archive.metadata()?;
        let (size, changed) = (metadata.len(), (metadata.mtime(), metadata.mtime_nsec()));
        let unchanged = loaded.get(&archive).is_some_and(|known| {
            (known.size, known.changed) == (size, changed)
                && !known.images.is_empty()
                && known.images.iter().all(|image| there.contains(image.as_str()))
        });
        if unchanged {
            continue;
        }
        let images = references(&import(servers, &archive)?);
        // Another archive that gave the same reference is no longer what that reference names.
        loaded.retain(|_, other| !other.images.iter().any(|image| images.contains(image)));
        loaded.insert(archive, Loaded { size, changed, images });
        forget_replaced(servers, &mut loaded)?;
        write_whole(&list, &serde_json::to_string_pretty(&loaded)?, 0o644)?;
        imported += 1;
    }
    Ok(imported)
}

/// Imports one archive. containerd collects garbage at times of its own, and may take a layer from under an import that builds
/// on it: then the import is begun anew, from what is there.
fn import(servers: &HostServers<'_>, archive: &Path) -> Result<String> {
    let import = || servers.ctr().args(["images", "import"]).arg(archive).timeout(Duration::from_secs(600)).output();
    match import() {
        Err(error) if error.to_string().contains("parent snapshot") => import(),
        outcome => outcome,
    }
}

/// As [`load`], into several hosts at the same time. Says how many archives were imported, over all hosts.
///
/// # Errors
/// If one of the hosts cannot; the others have theirs then.
pub fn load_everywhere(servers: &[HostServers<'_>], archives: &[PathBuf]) -> Result<usize> {
    let outcomes: Vec<Result<usize>> = std::thread::scope(|scope| {
        let work = |host| {
            move || load(host, archives).with_context(|| format!("cannot load images into {}", host.host.name()))
        };
        let threads: Vec<_> = servers.iter().map(|host| scope.spawn(work(host))).collect();
        let join =
            |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|_| bail!("a thread panicked"));
        threads.into_iter().map(join).collect()
    });
    let imported = outcomes.into_iter().sum::<Result<usize>>()?;
    // Whatever was imported: a crash may have come between an import and this.
    share_content(servers)?;
    Ok(imported)
}

/// Makes one file of the same content in several hosts' stores. A file there is named by its digest and never written
/// again, only unlinked, so hosts cannot disturb each other by it.
fn share_content(servers: &[HostServers<'_>]) -> Result<()> {
    let mut first: BTreeMap<OsString, (PathBuf, u64)> = BTreeMap::new();
    for server in servers {
        let folder = server.paths.image_store(server.host).join("io.containerd.content.v1.content/blobs/sha256");
        let list = || format!("cannot list {}", folder.display());
        for file in std::fs::read_dir(&folder).with_context(list)? {
            let file = file.with_context(list)?;
            let path = file.path();
            // containerd collects what no image needs any more, also while this goes on.
            let Ok(inode) = file.metadata().map(|metadata| metadata.ino()) else { continue };
            let linked = match first.get(&file.file_name()) {
                Some((_, known)) if *known == inode => true,
                Some((known, _)) => link_in_place_of(known, &path)?,
                None => false,
            };
            if !linked {
                first.insert(file.file_name(), (path, inode));
            }
        }
    }
    Ok(())
}

/// Makes `path` another name of `known`. Answers whether `known` was there.
fn link_in_place_of(known: &Path, path: &Path) -> Result<bool> {
    // Beside the folder of blobs: whatever lies inside is a blob to containerd.
    let blobs = path.ancestors().nth(2).unwrap_or(path);
    let link = blobs.with_file_name("shared.link");
    let _ = std::fs::remove_file(&link);
    match std::fs::hard_link(known, &link) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        // By rename: whoever reads the blob meanwhile reads the old file to its end.
        linked => linked.and_then(|()| std::fs::rename(&link, path)),
    }
    .with_context(|| format!("cannot link {} to {}", path.display(), known.display()))?;
    Ok(true)
}

/// Removes the images of archives that are gone: a build replaced them, and nobody will ask for these images again.
fn forget_replaced(servers: &HostServers<'_>, loaded: &mut BTreeMap<PathBuf, Loaded>) -> Result<()> {
    let gone: Vec<_> = loaded.keys().filter(|archive| !archive.exists()).cloned().collect();
    let images: Vec<_> = gone.iter().filter_map(|archive| loaded.remove(archive)).flat_map(|old| old.images).collect();
    let unused: Vec<_> =
        images.into_iter().filter(|image| !loaded.values().any(|kept| kept.images.contains(image))).collect();
    if unused.is_empty() {
        return Ok(());
    }
    servers.ctr().args(["images", "remove"]).args(unused).timeout(Duration::from_secs(120)).output()?;
    Ok(())
}

/// The references in what `ctr images import` prints: `unpacking docker.io/giantnetes/pause:1 (sha256:…)...done`.
fn references(output: &str) -> Vec<String> {
    let image = |line: &str| Some(line.strip_prefix("unpacking ")?.split(' ').next()?.to_owned());
    output.lines().filter_map(image).collect()
}

/// Removes every container and lease from containerd; their snapshots go with them. No container may run.
///
/// # Errors
/// If containerd refuses or takes longer than `limit` for one of its answers.
pub fn purge(servers: &HostServers<'_>, limit: Duration) -> Result<()> {
    for kind in ["containers", "leases"] {
        let list = servers.ctr().args([kind, "list", "--quiet"]).timeout(limit).output()?;
        let names: Vec<_> = list.split_whitespace().collect();
        if !names.is_empty() {
            servers.ctr().args([kind, "delete"]).args(names).timeout(limit).output()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_from_what_ctr_prints() {
        let output = "unpacking docker.io/giantnetes/pause:1 (sha256:1234)...done\n";
        assert_eq!(references(output), ["docker.io/giantnetes/pause:1"]);
    }
}
