//! Events for people. The same word about the same object is said once an hour at most.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
#[derive(Default)]
struct Said(HashMap<(String, String), (String, Instant)>);

impl Said {
    /// Takes note of what is to be said at `now`. Answers whether it was not just said.
    fn is_news(&mut self, uid: String, reason: &str, note: &str, now: Instant) -> bool {
        let key = (uid, reason.to_owned());
        if self.0.get(&key).is_some_and(|(old, at)| old == note && now.duration_since(*at) < REPEAT_AFTER) {
            return false;
        }
        self.0.insert(key, (note.to_owned(), now));
        true
    }
}

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
        if !self.said().is_news(uid, reason, note, Instant::now()) {
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

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was said about an object that is gone.
    pub fn forget(&self, uid: &str) {
        self.said().0.retain(|(about, _), _| about != uid);
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
    fn the_same_word_about_the_same_object_is_said_once_an_hour() {
        let (mut said, now) = (Said::default(), Instant::now());
        let mut is_news = |uid: &str, reason, note, at| said.is_news(uid.to_owned(), reason, note, at);
        assert!(is_news("1", "Error", "no", now));
        assert!(!is_news("1", "Error", "no", now + REPEAT_AFTER / 2));
        assert!(is_news("2", "Error", "no", now));
        assert!(is_news("1", "Lost", "no", now));
        assert!(is_news("1", "Error", "still no", now));
        // The other word was said between.
        assert!(is_news("1", "Error", "no", now));
        assert!(is_news("1", "Error", "no", now + REPEAT_AFTER));
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        for note in ["short".to_owned(), "ä".repeat(2000), "x".repeat(1025), "é…".repeat(400)] {
            let cut = shortened(&note);
            assert!(cut.len() <= LONGEST_NOTE && (cut == note || cut.ends_with('…')));
        }
    }
}
