//! Which leases a guest is to have, and what of that is to be written. Pure.
//!
//! A lease belongs to the VM pod that has its node's place now and an address. Of one that is gone, or that has no address
//! yet, none is kept: its address may be another's by now.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;

use super::lease::{self, Config, Lease, Vtep};
use crate::{
    api::names,
    cluster::Valid,
    kvm::vm_pod::VmPod,
    network::{addresses::NodeAddress, places::Place},
};

/// A VM pod that takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub pod: String,
    /// Its node on the overlay.
    pub node: NodeAddress,
    /// Its own address.
    pub address: Ipv4Addr,
}

/// The VM pods that take part, and one that cannot: Flannel carries no overlay by IPv6.
pub fn members<'a>(
    cluster: &Valid,
    pods: impl IntoIterator<Item = &'a VmPod>,
    places: &BTreeMap<String, Place>,
) -> (Vec<Member>, Option<String>) {
    let (mut members, mut strange) = (Vec::new(), None);
    for pod in pods.into_iter().filter(|pod| !pod.is_finished()) {
        let Some(address) = pod.status.pod_ip else { continue };
        let Some(node) = address_of(cluster, pod, places) else { continue };
        match address {
            IpAddr::V4(address) => members.push(Member { pod: pod.node().to_owned(), node, address }),
            IpAddr::V6(_) => strange = strange.or_else(|| Some(pod.node().to_owned())),
        }
    }
    (members, strange)
}

fn address_of(cluster: &Valid, pod: &VmPod, places: &BTreeMap<String, Place>) -> Option<NodeAddress> {
    let (overlay, identity) = (cluster.ranges.overlay, &cluster.identity);
    if pod.is_worker() {
        let place = Place::of(&pod.metadata).or_else(|| places.get(pod.node()).copied())?;
        return Some(overlay.worker(identity, place));
    }
    Some(overlay.master(identity, names::master_index(pod.node())?))
}

/// What is in etcd of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Values by key, with the revision in which each was written.
    pub values: BTreeMap<String, (Vec<u8>, i64)>,
    /// Keys that have an etcd lease: flanneld has taken them.
    pub taken: BTreeSet<String>,
}

/// A key to be written, for the value that was found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Give it this value.
    Put(String, String),
    /// Delete it.
    Delete(String),
}

/// What is to be written, all at once.
pub fn writes(id: &str, network: Ipv4Net, vni: u32, members: &[Member], found: &Found) -> Vec<Write> {
    let leases = members.iter().map(|member| (member.node.subnet(), Lease::Vxlan(vtep(vni, member))));
    let leases: BTreeMap<_, _> =
        leases.chain([(network, Lease::Guard)]).map(|(subnet, lease)| (lease::key(id, subnet), lease)).collect();
    let config = (lease::config_key(id), Config::new(network, vni));
    let has_config =
        found.values.get(&config.0).is_some_and(|(value, _)| Config::parse(value).ok() == Some(config.1.clone()));
    let config = (!has_config).then(|| Write::Put(config.0.clone(), config.1.to_json()));
    let is_there = |key: &str, lease: &Lease| {
        found.values.get(key).is_some_and(|(value, _)| Lease::parse(value).ok().as_ref() == Some(lease))
    };
    let puts = leases.iter().filter(|(key, lease)| !is_there(key, lease));
    let puts = puts.map(|(key, lease)| Write::Put(key.clone(), lease.to_json()));
    let subnets = lease::subnets(id);
    let gone = found.values.keys().filter(|key| key.starts_with(&subnets) && !leases.contains_key(*key));
    config.into_iter().chain(puts).chain(gone.cloned().map(Write::Delete)).collect()
}

/// VM pods whose flanneld has not taken its lease yet.
pub fn untaken<'a>(id: &str, members: &'a [Member], found: &Found) -> Vec<&'a str> {
    let untaken = members.iter().filter(|member| !found.taken.contains(&lease::key(id, member.node.subnet())));
    untaken.map(|member| member.pod.as_str()).collect()
}

