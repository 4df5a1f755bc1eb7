//! Which stacks a guest has, and what each is made of. Pure.
//!
//! What a stack is made for is a hash of the spec alone: a newer controller manager that would render it otherwise changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use serde_json::json;

use super::{
    tags::Owner,
    template::{ApiAccess, ClusterStack, Machine, Master, Nat, PoolStack, Purchase, Zone},
};
use crate::{
    api::{NatGateways, names},
    cluster::{
        Identity, Valid,
        valid::{Aws, NodePool, Spot},
    },
    rollout::wish,
    runtime::apply::hash,
};

/// Bits by which the part of the network that has nodes in a zone is smaller than the whole of it.
const PRIVATE_BITS: u8 = 2;
/// Likewise of the part that faces the world.
const PUBLIC_BITS: u8 = 4;

/// Whose the stacks of a guest are.
pub fn owner(identity: &Identity) -> Owner {
    Owner { uid: identity.uid.clone(), id: identity.id.clone(), name: identity.key.to_string() }
}

/// What pools need to know of the cluster's stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// Subnets of nodes, in the order of zones.
    pub subnets: Vec<String>,
    /// Security group of workers.
    pub worker_group: String,
    /// ARN of the guest's key.
    pub key_arn: String,
    /// Host of the API for people: on the internet, if it is there.
    pub api_host: String,
}

impl Outputs {
    /// Those of a stack. None: it does not have them yet.
    pub fn of(outputs: &BTreeMap<String, String>) -> Option<Self> {
        let subnets = outputs.get("PrivateSubnets")?.split(',').map(str::to_owned).collect();
        Some(Self {
            subnets,
            worker_group: outputs.get("WorkerSecurityGroup")?.clone(),
            key_arn: outputs.get("KeyArn")?.clone(),
            api_host: outputs.get("PublicApiEndpoint").or_else(|| outputs.get("ApiEndpoint"))?.clone(),
        })
    }

    /// URL of the guest's API.
    pub fn endpoint(&self) -> String {
        format!("https://{}:{}", self.api_host, names::API_PORT)
    }
}

/// The hash of what the cluster's stack is made for.
pub fn cluster_hash(valid: &Valid, aws: &Aws) -> String {
    hash(&json!({
        "wish": wish::control_plane(valid),
        "replicas": valid.control_plane.replicas,
        "zones": aws.zones,
        "network": aws.network,
        "nat": aws.nat,
        "image": aws.image,
        "instanceType": aws.control_plane_type,
        "private": aws.private_access,
        "public": aws.public_access,
        "etcd": valid.etcd.bytes,
    }))
}

/// The stack of network, API, key and control plane. `user_data` is of its nodes, in their order.
pub fn cluster_stack(valid: &Valid, aws: &Aws, user_data: Vec<Vec<u8>>) -> ClusterStack {
    let in_zones = aws.zones.iter().cycle();
    let machine = |user_data| Machine {
        image: aws.image.clone(),
        instance_type: aws.control_plane_type.clone(),
        disk: gibibytes(valid.control_plane.machine.disk_bytes),
        user_data,
    };
    ClusterStack {
        owner: owner(&valid.identity),
        region: aws.region.clone(),
        network: aws.network,
        zones: zones(aws),
        nat: match aws.nat {
            NatGateways::Single => Nat::Single,
            NatGateways::PerZone => Nat::PerZone,
        },
        api: ApiAccess { private: aws.private_access.clone(), public: aws.public_access.clone() },
        masters: user_data
            .into_iter()
            .zip(in_zones)
            .map(|(data, zone)| Master {
                zone: zone.clone(),
                machine: machine(data),
                etcd_disk: gibibytes(valid.etcd.bytes),
            })
            .collect(),
        spec_hash: cluster_hash(valid, aws),
        tags: BTreeMap::new(),
    }
}

/// The zones, each with its part of the network: three of four quarters are for nodes, and three quarters of the last for what faces
/// the world. A zone's part is its place in the list, so that one that is added at the end moves no other.
fn zones(aws: &Aws) -> Vec<Zone> {
    let prefix = aws.network.prefix_len();
    let part = |bits: u8, place: usize| -> Ipv4Net {
        // A network of /16 to /22 has them all; [`crate::cluster::valid`] sees to it.
        let parts = aws.network.subnets(prefix.saturating_add(bits).min(32)).ok();
        parts.and_then(|mut parts| parts.nth(place)).unwrap_or(aws.network)
    };
    let zone = |(place, name): (usize, &String)| Zone {
        name: name.clone(),
        private: part(PRIVATE_BITS, place),
        public: part(PUBLIC_BITS, 12 + place),
    };
    aws.zones.iter().enumerate().map(zone).collect()
}

