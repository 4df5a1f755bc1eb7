//! Keys that nobody signs: of service accounts, and of encryption at rest. Vault keeps them where the nodes of one login alone may
//! read, and a node knows by their hashes whether what it has is what is wanted.

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::{
    config::{KeyFile, Keys, Readers},
    files::{self, Access},
    issue::IssueError,
};
use crate::pki::{
    embedded::fingerprint,
    vault::{
        VaultError,
        client::{Action, Connection},
    },
};

/// Whether all of them are there, and nobody but root reads them.
///
/// # Errors
/// If a file cannot be read.
pub fn are_there(keys: &Keys) -> Result<bool, IssueError> {
    for key in &keys.files {
        let failed = |source| IssueError::File { action: "read", path: key.file.display().to_string(), source };
        let found = files::read(&key.file).map_err(failed)?.map(SecretString::from);
        if found.is_none_or(|text| fingerprint(text.expose_secret()) != key.sha256) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Fetches them all, and puts them where they are wanted. What is not what the node was told is not used.
///
/// # Errors
/// [`IssueError`]
pub async fn fetch(vault: &Connection, keys: &Keys) -> Result<(), IssueError> {
    let answer = vault.ask(Action::Read, &keys.path, Value::Null).await.map_err(crate::pki::vault::Error::from)?;
    let texts: Vec<_> = keys.files.iter().map(|key| text(&answer, keys, key)).collect::<Result<_, _>>()?;
    for (key, text) in keys.files.iter().zip(texts) {
        let failed = |source| IssueError::File { action: "write", path: key.file.display().to_string(), source };
        files::write(&key.file, text.expose_secret().as_bytes(), Access::Of(Readers::Owner)).map_err(failed)?;
    }
    Ok(())
}

fn text(answer: &Value, keys: &Keys, key: &KeyFile) -> Result<SecretString, IssueError> {
    let lacks = || VaultError::Answer { action: Action::Read.name(), path: keys.path.clone(), lacks: "such key" };
    let text = answer["data"][&key.name].as_str().ok_or_else(lacks).map_err(crate::pki::vault::Error::from)?;
    if fingerprint(text) == key.sha256 {
        return Ok(text.into());
    }
    Err(IssueError::Key { path: keys.path.clone(), name: key.name.clone() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_is_used_if_it_is_the_one_that_the_node_was_told_of() {
        let folder = std::env::temp_dir().join(format!("giantnetes-keys-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        let key = KeyFile { name: "sa.key".into(), sha256: fingerprint("right"), file: folder.join("sa.key") };
        let keys = Keys { path: "giantnetes-keys/ID".into(), files: vec![key.clone()] };
        assert!(!are_there(&keys).unwrap());
        let of = |text: &str| self::text(&json!({"data": {"sa.key": text}}), &keys, &key);
        assert_eq!(of("right").unwrap().expose_secret(), "right");
        let error = of("wrong").unwrap_err().to_string();
        assert!(error.contains("sa.key") && !error.contains("wrong"), "{error}");
        assert!(self::text(&json!({"data": {}}), &keys, &key).is_err());
        std::fs::write(&key.file, "torn").unwrap();
        assert!(!are_there(&keys).unwrap());
        std::fs::write(&key.file, "right").unwrap();
        assert!(are_there(&keys).unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
