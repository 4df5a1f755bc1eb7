//! Whether stacks can be made of an input. AWS would say so, too, after minutes, and for some of it only to a running node.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use super::{ClusterStack, MAX_BYTES, MAX_RESOURCES, Machine, PoolStack, Purchase};
use crate::aws::tags::is_reserved;

/// Most bytes of user data, before it is encoded (EC2's limit).
pub const MAX_USER_DATA: usize = 16 * 1024;

/// Most tags of a user: AWS takes 50 on a resource, and ten are ours.
pub const MAX_TAGS: usize = 40;

/// Zones that a guest may have.
pub const MAX_ZONES: usize = 3;

/// Networks that one load balancer may be open to: a security group takes 60 rules, and two are for nodes.
pub const MAX_NETWORKS: usize = 50;

/// Longest wait of a lifecycle hook for one heartbeat, in seconds (Auto Scaling's limits).
const DRAIN_TIMEOUTS: std::ops::RangeInclusive<u32> = 30..=7200;

/// Why no template can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each says what its fields are")]
pub enum InputError {
    #[error("{0} availability zones are asked for: one to {MAX_ZONES} are possible")]
    Zones(usize),
    #[error("availability zone {0} is listed twice")]
    ZoneTwice(String),
    #[error("availability zone {zone} is not in region {region}")]
    ZoneElsewhere { zone: String, region: String },
    #[error("network {0} has a prefix that AWS does not give: /16 to /28 are possible")]
    Prefix(Ipv4Net),
    #[error("network {subnet} of zone {zone} is no part of the guest's network {network}")]
    Outside { zone: String, subnet: Ipv4Net, network: Ipv4Net },
    #[error("networks {0} and {1} overlap")]
    Overlap(Ipv4Net, Ipv4Net),
    #[error("the API is to be open to {0} networks: {MAX_NETWORKS} are possible")]
    Networks(usize),
    #[error("the API is to be open to network {0}, which is listed twice or has bits set after its prefix")]
    Network(Ipv4Net),
    #[error("{0} control-plane nodes are asked for: 1, 3 or 5 are possible")]
    Masters(usize),
    #[error("control-plane node {node} is to be in zone {zone}, which the guest does not have")]
    MasterElsewhere { node: String, zone: String },
    #[error("user data of {of} has {bytes} bytes: EC2 takes {MAX_USER_DATA}")]
    UserDataTooBig { of: String, bytes: usize },
    #[error("{what} of {of} is not set")]
    Empty { of: String, what: &'static str },
    #[error("pool {pool}: at least {min} and at most {max} nodes are asked for")]
    Size { pool: String, min: u32, max: u32 },
    #[error("pool {pool}: {percentage} % of machines at the list price are asked for")]
    Percentage { pool: String, percentage: u8 },
    #[error("pool {pool}: instance type {name} is listed twice")]
    TypeTwice { pool: String, name: String },
    #[error("pool {pool}: {seconds} s for draining are asked for: {} to {} are possible", DRAIN_TIMEOUTS.start(), DRAIN_TIMEOUTS.end())]
    DrainTimeout { pool: String, seconds: u32 },
    #[error("tag {0} is not a user's to set")]
    ReservedTag(String),
    #[error("{0} tags are asked for: {MAX_TAGS} are possible")]
    Tags(usize),
    #[error("the template of stack {stack} has {bytes} bytes: CloudFormation takes {MAX_BYTES}")]
    TemplateTooBig { stack: String, bytes: usize },
    #[error("the template of stack {stack} has {resources} resources: CloudFormation takes {MAX_RESOURCES}")]
    TooManyResources { stack: String, resources: usize },
}

impl ClusterStack {
    pub(super) fn check(&self) -> Result<(), InputError> {
        self.check_zones()?;
        self.check_networks()?;
        check_access(&self.api.private)?;
        check_access(&self.api.public)?;
        if ![1, 3, 5].contains(&self.masters.len()) {
            return Err(InputError::Masters(self.masters.len()));
        }
        for (index, master) in self.masters.iter().enumerate() {
            let node = format!("master-{index}");
            if !self.zones.iter().any(|zone| zone.name == master.zone) {
                return Err(InputError::MasterElsewhere { node, zone: master.zone.clone() });
            }
            if master.etcd_disk == 0 {
                return Err(InputError::Empty { of: node, what: "size of etcd's volume" });
            }
            check_machine(&master.machine, &node)?;
        }
        check_tags(&self.tags)
    }

