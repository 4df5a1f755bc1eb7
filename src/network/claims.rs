//! Which VNI a guest gets, and what becomes of claims that are given back. Pure.

use jiff::{SignedDuration, Timestamp};

use crate::{
    api::{ClaimKind, NetworkClaim, NetworkClaimSpec},
    cluster::Identity,
    runtime::apply::hash,
};

/// VNIs that guests get. `flannel.<VNI>` and `flannel-v6.<VNI>` must fit the kernel's 15 characters, and 1 and 4096 are
/// the defaults of Flannel and Calico.
pub const VNIS: std::ops::RangeInclusive<u32> = 1000..=9999;
const RESERVED: u32 = 4096;

/// Whose a claimed resource is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The Cluster with this UID.
    Cluster(String),
    /// Nobody's, but not to be used before this time.
    Quarantine(Timestamp),
}

/// What the search for a VNI came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VniChoice {
    /// The guest holds this one.
    Held(u32),
    /// Claim this one. If somebody else was faster, look again.
    Claim(u32),
    /// The user asked for this one, and it is taken.
    InUse(u32, Holder),
    /// All are taken.
    Exhausted,
}

/// Chooses a VNI for the Cluster with this identity, which holds `held` by now; `holder` knows whose each VNI is.
pub fn choose_vni(
    identity: &Identity,
    requested: Option<u32>,
    held: Option<u32>,
    holder: impl Fn(u32) -> Option<Holder>,
) -> VniChoice {
    match (held, requested) {
        (_, Some(vni)) => match holder(vni) {
            Some(Holder::Cluster(uid)) if uid == identity.uid => VniChoice::Held(vni),
            Some(other) => VniChoice::InUse(vni, other),
            None => VniChoice::Claim(vni),
        },
        (Some(vni), None) => VniChoice::Held(vni),
        (None, None) => {
            let count = u64::from(VNIS.end() - VNIS.start() + 1);
            // Starting at different places, two managers or many new Clusters rarely meet at one number.
            (0..count)
                .filter_map(|step| u32::try_from((identity.seed() % count + step) % count).ok())
                .map(|place| VNIS.start() + place)
                .filter(|vni| *vni != RESERVED)
                .find_map(|vni| match holder(vni) {
                    None => Some(VniChoice::Claim(vni)),
                    // What was just claimed shows here a moment before it shows among what is held.
                    Some(Holder::Cluster(uid)) if uid == identity.uid => Some(VniChoice::Held(vni)),
                    Some(_) => None,
                })
                .unwrap_or(VniChoice::Exhausted)
        }
    }
}

/// Name of the claim on a VNI.
pub fn claim_name(vni: u32) -> String {
    format!("vni-{vni}")
}

/// The VNI that a claim is about. The name is the claim; what else the object says is for people.
pub fn vni_of(name: &str) -> Option<u32> {
    name.strip_prefix("vni-")?.parse().ok()
}

/// The claim on a VNI.
pub fn claim(identity: &Identity, vni: u32) -> NetworkClaim {
    let mut claim = NetworkClaim::new(
        &claim_name(vni),
        NetworkClaimSpec {
            kind: ClaimKind::VNI,
            // VNIs are at most 9999 here.
            value: Some(i32::try_from(vni).unwrap_or(i32::MAX)),
            host: None,
            cluster_ref: identity.cluster_ref(),
            released_at: None,
        },
    );
    claim.metadata.labels = Some(identity.labels());
    claim
}

/// Name of the claim on a host name: a hash of it, since a name of 253 characters fits no object's name with a prefix.
pub fn host_claim_name(host: &str) -> String {
    format!("host-{}", hash(&host.into()))
}

/// The claim on a host name.
pub fn host_claim(identity: &Identity, host: &str) -> NetworkClaim {
    let spec = NetworkClaimSpec {
        kind: ClaimKind::Host,
        value: None,
        host: Some(host.into()),
        cluster_ref: identity.cluster_ref(),
        released_at: None,
    };
    let mut claim = NetworkClaim::new(&host_claim_name(host), spec);
    claim.metadata.labels = Some(identity.labels());
    claim
}

/// Whose a claimed resource is, with this quarantine, as the Cluster with this UID sees it. While that lives, its own is its
/// own, even if somebody marked it as released.
pub fn holder(claim: &NetworkClaim, uid: &str, quarantine: SignedDuration) -> Holder {
    if claim.spec.cluster_ref.uid == uid {
        return Holder::Cluster(uid.to_owned());
    }
    match free_at(claim, quarantine) {
        Some(at) => Holder::Quarantine(at),
        None => Holder::Cluster(claim.spec.cluster_ref.uid.clone()),
    }
}

