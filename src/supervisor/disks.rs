//! The VM's disks: a fresh overlay over the image's root disk, etcd's disk on its volume, and cloud-init's seed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{QEMU_ID, config::VmConfig, paths};

/// Files of a NoCloud seed, as they lie in the node's ConfigMap.
const SEED_FILES: [&str; 3] = ["user-data", "meta-data", "network-config"];
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why a disk could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// qemu-img.
    #[error("make the root overlay with qemu-img: {0}")]
    Overlay(String),
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::Io { what, path, source }
}

/// The prepared disks.
#[derive(Debug)]
pub struct Disks {
    /// The root overlay.
    pub root: PathBuf,
    /// etcd's disk, open: its volume's folder may be closed to QEMU's user.
    pub etcd: Option<File>,
    /// Folder that QEMU shows as the seed disk.
    pub seed: PathBuf,
}

/// Prepares all disks. The root overlay is made anew at every start, so every start is a first boot; etcd's disk is kept.
///
/// # Errors
/// [`Error`]
pub async fn prepare(vm: &VmConfig) -> Result<Disks, Error> {
    let work = Path::new(paths::WORK);
    let root = work.join("root.qcow2");
    make_overlay(&Path::new(paths::NODE).join("disk.qcow2"), &root, vm.disk_bytes).await?;
    let seed = work.join("seed");
    copy_seed(Path::new(paths::CONFIG), &seed)?;
    let etcd = vm.etcd_bytes.map(|bytes| open_etcd(&Path::new(paths::ETCD).join("etcd.img"), bytes)).transpose()?;
    Ok(Disks { root, etcd, seed })
}

/// The ConfigMap volume is full of symbolic links, which the seed disk cannot show.
fn copy_seed(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(at("make folder", to))?;
    for name in SEED_FILES {
        let file = to.join(name);
        fs::copy(from.join(name), &file).map_err(at("copy seed file", &file))?;
    }
    Ok(())
}

/// Opens etcd's disk; makes it, sparse, if its volume is new. It never shrinks.
fn open_etcd(path: &Path, bytes: u64) -> Result<File, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(at("open etcd's disk", path))?;
    let size = file.metadata().map_err(at("look at etcd's disk", path))?.len();
    if size < bytes {
        file.set_len(bytes).map_err(at("enlarge etcd's disk", path))?;
    }
    Ok(file)
}

async fn make_overlay(base: &Path, overlay: &Path, bytes: u64) -> Result<(), Error> {
    match fs::remove_file(overlay) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at("remove the old root overlay", overlay)(error));
        }
        _ => {}
    }
    let mut command = super::qemu::unprivileged("qemu-img", QEMU_ID);
    command.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(base).arg(overlay).arg(bytes.to_string());
    let output = tokio::time::timeout(TIMEOUT, command.kill_on_drop(true).output())
        .await
        .map_err(|_| Error::Overlay(format!("no answer in {} s", TIMEOUT.as_secs())))?
        .map_err(|error| Error::Overlay(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Overlay(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn etcds_disk_is_kept_and_never_shrinks() {
        let folder = std::env::temp_dir().join(format!("giantnetes-disks-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("etcd.img");
        open_etcd(&path, 1 << 20).unwrap().write_all(b"data").unwrap();
        let mut text = [0; 4];
        let mut smaller = open_etcd(&path, 1 << 10).unwrap();
        smaller.read_exact(&mut text).unwrap();
        assert_eq!((&text, smaller.metadata().unwrap().len()), (b"data", 1 << 20));
        assert_eq!(open_etcd(&path, 2 << 20).unwrap().metadata().unwrap().len(), 2 << 20);
        fs::remove_dir_all(&folder).unwrap();
    }
}
