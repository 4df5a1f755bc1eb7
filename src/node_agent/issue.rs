//! One certificate of the node: what there is of it, and how another is had. The key is made here and never leaves.

use std::{io, path::Path, time::Duration};

use k8s_openapi::jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _};
use secrecy::ExposeSecret as _;
use x509_parser::pem::parse_x509_pem;

use super::{
    config::{AuthorityAt, Wanted},
    files::{self, Access},
    plan::{Found, Life},
};
use crate::pki::{
    embedded::{self, BACKDATE, Pair, PkiError, fingerprint},
    leaf::Leaf,
    vault::{self, InVault, Request, check, client::Connection},
};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Vault, or what it answered.
    #[error("{0}")]
    Vault(#[from] vault::Error),
    /// A key or a certificate.
    #[error("{0}")]
    Pki(#[from] PkiError),
    /// What signs is not what the node was told.
    #[error("{mount} in Vault is not the guest's authority: the SHA-256 of its certificate is {found}")]
    Authority {
        /// Path of its mount.
        mount: String,
        /// What its certificate comes to.
        found: String,
    },
    /// A key is not what the node was told.
    #[error("{name} at {path} in Vault is not the key that this node was told of")]
    Key {
        /// Where it is in Vault.
        path: String,
        /// What Vault calls it.
        name: String,
    },
    /// Its authority is not listed.
    #[error("certificate {0} is of an authority that is not listed")]
    Unlisted(String),
    /// A file.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn write(path: &Path, text: &str, access: Access) -> Result<(), IssueError> {
    let failed = |source| IssueError::File { action: "write", path: path.display().to_string(), source };
    files::write(path, text.as_bytes(), access).map_err(failed)
}

fn read(path: &Path) -> Result<Option<String>, IssueError> {
    files::read(path).map_err(|source| IssueError::File { action: "read", path: path.display().to_string(), source })
}

/// The certificate (PEM) of an authority, as far as it was fetched.
///
/// # Errors
/// If its file cannot be read.
pub fn kept(authority: &AuthorityAt) -> Result<Option<String>, IssueError> {
    Ok(read(&authority.file)?.filter(|certificate| fingerprint(certificate) == authority.fingerprint))
}

/// The certificate (PEM) of an authority, fetched if need be.
///
/// # Errors
/// [`IssueError`], if what is there is another one, too.
pub async fn fetch(vault: &Connection, authority: &AuthorityAt) -> Result<String, IssueError> {
    if let Some(certificate) = kept(authority)? {
        return Ok(certificate);
    }
    let certificate = vault::certificate(vault, &authority.mount).await?;
    let found = fingerprint(&certificate);
    if found != authority.fingerprint {
        return Err(IssueError::Authority { mount: authority.mount.clone(), found });
    }
    write(&authority.file, &certificate, Access::All)?;
    Ok(certificate)
}

/// What there is of a certificate.
///
/// # Errors
/// If its files cannot be read.
pub fn found(authority: &AuthorityAt, wanted: &Wanted, leaf: &Leaf) -> Result<Found, IssueError> {
    let (certificate, key) = (read(&wanted.certificate)?, read(&wanted.key)?);
    let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(Found::Unfit("is missing")) };
    let Some(root) = kept(authority)? else { return Ok(Found::Unfit("is of an authority that is not known yet")) };
    let Ok(key) = KeyPair::from_pem(&key) else { return Ok(Found::Unfit("has a key that cannot be read")) };
    // When it ends is not judged by this, but by the plan.
    let problem = check::problem(&certificate, &root, leaf, key.der_bytes(), Timestamp::MIN);
    match (problem, life(&certificate, &root)) {
        (None, Some(life)) => Ok(Found::Fits(life)),
        (problem, _) => Ok(Found::Unfit(problem.unwrap_or("cannot be read"))),
    }
}

fn life(certificate: &str, root: &str) -> Option<Life> {
    let (_, pem) = parse_x509_pem(certificate.as_bytes()).ok()?;
    let begins = Timestamp::from_second(pem.parse_x509().ok()?.validity().not_before.timestamp()).ok()?;
    let ends = embedded::expires(certificate).ok()?;
    // Vault's roles date back, too.
    let issued = begins.checked_add(BACKDATE).ok()?.min(ends);
    Some(Life { issued, ends, authority_ends: embedded::expires(root).ok()? })
}

