//! What the agent says of itself in a file: what there is, whether it is all that is wanted, and who has still to be told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    files::{self, Access},
    plan::Found,
};

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct StateError {
    action: &'static str,
    path: String,
    #[source]
    source: io::Error,
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Whether every certificate and key is there, and none has ended.
    pub ready: bool,
    /// Whether keys that nobody signs are missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_keys: bool,
    /// Each certificate.
    #[serde(default)]
    pub certificates: BTreeMap<String, Certificate>,
    /// Commands that have still to be run, since a certificate has changed.
    #[serde(default)]
    pub untold: BTreeSet<Vec<String>>,
    /// What was written last.
    #[serde(skip)]
    written: String,
}

/// What the file says of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", untagged)]
pub enum Certificate {
    /// It is there.
    There {
        /// When it is renewed.
        renew_at: Timestamp,
        /// When it ends.
        ends_at: Timestamp,
    },
    /// It is not.
    Wanting {
        /// What is wrong with what is there.
        problem: String,
    },
}

impl State {
    /// What an earlier agent said. What cannot be understood is as good as nothing: it is written anew.
    ///
    /// # Errors
    /// If there is a file, and it cannot be read.
    pub fn read(path: &Path) -> Result<Self, StateError> {
        let text = files::read(path).map_err(|source| failed("read", path, source))?.unwrap_or_default();
        let state = serde_json::from_str::<Self>(&text).unwrap_or_default();
        Ok(Self { written: text, ..state })
    }

    /// Takes note of what there is.
    pub fn note<'a>(&mut self, found: impl Iterator<Item = (&'a str, &'a Found)>, lacks_keys: bool, now: Timestamp) {
        (self.ready, self.lacks_keys) = (!lacks_keys, lacks_keys);
        self.certificates = found
            .map(|(name, found)| {
                let certificate = match found {
                    Found::Fits(life) => {
                        self.ready &= life.ends > now;
                        Certificate::There { renew_at: life.renew_at(), ends_at: life.ends }
                    }
                    Found::Unfit(problem) => {
                        self.ready = false;
                        Certificate::Wanting { problem: (*problem).to_owned() }
                    }
                };
                (name.to_owned(), certificate)
            })
            .collect();
    }

    /// Takes note of the time alone, while nobody can say whether what there is fits.
    pub fn age(&mut self, now: Timestamp) {
        let lives = |found: &Certificate| matches!(found, Certificate::There { ends_at, .. } if *ends_at > now);
        self.ready &= self.certificates.values().all(lives);
    }

    /// Takes note of a command that has to be run.
    pub fn owe(&mut self, command: &[String]) {
        if !command.is_empty() {
            self.untold.insert(command.to_vec());
        }
    }

    /// Takes note of a command that was run.
    pub fn told(&mut self, command: &[String]) {
        self.untold.remove(command);
    }

    /// Writes the file, if it says something else.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, path: &Path) -> Result<(), StateError> {
        let mut text = serde_json::to_string_pretty(self).map_err(|error| failed("write", path, error.into()))?;
        text.push('\n');
        if text == self.written {
            return Ok(());
        }
        let written = path.parent().map_or(Ok(()), fs::create_dir_all);
        written
            .and_then(|()| files::write(path, text.as_bytes(), Access::All))
            .map_err(|e| failed("write", path, e))?;
        self.written = text;
        Ok(())
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError { action, path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_agent::plan::Life;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn it_is_ready_when_everything_is_there_and_whom_it_owes_word_outlives_it() {
        let folder = std::env::temp_dir().join(format!("giantnetes-state-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let path = folder.join("a/state.json");
        let mut state = State::read(&path).unwrap();
        assert!(!state.ready);
        let fits = Found::Fits(Life { issued: at(0), ends: at(900), authority_ends: at(100_000) });
        let missing = Found::Unfit("is missing");
        state.note([("a", &fits), ("b", &missing)].into_iter(), false, at(0));
        assert!(!state.ready);
        state.note([("a", &fits), ("b", &fits)].into_iter(), false, at(900));
        assert!(!state.ready);
        state.note([("a", &fits), ("b", &fits)].into_iter(), false, at(0));
        assert!(state.ready);
        state.note([("a", &fits)].into_iter(), true, at(0));
        assert!(!state.ready && state.lacks_keys);
        state.note([("a", &fits), ("b", &fits)].into_iter(), false, at(0));
        state.age(at(899));
        assert!(state.ready);
        let mut old = state.clone();
        old.age(at(900));
        assert!(!old.ready);
        let command = ["systemctl".to_owned(), "restart".to_owned()];
        state.owe(&command);
        state.owe(&[]);
        state.write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"renewAt\": \"1970-01-01T00:10:00Z\""), "{text}");
        let mut next = State::read(&path).unwrap();
        assert_eq!((next.untold.len(), next.ready, &next.certificates), (1, true, &state.certificates));
        // Nothing is written where nothing changed.
        let before = fs::metadata(&path).unwrap();
        next.write(&path).unwrap();
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(fs::metadata(&path).unwrap().ino(), before.ino());
        next.told(&command);
        next.write(&path).unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), before.ino());
        fs::write(&path, "torn").unwrap();
        assert_eq!(State::read(&path).unwrap().untold.len(), 0);
        fs::remove_dir_all(&folder).unwrap();
    }
}
