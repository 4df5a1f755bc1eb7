//! Vault as a guest's authority: a PKI mount for each, whose root is generated inside and never leaves, unless the spec asks for another
//! one; a role per certificate; keys are made here, or by who asks inside a guest, and only requests are signed.
//!
//! - [`role`]: what may be signed for whom, and where; pure
//! - [`check`]: whether what was signed is what was asked for; pure
//! - [`client`]: Vault's HTTP API
//! - `bring`: roots that come from elsewhere, or are made here to be exported
//! - `mounts`: a guest's mounts
//! - [`escrow`]: where keys of those lie that can be exported
//! - [`nodes`]: what nodes find that log in by themselves
//! - [`breaker`]: leaves a Vault alone that does not serve

mod breaker;
mod bring;
pub mod check;
pub mod client;
pub mod escrow;
mod mounts;
mod nodes;
pub mod role;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tracing::info;
use x509_parser::pem::parse_x509_pem;

pub use self::client::VaultError;
use self::client::{Action, Connection};
use super::{
    embedded::{self, Pair, PkiError},
    leaf::{Authority, Leaf},
    roots::Root,
};
use crate::{
    api::VaultPlace,
    cluster::Identity,
    runtime::{apply::hash, lease::Leadership},
    settings::VaultSettings,
};

/// Vault counts a lifetime by its own clock: so much is left for the difference.
pub const CLOCKS: Duration = Duration::from_secs(60);
/// How long a mount that was seen need not be looked at again.
pub const SEEN_FOR: Duration = Duration::from_secs(300);
/// How long a certificate that nobody could store is kept at most, instead of having another signed.
const KEPT: Duration = Duration::from_secs(1800);

/// Why a certificate or root could not be had of Vault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A key or a certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A mount of our name is somebody else's.
    #[error("mount {0} in Vault is not this Cluster's; remove or move it")]
    Foreign(String),
    /// A mount has another root than the one that is imported.
    #[error(
        "PKI mount {0} in Vault has another root already than the Secret that spec.pki.importFrom names; bring back the Secret that was \
         there before, or delete the Cluster"
    )]
    Occupied(String),
    /// A mount's root is not the recorded one.
    #[error("PKI mount {0} in Vault has another root than the recorded one; restore it, it is never made anew")]
    Exchanged(String),
    /// What Vault signed is not what it was asked for.
    #[error("Vault: the certificate of {path} {problem}; did somebody change its role?")]
    Other {
        /// Where it was signed.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// A Vault that keeps guests' authorities.
pub struct Vault {
    connection: Connection,
    settings: VaultSettings,
    /// Hashes of roles that were written by this process, by their paths: they are written once.
    roles: Mutex<HashMap<String, String>>,
    /// When mounts were last seen to have the recorded root.
    seen: Mutex<HashMap<String, Instant>>,
    /// What was signed and is not known to be stored, by the path of its role.
    signed: Mutex<HashMap<String, Signed>>,
    /// Roots that were made here and are not known to be in their mount, by its path.
    made: Mutex<HashMap<String, Pair>>,
}

struct Signed {
    since: Instant,
    /// Of the role, and of the root.
    hash: String,
    pair: Pair,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

impl Error {
    /// Whether Vault is well, and does not sign this.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Other { .. } | Self::Vault(VaultError::Refused { .. }))
    }
}

/// An authority in Vault.
#[derive(Clone, Copy, Debug)]
pub struct InVault<'a> {
    /// Path of its mount.
    pub mount: &'a str,
    /// Its recorded certificate (PEM).
    pub certificate: &'a str,
}

/// What is to be signed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The certificate that is to come of it.
    pub leaf: &'a Leaf,
    /// The request (PEM, PKCS#10).
    pub pem: &'a str,
    /// The public key that it is for, as in a SubjectPublicKeyInfo.
    pub key: &'a [u8],
}

impl Vault {
    /// The Vault of these settings. With `leadership`, nothing is written but while this process leads.
    ///
    /// # Errors
    /// If the settings lead to no client.
    pub fn new(settings: VaultSettings, leadership: Option<Leadership>) -> Result<Self, VaultError> {
        let connection = Connection::new((&settings).into(), Box::new(settings.auth.clone()), leadership)?;
        let (roles, seen, signed, made) = <_>::default();
        Ok(Self { connection, settings, roles, seen, signed, made })
    }

