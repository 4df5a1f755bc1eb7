//! What a guest's stacks are made of: what a reconciler hands over.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use crate::aws::tags::Owner;

/// Network, API, keys and control plane of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStack {
    /// Whose it is.
    pub owner: Owner,
    /// Region, such as `eu-central-1`.
    pub region: String,
    /// Addresses of the whole network.
    pub network: Ipv4Net,
    /// Availability zones: one to three. What is made in a zone is called after it, so they come and go one by one.
    pub zones: Vec<Zone>,
    /// How private subnets reach the world.
    pub nat: Nat,
    /// Who reaches the API.
    pub api: ApiAccess,
    /// Control-plane nodes: one, three or five.
    pub masters: Vec<Master>,
    /// Hash of what of the Cluster's spec this is made for.
    pub spec_hash: String,
    /// A user's tags on everything.
    pub tags: BTreeMap<String, String>,
}

/// An availability zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Name, such as `eu-central-1a`.
    pub name: String,
    /// Addresses of what faces the world: NAT gateway and load balancers.
    pub public: Ipv4Net,
    /// Addresses of nodes.
    pub private: Ipv4Net,
}

/// How private subnets reach the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// By a gateway in each zone: the loss of one is felt in it alone.
    PerZone,
    /// By one in the first zone: a fraction of the cost, and the whole guest depends on that zone.
    Single,
}

/// Who reaches the API. Nodes always do, by a load balancer inside the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiAccess {
    /// Networks that reach it by a private way, such as a peering: the management cluster's, for one.
    pub private: Vec<Ipv4Net>,
    /// Networks that reach it over the internet, by a load balancer of its own. None: it has none.
    pub public: Vec<Ipv4Net>,
}

/// A control-plane node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// The zone that it and its volume are in. A volume cannot move, so neither can the node.
    pub zone: String,
    /// Its machine.
    pub machine: Machine,
    /// Size of etcd's volume, in GiB.
    pub etcd_disk: u32,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The image, such as `ami-0123456789abcdef0`.
    pub image: String,
    /// Instance type, such as `m7i.large`.
    pub instance_type: String,
    /// Size of its root disk, in GiB.
    pub disk: u32,
    /// What cloud-init gets, as it is: compressed, not encoded. It holds no secret.
    pub user_data: Vec<u8>,
}

/// A node pool of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStack {
    /// Whose it is.
    pub owner: Owner,
    /// Its name.
    pub pool: String,
    /// Ids of the private subnets that its nodes come into: outputs of the cluster's stack.
    pub subnets: Vec<String>,
    /// Id of the workers' security group: an output of the cluster's stack.
    pub security_group: String,
    /// ARN of the guest's key: an output of the cluster's stack.
    pub key_arn: String,
    /// Fewest nodes.
    pub min: u32,
    /// Most nodes. Between them whoever scales the pool decides, and no update of the stack undoes it.
    pub max: u32,
    /// Machine of its nodes.
    pub machine: Machine,
    /// How its machines are bought.
    pub purchase: Purchase,
    /// Seconds that a node has to be drained before its machine goes.
    pub drain_timeout: u32,
    /// Hash of what of the Cluster's spec this is made for.
    pub spec_hash: String,
    /// A user's tags on everything.
    pub tags: BTreeMap<String, String>,
}

/// How machines are bought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purchase {
    /// At the list price.
    OnDemand,
    /// Spot machines beside such at the list price.
    Spot {
        /// So many nodes at the list price first.
        on_demand: u32,
        /// Of the others this percentage at the list price, too.
        on_demand_percentage: u8,
        /// Instance types that may stand in for the machine's own, which is preferred.
        other_types: Vec<String>,
    },
}
