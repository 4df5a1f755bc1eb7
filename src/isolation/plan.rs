//! Which places a guest's VM pods try to reach, and what comes of their answers. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::Ipv4Net;

use crate::{api::names, network::policies, supervisor::reach};

/// VM pods of one guest that are asked at a time; of more it is the turn of each.
pub const PODS: usize = 8;
/// How many hosts a VM pod tries at a time, and how many VM pods of other guests: over time it is the turn of each.
const TRIED: (usize, usize) = (4, 8);
/// Pairs that a message names.
const NAMED: usize = 3;
/// Where clouds tell instances who they are.
const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);

/// What is known of the management cluster.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// Where its API servers are.
    pub apis: BTreeSet<SocketAddr>,
    /// Addresses of hosts.
    pub hosts: BTreeSet<IpAddr>,
    /// Addresses of VM pods: the namespace of each, and its name.
    pub pods: BTreeMap<IpAddr, (String, String)>,
    /// What the operator lets guests reach.
    pub allowed: Vec<Ipv4Net>,
}

/// A VM pod of the guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// That of its host, which many networks never close to the pods on it.
    pub host: Option<IpAddr>,
}

/// A VM pod that reached what it must not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    /// The VM pod's name.
    pub pod: String,
    /// What it reached.
    pub address: SocketAddr,
}

/// What a VM pod was asked to try, and what of it it reached.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its name.
    pub pod: String,
    /// What it tried.
    pub tried: BTreeSet<SocketAddr>,
    /// What it reached; what it was not asked for counts for nothing.
    pub reached: Vec<SocketAddr>,
}

impl Fleet {
    /// What of another's is at an address, seen from namespace `home`. None: nothing that a policy closes.
    pub fn what(&self, home: &str, address: SocketAddr) -> Option<String> {
        let (ip, port) = (address.ip(), address.port());
        if !policies::is_closed(ip, &self.allowed) {
            return None;
        }
        if address == METADATA {
            return Some("the cloud's metadata service".into());
        }
        if self.apis.contains(&address) {
            return Some("the management cluster's API".into());
        }
        if port == names::KUBELET_PORT && self.hosts.contains(&ip) {
            return Some(format!("the kubelet of host {ip}"));
        }
        let other = self.pods.get(&ip).filter(|(namespace, _)| namespace != home && port == names::SUPERVISOR_PORT);
        other.map(|(namespace, name)| format!("VM pod {namespace}/{name} of another guest"))
    }

    /// What the `number`-th VM pod of a guest tries at a look. What it reached before is among it as far as there is room,
    /// until it is seen to be closed.
    pub fn question(&self, home: &str, member: &Member, seed: usize, leaks: &BTreeSet<Leak>) -> BTreeSet<SocketAddr> {
        let of_pod: Vec<_> = leaks.iter().filter(|leak| leak.pod == member.name).map(|leak| leak.address).collect();
        let hosts: Vec<_> = self.hosts.iter().filter(|host| Some(**host) != member.host).copied().collect();
        let others: Vec<_> = self.others(home).collect();
        let at = |port| move |ip: IpAddr| SocketAddr::new(ip, port);
        let apis: Vec<_> = self.apis.iter().copied().collect();
        let all = [METADATA]
            .into_iter()
            .chain(in_turn(&apis, 1, seed))
            .chain(in_turn(&of_pod, reach::MOST - 2, seed))
            .chain(in_turn(&hosts, TRIED.0, seed).map(at(names::KUBELET_PORT)))
            .chain(in_turn(&others, TRIED.1, seed).map(at(names::SUPERVISOR_PORT)));
        let mut question = BTreeSet::new();
        let is_own = |address: &SocketAddr| Some(address.ip()) == member.host;
        for address in all.filter(|address| self.what(home, *address).is_some() && !is_own(address)) {
            if question.len() < reach::MOST {
                question.insert(address);
            }
        }
        question
    }

    /// After how many looks every VM pod has tried everything.
    pub fn looks(&self, home: &str, members: usize) -> usize {
        let most = |all: usize, some: usize| all.div_ceil(some).max(1);
        let each = most(self.hosts.len(), TRIED.0).max(most(self.others(home).count(), TRIED.1)).max(self.apis.len());
        groups(members) * each
    }