/// The subnets that a pool's nodes come into: those of its zones, or all.
fn subnets(aws: &Aws, pool: &NodePool, outputs: &Outputs) -> Vec<String> {
    let wanted = |zone: &str| pool.zones.is_empty() || pool.zones.iter().any(|one| one.as_str() == zone);
    let of_zones = aws.zones.iter().zip(&outputs.subnets);
    of_zones.filter(|(zone, _)| wanted(zone)).map(|(_, subnet)| subnet.clone()).collect()
}

/// The stack of a node pool.
pub fn pool_stack(
    valid: &Valid,
    aws: &Aws,
    pool: &NodePool,
    outputs: &Outputs,
    (user_data, drain_timeout): (Vec<u8>, u32),
) -> PoolStack {
    let subnets = subnets(aws, pool, outputs);
    let purchase = match &pool.aws.spot {
        None => Purchase::OnDemand,
        Some(Spot { on_demand, on_demand_percentage, other_types }) => Purchase::Spot {
            on_demand: *on_demand,
            on_demand_percentage: *on_demand_percentage,
            other_types: other_types.clone(),
        },
    };
    let spot = pool.aws.spot.as_ref().map(|spot| (spot.on_demand, spot.on_demand_percentage, &spot.other_types));
    let spec_hash = hash(&json!({
        "wish": wish::worker(valid, pool),
        "replicas": pool.replicas,
        "image": aws.image,
        "instanceType": pool.aws.instance_type,
        "spot": spot,
        "subnets": subnets,
        "drain": drain_timeout,
    }));
    PoolStack {
        owner: owner(&valid.identity),
        pool: pool.name.as_str().to_owned(),
        subnets,
        security_group: outputs.worker_group.clone(),
        key_arn: outputs.key_arn.clone(),
        min: pool.replicas,
        max: pool.replicas,
        machine: Machine {
            image: aws.image.clone(),
            instance_type: pool.aws.instance_type.clone(),
            disk: gibibytes(pool.machine.disk_bytes),
            user_data,
        },
        purchase,
        drain_timeout,
        spec_hash,
        tags: BTreeMap::new(),
    }
}

/// In whole GiB, as EC2 has them.
fn gibibytes(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 30)).unwrap_or(u32::MAX)
}

/// Names of instance types that a guest asks for, each once.
pub fn instance_types(valid: &Valid, aws: &Aws) -> Vec<String> {
    let of_pools = valid.pools.iter().flat_map(|pool| {
        let others = pool.aws.spot.iter().flat_map(|spot| &spot.other_types);
        std::iter::once(&pool.aws.instance_type).chain(others)
    });
    let mut all: Vec<_> = std::iter::once(&aws.control_plane_type).chain(of_pools).cloned().collect();
    all.sort();
    all.dedup();
    all
}

