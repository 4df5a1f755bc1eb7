//! The way to what runs in a guest: a Service in front of the nodes, at the ports of the guest's own ingress controller. Pure.
//!
//! ```text
//!   Service ingress :80, :443 ──► VM pods :30080, :30081 ──► the same NodePorts in the VMs ──► Traefik's pods
//! ```

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::{
    api::names,
    cluster::{Valid, valid::IngressController},
    settings::ExposureSettings,
};

/// Where nothing may be but what is wanted: who is led to.
pub const EXACTLY: [&str; 1] = ["/spec/selector"];

/// The Service that leads to the guest's ingress controller: by its workers, or, while none of them is there, by all nodes.
pub fn service(
    cluster: &Valid,
    controller: &IngressController,
    by_workers: bool,
    settings: &ExposureSettings,
) -> Service {
    let identity = &cluster.identity;
    let mut selector = BTreeMap::from([(names::CLUSTER_LABEL.to_owned(), identity.id.clone())]);
    if by_workers {
        selector.insert(names::ROLE_LABEL.to_owned(), names::ROLE_WORKER.to_owned());
    }
    let annotations = settings.load_balancer_annotations.clone();
    let ports = names::INGRESS_PORTS.map(|(name, port, node_port)| ServicePort {
        name: Some(name.into()),
        port: i32::from(port),
        target_port: Some(IntOrString::Int(i32::from(node_port))),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    });
    Service {
        metadata: ObjectMeta {
            annotations: (controller.balanced && !annotations.is_empty()).then_some(annotations),
            ..identity.metadata(names::INGRESS_SERVICE)
        },
        spec: Some(ServiceSpec {
            type_: Some(if controller.balanced { "LoadBalancer" } else { "ClusterIP" }.into()),
            selector: Some(selector),
            ports: Some(ports.into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Where the ingress controller is reached: at its load balancer, once that has an address or a name, or at its Service's
/// address.
pub fn address(controller: &IngressController, service: &Service) -> Option<String> {
    if !controller.balanced {
        return service.spec.as_ref()?.cluster_ip.clone();
    }
    let found = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?;
    found.ip.clone().or_else(|| found.hostname.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{settings, valid};

    fn made(spec: serde_json::Value) -> (IngressController, Service) {
        made_for(spec, true)
    }

    fn made_for(spec: serde_json::Value, by_workers: bool) -> (IngressController, Service) {
        let cluster = valid(spec);
        let controller = cluster.ingress_controller.clone().unwrap();
        let service = service(&cluster, &controller, by_workers, &settings().exposure);
        (controller, service)
    }

    #[test]
    fn the_service_is_golden() {
        let spec = json!({"ingressController": {"enabled": true}, "nodePools": [{"name": "a"}]});
        insta::assert_snapshot!(serde_saphyr::to_string(&made(spec).1).unwrap());
    }

    #[test]
    fn without_workers_every_node_leads_there() {
        let (_, service) = made_for(json!({"ingressController": {"enabled": true}}), false);
        let selector = service.spec.unwrap().selector.unwrap();
        assert!(selector.keys().eq([names::CLUSTER_LABEL]), "{selector:?}");
    }

    #[test]
    fn the_address_is_that_of_what_was_asked_for() {
        let (inside, mut service) = made(json!({"ingressController": {"enabled": true}}));
        assert_eq!(address(&inside, &service), None);
        service.spec.as_mut().unwrap().cluster_ip = Some("10.0.0.7".into());
        assert_eq!(address(&inside, &service).as_deref(), Some("10.0.0.7"));
        let (balanced, _) = made(json!({"ingressController": {"enabled": true, "service": "LoadBalancer"}}));
        assert_eq!(address(&balanced, &service), None, "it has none of its own yet");
        for (given, wanted) in
            [(json!({"ip": "203.0.113.7"}), "203.0.113.7"), (json!({"hostname": "a.example"}), "a.example")]
        {
            service.status = Some(serde_json::from_value(json!({"loadBalancer": {"ingress": [given]}})).unwrap());
            assert_eq!(address(&balanced, &service).as_deref(), Some(wanted));
        }
    }
}