    /// Where a guest's mounts are, as it is recorded before the first of them is made.
    pub fn place(&self, identity: &Identity) -> VaultPlace {
        let VaultSettings { address, namespace, prefix, .. } = &self.settings;
        VaultPlace { address: address.clone(), namespace: namespace.clone(), path: format!("{prefix}/{}", identity.id) }
    }

    /// Path of a guest's mount.
    pub fn mount(&self, identity: &Identity, authority: Authority) -> String {
        role::mount(&self.settings.prefix, identity, authority)
    }

    /// Makes an authority, or finds what an earlier try left of it. Answers its certificate (PEM).
    ///
    /// # Errors
    /// [`Error`]
    pub async fn make(&self, identity: &Identity, authority: Authority, ttl: Duration) -> Result<String, Error> {
        let (mount, root) = self.mounted(identity, authority, ttl).await?;
        if let Some(certificate) = root {
            return Ok(certificate);
        }
        let name = Root::Ca(authority).name();
        let body = json!({
            "common_name": format!("{name} CA of {}", identity.key),
            "exclude_cn_from_sans": true,
            "issuer_name": "root",
            "ttl": seconds(ttl),
            "not_before_duration": seconds(embedded::BACKDATE),
            "key_type": "ec",
            "key_bits": 256,
            "max_path_length": 0,
        });
        self.connection.ask(Action::Write, &format!("{mount}/root/generate/internal"), body).await?;
        info!(mount, "made");
        // Not the answer's: should a former leader's last request have made one, too, the first of them is the mount's.
        self.root(&mount).await?.ok_or_else(|| VaultError::NoMount(mount).into())
    }

    /// Signs a leaf for `holder`. However long it is meant to live, it does not outlive the root. Until [`Self::stored`] says
    /// that it is stored, whoever asks for the same again gets the same.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn sign(
        &self,
        authority: InVault<'_>,
        holder: &str,
        leaf: &Leaf,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Pair, Error> {
        let path = role_path(authority.mount, holder, leaf.name);
        let asked = hash(&json!([role::role(leaf, ttl), authority.certificate]));
        if let Some(pair) = self.kept(&path, &asked, ttl) {
            return Ok(pair);
        }
        let (request, key) = embedded::request(leaf)?;
        let request = Request { leaf, pem: &request, key: key.public_key_raw() };
        let certificate = self.sign_request(authority, holder, request, now, ttl).await?;
        let pair = Pair { certificate, key: key.serialize_pem().into() };
        let mut signed = lock(&self.signed);
        signed.retain(|_, signed| signed.since.elapsed() < KEPT);
        signed.insert(path, Signed { since: Instant::now(), hash: asked, pair: pair.clone() });
        Ok(pair)
    }

    /// Signs a request for `holder`, whoever has the key. However long the certificate (PEM) is meant to live, it does not
    /// outlive the root.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn sign_request(
        &self,
        authority: InVault<'_>,
        holder: &str,
        request: Request<'_>,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<String, Error> {
        let mount = authority.mount;
        let path = role_path(mount, holder, request.leaf.name);
        let left = left(authority, now)?;
        if !self.is_seen(mount) {
            // Nothing is written into a mount that somebody has put in the place of ours.
            self.verify(authority).await?;
        }
        let signing = async {
            self.allow(&path, role::role(request.leaf, ttl)).await?;
            let role = role::name(holder, request.leaf.name);
            sign(&self.connection, authority, &role, request, now, ttl.min(left - CLOCKS)).await
        };
        signing.await.inspect_err(|error| match error {
            // Somebody took the role away, or made it another.
            error if error.is_refusal() => drop(lock(&self.roles).remove(&path)),
            Error::Exchanged(_) | Error::Vault(VaultError::NoMount(_)) => drop(lock(&self.seen).remove(mount)),
            _ => {}
        })
    }

    /// What was signed for the same wish and not stored; not if too much of its life is over.
    fn kept(&self, path: &str, asked: &str, ttl: Duration) -> Option<Pair> {
        let signed = lock(&self.signed);
        let kept = signed.get(path).filter(|signed| signed.hash == asked && signed.since.elapsed() < KEPT.min(ttl / 6));
        kept.map(|signed| signed.pair.clone())
    }

    /// Takes note that what was signed for `holder` of a guest is stored.
    pub fn stored(&self, identity: &Identity, holder: &str) {
        let (guest, role) = (format!("{}/", self.place(identity).path), format!("/roles/{holder}."));
        lock(&self.signed).retain(|path, _| !(path.starts_with(&guest) && path.contains(&role)));
    }

    /// Whether a mount was seen to have the recorded root within [`SEEN_FOR`].
    pub fn is_seen(&self, mount: &str) -> bool {
        lock(&self.seen).get(mount).is_some_and(|at| at.elapsed() < SEEN_FOR)
    }

    /// Looks whether an authority is still there, and the recorded one.
    ///
    /// # Errors
    /// [`Error`] if it is not, or cannot be seen.
    pub async fn verify(&self, authority: InVault<'_>) -> Result<(), Error> {
        lock(&self.seen).remove(authority.mount);
        match self.root(authority.mount).await? {
            Some(certificate) if certificate == authority.certificate => {
                lock(&self.seen).insert(authority.mount.into(), Instant::now());
                Ok(())
            }
            Some(_) => Err(Error::Exchanged(authority.mount.into())),
            None => Err(VaultError::NoMount(authority.mount.into()).into()),
        }
    }

    /// Takes the right to these certificates of `holder` away.
    ///
    /// # Errors
    /// [`VaultError`]
    pub async fn forget(&self, mount: &str, holder: &str, certificates: &[&str]) -> Result<(), VaultError> {
        for certificate in certificates {
            let path = role_path(mount, holder, certificate);
            match self.connection.ask(Action::Delete, &path, Value::Null).await {
                // With the mount went the right.
                Ok(_) | Err(VaultError::NoMount(_)) => {}
                Err(error) => return Err(error),
            }
            lock(&self.roles).remove(&path);
        }
        Ok(())
    }

    /// Writes a role, unless this process did.
    async fn allow(&self, path: &str, role: Value) -> Result<(), VaultError> {
        let hash = hash(&role);
        if lock(&self.roles).get(path) == Some(&hash) {
            return Ok(());
        }
        self.connection.ask(Action::Write, path, role).await?;
        lock(&self.roles).insert(path.into(), hash);
        Ok(())
    }
}