/// Which instance types are missing in which zones, of those that there are.
pub fn missing(types: &[String], zones: &[String], found: &BTreeSet<(String, String)>) -> Vec<String> {
    let lacks = |name: &String, zone: &String| !found.contains(&(name.clone(), zone.clone()));
    let of = |name: &String| {
        let zones: Vec<_> = zones.iter().filter(|zone| lacks(name, zone)).map(String::as_str).collect();
        (!zones.is_empty()).then(|| format!("{name} in {}", zones.join(" and ")))
    };
    types.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::on_aws;

    fn outputs() -> Outputs {
        Outputs {
            subnets: vec!["subnet-a".into(), "subnet-b".into()],
            worker_group: "sg-1".into(),
            key_arn: "arn:aws:kms:eu-central-1:111122223333:key/1".into(),
            api_host: "api.example.com".into(),
        }
    }

    fn rendered(spec: serde_json::Value) -> (String, Vec<String>) {
        let valid = on_aws(spec);
        let aws = valid.aws.clone().unwrap();
        let masters = (0..valid.control_plane.replicas).map(|_| b"x".to_vec()).collect();
        let cluster = cluster_stack(&valid, &aws, masters);
        cluster.render().unwrap();
        let pools = valid.pools.iter().map(|pool| pool_stack(&valid, &aws, pool, &outputs(), (b"x".to_vec(), 600)));
        let pools = pools.map(|pool| {
            pool.render().unwrap();
            pool.spec_hash
        });
        (cluster.spec_hash, pools.collect())
    }

    #[test]
    fn what_a_guest_asks_for_becomes_stacks() {
        let spec = json!({
            "provider": {"aws": {"zones": ["eu-central-1a", "eu-central-1b"], "nat": "PerZone",
                "controlPlane": {"instanceType": "m7i.xlarge"}, "apiAccess": {"public": ["192.0.2.0/24"]}}},
            "controlPlane": {"replicas": 3},
            "nodePools": [{"name": "web", "replicas": 3, "zones": ["eu-central-1b"],
                "aws": {"instanceType": "c7i.large", "spot": {"onDemand": 1, "otherTypes": ["c6i.large"]}}}],
        });
        let valid = on_aws(spec);
        let aws = valid.aws.clone().unwrap();
        let stack = cluster_stack(&valid, &aws, vec![Vec::new(); 3]);
        let of: Vec<_> = stack.masters.iter().map(|master| master.zone.as_str()).collect();
        assert_eq!(of, ["eu-central-1a", "eu-central-1b", "eu-central-1a"]);
        assert_eq!((stack.masters[0].etcd_disk, stack.masters[0].machine.disk, stack.nat), (8, 20, Nat::PerZone));
        let parts: Vec<_> =
            stack.zones.iter().map(|zone| (zone.private.to_string(), zone.public.to_string())).collect();
        let at = |private: &str, public: &str| (private.to_owned(), public.to_owned());
        assert_eq!(parts, [at("10.8.0.0/18", "10.8.192.0/20"), at("10.8.64.0/18", "10.8.208.0/20")]);
        let pool = pool_stack(&valid, &aws, &valid.pools[0], &outputs(), (Vec::new(), 600));
        assert_eq!((pool.subnets.as_slice(), pool.min, pool.max), (["subnet-b".to_owned()].as_slice(), 3, 3));
        assert!(matches!(pool.purchase, Purchase::Spot { on_demand: 1, on_demand_percentage: 0, .. }));
        assert_eq!(instance_types(&valid, &aws), ["c6i.large", "c7i.large", "m7i.xlarge"]);
    }

    #[test]
    fn each_field_moves_the_stacks_that_it_is_for() {
        let base = json!({"nodePools": [{"name": "a"}]});
        let before = rendered(base.clone());
        assert_eq!(before, rendered(base.clone()));
        for (change, cluster, pool) in [
            (json!({"provider": {"aws": {"nat": "PerZone"}}}), true, false),
            (json!({"provider": {"aws": {"controlPlane": {"instanceType": "m7i.xlarge"}}}}), true, false),
            (json!({"provider": {"aws": {"image": "ami-00000000000000001"}}}), true, true),
            (json!({"provider": {"aws": {"apiAccess": {"private": ["10.0.0.0/8"]}}}}), true, false),
            (json!({"controlPlane": {"replicas": 3}}), true, false),
            (json!({"kubernetes": {"featureGates": {"A": true}}}), true, true),
            (json!({"nodePools": [{"name": "a", "replicas": 2}]}), false, true),
            (json!({"nodePools": [{"name": "a", "aws": {"instanceType": "c7i.large"}}]}), false, true),
            (json!({"nodePools": [{"name": "a", "machine": {"disk": "30Gi"}}]}), false, true),
            (json!({"nodePools": [{"name": "a", "labels": {"example.com/x": "y"}}]}), false, false),
            (json!({"deletionProtection": true}), false, false),
            (json!({"provider": {"aws": {"credentials": {"secretName": "other"}}}}), false, false),
        ] {
            let mut spec = base.clone();
            merge(&mut spec, &change);
            let after = rendered(spec);
            assert_eq!((before.0 != after.0, before.1 != after.1), (cluster, pool), "{change}");
        }
    }

    fn merge(into: &mut serde_json::Value, from: &serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
                from.iter()
                    .for_each(|(key, value)| merge(into.entry(key.clone()).or_insert(serde_json::Value::Null), value));
            }
            (into, from) => *into = from.clone(),
        }
    }

    #[test]
    fn the_smallest_network_has_room_for_three_zones() {
        let zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c"];
        rendered(json!({"provider": {"aws": {"zones": zones, "network": "10.9.4.0/22"}}}));
    }
}