    fn check_zones(&self) -> Result<(), InputError> {
        if !(1..=MAX_ZONES).contains(&self.zones.len()) {
            return Err(InputError::Zones(self.zones.len()));
        }
        let mut seen = BTreeSet::new();
        for zone in &self.zones {
            if zone.name.strip_prefix(&self.region).is_none_or(str::is_empty) {
                return Err(InputError::ZoneElsewhere { zone: zone.name.clone(), region: self.region.clone() });
            }
            if !seen.insert(&zone.name) {
                return Err(InputError::ZoneTwice(zone.name.clone()));
            }
        }
        Ok(())
    }

    fn check_networks(&self) -> Result<(), InputError> {
        check_prefix(self.network)?;
        let mut seen: Vec<Ipv4Net> = Vec::new();
        for zone in &self.zones {
            for subnet in [zone.public, zone.private] {
                check_prefix(subnet)?;
                if !self.network.contains(&subnet) {
                    let zone = zone.name.clone();
                    return Err(InputError::Outside { zone, subnet, network: self.network });
                }
                if let Some(other) = seen.iter().find(|other| other.contains(&subnet) || subnet.contains(*other)) {
                    return Err(InputError::Overlap(*other, subnet));
                }
                seen.push(subnet);
            }
        }
        Ok(())
    }
}

impl PoolStack {
    pub(super) fn check(&self) -> Result<(), InputError> {
        let of = || format!("pool {}", self.pool);
        if self.min > self.max {
            return Err(InputError::Size { pool: self.pool.clone(), min: self.min, max: self.max });
        }
        self.check_purchase()?;
        if !DRAIN_TIMEOUTS.contains(&self.drain_timeout) {
            return Err(InputError::DrainTimeout { pool: self.pool.clone(), seconds: self.drain_timeout });
        }
        for (value, what) in [(&self.security_group, "security group"), (&self.key_arn, "key")] {
            if value.is_empty() {
                return Err(InputError::Empty { of: of(), what });
            }
        }
        if self.subnets.is_empty() {
            return Err(InputError::Empty { of: of(), what: "subnet" });
        }
        check_machine(&self.machine, &of())?;
        check_tags(&self.tags)
    }

    fn check_purchase(&self) -> Result<(), InputError> {
        let Purchase::Spot { on_demand_percentage, other_types, .. } = &self.purchase else {
            return Ok(());
        };
        if *on_demand_percentage > 100 {
            return Err(InputError::Percentage { pool: self.pool.clone(), percentage: *on_demand_percentage });
        }
        let mut seen = BTreeSet::from([&self.machine.instance_type]);
        match other_types.iter().find(|name| !seen.insert(name)) {
            Some(name) => Err(InputError::TypeTwice { pool: self.pool.clone(), name: name.clone() }),
            None => Ok(()),
        }
    }
}

fn check_access(networks: &[Ipv4Net]) -> Result<(), InputError> {
    if networks.len() > MAX_NETWORKS {
        return Err(InputError::Networks(networks.len()));
    }
    let mut seen = BTreeSet::new();
    match networks.iter().find(|network| network.trunc() != **network || !seen.insert(**network)) {
        Some(network) => Err(InputError::Network(*network)),
        None => Ok(()),
    }
}

fn check_prefix(network: Ipv4Net) -> Result<(), InputError> {
    if (16..=28).contains(&network.prefix_len()) { Ok(()) } else { Err(InputError::Prefix(network)) }
}

fn check_machine(machine: &Machine, of: &str) -> Result<(), InputError> {
    let bytes = machine.user_data.len();
    if bytes > MAX_USER_DATA {
        return Err(InputError::UserDataTooBig { of: of.to_owned(), bytes });
    }
    let missing = [
        (machine.image.is_empty(), "image"),
        (machine.instance_type.is_empty(), "instance type"),
        (machine.disk == 0, "size of the root disk"),
    ];
    match missing.into_iter().find(|(is_missing, _)| *is_missing) {
        Some((_, what)) => Err(InputError::Empty { of: of.to_owned(), what }),
        None => Ok(()),
    }
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), InputError> {
    if tags.len() > MAX_TAGS {
        return Err(InputError::Tags(tags.len()));
    }
    match tags.keys().find(|key| is_reserved(key)) {
        Some(key) => Err(InputError::ReservedTag(key.clone())),
        None => Ok(()),
    }
}