/// How long an authority signs for from `now` on at most.
///
/// # Errors
/// If its time is over, or its certificate cannot be read.
pub fn left(authority: InVault<'_>, now: Timestamp) -> Result<Duration, PkiError> {
    let end = embedded::expires(authority.certificate)?;
    let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
    if left > CLOCKS { Ok(left) } else { Err(PkiError::Expired(end)) }
}

/// A mount's root (PEM), which there has to be.
///
/// # Errors
/// [`Error`]
pub async fn certificate(connection: &Connection, mount: &str) -> Result<String, Error> {
    let path = format!("{mount}/cert/ca");
    let answer = connection.ask(Action::Read, &path, Value::Null).await?;
    certificate_of(&answer, Action::Read, &path)
}

/// Has a request signed by a role of Vault's, and looks whether the certificate (PEM) is the one that was asked for.
///
/// # Errors
/// [`Error`]
pub async fn sign(
    connection: &Connection,
    authority: InVault<'_>,
    role: &str,
    request: Request<'_>,
    now: Timestamp,
    life: Duration,
) -> Result<String, Error> {
    let Request { leaf, pem, key } = request;
    let path = format!("{}/sign/{role}", authority.mount);
    let body = json!({"csr": pem, "exclude_cn_from_sans": true, "ttl": seconds(life)});
    let answer = connection.ask(Action::Write, &path, body).await?;
    let certificate = certificate_of(&answer, Action::Write, &path)?;
    let end = now.checked_add(life.saturating_sub(CLOCKS)).unwrap_or(Timestamp::MAX);
    match check::problem(&certificate, authority.certificate, leaf, key, end) {
        Some(check::ANOTHER_ROOT) => Err(Error::Exchanged(authority.mount.into())),
        None => Ok(certificate),
        Some(problem) => Err(Error::Other { path, problem }),
    }
}

/// What is behind it is whole whenever it is let go of.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn role_path(mount: &str, holder: &str, certificate: &str) -> String {
    format!("{mount}/roles/{}", role::name(holder, certificate))
}

/// A lifetime as Vault takes it.
fn seconds(ttl: Duration) -> String {
    format!("{}s", ttl.as_secs())
}

/// The certificate of an answer, encoded as all of ours.
fn certificate_of(answer: &Value, action: Action, path: &str) -> Result<String, Error> {
    let certificate = answer["data"]["certificate"].as_str();
    let read = certificate.and_then(|pem| parse_x509_pem(pem.as_bytes()).ok());
    let lacks = || VaultError::Answer { action: action.name(), path: path.into(), lacks: "certificate" };
    Ok(embedded::encode("CERTIFICATE", read.ok_or_else(lacks)?.1.contents))
}