/// Whether a claim says what `wanted` does; whatever labels others added.
pub fn is_as_wanted(claim: &NetworkClaim, wanted: &NetworkClaim) -> bool {
    let labels = claim.metadata.labels.as_ref();
    let mut ours = wanted.metadata.labels.iter().flatten();
    claim.spec == wanted.spec && ours.all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// When a released claim's quarantine ends.
pub fn free_at(claim: &NetworkClaim, quarantine: SignedDuration) -> Option<Timestamp> {
    let released = claim.spec.released_at.as_ref()?.0;
    // A time at the end of the calendar never comes.
    Some(released.checked_add(quarantine).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::cluster::ClusterKey;

    fn identity(uid: &str) -> Identity {
        Identity::new(ClusterKey { namespace: "n".into(), name: "c".into() }, uid.into())
    }

    fn choose(uid: &str, requested: Option<u32>, claims: &BTreeMap<u32, String>) -> VniChoice {
        let held = claims.iter().find(|(_, holder)| *holder == uid).map(|(vni, _)| *vni);
        choose_vni(&identity(uid), requested, held, |vni| claims.get(&vni).cloned().map(Holder::Cluster))
    }

    proptest! {
        #[test]
        fn no_two_clusters_share_a_vni(uids in proptest::collection::hash_set("[a-f0-9]{8}", 1..200)) {
            let mut claims = BTreeMap::new();
            for uid in &uids {
                let VniChoice::Claim(vni) = choose(uid, None, &claims) else { panic!("{claims:?}") };
                prop_assert!(VNIS.contains(&vni) && vni != RESERVED);
                prop_assert!(claims.insert(vni, uid.clone()).is_none());
                prop_assert_eq!(choose(uid, None, &claims), VniChoice::Held(vni));
            }
        }
    }

    #[test]
    fn the_last_free_vni_is_found_and_then_none() {
        let mut claims: BTreeMap<_, _> =
            VNIS.filter(|vni| *vni != RESERVED && *vni != 5000).map(|vni| (vni, "other".to_owned())).collect();
        assert_eq!(choose("a", None, &claims), VniChoice::Claim(5000));
        claims.insert(5000, "other".into());
        assert_eq!(choose("a", None, &claims), VniChoice::Exhausted);
    }

    #[test]
    fn no_second_vni_is_claimed_while_the_first_is_not_among_what_is_held() {
        let VniChoice::Claim(first) = choose("a", None, &BTreeMap::new()) else { panic!("none is free") };
        let ours = |vni: u32| (vni == first).then(|| Holder::Cluster("a".into()));
        assert_eq!(choose_vni(&identity("a"), None, None, ours), VniChoice::Held(first));
    }

    #[test]
    fn a_requested_vni_of_somebody_else_is_refused() {
        let claims = BTreeMap::from([(1234, "other".to_owned())]);
        assert_eq!(choose("a", Some(1234), &claims), VniChoice::InUse(1234, Holder::Cluster("other".into())));
        assert_eq!(choose("a", Some(1235), &claims), VniChoice::Claim(1235));
        assert_eq!(choose("other", Some(1234), &claims), VniChoice::Held(1234));
        assert_eq!(choose("other", None, &claims), VniChoice::Held(1234));
        // The claim of a live guest was deleted: it is made again, for the same number.
        assert_eq!(choose("other", Some(1234), &BTreeMap::new()), VniChoice::Claim(1234));
    }

    #[test]
    fn a_released_vni_is_nobodys_until_its_quarantine_ends() {
        let mut released = claim(&identity("old"), 1234);
        let hour = SignedDuration::from_hours(1);
        assert_eq!(holder(&released, "new", hour), Holder::Cluster("old".into()));
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        released.spec.released_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        let until = Holder::Quarantine("2026-01-01T01:00:00Z".parse().unwrap());
        assert_eq!(holder(&released, "new", hour), until);
        let choice = |uid: &str| choose_vni(&identity(uid), Some(1234), None, |_| Some(holder(&released, uid, hour)));
        assert_eq!(choice("new"), VniChoice::InUse(1234, until));
        // Of a Cluster that lives it was never given back by us.
        assert_eq!(choice("old"), VniChoice::Held(1234));
    }

    #[test]
    fn an_edited_claim_is_not_as_wanted_and_one_with_more_labels_is() {
        let wanted = claim(&identity("a"), 1234);
        let mut there = wanted.clone();
        there.metadata.labels.as_mut().unwrap().insert("team".into(), "b".into());
        assert!(is_as_wanted(&there, &wanted));
        let mut released = there.clone();
        released.spec.released_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        let mut renumbered = there.clone();
        renumbered.spec.value = Some(1);
        let mut unlabelled = there.clone();
        unlabelled.metadata.labels = None;
        for edited in [released, renumbered, unlabelled] {
            assert!(!is_as_wanted(&edited, &wanted), "{edited:?}");
        }
    }
}
