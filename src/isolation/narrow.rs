//! Which ways between VM pods of a guest are too narrow, by what these say, and what is told of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Member;
use crate::supervisor::{network, path_mtu::Narrow};

/// Pairs that a message names.
const NAMED: usize = 3;
/// Smallest MTU of an overlay that a Cluster can ask for.
const LEAST_MTU: u32 = 1280;

/// What each VM pod last said of the ways to the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    said: BTreeMap<String, Vec<Narrow>>,
}

impl Ways {
    /// Heeds answers, by VM pod. Of one that does not answer stands what it said, for as long as it is there.
    pub fn heed(&mut self, answers: impl IntoIterator<Item = (String, Vec<Narrow>)>, all: &BTreeSet<String>) {
        self.said.extend(answers);
        self.said.retain(|pod, _| all.contains(pod));
    }

    /// Whether each of these has said something, or there is nothing to say.
    pub fn are_known(&self, members: &[Member]) -> bool {
        members.len() < 2 || members.iter().all(|member| self.said.contains_key(&member.name))
    }

    /// What there is to say, if some are too narrow. A way from or to a VM pod that is none of these any more leads nowhere.
    pub fn message(&self, members: &[Member]) -> Option<String> {
        let to = |narrow: &Narrow| members.iter().find(|member| member.address == narrow.peer);
        let is_there = |pod: &String| members.iter().any(|member| member.name == *pod);
        let all: Vec<_> = self
            .said
            .iter()
            .filter(|(from, _)| is_there(from))
            .flat_map(|(from, ways)| ways.iter().filter_map(move |way| Some((from, &to(way)?.name, way))))
            .collect();
        let mtu = all.iter().map(|(.., way)| way.passes.saturating_sub(network::overhead(way.peer))).min()?;
        let pair = |(from, to, way): &(&String, &String, &Narrow)| {
            format!(
                "from VM pod {from} to {to} packets of {} bytes do not pass whole, at most {}",
                way.size, way.passes
            )
        };
        let mut said: Vec<_> = all.iter().take(NAMED).map(pair).collect();
        if all.len() > NAMED {
            said.push(format!("{} more", all.len() - NAMED));
        }
        let less = format!(", or let spec.network.overlay.mtu ask for {mtu} at most");
        let less = if mtu < LEAST_MTU { "" } else { less.as_str() };
        Some(format!("{}; the hosts' network must carry what the pods' interface promises{less}", said.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &[&str]) -> Vec<Member> {
        let member = |(number, name): (usize, &&str)| {
            let last = u8::try_from(number + 1).unwrap();
            Member { name: (*name).into(), address: [10, 3, 0, last].into(), host: None }
        };
        names.iter().enumerate().map(member).collect()
    }

    fn narrow(last: u8, passes: u32) -> Narrow {
        Narrow { peer: [10, 3, 0, last].into(), size: 1500, passes }
    }

    fn names(members: &[Member]) -> BTreeSet<String> {
        members.iter().map(|member| member.name.clone()).collect()
    }

    #[test]
    fn a_narrow_way_is_told_with_its_pair_and_sizes() {
        let (members, mut ways) = (members(&["a-0", "master-0"]), Ways::default());
        assert_eq!(ways.message(&members), None);
        ways.heed([("a-0".into(), vec![narrow(2, 1400)]), ("master-0".into(), Vec::new())], &names(&members));
        let said = ways.message(&members).unwrap();
        let pair = "from VM pod a-0 to master-0 packets of 1500 bytes do not pass whole, at most 1400; ";
        assert!(said.starts_with(pair) && said.ends_with("ask for 1350 at most"), "{said}");
        // It says nothing, and then that all is well.
        ways.heed([], &names(&members));
        assert!(ways.message(&members).is_some());
        ways.heed([("a-0".into(), Vec::new())], &names(&members));
        assert_eq!(ways.message(&members), None);
    }

    #[test]
    fn who_is_no_more_is_at_no_end_of_a_way() {
        let (all, mut ways) = (members(&["a-0", "a-1", "a-2"]), Ways::default());
        ways.heed([("a-0".into(), vec![narrow(2, 1400)]), ("a-1".into(), vec![narrow(1, 1400)])], &names(&all));
        let without = [all[0].clone(), all[2].clone()];
        assert_eq!(ways.message(&without), None);
        ways.heed([], &names(&without));
        // Another with its address: what the first one said of it is still to be said anew.
        assert!(ways.message(&all).unwrap().starts_with("from VM pod a-0 to a-1"));
        assert!(!ways.are_known(&all) && ways.are_known(&all[..1]));
        ways.heed([("a-1".into(), Vec::new()), ("a-2".into(), Vec::new())], &names(&all));
        assert!(ways.are_known(&all));
    }

    #[test]
    fn a_message_is_no_longer_than_people_read_and_asks_for_nothing_that_cannot_be() {
        let (all, mut ways) = (members(&["a-0", "a-1", "a-2", "a-3", "a-4"]), Ways::default());
        ways.heed([("a-0".into(), (2..=5).map(|last| narrow(last, 1300)).collect())], &names(&all));
        let said = ways.message(&all).unwrap();
        assert!(
            said.contains("to a-3 packets") && !said.contains("to a-4 packets") && said.contains(", 1 more; "),
            "{said}"
        );
        assert!(!said.contains("overlay.mtu"), "{said}");
    }
}
