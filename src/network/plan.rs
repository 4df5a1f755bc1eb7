//! Which VNI to claim, and the objects of a guest's network. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::{
    api::{ClaimKind, NetworkClaim, NetworkClaimSpec, names},
    cluster::{Identity, Valid},
};

/// VNIs that guests get. `flannel.<VNI>` and `flannel-v6.<VNI>` must fit the kernel's 15 characters, and 1 and 4096 are
/// the defaults of Flannel and Calico.
pub const VNIS: std::ops::RangeInclusive<u32> = 1000..=9999;
const RESERVED: u32 = 4096;

/// What the search for a VNI came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VniChoice {
    /// The guest holds this one.
    Held(u32),
    /// Claim this one. If somebody else was faster, look again.
    Claim(u32),
    /// The user asked for this one, and another Cluster holds it.
    InUse(u32),
    /// All are taken.
    Exhausted,
}

/// Chooses a VNI. `claims` maps each claimed VNI to the UID of the Cluster that holds it.
pub fn choose_vni(identity: &Identity, requested: Option<u32>, claims: &BTreeMap<u32, String>) -> VniChoice {
    let held = claims.iter().find(|(_, uid)| **uid == identity.uid).map(|(vni, _)| *vni);
    match (held, requested) {
        (_, Some(vni)) => match claims.get(&vni) {
            Some(uid) if *uid == identity.uid => VniChoice::Held(vni),
            Some(_) => VniChoice::InUse(vni),
            None => VniChoice::Claim(vni),
        },
        (Some(vni), None) => VniChoice::Held(vni),
        (None, None) => {
            let count = u64::from(VNIS.end() - VNIS.start() + 1);
            // Starting at different places, two managers or many new Clusters rarely meet at one number.
            (0..count)
                .filter_map(|step| u32::try_from((identity.seed() % count + step) % count).ok())
                .map(|place| VNIS.start() + place)
                .find(|vni| *vni != RESERVED && !claims.contains_key(vni))
                .map_or(VniChoice::Exhausted, VniChoice::Claim)
        }
    }
}

/// Name of the claim on a VNI.
pub fn claim_name(vni: u32) -> String {
    format!("vni-{vni}")
}

/// The claim on a VNI.
pub fn claim(identity: &Identity, vni: u32) -> NetworkClaim {
    let mut claim = NetworkClaim::new(
        &claim_name(vni),
        NetworkClaimSpec {
            kind: ClaimKind::VNI,
            // VNIs are at most 9999 here.
            value: i32::try_from(vni).unwrap_or(i32::MAX),
            cluster_ref: identity.cluster_ref(),
        },
    );
    claim.metadata.labels = Some(identity.labels());
    claim
}

/// The Service in front of the guest's API servers.
pub fn master_service(cluster: &Valid) -> Service {
    let identity = &cluster.identity;
    let mut selector = BTreeMap::new();
    selector.insert(names::CLUSTER_LABEL.to_owned(), identity.id.clone());
    selector.insert(names::ROLE_LABEL.to_owned(), names::ROLE_CONTROL_PLANE.to_owned());
    Service {
        metadata: ObjectMeta {
            name: Some(names::MASTER_SERVICE.into()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(identity.labels()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some(selector),
            ports: Some(vec![ServicePort {
                name: Some("api".into()),
                port: i32::from(names::API_PORT),
                target_port: Some(IntOrString::Int(i32::from(names::API_PORT))),
                protocol: Some("TCP".into()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::ClusterKey;

    fn identity(uid: &str) -> Identity {
        Identity::new(ClusterKey { namespace: "n".into(), name: "c".into() }, uid.into())
    }

    proptest! {
        #[test]
        fn no_two_clusters_share_a_vni(uids in proptest::collection::hash_set("[a-f0-9]{8}", 1..200)) {
            let mut claims = BTreeMap::new();
            for uid in &uids {
                let VniChoice::Claim(vni) = choose_vni(&identity(uid), None, &claims) else { panic!("{claims:?}") };
                prop_assert!(VNIS.contains(&vni) && vni != RESERVED);
                prop_assert!(claims.insert(vni, uid.clone()).is_none());
                prop_assert_eq!(choose_vni(&identity(uid), None, &claims), VniChoice::Held(vni));
            }
        }
    }

    #[test]
    fn the_last_free_vni_is_found_and_then_none() {
        let mut claims: BTreeMap<_, _> =
            VNIS.filter(|vni| *vni != RESERVED && *vni != 5000).map(|vni| (vni, "other".to_owned())).collect();
        assert_eq!(choose_vni(&identity("a"), None, &claims), VniChoice::Claim(5000));
        claims.insert(5000, "other".into());
        assert_eq!(choose_vni(&identity("a"), None, &claims), VniChoice::Exhausted);
    }

    #[test]
    fn a_requested_vni_of_somebody_else_is_refused() {
        let claims = BTreeMap::from([(1234, "other".to_owned())]);
        assert_eq!(choose_vni(&identity("a"), Some(1234), &claims), VniChoice::InUse(1234));
        assert_eq!(choose_vni(&identity("a"), Some(1235), &claims), VniChoice::Claim(1235));
        assert_eq!(choose_vni(&identity("other"), Some(1234), &claims), VniChoice::Held(1234));
        assert_eq!(choose_vni(&identity("other"), None, &claims), VniChoice::Held(1234));
        // The claim of a live guest was deleted: it is made again, for the same number.
        assert_eq!(choose_vni(&identity("other"), Some(1234), &BTreeMap::new()), VniChoice::Claim(1234));
    }
}
