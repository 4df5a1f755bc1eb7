//! What may reach a guest's VM pods, and what they may reach: everything that is not named here is denied. Pure.
//!
//! ```text
//!   any pod, any user ──── tcp/6443 ────► VM pods ──── any but the operator's ranges ───► the world
//!   any pod, any user ─ tcp/30080, 30081 ► │  ▲   (with an ingress controller in the guest)
//!   controller manager ─── tcp/8080 ────►  │  │   (and whoever may scrape)
//!                                          └──┘ udp/8472, udp/8474, tcp/6443, among the VM pods of one guest
//! ```
//!
//! With Flannel, VM pods reach its etcd (tcp/2379), too.
//!
//! The management cluster's CNI enforces it. Kubelet's probes come from the pod's own host, which every CNI lets in.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use crate::{
    api::names,
    cluster::{Identity, Valid},
    network::addresses::Fabric,
    settings::Settings,
    supervisor::network::VXLAN_PORT,
};

/// Name of the one policy in a guest's namespace.
pub const POLICY: &str = "guest";

/// What only the operator of the management cluster may open: its API, kubelets, etcd and pods lie in private ranges, and
/// clouds serve their metadata from link-local addresses.
const CLOSED: [&str; 6] =
    ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"];

/// Whether the policy keeps guests from an address: from private ranges, but for those that the operator opens, and from all of
/// IPv6.
pub fn is_closed(address: IpAddr, opened: &[Ipv4Net]) -> bool {
    let IpAddr::V4(address) = address else { return true };
    let closed = CLOSED.iter().filter_map(|range| range.parse::<Ipv4Net>().ok());
    closed.into_iter().any(|range| range.contains(&address)) && !opened.iter().any(|range| range.contains(&address))
}

/// The policy of a guest's namespace.
pub fn policy(cluster: &Valid, settings: &Settings) -> NetworkPolicy {
    let identity = &cluster.identity;
    let mut open = vec![port("TCP", names::API_PORT)];
    if cluster.ingress_controller.is_some() {
        open.extend(names::INGRESS_PORTS.map(|(_, _, number)| port("TCP", number)));
    }
    NetworkPolicy {
        metadata: identity.metadata(POLICY),
        spec: Some(NetworkPolicySpec {
            // All pods of the namespace, those that are not ours too.
            pod_selector: Some(LabelSelector::default()),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { from: None, ports: Some(open) },
                NetworkPolicyIngressRule {
                    from: Some(vec![members(identity)]),
                    ports: Some(vec![port("UDP", VXLAN_PORT), port("UDP", names::PATH_PORT)]),
                },
                NetworkPolicyIngressRule {
                    from: Some(supervisors_peers(settings)),
                    ports: Some(vec![port("TCP", names::SUPERVISOR_PORT)]),
                },
            ]),
            egress: Some(egress(cluster, settings)),
        }),
    }
}

fn egress(cluster: &Valid, settings: &Settings) -> Vec<NetworkPolicyEgressRule> {
    let identity = &cluster.identity;
    let mut rules = vec![
        NetworkPolicyEgressRule {
            to: Some(vec![members(identity)]),
            ports: Some(vec![port("UDP", VXLAN_PORT), port("UDP", names::PATH_PORT), port("TCP", names::API_PORT)]),
        },
        NetworkPolicyEgressRule { to: Some(vec![block("0.0.0.0/0".into(), &CLOSED)]), ports: None },
    ];
    let resolvers: Vec<_> =
        settings.kvm.resolvers.iter().map(|resolver| block(IpNet::from(*resolver).to_string(), &[])).collect();
    if !resolvers.is_empty() {
        rules
            .push(NetworkPolicyEgressRule { to: Some(resolvers), ports: Some(vec![port("UDP", 53), port("TCP", 53)]) });
    }
    if settings.network.cluster_dns.is_some() {
        // The supervisor asks the Service kube-dns for its peers. A policy sees address and port after they were translated to
        // a pod's, so it names the pods, and no port: not every distribution's listen at 53. The guest itself is kept away
        // from all private addresses by the rules in the VM pod.
        rules.push(NetworkPolicyEgressRule { to: Some(vec![cluster_dns()]), ports: None });
    }
    if cluster.ranges.overlay.fabric == Fabric::Routed {
        // flanneld, which alone has a certificate; QEMU's user is kept away as from all private addresses.
        let etcd = pods(&settings.network.manager_namespace, "app.kubernetes.io/name", names::FLANNEL_ETCD);
        rules.push(NetworkPolicyEgressRule { to: Some(vec![etcd]), ports: Some(vec![port("TCP", names::ETCD_PORT)]) });
    }
    let opened: Vec<_> =
        settings.network.egress_allowed.iter().map(|range: &Ipv4Net| block(range.to_string(), &[])).collect();
    if !opened.is_empty() {
        rules.push(NetworkPolicyEgressRule { to: Some(opened), ports: None });
    }
    rules
}

