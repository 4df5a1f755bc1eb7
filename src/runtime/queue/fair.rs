//! Which ready key is next: groups take turns, and none may hold more than half of the workers.
//!
//! So a namespace with hundreds of objects that fail, or take long, slows another down by at most a factor of two.

use std::collections::{HashMap, VecDeque};

use super::Key;

/// Ready keys, by group.
#[derive(Debug)]
pub(super) struct Ready<K> {
    groups: HashMap<String, Group<K>>,
    /// Groups with ready keys, in the order of their turns.
    turns: VecDeque<String>,
    /// Workers that one group may hold.
    share: usize,
    len: usize,
}

#[derive(Debug)]
struct Group<K> {
    keys: VecDeque<K>,
    working: usize,
}

impl<K: Key> Ready<K> {
    pub(super) fn new(workers: usize) -> Self {
        Self { groups: HashMap::new(), turns: VecDeque::new(), share: workers.div_ceil(2).max(1), len: 0 }
    }

    /// Ready keys of all groups.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, key: K) {
        self.len += 1;
        let name = key.group().to_owned();
        let group = self.groups.entry(name.clone()).or_insert(Group { keys: VecDeque::new(), working: 0 });
        if group.keys.is_empty() {
            self.turns.push_back(name);
        }
        group.keys.push_back(key);
    }

    /// The next key of a group that has a worker left. The caller owes a [`Ready::done`] for it.
    pub(super) fn pop(&mut self) -> Option<K> {
        for _ in 0..self.turns.len() {
            let name = self.turns.pop_front()?;
            let Some(group) = self.groups.get_mut(&name) else { continue };
            if group.working >= self.share {
                self.turns.push_back(name);
                continue;
            }
            let key = group.keys.pop_front();
            group.working += 1;
            self.len -= 1;
            if !group.keys.is_empty() {
                self.turns.push_back(name);
            }
            return key;
        }
        None
    }

    pub(super) fn done(&mut self, key: &K) {
        let Some(group) = self.groups.get_mut(key.group()) else { return };
        group.working = group.working.saturating_sub(1);
        if group.working == 0 && group.keys.is_empty() {
            self.groups.remove(key.group());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Member(&'static str, u32);

    impl Key for Member {
        fn group(&self) -> &str {
            self.0
        }
    }

    fn crowded() -> Ready<Member> {
        let mut ready = Ready::new(8);
        for number in 0..500 {
            ready.push(Member("crowd", number));
        }
        ready
    }

    #[test]
    fn groups_take_turns() {
        let mut ready = crowded();
        ready.push(Member("one", 0));
        let order: Vec<_> = std::iter::from_fn(|| ready.pop()).take(3).collect();
        assert_eq!(order, [Member("crowd", 0), Member("one", 0), Member("crowd", 1)]);
    }

    #[test]
    fn no_group_holds_more_than_half_of_the_workers() {
        let mut ready = crowded();
        assert_eq!(std::iter::from_fn(|| ready.pop()).count(), 4);
        ready.push(Member("one", 0));
        assert_eq!(ready.pop(), Some(Member("one", 0)));
        ready.done(&Member("crowd", 0));
        assert_eq!((ready.pop(), ready.pop()), (Some(Member("crowd", 4)), None));
    }

    #[test]
    fn what_is_done_leaves_nothing_behind() {
        let mut ready = Ready::new(1);
        ready.push(Member("a", 1));
        assert_eq!(ready.pop(), Some(Member("a", 1)));
        ready.done(&Member("a", 1));
        assert!(ready.groups.is_empty() && ready.turns.is_empty() && ready.len() == 0);
    }
}
