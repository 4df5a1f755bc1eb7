//! What a control-plane node holds of the one or two generations of a guest's keys. Pure.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::pki::{embedded::PkiError, generations::Generations, roots::Roots, rotation::Phase};

/// Where the keys are in a configuration that we made.
const KEYS: &str = "/resources/0/providers/0/secretbox/keys";

/// The keys of a node.
#[derive(Debug)]
pub struct Files {
    /// Public keys (PEM) that verify service-account tokens.
    pub verify: String,
    /// The private key that signs them.
    pub sign: SecretString,
    /// The API server's `EncryptionConfiguration`: its first key writes, and all of them read.
    pub encryption: SecretString,
}

/// What a node in this phase is given. Without a second generation that is the first one's.
///
/// # Errors
/// [`PkiError::Key`] if an encryption key cannot be read.
pub fn of(roots: &Generations, phase: Phase) -> Result<Files, PkiError> {
    let current = &roots.current;
    let next = roots.next.as_ref().filter(|_| phase > Phase::Before);
    let Some(next) = next else { return Ok(alone(current)) };
    // By what differs: in a rotation of authorities that is none of the keys.
    if next.service_account.certificate == current.service_account.certificate
        && next.encryption.expose_secret() == current.encryption.expose_secret()
    {
        return Ok(alone(current));
    }
    let first = if phase >= Phase::Reissue { (next, current) } else { (current, next) };
    if phase == Phase::Drop {
        return Ok(alone(next));
    }
    Ok(Files { verify: verify(first), sign: first.0.service_account.key.clone(), encryption: both_read(first)? })
}

fn alone(roots: &Roots) -> Files {
    Files {
        verify: roots.service_account.certificate.clone(),
        sign: roots.service_account.key.clone(),
        encryption: roots.encryption.clone(),
    }
}

fn verify((first, second): (&Roots, &Roots)) -> String {
    let (first, second) = (&first.service_account.certificate, &second.service_account.certificate);
    if first == second { first.clone() } else { format!("{}\n{second}", first.trim_end()) }
}

fn both_read((first, second): (&Roots, &Roots)) -> Result<SecretString, PkiError> {
    let (first, second) = (&first.encryption, &second.encryption);
    if first.expose_secret() == second.expose_secret() {
        return Ok(first.clone());
    }
    let (mut config, other) = (parsed(first)?, parsed(second)?);
    let more = other.pointer(KEYS).and_then(Value::as_array).cloned().unwrap_or_default();
    let keys = config.pointer_mut(KEYS).and_then(Value::as_array_mut).ok_or_else(unread)?;
    keys.extend(more);
    // Whatever else somebody's configuration reads with, which was imported.
    let rest = |config: &Value| config.pointer("/resources/0/providers").and_then(Value::as_array).cloned();
    let others = rest(&other).unwrap_or_default().into_iter().skip(1);
    let providers = config.pointer_mut("/resources/0/providers").and_then(Value::as_array_mut).ok_or_else(unread)?;
    for provider in others {
        if !providers.contains(&provider) {
            providers.push(provider);
        }
    }
    // JSON is YAML.
    Ok(config.to_string().into())
}

fn parsed(config: &SecretString) -> Result<Value, PkiError> {
    serde_saphyr::from_str(config.expose_secret()).map_err(|_| unread())
}

/// Without the parser's words, which may have some of the key in them.
fn unread() -> PkiError {
    PkiError::Key("the encryption configuration cannot be read".into())
}

/// The name of the key that a configuration writes with: what is stored begins with it.
///
/// # Errors
/// [`PkiError::Key`] if it cannot be read.
pub fn key_name(config: &SecretString) -> Result<String, PkiError> {
    let config = parsed(config)?;
    let name = config.pointer(&format!("{KEYS}/0/name")).and_then(Value::as_str);
    name.map(str::to_owned).ok_or_else(unread)
}

/// The name of a key that comes: of its generation, and another one than any that the former configuration reads with, since what is
/// stored is told apart by it. Imported ones are of the generation that they were exported in.
///
/// # Errors
/// [`PkiError::Key`] if the former configuration cannot be read.
pub fn name_of_next(former: &SecretString, generation: u32) -> Result<String, PkiError> {
    let former = parsed(former)?;
    let keys = former.pointer(KEYS).and_then(Value::as_array).ok_or_else(unread)?;
    let is_taken = |name: &str| keys.iter().any(|key| key["name"] == json!(name));
    let mut name = format!("key{generation}");
    while is_taken(&name) {
        name.push_str("-next");
    }
    Ok(name)
}

/// How an API server names a public key (PEM) among those that it verifies tokens with (`/openid/v1/jwks`): SHA-256 of its DER.
///
/// # Errors
/// [`PkiError::Key`] if it cannot be read.
pub fn key_id(public_key: &str) -> Result<String, PkiError> {
    let read = pem::parse(public_key).map_err(|error| PkiError::Key(error.to_string()))?;
    Ok(URL_SAFE_NO_PAD.encode(Sha256::digest(read.contents())))
}
