//! The objects of a guest's network. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{api::names, cluster::Valid, supervisor::network::VXLAN_PORT};

/// The Service in front of the guest's API servers.
pub fn master_service(cluster: &Valid) -> Service {
    let identity = &cluster.identity;
    let mut selector = BTreeMap::new();
    selector.insert(names::CLUSTER_LABEL.to_owned(), identity.id.clone());
    selector.insert(names::ROLE_LABEL.to_owned(), names::ROLE_CONTROL_PLANE.to_owned());
    Service {
        metadata: identity.metadata(names::MASTER_SERVICE),
        spec: Some(ServiceSpec {
            selector: Some(selector),
            // A lone API server that is slow to answer has nobody to stand in for it. Without it all clients would be
            // refused, and workers would wait their back-offs out.
            publish_not_ready_addresses: Some(cluster.has_one_master()),
            ports: Some(vec![ServicePort {
                name: Some("api".into()),
                port: i32::from(names::API_PORT),
                target_port: Some(IntOrString::Int(i32::from(names::API_PORT))),
                protocol: Some("TCP".into()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The headless Service that lists the guest's VM pods, whether they are ready or not: a node is not ready before it has
/// found its peers.
pub fn nodes_service(cluster: &Valid) -> Service {
    let identity = &cluster.identity;
    Service {
        metadata: identity.metadata(names::NODES_SERVICE),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some([(names::CLUSTER_LABEL.to_owned(), identity.id.clone())].into()),
            ports: Some(vec![ServicePort {
                name: Some("vxlan".into()),
                port: i32::from(VXLAN_PORT),
                target_port: Some(IntOrString::Int(i32::from(VXLAN_PORT))),
                protocol: Some("UDP".into()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
