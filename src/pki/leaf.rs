//! Subjects, names, usages and lifetimes of every certificate of a guest.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    api::names,
    cluster::{Valid, valid::SubjectName},
    network::{addresses::nth, places::Place},
    node_config::Ec2,
};

/// Group of the administrators of a guest. The guest operator binds it to `cluster-admin`.
pub const ADMIN_GROUP: &str = "giantnetes:cluster-admins";
/// Group of the API server as a client of kubelets. The guest operator binds it to `system:kubelet-api-admin`.
pub const KUBELET_CLIENT_GROUP: &str = "giantnetes:kubelet-clients";

/// Group of whoever scrapes kubelets. The guest operator gives it `nodes/metrics`.
pub const KUBELET_METRICS_GROUP: &str = "giantnetes:kubelet-metrics";
/// Kubernetes' own group of whoever scrapes API servers, which has a role in every cluster.
const MONITORING_GROUP: &str = "system:monitoring";

/// A certificate authority of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authority {
    /// Signs the API server, and all of its clients.
    Kubernetes,
    /// Signs etcd and its clients.
    Etcd,
    /// Signs the API server as a client of aggregated APIs.
    FrontProxy,
}

impl Authority {
    /// All authorities of a guest.
    pub const ALL: [Self; 3] = [Self::Kubernetes, Self::Etcd, Self::FrontProxy];
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kubernetes => "kubernetes",
            Self::Etcd => "etcd",
            Self::FrontProxy => "front-proxy",
        })
    }
}

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Usage {
    /// TLS client.
    Client,
    /// TLS server.
    Server,
    /// Both: etcd's members are each other's clients.
    Both,
}

/// A certificate that must exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leaf {
    /// Name of its files, such as `apiserver`.
    pub name: &'static str,
    /// Who signs it.
    pub authority: Authority,
    /// Common name: the user, for a client.
    pub common_name: String,
    /// Organisations: the groups, for a client.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub organisations: Vec<String>,
    /// Host names that a server answers to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Addresses that a server answers to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// What it is good for.
    pub usage: Usage,
}

impl Leaf {
    fn client(name: &'static str, common_name: impl Into<String>, organisations: &[&str]) -> Self {
        Self {
            name,
            authority: Authority::Kubernetes,
            common_name: common_name.into(),
            organisations: organisations.iter().map(|name| (*name).to_owned()).collect(),
            dns: Vec::new(),
            addresses: Vec::new(),
            usage: Usage::Client,
        }
    }
}

/// Where a control-plane node is, as far as its certificates say so.
struct Seat {
    /// Its own address.
    ip: IpAddr,
    /// The address of its pod, on which workers reach the API.
    gateway: Option<IpAddr>,
    /// A further name of the API.
    api: Option<String>,
    /// A further name of the node.
    host: Option<String>,
}

/// The certificates of the `index`-th control-plane node.
pub fn of_master(cluster: &Valid, index: u32) -> Vec<Leaf> {
    let overlay = cluster.ranges.overlay;
    let ip = overlay.master(&cluster.identity, index).ip.addr().into();
    of_seated(cluster, index, Seat { ip, gateway: Some(overlay.gateway().into()), api: None, host: None })
}

/// The certificates of the `index`-th control-plane node as an instance of EC2, at this address.
pub fn of_master_on_ec2(cluster: &Valid, index: u32, ec2: &Ec2, ip: IpAddr) -> Vec<Leaf> {
    of_seated(cluster, index, Seat { ip, gateway: None, api: Some(ec2.api()), host: Some(ec2.master(index)) })
}

fn of_seated(cluster: &Valid, index: u32, seat: Seat) -> Vec<Leaf> {
    let node = names::master(index);
    let Seat { ip, gateway, api, host } = seat;
    let local = IpAddr::from([127, 0, 0, 1]);
    let mut dns = api_server_names(cluster);
    dns.extend(api);
    let mut addresses = vec![nth(cluster.ranges.services, 1).into()];
    addresses.extend(gateway.into_iter().chain([ip, local]));
    for name in &cluster.pki.alt_names {
        match name {
            SubjectName::Dns(host) if !dns.iter().any(|name| name == host.as_str()) => dns.push(host.to_string()),
            SubjectName::Address(address) if !addresses.contains(&(*address).into()) => {
                addresses.push((*address).into())
            }
            SubjectName::Dns(_) | SubjectName::Address(_) => {}
        }
    }
    let api_server = Leaf {
        name: "apiserver",
        authority: Authority::Kubernetes,
        common_name: "kube-apiserver".into(),
        organisations: Vec::new(),
        dns,
        addresses,
        usage: Usage::Server,
    };
    let etcd = |name, usage| Leaf {
        name,
        authority: Authority::Etcd,
        common_name: node.clone(),
        organisations: Vec::new(),
        dns: [node.clone(), "localhost".into()].into_iter().chain(host.clone()).collect(),
        addresses: vec![ip, local],
        usage,
    };
    let mut leaves = vec![
        api_server,
        Leaf::client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", &[KUBELET_CLIENT_GROUP]),
        Leaf { authority: Authority::Etcd, ..Leaf::client(ETCD_CLIENT, "kube-apiserver", &[]) },
        Leaf { authority: Authority::FrontProxy, ..Leaf::client("front-proxy-client", "front-proxy-client", &[]) },
        Leaf::client("controller-manager", "system:kube-controller-manager", &[]),
        Leaf::client("scheduler", "system:kube-scheduler", &[]),
        etcd("etcd-server", Usage::Both),
        etcd("etcd-peer", Usage::Both),
    ];
    leaves.extend(of_every_node(&node, ip, &[KUBELET_METRICS_GROUP, MONITORING_GROUP]));
    leaves
}

