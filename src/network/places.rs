//! Which worker has which place on the overlay: the lowest that is free, kept until nothing of the worker is left. Pure.
//!
//! A place is written down before anything is made with it: as an annotation of the worker's ConfigMap, and of its VM pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
    str::FromStr,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{api::names, cluster::Valid};

/// First place of workers. Those below are the control plane's, and reserved.
const FIRST: u32 = 64;
/// Prefix length of the blocks in which Calico gives nodes addresses for their pods (its default).
const BLOCK_PREFIX: u8 = 26;

/// A worker's place on the overlay: which address of its range it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub u32);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Place {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl Place {
    /// The place that an object of a worker was made with.
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        meta.annotations.as_ref()?.get(names::PLACE_ANNOTATION)?.parse().ok()
    }
}

/// The places that a guest has room for. Each needs its share of the overlay and a block of the pods' range; the first
/// blocks are for the control plane.
pub fn room(cluster: &Valid) -> RangeInclusive<u32> {
    let ranges = &cluster.ranges;
    let last_address = u64::from(ranges.overlay.last_place());
    let blocks = 1_u64 << BLOCK_PREFIX.saturating_sub(ranges.pods.prefix_len());
    let masters = u64::from(cluster.control_plane.replicas);
    let last_block = u64::from(FIRST) + blocks.saturating_sub(masters + 1);
    let none = blocks <= masters || last_address < u64::from(FIRST);
    let last = if none { FIRST - 1 } else { u32::try_from(last_address.min(last_block)).unwrap_or(u32::MAX) };
    FIRST..=last
}

/// Which worker has which place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Places of the workers that are wanted.
    pub given: BTreeMap<String, Place>,
    /// Wanted workers that there is no place for.
    pub homeless: Vec<String>,
}

/// Gives every worker of `wanted` a place of `room`. `taken` are the places that are written down, those of workers that
/// are not wanted any more among them: what is first in it is believed first.
pub fn plan<'a>(
    wanted: impl IntoIterator<Item = &'a str>,
    taken: impl IntoIterator<Item = (String, Place)>,
    room: RangeInclusive<u32>,
) -> Places {
    let mut held: BTreeMap<String, Place> = BTreeMap::new();
    let mut used = BTreeSet::new();
    for (worker, place) in taken {
        // Written by hand, or beside the range: of two with one place the second gets another, when it is made anew.
        if room.contains(&place.0) && used.insert(place) && !held.contains_key(&worker) {
            held.insert(worker, place);
        }
    }
    let mut free = room.map(Place).filter(|place| !used.contains(place));
    let mut places = Places::default();
    for worker in wanted {
        match held.get(worker).copied().or_else(|| free.next()) {
            Some(place) => {
                places.given.insert(worker.to_owned(), place);
            }
            None => places.homeless.push(worker.to_owned()),
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{network::addresses::Fabric, testing::valid};

    fn room_of(spec: serde_json::Value) -> RangeInclusive<u32> {
        room(&valid(spec))
    }

    #[test]
    fn there_is_room_where_both_ranges_have_it() {
        // 4,096 addresses, but 1,024 blocks for pods, of which master-0 has one.
        assert_eq!(room_of(serde_json::json!({})), 64..=1086);
        assert_eq!(room_of(serde_json::json!({"controlPlane": {"replicas": 3}})), 64..=1084);
        assert_eq!(room_of(serde_json::json!({"network": {"overlay": {"cidr": "172.26.0.0/24"}}})), 64..=254);
        let mut routed = valid(serde_json::json!({}));
        routed.ranges.overlay.fabric = Fabric::Routed;
        assert_eq!(room(&routed), 64..=1023, "as many as there are networks for one node each");
    }

    #[test]
    fn a_place_is_free_only_when_nothing_of_its_worker_is_left() {
        let taken = [("a-0".to_owned(), Place(64)), ("a-1".to_owned(), Place(65))];
        let places = plan(["b-0"], taken, 64..=66);
        assert_eq!(places.given["b-0"], Place(66));
        let places = plan(["b-0", "b-1"], [("a-1".to_owned(), Place(65))], 64..=65);
        assert_eq!((places.given["b-0"], places.homeless), (Place(64), vec!["b-1".to_owned()]));
    }

    #[test]
    fn of_two_with_one_place_one_gets_another() {
        let taken = [("a-1".to_owned(), Place(64)), ("a-0".to_owned(), Place(64)), ("a-2".to_owned(), Place(9))];
        let places = plan(["a-0", "a-1", "a-2"], taken, 64..=99);
        assert_eq!(places.given, [("a-0", 65), ("a-1", 64), ("a-2", 66)].map(|(n, p)| (n.to_owned(), Place(p))).into());
    }

    proptest! {
        /// Pools come, go, grow and shrink; what is not wanted lingers for a while, as a VM that powers off does.
        #[test]
        fn places_are_unique_and_stable(
            rounds in prop::collection::vec((prop::collection::vec(0_u32..6, 4), any::<u8>()), 1..20)
        ) {
            let mut objects: BTreeMap<String, Place> = BTreeMap::new();
            for (replicas, lingering) in rounds {
                let wanted: Vec<_> = ["a", "b", "c", "d"].iter().zip(&replicas)
                    .flat_map(|(pool, count)| (0..*count).map(|index| names::worker(pool, index)))
                    .collect();
                let places = plan(wanted.iter().map(String::as_str), objects.clone(), 64..=127);
                prop_assert!(places.homeless.is_empty());
                prop_assert!(wanted.iter().all(|name| places.given.contains_key(name)));
                for (name, place) in &objects {
                    // Who has a place keeps it, and nobody else gets it.
                    for (other, given) in &places.given {
                        prop_assert_eq!(other == name, given == place);
                    }
                }
                let distinct: BTreeSet<_> = places.given.values().collect();
                prop_assert_eq!(distinct.len(), places.given.len());
                objects.extend(places.given);
                let gone: Vec<_> = objects.keys().filter(|name| !wanted.contains(name)).cloned().collect();
                for (n, name) in gone.into_iter().enumerate() {
                    if lingering >> (n % 8) & 1 == 0 {
                        objects.remove(&name);
                    }
                }
            }
        }
    }
}
