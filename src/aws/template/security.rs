//! Who reaches what inside a guest. Each rule is a resource of its own, so that groups may name each other.

use ipnet::Ipv4Net;
use serde_json::json;

use super::{
    ClusterStack, Kind, Resource, Template, api, network,
    resource::{attribute, reference, tags},
};
use crate::api::names::{API_PORT, ETCD_PORT, KUBELET_PORT};

pub(super) const MASTERS: &str = "MasterSecurityGroup";
pub(super) const WORKERS: &str = "WorkerSecurityGroup";

/// Port on which members of etcd find each other.
const ETCD_PEER_PORT: u16 = 2380;
/// BGP, by which Calico tells routes.
const BGP_PORT: u16 = 179;
/// VXLAN as Calico speaks it: a VPC carries no packets of addresses that it did not give.
const VXLAN_PORT: u16 = 4789;

/// What is let through.
enum Traffic {
    Tcp(u16, u16),
    Udp(u16),
    All,
}

/// Where from.
enum From<'a> {
    Group(&'a str),
    Network(Ipv4Net),
}

/// Adds the groups of nodes and of the API's load balancers, and what they let in.
pub(super) fn add(template: &mut Template, stack: &ClusterStack) {
    add_group(template, stack, MASTERS, "Control-plane nodes of a guest");
    add_group(template, stack, WORKERS, "Workers of a guest");
    let one = |port| Traffic::Tcp(port, port);
    let rules = [
        ("MastersApiFromMasters", MASTERS, MASTERS, one(API_PORT), "API, from control-plane nodes and their pods"),
        ("MastersApiFromWorkers", MASTERS, WORKERS, one(API_PORT), "API, from workers and their pods"),
        ("MastersEtcd", MASTERS, MASTERS, Traffic::Tcp(ETCD_PORT, ETCD_PEER_PORT), "etcd, among its members"),
        ("MastersKubelet", MASTERS, MASTERS, one(KUBELET_PORT), "kubelet, from API servers"),
        ("MastersBgpFromMasters", MASTERS, MASTERS, one(BGP_PORT), "Routes to pods, from control-plane nodes"),
        ("MastersBgpFromWorkers", MASTERS, WORKERS, one(BGP_PORT), "Routes to pods, from workers"),
        ("MastersPodsFromMasters", MASTERS, MASTERS, Traffic::Udp(VXLAN_PORT), "Pods, from control-plane nodes"),
        ("MastersPodsFromWorkers", MASTERS, WORKERS, Traffic::Udp(VXLAN_PORT), "Pods, from workers"),
        ("WorkersKubelet", WORKERS, MASTERS, one(KUBELET_PORT), "kubelet, from API servers"),
        ("WorkersBgp", WORKERS, MASTERS, one(BGP_PORT), "Routes to pods, from control-plane nodes"),
        ("WorkersPods", WORKERS, MASTERS, Traffic::Udp(VXLAN_PORT), "Pods, from control-plane nodes"),
        // Users' host networks and node ports: a guest is one tenant's.
        ("WorkersFromWorkers", WORKERS, WORKERS, Traffic::All, "Anything, among workers"),
    ];
    for (id, to, from, traffic, description) in rules {
        add_rule(template, id, to, &From::Group(from), &traffic, description);
    }
    for balancer in api::Balancer::of(stack) {
        let group = &balancer.group();
        add_balancers_group(template, stack, &balancer);
        let api = one(API_PORT);
        let id = format!("MastersApiFrom{}", balancer.word());
        add_rule(template, &id, MASTERS, &From::Group(group), &api, "API, from its load balancer");
        if balancer == api::Balancer::Internal {
            add_rule(
                template,
                "InternalApiFromMasters",
                group,
                &From::Group(MASTERS),
                &api,
                "API, from control-plane nodes",
            );
            add_rule(template, "InternalApiFromWorkers", group, &From::Group(WORKERS), &api, "API, from workers");
        }
        for network in balancer.open_to(stack) {
            // Called after the network, not its place in a list, so that one more moves no other.
            let word: String = network.to_string().chars().map(|c| if c.is_ascii_digit() { c } else { 'x' }).collect();
            let id = format!("{}ApiFrom{word}", balancer.word());
            add_rule(template, &id, group, &From::Network(*network), &api, "API, from outside of the guest");
        }
    }
    template.output("WorkerSecurityGroup", "Security group of workers", attribute(WORKERS, "GroupId"));
}

/// A group of nodes: they may go anywhere, since images and users' programs do.
fn add_group(template: &mut Template, stack: &ClusterStack, id: &str, description: &str) {
    let name = format!("{}-{id}", stack.owner.cluster_stack());
    let mut all = vec![("Name", name.as_str())];
    let kubernetes_tag = stack.owner.kubernetes_tag();
    if id == WORKERS {
        // The guest's cloud controller opens the one group that has this tag to load balancers of Services.
        all.push((&kubernetes_tag, "owned"));
    }
    let group = json!({
        "GroupDescription": description,
        "SecurityGroupEgress": [
            {"CidrIp": "0.0.0.0/0", "Description": "Anything, to anywhere", "IpProtocol": "-1"},
        ],
        "Tags": tags(all),
        "VpcId": reference(network::VPC),
    });
    template.add(id, Resource::new(Kind::SecurityGroup, group));
}

/// A load balancer's group: it goes to API servers alone.
fn add_balancers_group(template: &mut Template, stack: &ClusterStack, balancer: &api::Balancer) {
    let name = format!("{}-{}", stack.owner.cluster_stack(), balancer.group());
    let group = json!({
        "GroupDescription": balancer.description(),
        "SecurityGroupEgress": [{
            "Description": "API servers",
            "DestinationSecurityGroupId": attribute(MASTERS, "GroupId"),
            "FromPort": API_PORT,
            "IpProtocol": "tcp",
            "ToPort": API_PORT,
        }],
        "Tags": tags([("Name", name.as_str())]),
        "VpcId": reference(network::VPC),
    });
    template.add(balancer.group(), Resource::new(Kind::SecurityGroup, group));
}

fn add_rule(template: &mut Template, id: &str, to: &str, from: &From, traffic: &Traffic, description: &str) {
    let mut rule = json!({"Description": description, "GroupId": attribute(to, "GroupId")});
    match from {
        From::Group(group) => rule["SourceSecurityGroupId"] = attribute(group, "GroupId"),
        From::Network(network) => rule["CidrIp"] = json!(network),
    }
    let (protocol, ports) = match traffic {
        Traffic::Tcp(from, to) => ("tcp", Some((*from, *to))),
        Traffic::Udp(port) => ("udp", Some((*port, *port))),
        Traffic::All => ("-1", None),
    };
    rule["IpProtocol"] = json!(protocol);
    if let Some((from, to)) = ports {
        rule["FromPort"] = json!(from);
        rule["ToPort"] = json!(to);
    }
    template.add(id, Resource::new(Kind::SecurityGroupIngress, rule));
}
