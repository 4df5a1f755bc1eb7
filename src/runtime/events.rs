//! Events for people. The same word about the same object is said once an hour at most.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::debug;

use super::{call, chain};

/// The server forgets an event after an hour, too.
const REPEAT_AFTER: Duration = Duration::from_secs(3600);
/// Longest note that the server takes, in bytes.
const LONGEST_NOTE: usize = 1024;

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// For the record.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Says events. Clones share what was said.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
    said: Arc<Mutex<Said>>,
}

/// When which note was said, by the object's UID and reason.
type Said = HashMap<(String, String), (String, Instant)>;

impl Events {
    /// Events of the controller called `controller`; `instance` is the name of this process.
    pub fn new(client: Client, controller: &str, instance: Option<String>) -> Self {
        let reporter = Reporter { controller: controller.into(), instance };
        Self { recorder: Recorder::new(client, reporter), said: Arc::default() }
    }

    /// Says something about an object. An event that cannot be written is lost: nothing depends on it.
    pub async fn say<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        weight: Weight,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let uid = object.meta().uid.clone().unwrap_or_default();
        if !self.is_news(uid, reason, note) {
            return;
        }
        let event = Event {
            type_: match weight {
                Weight::Normal => EventType::Normal,
                Weight::Warning => EventType::Warning,
            },
            reason: reason.into(),
            note: Some(shortened(note)),
            // kube counts up an event of the same action and reason, whatever its note: another note is another action.
            action: format!("{action}-{}", super::apply::hash(&note.into())),
            secondary: None,
        };
        let reference = object.object_ref(&());
        let name = format!("Event about {}", super::apply::describe(object));
        if let Err(error) = call("create", name, self.recorder.publish(&event, &reference)).await {
            debug!(error = chain(&error), "an event is lost");
        }
    }

    fn is_news(&self, uid: String, reason: &str, note: &str) -> bool {
        let now = Instant::now();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (uid, reason.to_owned());
        if said.get(&key).is_some_and(|(old, at)| old == note && now.duration_since(*at) < REPEAT_AFTER) {
            return false;
        }
        said.insert(key, (note.to_owned(), now));
        true
    }

    /// Forgets what was said about an object that is gone.
    pub fn forget(&self, uid: &str) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).retain(|(about, _), _| about != uid);
    }
}

fn shortened(note: &str) -> String {
    if note.len() <= LONGEST_NOTE {
        return note.to_owned();
    }
    let mut end = LONGEST_NOTE - '…'.len_utf8();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &note[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        for note in ["short".to_owned(), "ä".repeat(2000), "x".repeat(1025), "é…".repeat(400)] {
            let cut = shortened(&note);
            assert!(cut.len() <= LONGEST_NOTE && (cut == note || cut.ends_with('…')));
        }
    }
}
