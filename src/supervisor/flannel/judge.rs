//! What is to become of flanneld, from what etcd and the kernel say. Pure.
//!
//! flanneld is good at one thing, to turn what changes in etcd into routes, and forgetful otherwise: it takes any subnet
//! that is leased to its address, leaves routes behind that went while it was down, loses some when etcd does not answer at
//! the wrong moment, and may give up its own lease without a word. To start it anew costs no packet: its device and its
//! routes stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;

use crate::flannel::lease::Vtep;

/// flanneld leases its subnet for a day, and again half a day before that ends (`--subnet-lease-renew-margin`). One that has
/// not done so by now will not.
const UNRENEWED: Duration = Duration::from_secs(18 * 3600);

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// etcd's revision.
    pub revision: i64,
    /// All leases of the guest's, with the revision in which each was written.
    pub leases: BTreeMap<Ipv4Net, (Vtep, i64)>,
    /// Whether the guest's guard is there: leases come with it, so without it nothing is known of who is gone.
    pub is_whole: bool,
    /// Networks that the kernel has a route to, by the device.
    pub routes: BTreeSet<Ipv4Net>,
}

/// What has to be known from one look to the next while flanneld runs.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    revision: i64,
    /// Leases that had no route.
    without_route: BTreeSet<Ipv4Net>,
    /// When our own lease was last seen to be written, and in which revision.
    renewed: (i64, Instant),
}

/// Why flanneld cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The controller has not leased our subnet to us yet.
    NotOurs,
    /// Another subnet is leased to our address as well: flanneld could take that.
    Doubled(Ipv4Net),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => write!(f, "the controller manager to lease this node's subnet to this VM pod"),
            Self::Doubled(subnet) => {
                write!(
                    f,
                    "the controller manager to take {subnet} away, which is leased to this VM pod's address as well"
                )
            }
        }
    }
}

/// Whether flanneld may start, which takes the first lease that it finds for its address.
pub(super) fn may_start(seen: &Seen, subnet: Ipv4Net, own: Vtep) -> Result<(), Wait> {
    if !seen.leases.get(&subnet).is_some_and(|(vtep, _)| *vtep == own) {
        return Err(Wait::NotOurs);
    }
    let mut others =
        seen.leases.iter().filter(|(other, (vtep, _))| **other != subnet && vtep.public_ip == own.public_ip);
    others.next().map_or(Ok(()), |(other, _)| Err(Wait::Doubled(*other)))
}

/// Why flanneld, which runs, has to be started anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It waits for a revision that this etcd will not reach for long.
    OtherEtcd,
    /// It has forgotten the way to a node.
    NoRoute(Ipv4Net),
    /// It does not renew its own lease.
    Unrenewed,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherEtcd => write!(f, "etcd is not the one that it was"),
            Self::NoRoute(subnet) => write!(f, "it gives no route to {subnet}"),
            Self::Unrenewed => write!(f, "it has not renewed its lease for {} h", UNRENEWED.as_secs() / 3600),
        }
    }
}

impl Memory {
    /// What is known when flanneld starts.
    pub(super) fn new(seen: &Seen, subnet: Ipv4Net, now: Instant) -> Self {
        let written = seen.leases.get(&subnet).map_or(0, |(_, written)| *written);
        Self { revision: seen.revision, without_route: BTreeSet::new(), renewed: (written, now) }
    }

    /// What is wrong with flanneld, which has run since this memory was made, or since the last look.
    pub(super) fn judge(&mut self, seen: &Seen, subnet: Ipv4Net, now: Instant) -> Option<Fault> {
        if seen.revision < self.revision {
            return Some(Fault::OtherEtcd);
        }
        self.revision = seen.revision;
        let missing: BTreeSet<_> =
            seen.leases.keys().filter(|lease| **lease != subnet && !seen.routes.contains(lease)).copied().collect();
        // Twice: it may be about to.
        let forgotten = missing.intersection(&self.without_route).next().copied();
        self.without_route = missing;
        if let Some(forgotten) = forgotten {
            return Some(Fault::NoRoute(forgotten));
        }
        match seen.leases.get(&subnet) {
            Some((_, written)) if *written != self.renewed.0 => self.renewed = (*written, now),
            _ => {}
        }
        (now.duration_since(self.renewed.1) >= UNRENEWED).then_some(Fault::Unrenewed)
    }
}

