//! How exports are counted. Who exports counts it at the roots' Secret, where it stays; this process tells Prometheus of those that
//! it sees to be added.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use prometheus::IntCounter;

use super::super::roots;
use crate::{
    api::names,
    runtime::{
        cache::Change,
        telemetry::metric::{Declared, Kind, Metric},
    },
};

static EXPORTS: Declared<IntCounter> = Declared::counter(Metric {
    name: "giantnetes_pki_exports_total",
    kind: Kind::Counter,
    labels: &[],
    help: "Exports of guests' keys by `giantnetes pki export` that this replica saw while it ran; of which guest, its Event \
           `PKIExport` says, and how many in all, annotation `giantnetes.io/pki-exports` of its Secret `roots-<generation>`",
});

/// The metrics of exports.
pub fn metrics() -> Vec<&'static Metric> {
    vec![&EXPORTS.metric]
}

/// What is written down of exports of these roots.
pub fn written_down(meta: &ObjectMeta) -> u64 {
    let annotation = meta.annotations.as_ref().and_then(|all| all.get(names::EXPORTS_ANNOTATION));
    annotation.and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// How often the roots of each guest were exported, as it was last seen.
#[derive(Debug, Default)]
pub struct Exports {
    /// By the UID of the roots' Secret.
    seen: Mutex<HashMap<String, u64>>,
}

impl Exports {
    /// None seen yet. From here on Prometheus is told of a count, so that the first export is one more than before.
    pub fn start() -> Self {
        EXPORTS.inc_by(0);
        Self::default()
    }

    /// Takes note of a Secret.
    pub fn note(&self, meta: &ObjectMeta, change: Change) {
        EXPORTS.inc_by(self.added(meta, change));
    }

    /// How many exports were added since it was last seen. What was there when it was seen first was added at another time.
    fn added(&self, meta: &ObjectMeta, change: Change) -> u64 {
        let generation = meta.name.as_deref().and_then(roots::generation_of);
        let (Some(uid), Some(_)) = (&meta.uid, generation) else { return 0 };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if change == Change::Gone {
            seen.remove(uid);
            return 0;
        }
        let count = written_down(meta);
        let before = seen.insert(uid.clone(), count);
        before.map_or(0, |before| count.saturating_sub(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_while_somebody_looks_is_counted_once() {
        let meta = |name: &str, uid: &str, count: Option<&str>| ObjectMeta {
            name: Some(name.into()),
            uid: Some(uid.into()),
            annotations: count.map(|count| [(names::EXPORTS_ANNOTATION.to_owned(), count.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let exports = Exports::default();
        let is = |uid: &str, count| exports.added(&meta(roots::SECRET, uid, count), Change::Is);
        assert_eq!((is("a", None), is("a", Some("1")), is("a", Some("1")), is("a", Some("3"))), (0, 1, 0, 2));
        // Those of before.
        assert_eq!((is("b", Some("7")), is("b", Some("8"))), (0, 1));
        // Somebody's edit.
        assert_eq!((is("b", Some("x")), is("b", Some("1"))), (0, 1));
        let later = |count| exports.added(&meta("roots-2", "d", count), Change::Is);
        assert_eq!((later(None), later(Some("1"))), (0, 1));
        assert_eq!(exports.added(&meta("other", "c", None), Change::Is), 0);
        assert_eq!(exports.added(&meta("other", "c", Some("5")), Change::Is), 0);
        assert_eq!(exports.added(&meta(roots::SECRET, "a", None), Change::Gone), 0);
        assert!(!exports.seen.lock().unwrap().contains_key("a"));
    }
}
