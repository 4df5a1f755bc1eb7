//! Which objects of a store have something in common, so that nobody has to look through all of them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use super::Change;

/// Names of objects, by a group that an object never leaves. Clones share it; a watch's call-back keeps it.
#[derive(Clone, Debug, Default)]
pub struct Index(Arc<Mutex<HashMap<String, BTreeSet<String>>>>);

impl Index {
    /// Takes note of what happened to the object `name` of `group`.
    pub fn note(&self, group: &str, name: &str, change: Change) {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Is => {
                groups.entry(group.to_owned()).or_default().insert(name.to_owned());
            }
            Change::Gone => {
                if let Some(names) = groups.get_mut(group) {
                    names.remove(name);
                    if names.is_empty() {
                        groups.remove(group);
                    }
                }
            }
        }
    }

    /// Names of the group's objects, sorted.
    pub fn names(&self, group: &str) -> Vec<String> {
        let groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(group).map(|names| names.iter().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_comes_and_goes() {
        let index = Index::default();
        index.note("a", "2", Change::Is);
        index.note("a", "1", Change::Is);
        index.note("b", "3", Change::Is);
        assert_eq!(index.names("a"), ["1", "2"]);
        index.note("b", "3", Change::Gone);
        index.note("b", "4", Change::Gone);
        assert!(index.names("b").is_empty() && index.0.lock().unwrap().len() == 1);
    }
}
