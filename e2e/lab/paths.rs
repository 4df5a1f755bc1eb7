//! Where the lab keeps things: a state folder, which `lab down` removes, and a cache, which survives it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::topology::{Host, Room};

/// The lab's folders and files.
#[derive(Debug, Clone)]
pub struct Paths {
    /// /var/lib/giantnetes-lab
    pub state: PathBuf,
    /// $GIANTNETES_CACHE/lab
    pub cache: PathBuf,
}

impl Paths {
    /// The paths on this machine.
    ///
    /// # Errors
    /// If neither GIANTNETES_CACHE nor HOME says where caches are kept.
    pub fn of_machine() -> Result<Self> {
        let cache = match std::env::var_os("GIANTNETES_CACHE").filter(|value| !value.is_empty()) {
            Some(cache) => PathBuf::from(cache),
            None => {
                PathBuf::from(std::env::var_os("HOME").context("neither GIANTNETES_CACHE nor HOME is set; set one")?)
                    .join(".cache/giantnetes")
            }
        };
        Ok(Self { state: "/var/lib/giantnetes-lab".into(), cache: cache.join("lab") })
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    /// Servers' logs, one file each.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// One record per server that was started.
    pub fn processes(&self) -> PathBuf {
        self.state.join("processes")
    }

    /// Files that hold the rooms' mount namespaces.
    pub fn namespaces(&self) -> PathBuf {
        self.state.join("ns")
    }

    /// The file that holds a room's mount namespace.
    pub fn mount_namespace(&self, room: &Room) -> PathBuf {
        self.namespaces().join(room.name)
    }

    /// Data of the volumes that StorageClass `standard` makes; every room sees it as /tmp/hostpath_pv.
    pub fn volumes(&self) -> PathBuf {
        self.state.join("hostpath_pv")
    }

    /// What belongs to one room.
    pub fn room(&self, room: &Room) -> PathBuf {
        self.state.join(room.name)
    }

    /// The socket of a host's containerd, as seen from outside its mount namespace.
    pub fn containerd_socket(&self, host: &Host) -> PathBuf {
        self.room(&host.room).join("run/containerd/containerd.sock")
    }

    /// What of a host survives `lab down`.
    pub fn host_cache(&self, host: &Host) -> PathBuf {
        self.cache.join(host.name())
    }

    /// A host's image store.
    pub fn image_store(&self, host: &Host) -> PathBuf {
        self.host_cache(host).join("containerd")
    }
}

/// Writes a file whole or not at all: a reader, or a crash, never finds half of it. The parent folder is made.
///
/// # Errors
/// If the file system refuses.
pub fn write_whole(path: &Path, content: &str, mode: u32) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let write = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut staging = path.as_os_str().to_owned();
        staging.push(format!(".{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&staging)?;
        file.write_all(content.as_bytes())?;
        std::fs::rename(&staging, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a folder and its parents.
///
/// # Errors
/// If the file system refuses.
pub fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))
}
