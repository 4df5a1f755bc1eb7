//! The way to a guest's API: a load balancer inside its network, which nodes depend on, and one that faces the world only
//! for those who are let in. Names of the guest's own zone lead to the first one.

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{
    ClusterStack, Kind, Resource, Template, network,
    resource::{attribute, reference, tags},
};
use crate::api::names::API_PORT;

pub(super) const DOMAIN: &str = "Domain";

/// A load balancer in front of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Balancer {
    /// Inside the network.
    Internal,
    /// Facing the world.
    Public,
}

impl Balancer {
    /// Those of a guest.
    pub(super) fn of(stack: &ClusterStack) -> impl Iterator<Item = Self> {
        let public = (!stack.api.public.is_empty()).then_some(Self::Public);
        std::iter::once(Self::Internal).chain(public)
    }

    /// What it adds to logical ids.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Internal => "Internal",
            Self::Public => "Public",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Internal => "Load balancer of the API inside the network",
            Self::Public => "Load balancer of the API for the internet",
        }
    }

    /// Its security group.
    pub(super) fn group(self) -> String {
        format!("{}ApiSecurityGroup", self.word())
    }

    /// Its targets.
    pub(super) fn targets(self) -> String {
        format!("{}ApiTargets", self.word())
    }

    /// Networks outside of the guest that it is open to.
    pub(super) fn open_to(self, stack: &ClusterStack) -> &[Ipv4Net] {
        match self {
            Self::Internal => &stack.api.private,
            Self::Public => &stack.api.public,
        }
    }

    fn id(self) -> String {
        format!("{}Api", self.word())
    }

    fn listener(self) -> String {
        format!("{}ApiListener", self.word())
    }

    fn add(self, template: &mut Template, stack: &ClusterStack) {
        let (scheme, subnet): (_, fn(&str) -> String) = match self {
            Self::Internal => ("internal", network::private_subnet),
            Self::Public => ("internet-facing", network::public_subnet),
        };
        let subnets: Vec<Value> = network::suffixes(stack).map(|suffix| reference(&subnet(&suffix))).collect();
        let balancer = json!({
            "LoadBalancerAttributes": attributes([("load_balancing.cross_zone.enabled", "true")]),
            "Scheme": scheme,
            // Those of a network load balancer can only be set when it is made.
            "SecurityGroups": [attribute(&self.group(), "GroupId")],
            "Subnets": subnets,
            "Tags": tags([("Name", format!("{}-{}", stack.owner.cluster_stack(), self.id()).as_str())]),
            "Type": "network",
        });
        template.add(self.id(), Resource::new(Kind::LoadBalancer, balancer));
        let targets = json!({
            "HealthCheckIntervalSeconds": 10,
            "HealthCheckProtocol": "TCP",
            "HealthyThresholdCount": 2,
            "Port": API_PORT,
            "Protocol": "TCP",
            "TargetGroupAttributes": attributes([
                // Long enough for requests, but for watches, which begin anew.
                ("deregistration_delay.timeout_seconds", "60"),
                // A node that reaches itself by the load balancer would get packets of its own address, and drop them.
                ("preserve_client_ip.enabled", "false"),
            ]),
            "TargetType": "instance",
            "UnhealthyThresholdCount": 2,
            "VpcId": reference(network::VPC),
        });
        template.add(self.targets(), Resource::new(Kind::TargetGroup, targets));
        // TLS ends in the guest, where client certificates are checked.
        let listener = json!({
            "DefaultActions": [{"TargetGroupArn": reference(&self.targets()), "Type": "forward"}],
            "LoadBalancerArn": reference(&self.id()),
            "Port": API_PORT,
            "Protocol": "TCP",
        });
        template.add(self.listener(), Resource::new(Kind::Listener, listener));
    }
}

fn attributes<const N: usize>(pairs: [(&str, &str); N]) -> Value {
    pairs.into_iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
}

/// Name of the guest's own zone.
pub(super) fn domain(stack: &ClusterStack) -> String {
    stack.owner.domain()
}

/// Adds load balancers, the zone and the API's name in it.
pub(super) fn add(template: &mut Template, stack: &ClusterStack) {
    for balancer in Balancer::of(stack) {
        balancer.add(template, stack);
    }
    let zone = json!({
        "HostedZoneConfig": {"Comment": format!("Names of guest {} for itself", stack.owner.name)},
        "Name": domain(stack),
        "VPCs": [{"VPCId": reference(network::VPC), "VPCRegion": stack.region}],
    });
    template.add(DOMAIN, Resource::new(Kind::HostedZone, zone));
    let internal = Balancer::Internal.id();
    let record = json!({
        "AliasTarget": {
            "DNSName": attribute(&internal, "DNSName"),
            "EvaluateTargetHealth": false,
            "HostedZoneId": attribute(&internal, "CanonicalHostedZoneID"),
        },
        "HostedZoneId": reference(DOMAIN),
        "Name": format!("api.{}", domain(stack)),
        "Type": "A",
    });
    template.add("ApiRecord", Resource::new(Kind::RecordSet, record));
    template.output("ApiName", "Name of the API inside the network", json!(format!("api.{}", domain(stack))));
    template.output("ApiEndpoint", "Host of the API inside the network", attribute(&internal, "DNSName"));
    if Balancer::of(stack).any(|balancer| balancer == Balancer::Public) {
        let public = attribute(&Balancer::Public.id(), "DNSName");
        template.output("PublicApiEndpoint", "Host of the API on the internet", public);
    }
}