/// Names of the certificates of a worker.
pub const OF_WORKER: [&str; 4] = ["kubelet", "kubelet-server", "kube-proxy", METRICS];

/// The certificates of a worker: what its kubelet and its kube-proxy need and who scrapes its kubelet, and no more.
pub fn of_worker(cluster: &Valid, node: &str, place: Place) -> Vec<Leaf> {
    let ip = cluster.ranges.overlay.worker(&cluster.identity, place).ip.addr();
    of_node(node, ip.into()).into()
}

/// The certificates of a worker that has this name and address.
pub fn of_node(node: &str, ip: IpAddr) -> [Leaf; 4] {
    of_every_node(node, ip, &[KUBELET_METRICS_GROUP])
}

fn of_every_node(node: &str, ip: IpAddr, scraper: &[&str]) -> [Leaf; 4] {
    let server = Leaf {
        name: "kubelet-server",
        authority: Authority::Kubernetes,
        common_name: format!("system:node:{node}"),
        organisations: vec!["system:nodes".into()],
        dns: vec![node.to_owned()],
        addresses: vec![ip],
        usage: Usage::Server,
    };
    [
        Leaf::client("kubelet", format!("system:node:{node}"), &["system:nodes"]),
        server,
        Leaf::client("kube-proxy", "system:kube-proxy", &[]),
        Leaf::client(METRICS, format!("giantnetes:metrics:{node}"), scraper),
    ]
}

/// Names that the guest's API answers to: inside the guest, and as a Service of the management cluster.
fn api_server_names(cluster: &Valid) -> Vec<String> {
    let namespace = &cluster.identity.namespace;
    let service = names::MASTER_SERVICE;
    let mut names = vec![
        "kubernetes".into(),
        "kubernetes.default".into(),
        "kubernetes.default.svc".into(),
        "kubernetes.default.svc.cluster.local".into(),
        "localhost".into(),
        format!("{service}.{namespace}"),
        format!("{service}.{namespace}.svc"),
    ];
    names.extend(cluster.exposure.host().map(ToString::to_string));
    names
}

/// The administrator that the kubeconfig beside the Cluster belongs to.
pub fn administrator() -> Leaf {
    Leaf::client("administrator", "giantnetes:administrator", &[ADMIN_GROUP])
}

/// A user whom a ClusterAccess lets in.
pub fn user(name: &str, groups: &[String]) -> Leaf {
    Leaf { organisations: groups.to_vec(), ..Leaf::client("user", name, &[]) }
}

/// The controller manager itself, for as long as a guest's RBAC is not set up: never stored, ten minutes long.
pub fn bootstrapper() -> Leaf {
    Leaf::client(BOOTSTRAPPER, "giantnetes:controller-manager", &["system:masters"])
}

/// Name of what somebody asked for inside a guest, with a key of his own.
pub const REQUESTED: &str = "requested";
/// Name of the certificate by which a VM pod's supervisor scrapes its guest's components.
pub const METRICS: &str = "metrics";
/// Name of the API server's certificate as a client of etcd.
pub const ETCD_CLIENT: &str = "apiserver-etcd-client";
/// Name of [`bootstrapper`].
pub const BOOTSTRAPPER: &str = "bootstrapper";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::valid;

    #[test]
    fn a_workers_certificates_are_those_that_are_named() {
        let names: Vec<_> = of_worker(&valid(json!({})), "a-0", Place(64)).into_iter().map(|leaf| leaf.name).collect();
        assert_eq!(names, OF_WORKER);
    }

    #[test]
    fn further_names_come_into_the_api_servers_certificate_alone_and_once() {
        let leaves = |names| of_master(&valid(json!({"pki": {"apiServer": {"altNames": names}}})), 0);
        let (plain, named) =
            (leaves(json!([])), leaves(json!(["localhost", "api.example.com", "192.0.2.10", "127.0.0.1"])));
        assert_eq!(named[0].name, "apiserver");
        assert_eq!(named[0].dns, [plain[0].dns.clone(), vec!["api.example.com".into()]].concat());
        assert_eq!(named[0].addresses, [plain[0].addresses.clone(), vec![[192, 0, 2, 10].into()]].concat());
        assert_eq!(named[1..], plain[1..]);
    }
}
