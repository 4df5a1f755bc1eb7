//! Control-plane nodes. Each is an Auto Scaling group of one, so that a machine that dies has a successor, which finds
//! volume, address and name of its predecessor.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    ClusterStack, Kind, Master, Resource, Template,
    api::{Balancer, DOMAIN, domain},
    machine::{self, Launch},
    network,
    resource::{Policy, attribute, reference},
    rights::{KEY, MASTER_PROFILE},
    security,
};
use crate::api::names;

/// Tags that a node's volume and interface have besides those of their stack.
const OWN_TAGS: [&str; 3] = ["Name", names::ROLE_LABEL, names::NODE_LABEL];

/// Seconds before a machine's health counts: it has to boot.
const GRACE_SECONDS: u32 = 300;

/// Adds all nodes of the control plane.
pub(super) fn add(template: &mut Template, stack: &ClusterStack) {
    for (index, master) in (0_u32..).zip(&stack.masters) {
        add_master(template, stack, master, index);
    }
}

fn add_master(template: &mut Template, stack: &ClusterStack, master: &Master, index: u32) {
    let node = names::master(index);
    let id = |what: &str| format!("Master{index}{what}");
    let suffix = network::suffix(stack, &master.zone);
    let subnet = reference(&network::private_subnet(&suffix));
    let mut tags = machine::tags(&stack.owner, &stack.tags, names::ROLE_CONTROL_PLANE, &node);
    tags.insert(names::NODE_LABEL.into(), node.clone());
    // By these the node finds what is its own; whose it is the stack's tags say.
    let own: BTreeMap<_, _> = tags.clone().into_iter().filter(|(key, _)| OWN_TAGS.contains(&key.as_str())).collect();

    let volume = json!({
        "AvailabilityZone": master.zone,
        "Encrypted": true,
        "KmsKeyId": attribute(KEY, "Arn"),
        "Size": master.etcd_disk,
        "Tags": machine::list(&own),
        "VolumeType": "gp3",
    });
    template.add(id("Volume"), Resource::new(Kind::Volume, volume).leaves(Policy::Snapshot));
    let interface = json!({
        "Description": format!("Lasting address of {node} of guest {}", stack.owner.id),
        "GroupSet": [attribute(security::MASTERS, "GroupId")],
        "SubnetId": subnet,
        "Tags": machine::list(&own),
    });
    template.add(id("Interface"), Resource::new(Kind::NetworkInterface, interface));
    let record = json!({
        "HostedZoneId": reference(DOMAIN),
        "Name": format!("{node}.{}", domain(stack)),
        "ResourceRecords": [attribute(&id("Interface"), "PrimaryPrivateIpAddress")],
        "TTL": "60",
        "Type": "A",
    });
    template.add(id("Record"), Resource::new(Kind::RecordSet, record));

    let launch = Launch {
        machine: &master.machine,
        profile_arn: attribute(MASTER_PROFILE, "Arn"),
        security_group: attribute(security::MASTERS, "GroupId"),
        key: attribute(KEY, "Arn"),
        tags: &tags,
    };
    template.add(id("LaunchTemplate"), Resource::new(Kind::LaunchTemplate, launch.template()));
    let targets: Vec<_> = Balancer::of(stack).map(|balancer| reference(&balancer.targets())).collect();
    let group = json!({
        "HealthCheckGracePeriod": GRACE_SECONDS,
        "HealthCheckType": "EC2",
        "LaunchTemplate": {
            "LaunchTemplateId": reference(&id("LaunchTemplate")),
            "Version": attribute(&id("LaunchTemplate"), "LatestVersionNumber"),
        },
        "MaxSize": "1",
        "MinSize": "1",
        "Tags": machine::passed_on(&tags),
        "TargetGroupARNs": targets,
        "VPCZoneIdentifier": [subnet],
    });
    let mut before = vec![id("Volume"), id("Record")];
    before.extend(network::way_out(&suffix));
    template.add(id("Group"), Resource::new(Kind::AutoScalingGroup, group).after(before));
}
