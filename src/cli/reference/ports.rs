//! What the reference says of ports.

use super::Table;
use crate::{
    api::names::{API_PORT, ETCD_PORT, INGRESS_PORTS, PATH_PORT, SUPERVISOR_PORT},
    supervisor::{consumers, keys, network::VXLAN_PORT, path_mtu, reach},
};

/// Ports that etcd of Flannel has beside that for clients, as the chart gives them.
const ETCD_PEERS: u16 = ETCD_PORT + 1;
const ETCD_METRICS: u16 = ETCD_PORT + 2;

const EVERYBODY: &str = "everybody who reaches pods and Services";
const SIBLINGS: &str = "VM pods of the same guest";
const AS_NAMED: &str = "whom `networkPolicy.from` names; everybody if it is empty";

/// Ports of the management cluster.
pub(super) fn ports() -> Table {
    let tcp = |port: u16| format!("{port}/tcp");
    let [services, pods] = [INGRESS_PORTS.map(|(_, service, _)| service), INGRESS_PORTS.map(|(_, _, pod)| pod)];
    let listed = |ports: [u16; 2]| ports.map(tcp).join(", ");
    let rows = [
        [
            tcp(API_PORT),
            "VM pods, Services `master` and `api`: the guest's API, which a worker's VM pod forwards to Service `master`"
                .into(),
            EVERYBODY.into(),
        ],
        [
            format!("NodePorts of {}, {}", tcp(API_PORT), listed(services)),
            "hosts, for guests with `exposure.type` or `ingressController.service` `LoadBalancer`: Kubernetes opens them for \
             every such Service"
                .into(),
            "everybody who reaches hosts".into(),
        ],
        [
            listed(pods),
            format!(
                "VM pods, and {} of Service `ingress`: the guest's ingress controller",
                services.map(|port| port.to_string()).join(" and ")
            ),
            format!("{EVERYBODY}, if `ingressController.enabled`; else nobody"),
        ],
        [
            tcp(SUPERVISOR_PORT),
            format!(
                "VM pods: `/livez`, `/readyz`, `/status`, `/metrics`, `/guest/<component>/metrics`, `{}`, `{}`, `{}`, `{}`, `{}`, `/addons`",
                reach::PATH,
                path_mtu::PATH,
                consumers::PATH,
                keys::KEYS_PATH,
                keys::STORED_PATH
            ),
            "the manager's pods; those of `settings.network.monitoringNamespaces`; kubelet of the same host".into(),
        ],
        [format!("{VXLAN_PORT}/udp"), "VM pods: VXLAN".into(), SIBLINGS.into()],
        [
            format!("{PATH_PORT}/udp"),
            "VM pods: how large a packet came, for those that measure the way".into(),
            SIBLINGS.into(),
        ],
        [tcp(SUPERVISOR_PORT), "manager, Service `giantnetes`: `/livez`, `/readyz`, `/metrics`".into(), AS_NAMED.into()],
        [tcp(SUPERVISOR_PORT), "device plugin: the same".into(), "likewise".into()],
        [
            tcp(ETCD_PORT),
            "flannel's etcd, Service `giantnetes-flannel-etcd`, if `flannel.enabled`: TLS, with a certificate of each side"
                .into(),
            "the manager's pods; VM pods with the label `giantnetes.io/overlay: Flannel`".into(),
        ],
        [tcp(ETCD_PEERS), "flannel's etcd: among its members".into(), "its members".into()],
        [tcp(ETCD_METRICS), "flannel's etcd: `/livez`, `/readyz`, `/metrics`".into(), AS_NAMED.into()],
    ];
    Table { head: &["Port", "Of", "Open to"], rows: rows.map(Vec::from).into() }
}
