//! The programs that the lab runs: third-party servers (e2e/tools) and images (images/), built by scripts of this
//! repository into the cache.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command::Run;

/// Folders that hold the servers' binaries.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tools {
    /// etcd, etcdctl, etcdutl
    pub etcd: PathBuf,
    /// kube-apiserver … kubectl
    pub kubernetes: PathBuf,
    /// Calico's programs, and the manifests that came with them
    pub calico: PathBuf,
    /// vault; none in what is on record of a lab from before it had one.
    #[serde(default)]
    pub vault: PathBuf,
    /// The Gateway API's kinds; likewise.
    #[serde(default)]
    pub gateway_api: PathBuf,
}

impl Tools {
    /// Where the binaries are, or will be once they are built.
    ///
    /// # Errors
    /// If the build script cannot tell (it needs Go).
    pub fn locate() -> Result<Self> {
        let folder = |product: &str| -> Result<PathBuf> {
            let script = repository().join("e2e/tools/build.sh");
            Ok(Run::new(script).args(["--dir", product]).output()?.trim().into())
        };
        Ok(Self {
            etcd: folder("etcd")?,
            kubernetes: folder("kubernetes")?,
            calico: folder("calico")?,
            vault: folder("vault")?,
            gateway_api: folder("gateway-api")?,
        })
    }

    /// The products that are not built, of those the lab needs.
    pub fn missing(&self) -> Vec<&'static str> {
        let products = [
            ("etcd", &self.etcd),
            ("kubernetes", &self.kubernetes),
            ("calico", &self.calico),
            ("vault", &self.vault),
            ("gateway-api", &self.gateway_api),
        ];
        products.into_iter().filter(|(_, folder)| !folder.is_dir()).map(|(product, _)| product).collect()
    }
}

/// An image that this repository builds: its archive, and the reference it carries.
#[derive(Debug, Clone)]
pub struct Image {
    /// The docker archive.
    pub archive: PathBuf,
    /// `giantnetes/pause:1`
    pub reference: String,
}

impl Image {
    /// An image by its folder's name in images/. Builds nothing: the archive may not exist yet.
    ///
    /// # Errors
    /// If the build script does not know it.
    pub fn locate(name: &str) -> Result<Self> {
        let script = repository().join("images/build.sh");
        let ask = |what: &str| Run::new(&script).args([what, name]).timeout(Duration::from_secs(30)).output();
        Ok(Self { archive: ask("--path")?.trim().into(), reference: ask("--ref")?.trim().to_owned() })
    }

    /// As [`locate`](Self::locate), after building the image if it is missing.
    ///
    /// # Errors
    /// If the build fails.
    pub fn build(name: &str) -> Result<Self> {
        let image = Self::locate(name)?;
        if !image.archive.is_file() {
            let script = repository().join("images/build.sh");
            // The base image comes from Debian's mirror; on a slow line that takes its time.
            Run::new(script).arg(name).timeout(Duration::from_secs(1200)).output()?;
        }
        if !image.archive.is_file() {
            bail!("images/build.sh {name} built no {}", image.archive.display());
        }
        Ok(image)
    }
}

/// The folder of this checkout.
pub(crate) fn repository() -> &'static Path {
    let e2e = Path::new(env!("CARGO_MANIFEST_DIR"));
    e2e.parent().unwrap_or(e2e)
}

/// The folder of a command on the search path.
///
/// # Errors
/// If it is in none.
pub fn find_command(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's own path often lacks the folders of system administration.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed"))
}