/// The VM pods of this guest.
fn members(identity: &Identity) -> NetworkPolicyPeer {
    let label = BTreeMap::from([(names::CLUSTER_LABEL.to_owned(), identity.id.clone())]);
    NetworkPolicyPeer {
        pod_selector: Some(LabelSelector { match_labels: Some(label), ..LabelSelector::default() }),
        ..NetworkPolicyPeer::default()
    }
}

/// Who may ask supervisors: the pods of the controller manager, as the chart labels them, and all of the namespaces that scrape.
fn supervisors_peers(settings: &Settings) -> Vec<NetworkPolicyPeer> {
    let manager = pods(&settings.network.manager_namespace, "app.kubernetes.io/name", names::MANAGER);
    let monitoring = settings.network.monitoring_namespaces.iter().map(|namespace| NetworkPolicyPeer {
        namespace_selector: labelled("kubernetes.io/metadata.name", namespace),
        ..NetworkPolicyPeer::default()
    });
    [manager].into_iter().chain(monitoring).collect()
}

/// The pods of the management cluster's DNS server, by the labels that every distribution gives them.
fn cluster_dns() -> NetworkPolicyPeer {
    pods("kube-system", "k8s-app", "kube-dns")
}

/// The pods of a namespace that carry a label.
fn pods(namespace: &str, key: &str, value: &str) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: labelled("kubernetes.io/metadata.name", namespace),
        pod_selector: labelled(key, value),
        ..NetworkPolicyPeer::default()
    }
}

/// What carries a label.
fn labelled(key: &str, value: &str) -> Option<LabelSelector> {
    Some(LabelSelector {
        match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
        ..LabelSelector::default()
    })
}

fn block(cidr: String, except: &[&str]) -> NetworkPolicyPeer {
    let except = (!except.is_empty()).then(|| except.iter().map(|range| (*range).to_owned()).collect());
    NetworkPolicyPeer { ip_block: Some(IPBlock { cidr, except }), ..NetworkPolicyPeer::default() }
}

fn port(protocol: &str, number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.into()),
        port: Some(IntOrString::Int(i32::from(number))),
        ..NetworkPolicyPort::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{settings, valid};

    #[test]
    fn the_policy_is_golden() {
        let mut settings = settings();
        settings.kvm.resolvers = vec!["192.0.2.53".parse().unwrap()];
        settings.network.egress_allowed = vec!["10.20.30.0/24".parse().unwrap()];
        settings.network.cluster_dns = Some([10, 96, 0, 10].into());
        settings.network.monitoring_namespaces = ["monitoring".to_owned()].into();
        let policy = policy(&valid(json!({})), &settings);
        insta::assert_snapshot!(serde_saphyr::to_string(&policy).unwrap());
    }

    #[test]
    fn with_flannel_its_etcd_is_open() {
        let mut cluster = valid(json!({}));
        let before = egress(&cluster, &settings());
        cluster.ranges.overlay.fabric = Fabric::Routed;
        let mut after = egress(&cluster, &settings());
        let open = after.pop().unwrap();
        assert_eq!(after, before);
        insta::assert_snapshot!(serde_saphyr::to_string(&open).unwrap());
    }

    #[test]
    fn an_ingress_controllers_ports_are_open_where_there_is_one() {
        let open = |spec| {
            let ingress = policy(&valid(spec), &settings()).spec.unwrap().ingress.unwrap();
            let rule = ingress.into_iter().find(|rule| rule.from.is_none()).unwrap();
            rule.ports.unwrap().into_iter().filter_map(|port| port.port).collect::<Vec<_>>()
        };
        let ports = |numbers: &[i32]| numbers.iter().map(|number| IntOrString::Int(*number)).collect::<Vec<_>>();
        assert_eq!(open(json!({})), ports(&[6443]));
        assert_eq!(open(json!({"ingressController": {"enabled": true}})), ports(&[6443, 30080, 30081]));
    }

    #[test]
    fn private_addresses_are_closed_but_for_what_the_operator_opens() {
        let opened = ["10.20.0.0/16".parse().unwrap()];
        for (address, closed) in [
            ("10.1.2.3", true),
            ("10.20.1.1", false),
            ("169.254.169.254", true),
            ("192.0.2.1", false),
            ("fd00::1", true),
        ] {
            assert_eq!(is_closed(address.parse().unwrap(), &opened), closed, "{address}");
        }
    }

    #[test]
    fn every_closed_range_is_one() {
        assert!(CLOSED.iter().all(|range| range.parse::<Ipv4Net>().is_ok_and(|net| net.addr() == net.network())));
    }
}