/// Makes a key and has its certificate signed.
///
/// # Errors
/// [`IssueError`]
pub async fn ask(
    vault: &Connection,
    authority: &AuthorityAt,
    wanted: &Wanted,
    leaf: &Leaf,
    now: Timestamp,
) -> Result<Pair, IssueError> {
    let root = fetch(vault, authority).await?;
    let authority = InVault { mount: &authority.mount, certificate: &root };
    let left = vault::left(authority, now)?;
    let life = Duration::from_secs(wanted.ttl_seconds.into()).min(left - vault::CLOCKS);
    let (pem, key) = embedded::request(leaf)?;
    let request = Request { leaf, pem: &pem, key: key.der_bytes() };
    let certificate = vault::sign(vault, authority, &wanted.role, request, now, life).await?;
    Ok(Pair { certificate, key: key.serialize_pem().into() })
}

/// Puts a certificate and its key where they are wanted.
///
/// # Errors
/// If a file cannot be written.
pub fn put(wanted: &Wanted, pair: &Pair) -> Result<(), IssueError> {
    let access = Access::Of(wanted.readers);
    // Two files, two names: who reads between the two finds a pair that does not fit, and reads again. After a crash there,
    // the agent finds it, too, and asks for another.
    write(&wanted.key, pair.key.expose_secret(), access)?;
    write(&wanted.certificate, &pair.certificate, access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_agent::config::{self, Config};

    /// Files of one certificate in a folder of their own, with the authority that signs it.
    struct World {
        folder: std::path::PathBuf,
        root: Pair,
        authority: AuthorityAt,
        wanted: Wanted,
        leaf: Leaf,
    }

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    impl World {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("giantnetes-issue-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir(&folder).unwrap();
            let text = config::tests::TEXT.replace("/pki", &folder.display().to_string());
            let config: Config = serde_saphyr::from_str(&text).unwrap();
            let root = embedded::root("kubernetes", "a/b", now(), DAY * 30).unwrap();
            let mut authority = config.authorities[0].clone();
            authority.fingerprint = fingerprint(&root.certificate);
            let wanted = config.certificates[0].clone();
            let leaf = wanted.leaf(&config::tests::instance()).unwrap();
            Self { folder, root, authority, wanted, leaf }
        }

        fn found(&self) -> Found {
            found(&self.authority, &self.wanted, &self.leaf).unwrap()
        }

        fn put_root(&self) {
            write(&self.authority.file, &self.root.certificate, Access::All).unwrap();
        }

        fn signed(&self, leaf: &Leaf) -> Pair {
            embedded::sign(&self.root, leaf, now(), DAY).unwrap()
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn what_was_put_is_found_with_its_time() {
        let world = World::new("found");
        assert_eq!(world.found(), Found::Unfit("is missing"));
        put(&world.wanted, &world.signed(&world.leaf)).unwrap();
        assert_eq!(world.found(), Found::Unfit("is of an authority that is not known yet"));
        world.put_root();
        let Found::Fits(life) = world.found() else { panic!("{:?}", world.found()) };
        assert_eq!((life.issued, life.ends), (now(), now() + DAY));
        assert_eq!(life.authority_ends, now() + DAY * 30);
        assert_eq!(life.renew_at(), now() + DAY * 2 / 3);
    }

    #[test]
    fn what_does_not_fit_is_asked_for_anew() {
        let world = World::new("unfit");
        world.put_root();
        let pair = world.signed(&world.leaf);
        put(&world.wanted, &pair).unwrap();
        assert!(matches!(world.found(), Found::Fits(_)));
        // As after a crash between the two files.
        write(&world.wanted.key, world.signed(&world.leaf).key.expose_secret(), Access::All).unwrap();
        assert_eq!(world.found(), Found::Unfit("is for another key"));
        write(&world.wanted.key, "torn", Access::All).unwrap();
        assert_eq!(world.found(), Found::Unfit("has a key that cannot be read"));
        // The node's name, or what it is wanted for, became another.
        put(&world.wanted, &world.signed(&Leaf { common_name: "x".into(), ..world.leaf.clone() })).unwrap();
        assert_eq!(world.found(), Found::Unfit("has another subject"));
        // An authority that was put in the place of the one that the node was told.
        put(&world.wanted, &pair).unwrap();
        let other = embedded::root("kubernetes", "a/b", now(), DAY).unwrap();
        write(&world.authority.file, &other.certificate, Access::All).unwrap();
        assert_eq!(world.found(), Found::Unfit("is of an authority that is not known yet"));
        write(&world.wanted.certificate, "torn", Access::All).unwrap();
        world.put_root();
        assert_eq!(world.found(), Found::Unfit("cannot be read"));
    }
}