fn vtep(vni: u32, member: &Member) -> Vtep {
    Vtep { public_ip: member.address, vni, mac: member.node.vtep_mac() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{network::addresses::Fabric, testing::valid};

    const ID: &str = "ab";

    fn guest() -> Valid {
        let mut valid = valid(serde_json::json!({"controlPlane": {"replicas": 3}}));
        valid.ranges.overlay.fabric = Fabric::Routed;
        valid
    }

    fn pod(name: &str, address: Option<&str>, place: Option<u32>) -> VmPod {
        let mut pod = VmPod::default();
        pod.metadata.name = Some(name.into());
        pod.status.phase = "Running".into();
        pod.status.pod_ip = address.map(|address| address.parse().unwrap());
        if let Some(place) = place {
            pod.metadata.labels = Some([(names::ROLE_LABEL.to_owned(), names::ROLE_WORKER.to_owned())].into());
            pod.metadata.annotations = Some([(names::PLACE_ANNOTATION.to_owned(), place.to_string())].into());
        }
        pod
    }

    fn found(writes: &[Write]) -> Found {
        let mut found = Found::default();
        for write in writes {
            match write {
                Write::Put(key, value) => drop(found.values.insert(key.clone(), (value.clone().into_bytes(), 7))),
                Write::Delete(key) => drop(found.values.remove(key)),
            }
        }
        found
    }

    fn of(pods: &[VmPod], found: &Found) -> Vec<Write> {
        let valid = guest();
        let (members, _) = members(&valid, pods, &BTreeMap::new());
        writes(ID, valid.ranges.overlay.net, 1234, &members, found)
    }

    #[test]
    fn a_guest_has_a_config_a_guard_and_a_lease_for_each_pod_with_an_address() {
        let pods = [
            pod("master-1", Some("10.1.1.1"), None),
            pod("a-0", Some("10.1.1.2"), Some(64)),
            pod("a-1", None, Some(65)),
        ];
        let writes = of(&pods, &Found::default());
        let keys = writes.iter().map(|write| match write {
            Write::Put(key, _) => key.trim_start_matches("/giantnetes/ab/"),
            Write::Delete(key) => panic!("{key}"),
        });
        let keys: Vec<_> = keys.into_iter().collect();
        assert_eq!(keys, ["config", "subnets/172.26.0.0-20", "subnets/172.26.0.44-30", "subnets/172.26.1.0-30"]);
        // Nothing is written twice.
        assert_eq!(of(&pods, &found(&writes)), []);
    }

    #[test]
    fn who_is_gone_or_has_another_address_leaves_no_lease() {
        let before =
            of(&[pod("a-0", Some("10.1.1.2"), Some(64)), pod("a-1", Some("10.1.1.3"), Some(65))], &Found::default());
        let before = found(&before);
        let key = |subnet: &str| lease::key(ID, subnet.parse().unwrap());
        // a-0 came back with another address, and a-1 is gone.
        let writes = of(&[pod("a-0", Some("10.1.1.9"), Some(64))], &before);
        assert!(
            matches!(&writes[0], Write::Put(put, value) if *put == key("172.26.1.0/30") && value.contains("10.1.1.9"))
        );
        assert_eq!(writes[1..], [Write::Delete(key("172.26.1.4/30"))]);
        // a-0 inherits the address of a-1, which is to come anew and has none yet.
        let writes = of(&[pod("a-0", Some("10.1.1.3"), Some(64)), pod("a-1", None, Some(65))], &before);
        assert_eq!(writes.len(), 2);
        assert_eq!(writes[1], Write::Delete(key("172.26.1.4/30")));
        // One that ended gave its address back.
        let mut ended = pod("a-1", Some("10.1.1.3"), Some(65));
        ended.status.phase = "Failed".into();
        let writes = of(&[pod("a-0", Some("10.1.1.2"), Some(64)), ended], &before);
        assert_eq!(writes, [Write::Delete(key("172.26.1.4/30"))]);
    }

    #[test]
    fn what_others_wrote_is_mended() {
        let pods = [pod("a-0", Some("10.1.1.2"), Some(64))];
        let right = of(&pods, &Found::default());
        let mut changed = found(&right);
        let stray = format!("{}172.26.2.0-30x", lease::subnets(ID));
        changed.values.insert(stray.clone(), (b"{}".to_vec(), 1));
        for value in changed.values.values_mut() {
            value.0 = b"{}".to_vec();
        }
        let mended = of(&pods, &changed);
        assert_eq!(mended, [right.clone(), vec![Write::Delete(stray)]].concat());
    }

    #[test]
    fn a_lease_is_taken_once_flanneld_has_it() {
        let valid = guest();
        let pods = [pod("a-0", Some("10.1.1.2"), Some(64)), pod("b-0", Some("fd00::1"), Some(65))];
        let (members, strange) = members(&valid, &pods, &BTreeMap::new());
        assert_eq!(strange.as_deref(), Some("b-0"));
        let mut found = Found::default();
        assert_eq!(untaken(ID, &members, &found), ["a-0"]);
        found.taken.insert(lease::key(ID, "172.26.1.0/30".parse().unwrap()));
        assert!(untaken(ID, &members, &found).is_empty());
    }
}
