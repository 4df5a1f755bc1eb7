//! Images in a host's containerd, which survive `lab down`, and containers of earlier lives, which must not.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
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

/// Imports an archive's images unless it was imported before, unchanged, and its images are still there. Says whether
/// it imported.
///
/// # Errors
/// If the archive cannot be read or containerd refuses it.
pub fn load(servers: &HostServers<'_>, archive: &Path) -> Result<bool> {
    let archive = archive.canonicalize().with_context(|| format!("there is no archive {}", archive.display()))?;
    let metadata = archive.metadata()?;
    let list = servers.paths.host_cache(servers.host).join("loaded.json");
    let mut loaded: BTreeMap<PathBuf, Loaded> =
        std::fs::read_to_string(&list).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let (size, changed) = (metadata.len(), (metadata.mtime(), metadata.mtime_nsec()));
    if let Some(known) = loaded.get(&archive)
        && (known.size, known.changed) == (size, changed)
        && all_there(servers, &known.images)?
    {
        return Ok(false);
    }
    let import = servers.ctr().args(["images", "import"]).arg(&archive).timeout(Duration::from_secs(600));
    let images = imported(&import.output()?);
    // Another archive that gave the same reference is no longer what that reference names.
    loaded.retain(|_, other| !other.images.iter().any(|image| images.contains(image)));
    loaded.insert(archive, Loaded { size, changed, images });
    forget_replaced(servers, &mut loaded)?;
    write_whole(&list, &serde_json::to_string_pretty(&loaded)?, 0o644)?;
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

fn all_there(servers: &HostServers<'_>, images: &[String]) -> Result<bool> {
    let there = servers.ctr().args(["images", "list", "--quiet"]).output()?;
    Ok(!images.is_empty() && images.iter().all(|image| there.lines().any(|line| line == image)))
}

/// The references in what `ctr images import` prints: `unpacking docker.io/giantnetes/pause:1 (sha256:…)...done`.
fn imported(output: &str) -> Vec<String> {
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
        assert_eq!(imported(output), ["docker.io/giantnetes/pause:1"]);
    }
}
