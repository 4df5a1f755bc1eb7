//! The way to a guest's API from outside the management cluster: an Ingress that passes TLS through. Pure.
//!
//! TLS ends in the guest, so the ingress controller sees a name and no more; client certificates work.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend,
        IngressSpec, ServiceBackendPort,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    api::names,
    cluster::{
        Identity,
        valid::{Exposure, HostName},
    },
    settings::ExposureSettings,
};

/// Name of the Ingress in a guest's namespace.
pub const INGRESS: &str = "master";

/// The Ingress for `host`.
pub fn ingress(identity: &Identity, host: &HostName, class: Option<&str>, settings: &ExposureSettings) -> Ingress {
    let backend = IngressBackend {
        service: Some(IngressServiceBackend {
            name: names::MASTER_SERVICE.into(),
            port: Some(ServiceBackendPort { number: Some(i32::from(names::API_PORT)), name: None }),
        }),
        resource: None,
    };
    let path = HTTPIngressPath { path: Some("/".into()), path_type: "Prefix".into(), backend };
    Ingress {
        metadata: ObjectMeta {
            name: Some(INGRESS.into()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(identity.labels()),
            annotations: Some(annotations(settings)),
            ..ObjectMeta::default()
        },
        spec: Some(IngressSpec {
            ingress_class_name: class.map(Into::into).or_else(|| settings.class_name.clone()),
            rules: Some(vec![IngressRule {
                host: Some(host.to_string()),
                http: Some(HTTPIngressRuleValue { paths: vec![path] }),
            }]),
            ..IngressSpec::default()
        }),
        ..Ingress::default()
    }
}

fn annotations(settings: &ExposureSettings) -> BTreeMap<String, String> {
    // Known to ingress-nginx and to Traefik's provider for it.
    let ours = [
        ("nginx.ingress.kubernetes.io/ssl-passthrough", "true"),
        ("nginx.ingress.kubernetes.io/backend-protocol", "HTTPS"),
    ];
    let ours = ours.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ours.into_iter().chain(settings.annotations.clone()).collect()
}

/// URL of the guest's API for people: by its host name, or, where there is none, by its Service's address.
pub fn endpoint(exposure: &Exposure, address: std::net::IpAddr, settings: &ExposureSettings) -> String {
    match exposure {
        Exposure::None => format!("https://{address}:{}", names::API_PORT),
        Exposure::Ingress { host, .. } if settings.port == 443 => format!("https://{host}"),
        Exposure::Ingress { host, .. } => format!("https://{host}:{}", settings.port),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{settings, valid};

    #[test]
    fn the_ingress_is_golden() {
        let cluster = valid(json!({"exposure": {"type": "Ingress", "host": "api.demo.example.com"}}));
        let Exposure::Ingress { host, class } = &cluster.exposure else { panic!("{:?}", cluster.exposure) };
        let ingress = ingress(&cluster.identity, host, class.as_deref(), &settings().exposure);
        insta::assert_snapshot!(serde_saphyr::to_string(&ingress).unwrap());
    }

    #[test]
    fn the_endpoint_is_the_host_where_there_is_one() {
        let mut settings = settings().exposure;
        let address = [10, 0, 0, 1].into();
        let with_host = valid(json!({"exposure": {"type": "Ingress", "host": "a.example.com"}})).exposure;
        assert_eq!(endpoint(&Exposure::None, address, &settings), "https://10.0.0.1:6443");
        assert_eq!(endpoint(&with_host, address, &settings), "https://a.example.com");
        settings.port = 10443;
        assert_eq!(endpoint(&with_host, address, &settings), "https://a.example.com:10443");
    }
}