/// Routes to nodes that are gone: flanneld takes away only what it saw go. None, while an etcd that lost its data has not got it
/// again.
pub(super) fn left_over(seen: &Seen) -> Vec<Ipv4Net> {
    if !seen.is_whole {
        return Vec::new();
    }
    seen.routes.iter().filter(|route| !seen.leases.contains_key(route)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::addresses::Mac;

    fn net(place: u8) -> Ipv4Net {
        Ipv4Net::new([172, 26, 1, place * 4].into(), 30).unwrap()
    }

    fn vtep(pod: u8) -> Vtep {
        Vtep { public_ip: [10, 1, 1, pod].into(), vni: 1234, mac: Mac([6, 0, 0, 0, 0, pod]) }
    }

    /// Places with their pods, all written in revision 5; routes to these places.
    fn seen(leases: &[(u8, u8)], routes: &[u8]) -> Seen {
        Seen {
            revision: 9,
            is_whole: true,
            leases: leases.iter().map(|(place, pod)| (net(*place), (vtep(*pod), 5))).collect(),
            routes: routes.iter().map(|place| net(*place)).collect(),
        }
    }

    #[test]
    fn flanneld_starts_when_its_subnet_is_leased_to_it_and_nothing_else_is() {
        let start = |leases| may_start(&seen(leases, &[]), net(1), vtep(1));
        assert_eq!(start(&[]), Err(Wait::NotOurs));
        assert_eq!(start(&[(1, 1)]), Ok(()));
        assert_eq!(start(&[(1, 1), (2, 2)]), Ok(()));
        // The pod that had our place before, elsewhere.
        assert_eq!(start(&[(1, 7)]), Err(Wait::NotOurs));
        // A dead sibling had our address.
        assert_eq!(start(&[(1, 1), (2, 1)]), Err(Wait::Doubled(net(2))));
        assert_eq!(start(&[(2, 1)]), Err(Wait::NotOurs));
        // The same address with another VNI or Ethernet address: the controller has yet to write it anew.
        let other = Vtep { vni: 1235, ..vtep(1) };
        assert_eq!(may_start(&seen(&[(1, 1)], &[]), net(1), other), Err(Wait::NotOurs));
    }

    #[test]
    fn a_route_that_stays_away_is_a_fault_and_one_that_comes_is_none() {
        let now = Instant::now();
        let before = seen(&[(1, 1), (2, 2)], &[]);
        let mut memory = Memory::new(&before, net(1), now);
        assert_eq!(memory.judge(&before, net(1), now), None);
        let mut patient = memory.clone();
        assert_eq!(patient.judge(&seen(&[(1, 1), (2, 2)], &[2]), net(1), now), None);
        // Another one is late now.
        assert_eq!(patient.judge(&seen(&[(1, 1), (2, 2), (3, 3)], &[2]), net(1), now), None);
        assert_eq!(memory.judge(&before, net(1), now), Some(Fault::NoRoute(net(2))));
    }

    #[test]
    fn an_etcd_that_goes_back_is_another() {
        let now = Instant::now();
        let mut memory = Memory::new(&seen(&[(1, 1)], &[]), net(1), now);
        assert_eq!(memory.judge(&Seen { revision: 10, ..seen(&[(1, 1)], &[]) }, net(1), now), None);
        assert_eq!(memory.judge(&Seen { revision: 9, ..seen(&[(1, 1)], &[]) }, net(1), now), Some(Fault::OtherEtcd));
    }

    #[test]
    fn a_lease_that_is_not_renewed_is_a_fault_before_it_ends() {
        let start = Instant::now();
        let hours = |hours: u64| start + Duration::from_secs(hours * 3600);
        let written = |revision| {
            let mut seen = seen(&[(1, 1)], &[]);
            seen.leases.get_mut(&net(1)).unwrap().1 = revision;
            seen
        };
        let mut memory = Memory::new(&written(5), net(1), start);
        assert_eq!(memory.judge(&written(5), net(1), hours(11)), None);
        assert_eq!(memory.judge(&written(6), net(1), hours(12)), None);
        assert_eq!(memory.judge(&written(6), net(1), hours(29)), None);
        assert_eq!(memory.judge(&written(6), net(1), hours(30)), Some(Fault::Unrenewed));
    }

    #[test]
    fn routes_to_nobody_are_left_over() {
        assert_eq!(left_over(&seen(&[(1, 1), (2, 2)], &[2, 3])), [net(3)]);
        assert_eq!(left_over(&seen(&[(1, 1), (2, 2)], &[2])), []);
        // Another etcd, of which nothing is known yet.
        assert_eq!(left_over(&Seen { is_whole: false, ..seen(&[], &[2, 3]) }), []);
    }
}