    fn others<'a>(&'a self, home: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
        self.pods.iter().filter(move |(_, (namespace, _))| namespace != home).map(|(address, _)| *address)
    }

    /// What there is to say of leaks.
    pub fn message(&self, home: &str, leaks: &BTreeSet<Leak>) -> String {
        let say = |leak: &Leak| {
            let what = self.what(home, leak.address).unwrap_or_else(|| "what it must not".into());
            format!("VM pod {} reaches {what} ({})", leak.pod, leak.address)
        };
        let mut said: Vec<_> = leaks.iter().take(NAMED).map(say).collect();
        if leaks.len() > NAMED {
            said.push(format!("{} more", leaks.len() - NAMED));
        }
        let cure =
            "the CNI must enforce NetworkPolicy guest, and no other policy of the namespace may open what it closes";
        format!("{}; {cure}", said.join(", "))
    }
}

/// In how many looks it is the turn of each of so many VM pods.
pub fn groups(members: usize) -> usize {
    members.div_ceil(PODS).max(1)
}

/// Whose turn it is at the `turn`-th look, each with the number that says what it is to try.
pub fn whose_turn(members: &[Member], turn: usize) -> impl Iterator<Item = (&Member, usize)> {
    let groups = groups(members.len());
    let asked = members.iter().enumerate().filter(move |(number, _)| number % groups == turn % groups);
    // Each goes through everything, and siblings begin at different places.
    asked.map(move |(number, member)| (member, (turn / groups).wrapping_add(number)))
}

/// Some of `all`, and the next ones at the next turn.
fn in_turn<T: Copy>(all: &[T], some: usize, turn: usize) -> impl Iterator<Item = T> {
    let (first, some) = (turn % all.len().max(1) * some, some.min(all.len()));
    (0..some).map(move |number| all[(first + number) % all.len()])
}

