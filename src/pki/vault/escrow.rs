//! Keys of authorities that can be exported: written down in Vault, in a KV engine of the guest's own, by who cannot read them.
//!
//! Each lies at a path of its own, named after the fingerprint of its certificate, and is written once, before it is imported. None is
//! ever written over: whichever of several becomes the authority, its key is there.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tracing::info;

use super::{
    Error, InVault, Vault, VaultError,
    client::{Action, Connection},
    role,
};
use crate::{
    cluster::Identity,
    pki::{
        embedded::{self, Pair},
        leaf::Authority,
        roots::Root,
    },
};

/// Last segment of the mount's path, beside those of the authorities.
const MOUNT: &str = "escrow";
/// A KV engine that was just mounted makes itself ready first, and says so to whoever asks meanwhile.
const GETS_READY: &str = "Upgrading from non-versioned to versioned";
/// How often it is asked in that time, and the pause in between.
const TRIES: u32 = 25;
const PAUSE: Duration = Duration::from_millis(200);

/// Path of a guest's KV mount: `<prefix>/<id>/escrow`.
pub fn mount(prefix: &str, identity: &Identity) -> String {
    format!("{prefix}/{}/{MOUNT}", identity.id)
}

/// Where the key of an authority with this certificate (PEM) lies below `part` (`data`, or `metadata`) of a KV mount.
fn path(mount: &str, part: &str, authority: Authority, certificate: &str) -> String {
    format!("{mount}/{part}/{}/{}", Root::Ca(authority).name(), embedded::fingerprint(certificate))
}

impl Vault {
    /// Writes the key of an authority down, unless it is.
    pub(super) async fn write_down(&self, identity: &Identity, authority: Authority, pair: &Pair) -> Result<(), Error> {
        let mount = mount(&self.settings.prefix, identity);
        match self.owned(identity, &mount).await? {
            Some(true) => {}
            Some(false) => return Err(Error::Foreign(mount)),
            None => {
                let body =
                    json!({"type": "kv", "options": {"version": "2"}, "description": role::description(identity)});
                self.connection.ask(Action::Write, &format!("sys/mounts/{mount}"), body).await?;
            }
        }
        // Whether it is there may be asked, and not what it is.
        let seen = path(&mount, "metadata", authority, &pair.certificate);
        match self.patiently(Action::Read, &seen, Value::Null).await {
            Ok(_) => return Ok(()),
            Err(error) if error.says(404, "") => {}
            Err(error) => return Err(error.into()),
        }
        let content = json!({
            "cluster": identity.key.to_string(),
            "certificate": pair.certificate,
            "key": pair.key.expose_secret(),
        });
        let body = json!({"options": {"cas": 0}, "data": content});
        self.patiently(Action::Write, &path(&mount, "data", authority, &pair.certificate), body).await?;
        info!(mount, authority = Root::Ca(authority).name(), "the key of an authority was written down");
        Ok(())
    }

    async fn patiently(&self, action: Action, path: &str, body: Value) -> Result<Value, VaultError> {
        let mut left = TRIES;
        loop {
            match self.connection.ask(action, path, body.clone()).await {
                Err(error) if error.says(400, GETS_READY) && left > 0 => left -= 1,
                answer => return answer,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Reads the key of an authority that was written down, as its escrow officer. None: there is none.
///
/// # Errors
/// [`VaultError`]
pub async fn read(
    connection: &Connection,
    authority: Authority,
    kept: InVault<'_>,
) -> Result<Option<Pair>, VaultError> {
    let guest = kept.mount.rsplit_once('/').map_or("", |(guest, _)| guest);
    let path = path(&format!("{guest}/{MOUNT}"), "data", authority, kept.certificate);
    let answer = match connection.ask(Action::Read, &path, Value::Null).await {
        Ok(answer) => answer,
        Err(error) if error.says(404, "") || matches!(error, VaultError::NoMount(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = |field| answer["data"]["data"][field].as_str();
    let lacks = |lacks| VaultError::Answer { action: Action::Read.name(), path: path.clone(), lacks };
    let certificate = text("certificate").ok_or_else(|| lacks("certificate"))?.to_owned();
    Ok(Some(Pair { certificate, key: text("key").ok_or_else(|| lacks("key"))?.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{roots, valid};

    #[test]
    fn a_key_lies_beside_its_authority_where_its_records_fingerprint_says() {
        let (identity, roots) = (valid(json!({})).identity, roots());
        let mount = mount("g", &identity);
        assert_eq!(mount, format!("g/{}/escrow", identity.id));
        let record = &roots.fingerprints()[&Root::Ca(Authority::FrontProxy).record()];
        let path = path(&mount, "data", Authority::FrontProxy, roots.front_proxy.certificate());
        assert_eq!(path, format!("{mount}/data/front-proxy/{record}"));
        // Else the mount could be taken for an authority's.
        assert!(Authority::ALL.iter().all(|of| Root::Ca(*of).name() != MOUNT));
    }
}
