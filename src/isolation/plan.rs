//! Which places a guest's VM pods try to reach, and what comes of their answers. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::Ipv4Net;

use crate::api::names;

/// How many hosts are tried at a time, and how many VM pods of other guests: over time it is the turn of each.
const AT_A_TIME: (usize, usize) = (2, 3);
/// Pairs that a message names.
const NAMED: usize = 3;
/// Where clouds tell instances who they are.
const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254)), 80);

/// What is known of the management cluster.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Where its API is, as pods see it.
    pub api: Option<SocketAddr>,
    /// Addresses of hosts.
    pub hosts: BTreeSet<IpAddr>,
    /// Addresses of other guests' VM pods, each with its name.
    pub others: BTreeMap<IpAddr, String>,
    /// What the operator lets guests reach.
    pub allowed: Vec<Ipv4Net>,
}

/// What VM pods must not reach, by address: what it is, for people.
pub type Targets = BTreeMap<SocketAddr, String>;

/// A VM pod that reached what it must not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    /// The VM pod's name.
    pub pod: String,
    /// What it reached, for people.
    pub what: String,
    /// Where that is.
    pub address: SocketAddr,
}

/// The places of the `turn`-th look. What leaked before is among them until it is seen to be closed, or is no more.
pub fn targets(around: &Surroundings, turn: u64, leaks: &[Leak]) -> Targets {
    let hosts: Vec<_> = around.hosts.iter().collect();
    let others: Vec<_> = around.others.iter().collect();
    let kubelet = |host: &IpAddr| (SocketAddr::new(*host, names::KUBELET_PORT), format!("the kubelet of host {host}"));
    let supervisor = |(address, name): (&IpAddr, &String)| {
        (SocketAddr::new(*address, names::SUPERVISOR_PORT), format!("VM pod {name} of another guest"))
    };
    let mut all = Targets::from([(METADATA, "the cloud's metadata service".to_owned())]);
    all.extend(around.api.map(|api| (api, "the management cluster's API".to_owned())));
    all.extend(in_turn(&hosts, AT_A_TIME.0, turn).map(kubelet));
    all.extend(in_turn(&others, AT_A_TIME.1, turn).map(supervisor));
    for leak in leaks {
        let ip = leak.address.ip();
        if all.contains_key(&leak.address) || around.hosts.contains(&ip) || around.others.contains_key(&ip) {
            all.insert(leak.address, leak.what.clone());
        }
    }
    all.retain(|address, _| !is_allowed(around, address.ip()));
    all
}

/// Some of `all`, and the next ones at the next turn.
fn in_turn<T: Copy>(all: &[T], some: usize, turn: u64) -> impl Iterator<Item = T> {
    let first = usize::try_from(turn).unwrap_or_default().wrapping_mul(some);
    let some = some.min(all.len());
    (0..some).map(move |number| all[first.wrapping_add(number) % all.len()])
}

fn is_allowed(around: &Surroundings, ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if around.allowed.iter().any(|range| range.contains(&ip)))
}

/// What VM pods reached of what they were asked to try; `answers` has the addresses by VM pod.
pub fn leaks(targets: &Targets, answers: &[(String, Vec<SocketAddr>)]) -> Vec<Leak> {
    let of_pod = |(pod, reached): &(String, Vec<SocketAddr>)| {
        // A supervisor that names what it was not asked for has nothing to say.
        let known = reached.iter().filter_map(|address| Some((*address, targets.get(address)?.clone())));
        known.map(|(address, what)| Leak { pod: pod.clone(), what, address }).collect::<Vec<_>>()
    };
    let found: BTreeSet<_> = answers.iter().flat_map(of_pod).collect();
    found.into_iter().collect()
}

/// What there is to say of leaks.
pub fn message(leaks: &[Leak]) -> String {
    let mut said: Vec<_> = leaks
        .iter()
        .take(NAMED)
        .map(|Leak { pod, what, address }| format!("VM pod {pod} reaches {what} ({address})"))
        .collect();
    if leaks.len() > NAMED {
        said.push(format!("{} more", leaks.len() - NAMED));
    }
    let cure = "the CNI must enforce NetworkPolicy guest, and no other policy of the namespace may open what it closes";
    format!("{}; {cure}", said.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around() -> Surroundings {
        Surroundings {
            api: Some("10.96.0.1:443".parse().unwrap()),
            hosts: (1..=3).map(|n| IpAddr::from([10, 1, 0, n])).collect(),
            others: (1..=7).map(|n| (IpAddr::from([10, 2, 0, n]), format!("g8s-{n}/master-0"))).collect(),
            allowed: Vec::new(),
        }
    }

    #[test]
    fn everything_has_its_turn_and_no_look_is_long() {
        let mut seen = BTreeSet::new();
        for turn in 0..7 {
            let targets = targets(&around(), turn, &[]);
            assert!(targets.len() <= 2 + AT_A_TIME.0 + AT_A_TIME.1, "{targets:?}");
            assert!(targets.contains_key(&METADATA) && targets.contains_key(&"10.96.0.1:443".parse().unwrap()));
            seen.extend(targets.into_keys());
        }
        assert_eq!(seen.len(), 2 + 3 + 7, "{seen:?}");
        // Alone, with nothing known and at any time.
        assert_eq!(targets(&Surroundings::default(), u64::MAX, &[]).len(), 1);
    }

    #[test]
    fn what_the_operator_opened_is_not_tried() {
        let open = Surroundings { allowed: vec!["10.0.0.0/8".parse().unwrap()], ..around() };
        assert_eq!(targets(&open, 0, &[]).into_keys().collect::<Vec<_>>(), [METADATA]);
    }

    #[test]
    fn a_leak_is_tried_until_it_is_closed_or_what_it_leads_to_is_no_more() {
        let address = "10.2.0.6:8080".parse().unwrap();
        let leak = Leak { pod: "master-0".into(), what: "VM pod g8s-6/master-0 of another guest".into(), address };
        assert!(!targets(&around(), 0, &[]).contains_key(&address));
        assert!(targets(&around(), 0, std::slice::from_ref(&leak)).contains_key(&address));
        let mut fewer = around();
        fewer.others.remove(&address.ip());
        assert!(!targets(&fewer, 0, &[leak]).contains_key(&address));
    }

    #[test]
    fn a_leak_names_the_pair_and_what_was_not_asked_for_is_none() {
        let targets = targets(&around(), 0, &[]);
        let api: SocketAddr = "10.96.0.1:443".parse().unwrap();
        let answers = [
            ("master-0".to_owned(), vec![api, "192.0.2.1:1".parse().unwrap()]),
            ("a-0".to_owned(), vec![api, METADATA, "10.1.0.1:10250".parse().unwrap()]),
        ];
        let found = leaks(&targets, &answers);
        assert_eq!(found.len(), 4, "{found:?}");
        let said = message(&found);
        assert!(said.starts_with("VM pod a-0 reaches "), "{said}");
        assert!(said.contains("VM pod a-0 reaches the kubelet of host 10.1.0.1 (10.1.0.1:10250)"), "{said}");
        assert!(said.contains(", 1 more; the CNI must enforce"), "{said}");
        assert_eq!(leaks(&targets, &[("master-0".into(), Vec::new())]), []);
    }
}
