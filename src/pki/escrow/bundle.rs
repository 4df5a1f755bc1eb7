//! What is in a bundle, before it is sealed: JSON with a format, a version and what the roots' Secret holds.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::super::{roots::Roots, secrets::bytes};
use crate::api::names;

/// Version of the format. Another one is read by another code than this.
const VERSION: u32 = 1;

/// Roots that were exported.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// `namespace/name` of the Cluster that they are of.
    pub cluster: String,
    /// When they were exported.
    pub exported_at: Timestamp,
    /// They.
    pub roots: Roots,
}

/// Why something is no bundle. It never shows what was read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It is something else.
    #[error("it holds no roots of a guest that `giantnetes pki export` wrote")]
    Other,
    /// It is of another version.
    #[error("it is of format version {0}, and this giantnetes reads {VERSION}: use one as new as that which wrote it")]
    Version(u32),
    /// Something is missing.
    #[error("it lacks some of a guest's roots")]
    Incomplete,
}

/// What every version begins with.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    format: String,
    version: u32,
    cluster: String,
    exported_at: String,
    /// By the keys of the roots' Secret.
    roots: BTreeMap<String, String>,
}

impl Bundle {
    /// The bundle as a text, which holds every key as it is.
    ///
    /// # Errors
    /// [`BundleError::Other`] if a root is no text, which none of ours is.
    pub fn write(&self) -> Result<SecretString, BundleError> {
        let text = |(key, value): (String, ByteString)| Some((key, String::from_utf8(value.0).ok()?));
        let roots: Option<_> = self.roots.data().into_iter().map(text).collect();
        let content = Content {
            format: names::ROOTS_TYPE.into(),
            version: VERSION,
            cluster: self.cluster.clone(),
            exported_at: self.exported_at.to_string(),
            roots: roots.ok_or(BundleError::Other)?,
        };
        serde_json::to_string(&content).map(Into::into).map_err(|_| BundleError::Other)
    }

    /// Reads what [`Bundle::write`] wrote. Whether a guest could live by it is another question.
    ///
    /// # Errors
    /// [`BundleError`]
    pub fn read(text: &SecretString) -> Result<Self, BundleError> {
        let text = text.expose_secret();
        // The parser's own words might quote a key.
        let head: Head = serde_json::from_str(text).map_err(|_| BundleError::Other)?;
        if head.format != names::ROOTS_TYPE {
            return Err(BundleError::Other);
        }
        if head.version != VERSION {
            return Err(BundleError::Version(head.version));
        }
        let content: Content = serde_json::from_str(text).map_err(|_| BundleError::Other)?;
        let data = content.roots.iter().map(|(key, value)| (key.clone(), bytes(value))).collect();
        let roots = Roots::of(&Secret { data: Some(data), ..Secret::default() }).ok_or(BundleError::Incomplete)?;
        let exported_at = content.exported_at.parse().map_err(|_| BundleError::Other)?;
        Ok(Self { cluster: content.cluster, exported_at, roots })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{NOW, roots};

    fn bundle() -> Bundle {
        Bundle { cluster: "team-a/demo".into(), exported_at: NOW, roots: roots() }
    }

    /// A bundle after somebody changed it.
    fn changed(change: impl FnOnce(&mut Value)) -> Result<Bundle, BundleError> {
        let mut content: Value = serde_json::from_str(bundle().write().unwrap().expose_secret()).unwrap();
        change(&mut content);
        Bundle::read(&content.to_string().into())
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let written = bundle();
        let read = Bundle::read(&written.write().unwrap()).unwrap();
        assert_eq!((read.cluster, read.exported_at), (written.cluster, written.exported_at));
        assert!(read.roots.data() == written.roots.data());
    }

    #[test]
    fn what_is_no_bundle_is_told_without_its_content() {
        assert_eq!(changed(|content| content["version"] = json!(2)).unwrap_err(), BundleError::Version(2));
        assert_eq!(changed(|content| content["format"] = json!("other")).unwrap_err(), BundleError::Other);
        // Not a word of it.
        let odd = changed(|content| content["exportedAt"] = json!("secret word")).unwrap_err();
        assert!(odd == BundleError::Other && !format!("{odd} {odd:?}").contains("secret word"));
        for key in bundle().roots.data().into_keys() {
            let lacking = changed(|content| drop(content["roots"].as_object_mut().unwrap().remove(&key)));
            assert_eq!(lacking.unwrap_err(), BundleError::Incomplete, "{key}");
        }
        assert_eq!(Bundle::read(&"{".to_owned().into()).unwrap_err(), BundleError::Other);
    }
}