/// What leaks after these answers: what was reached, and what leaked before unless the same VM pod has tried in vain or one of
/// both is no more.
pub fn leaks(former: &BTreeSet<Leak>, answers: &[Answer], is_there: impl Fn(&Leak) -> bool) -> BTreeSet<Leak> {
    let tried =
        |leak: &Leak| answers.iter().any(|answer| answer.pod == leak.pod && answer.tried.contains(&leak.address));
    let open = former.iter().filter(|leak| !tried(leak) && is_there(leak)).cloned();
    let found = answers.iter().flat_map(|answer| {
        let asked = answer.reached.iter().filter(|address| answer.tried.contains(address));
        asked.map(|address| Leak { pod: answer.pod.clone(), address: *address })
    });
    open.chain(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(hosts: u8, others: u8) -> Fleet {
        Fleet {
            apis: ["10.0.0.2:6443".parse().unwrap()].into(),
            hosts: (1..=hosts).map(|n| IpAddr::from([10, 1, 0, n])).collect(),
            pods: (1..=others)
                .map(|n| (IpAddr::from([10, 2, 0, n]), (format!("g8s-{n}"), "master-0".into())))
                .collect(),
            allowed: Vec::new(),
        }
    }

    fn members(count: u8) -> Vec<Member> {
        let member =
            |n| Member { name: format!("a-{n}"), address: [10, 3, 0, n].into(), host: Some([10, 1, 0, 1].into()) };
        (0..count).map(member).collect()
    }

    fn leak(pod: &str, address: &str) -> Leak {
        Leak { pod: pod.into(), address: address.parse().unwrap() }
    }

    #[test]
    fn every_pod_tries_everything_in_so_many_looks_and_its_own_host_never() {
        for (hosts, others, count) in [(3, 7, 1), (1, 0, 3), (9, 30, 4), (20, 3, 17), (64, 200, 33)] {
            let (fleet, members) = (fleet(hosts, others), members(count));
            let mut seen = BTreeMap::<_, BTreeSet<_>>::new();
            for turn in 0..fleet.looks("home", members.len()) {
                assert!(whose_turn(&members, turn).count() <= PODS);
                for (member, seed) in whose_turn(&members, turn) {
                    let question = fleet.question("home", member, seed, &BTreeSet::new());
                    assert!(question.len() <= reach::MOST, "{question:?}");
                    seen.entry(member.name.clone()).or_default().extend(question);
                }
            }
            // But its host.
            let all = 2 + usize::from(hosts) - 1 + usize::from(others);
            assert!(
                seen.len() == members.len() && seen.values().all(|tried| tried.len() == all),
                "{hosts} {others} {count}"
            );
        }
        let alone = Fleet::default().question("home", &members(1)[0], usize::MAX, &BTreeSet::new());
        assert_eq!(alone, [METADATA].into());
    }

    #[test]
    fn what_no_policy_closes_is_not_tried() {
        let open = Fleet { allowed: vec!["10.0.0.0/8".parse().unwrap()], ..fleet(3, 3) };
        assert_eq!(open.question("home", &members(1)[0], 0, &BTreeSet::new()), [METADATA].into());
        let public = Fleet { apis: ["192.0.2.1:443".parse().unwrap()].into(), ..Fleet::default() };
        assert_eq!(public.question("home", &members(1)[0], 0, &BTreeSet::new()), [METADATA].into());
        // A sibling is none of others'.
        let siblings =
            Fleet { pods: [([10, 3, 0, 1].into(), ("home".into(), "a-1".into()))].into(), ..Fleet::default() };
        assert_eq!(siblings.question("home", &members(1)[0], 0, &BTreeSet::new()), [METADATA].into());
    }

    #[test]
    fn leaks_are_tried_again_and_a_question_is_never_too_long() {
        let fleet = fleet(9, 60);
        let many = (1..=50).map(|n| leak("a-0", &format!("10.2.0.{n}:8080"))).collect::<BTreeSet<_>>();
        let mut seen = BTreeSet::new();
        for seed in 0..8 {
            let question = fleet.question("home", &members(1)[0], seed, &many);
            assert!(question.len() <= reach::MOST && question.contains(&METADATA), "{question:?}");
            seen.extend(question);
        }
        assert!(many.iter().all(|leak| seen.contains(&leak.address)), "{seen:?}");
    }

    #[test]
    fn a_leak_stays_until_the_same_pod_has_tried_in_vain_or_one_of_both_is_no_more() {
        let (one, two) = (leak("a-0", "10.1.0.2:10250"), leak("a-1", "10.1.0.2:10250"));
        let former: BTreeSet<_> = [one.clone(), two.clone()].into();
        let answer = |pod: &str, tried: &[&str], reached: &[&str]| Answer {
            pod: pod.into(),
            tried: tried.iter().map(|address| address.parse().unwrap()).collect(),
            reached: reached.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let after = |answers: &[Answer]| leaks(&former, answers, |_| true);
        assert_eq!(after(&[]), former, "nobody says anything");
        assert_eq!(after(&[answer("a-0", &["10.1.0.3:10250"], &[])]), former, "it tried something else");
        assert_eq!(after(&[answer("a-0", &["10.1.0.2:10250"], &[])]), [two.clone()].into());
        let still = answer("a-0", &["10.1.0.2:10250"], &["10.1.0.2:10250", "192.0.2.1:1"]);
        assert_eq!(after(&[still]), former, "what it was not asked for counts for nothing");
        assert_eq!(leaks(&former, &[], |leak| leak.pod == "a-0"), [one].into());
    }

    #[test]
    fn a_message_names_pairs_and_how_many_more() {
        let found = (1..=4).map(|n| leak("a-0", &format!("10.1.0.{n}:10250"))).collect();
        let said = fleet(4, 1).message("home", &found);
        assert!(
            said.starts_with("VM pod a-0 reaches the kubelet of host 10.1.0.1 (10.1.0.1:10250), VM pod a-0"),
            "{said}"
        );
        assert!(said.contains(", 1 more; the CNI must enforce"), "{said}");
        let of_guest = fleet(0, 1).message("home", &[leak("a-0", "10.2.0.1:8080")].into());
        assert!(of_guest.contains("VM pod g8s-1/master-0 of another guest"), "{of_guest}");
    }
}
