//! The way to a guest's API from outside the management cluster: an Ingress that passes TLS through, or a load balancer. (A
//! gateway's is in [`tls_route`](super::tls_route).) Pure.
//!
//! TLS ends in the guest, so whoever is on the way sees a name and no more; client certificates work.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{LoadBalancerStatus, Service},
    api::networking::v1::{
        HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend,
        IngressSpec, ServiceBackendPort,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    api::names,
    cluster::{
        Identity, Valid,
        valid::{Exposure, HostName},
    },
    settings::ExposureSettings,
};

use super::plan;

/// Name of the Ingress in a guest's namespace.
pub const INGRESS: &str = "master";

/// The Ingress for `host`, of this class.
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
        metadata: ObjectMeta { annotations: Some(annotations(settings)), ..identity.metadata(INGRESS) },
        spec: Some(IngressSpec {
            ingress_class_name: class.map(Into::into),
            rules: Some(vec![IngressRule {
                host: Some(host.to_string()),
                http: Some(HTTPIngressRuleValue { paths: vec![path] }),
            }]),
            ..IngressSpec::default()
        }),
        ..Ingress::default()
    }
}

/// Annotation by which external-dns makes a DNS name of a Service.
const DNS_NAME: &str = "external-dns.alpha.kubernetes.io/hostname";
/// Where nothing may be in the Service of a load balancer but what is wanted: who is led to, and by which name.
pub const BALANCED_EXACTLY: [&str; 2] =
    ["/spec/selector", "/metadata/annotations/external-dns.alpha.kubernetes.io~1hostname"];
/// Annotation of the class that Ingresses get which name none.
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// Annotation by which a class was named before there were IngressClasses.
const FORMER_CLASS: &str = "kubernetes.io/ingress.class";

/// The class that the user or the operator names for a guest's Ingress.
pub fn named_class<'a>(asked: Option<&'a str>, settings: &'a ExposureSettings) -> Option<&'a str> {
    asked.or(settings.class_name.as_deref()).filter(|class| !class.is_empty())
}

/// The class of a guest's Ingress: the one that is named, else the one that it has had, else the default one of `classes`.
/// `Ok(None)`: none, since the operator has a controller that serves such.
///
/// # Errors
/// What to say if nobody would serve it.
pub fn class<'a>(
    asked: Option<&'a str>,
    had: Option<&'a str>,
    settings: &'a ExposureSettings,
    classes: &[&'a ObjectMeta],
) -> Result<Option<&'a str>, String> {
    let named = named_class(asked, settings);
    if named.is_none() && (settings.class_name.is_some() || settings.annotations.contains_key(FORMER_CLASS)) {
        return Ok(None);
    }
    let is_default = |meta: &&&ObjectMeta| {
        meta.annotations.as_ref().and_then(|all| all.get(DEFAULT_CLASS)).is_some_and(|said| said == "true")
    };
    let default = || classes.iter().find(is_default).and_then(|meta| meta.name.as_deref());
    match named.or(had).or_else(default) {
        Some(class) if classes.iter().any(|meta| meta.name.as_deref() == Some(class)) => Ok(Some(class)),
        Some(class) => Err(format!(
            "there is no IngressClass {class} in the management cluster: name another by spec.exposure.className, or install \
             its ingress controller"
        )),
        None => Err("no IngressClass of the management cluster is the default: name one by spec.exposure.className, or for all \
                     guests by settings.exposure.className of the chart"
            .into()),
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

/// The Service whose load balancer leads to the guest's API.
pub fn balanced_service(cluster: &Valid, host: Option<&HostName>, settings: &ExposureSettings) -> Service {
    let mut service = plan::master_service(cluster);
    let named = host.map(|host| (DNS_NAME.to_owned(), host.to_string()));
    let annotations: BTreeMap<_, _> = named.into_iter().chain(settings.load_balancer_annotations.clone()).collect();
    service.metadata.name = Some(names::BALANCED_SERVICE.into());
    service.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    service.spec.get_or_insert_default().type_ = Some("LoadBalancer".into());
    service
}

/// URL of the guest's API by its load balancer, as the Service of that tells of it. `Ok(None)`: it has no address yet.
///
/// # Errors
/// What the user has to do before there is one.
pub fn balanced_endpoint(
    host: Option<&HostName>,
    status: Option<&LoadBalancerStatus>,
) -> Result<Option<String>, String> {
    let Some(found) = status.and_then(|status| status.ingress.as_ref()).filter(|found| !found.is_empty()) else {
        return Ok(None);
    };
    if let Some(host) = host {
        return Ok(Some(at(host.as_str(), names::API_PORT)));
    }
    let addresses = found.iter().filter_map(|ingress| ingress.ip.as_deref()?.parse::<IpAddr>().ok());
    // A kubeconfig leads to one of them; every management cluster's network has IPv4.
    if let Some(address) = addresses.min_by_key(IpAddr::is_ipv6) {
        return Ok(Some(at_address(address)));
    }
    let names: Vec<_> = found.iter().filter_map(|ingress| ingress.hostname.as_deref()).collect();
    Err(format!(
        "the load balancer has the host name {}, which no certificate can be made for before the guest is: give \
         spec.exposure.host, a name of your own whose DNS leads there",
        names.join(", ")
    ))
}

/// URL of the guest's API for people: by its host name, or, where there is none, by its Service's address. `None`: a load
/// balancer's, which [`balanced_endpoint`] knows, or that of a gateway that nobody has named.
pub fn endpoint(exposure: &Exposure, address: IpAddr, settings: &ExposureSettings) -> Option<String> {
    match exposure {
        Exposure::None => Some(at_address(address)),
        Exposure::Ingress { host, .. } => Some(at(host.as_str(), settings.port)),
        Exposure::TLSRoute { host, gateway } => gateway.as_ref().map(|gateway| at(host.as_str(), gateway.port)),
        Exposure::LoadBalancer { .. } => None,
    }
}

fn at_address(address: IpAddr) -> String {
    let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    at(&host, names::API_PORT)
}

fn at(host: &str, port: u16) -> String {
    if port == 443 { format!("https://{host}") } else { format!("https://{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{settings, valid};

    #[test]
    fn a_class_that_nobody_serves_is_told() {
        let class = |name: &str, default: Option<&str>| ObjectMeta {
            name: Some(name.into()),
            annotations: default.map(|said| BTreeMap::from([(DEFAULT_CLASS.to_owned(), said.to_owned())])),
            ..ObjectMeta::default()
        };
        let (plain, refused, default) =
            (class("plain", None), class("refused", Some("false")), class("good", Some("true")));
        let mut settings = settings().exposure;
        let found = |asked, had, settings: &_, classes: &[&ObjectMeta]| {
            super::class(asked, had, settings, classes).map(|class| class.map(str::to_owned))
        };
        let is = |class: &str| Ok(Some(class.to_owned()));
        assert_eq!(found(Some("plain"), None, &settings, &[&plain]), is("plain"));
        assert_eq!(found(None, None, &settings, &[&plain, &default]), is("good"));
        // The default that it was made with is its own, whatever becomes of the mark.
        assert_eq!(found(None, Some("plain"), &settings, &[&plain, &default]), is("plain"));
        let missing = found(Some("nginx"), Some("plain"), &settings, &[&plain, &default]).unwrap_err();
        assert!(missing.contains("no IngressClass nginx") && missing.contains("spec.exposure.className"), "{missing}");
        for classes in [&[][..], &[&plain, &refused]] {
            let missing = found(None, None, &settings, classes).unwrap_err();
            assert!(missing.contains("is the default") && missing.contains("spec.exposure.className"), "{missing}");
        }
        // A controller that serves what has no class, or one that goes by the annotation of old.
        settings.class_name = Some(String::new());
        assert_eq!(found(None, None, &settings, &[&plain]), Ok(None));
        settings.class_name = None;
        settings.annotations.insert(FORMER_CLASS.into(), "nginx".into());
        assert_eq!(found(None, None, &settings, &[]), Ok(None));
    }

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
        let endpoint = |exposure, settings: &_| endpoint(exposure, address, settings).unwrap();
        assert_eq!(endpoint(&Exposure::None, &settings), "https://10.0.0.1:6443");
        assert_eq!(endpoint(&with_host, &settings), "https://a.example.com");
        settings.port = 10443;
        assert_eq!(endpoint(&with_host, &settings), "https://a.example.com:10443");
    }

    #[test]
    fn a_load_balancer_is_reached_by_the_users_name_or_by_its_address() {
        let cluster = valid(json!({"exposure": {"type": "LoadBalancer", "host": "a.example.com"}}));
        let Exposure::LoadBalancer { host } = &cluster.exposure else { panic!("{:?}", cluster.exposure) };
        let mut settings = settings().exposure;
        settings.load_balancer_annotations.insert("example.com/internal".into(), "true".into());
        let service = balanced_service(&cluster, host.as_ref(), &settings);
        insta::assert_snapshot!(serde_saphyr::to_string(&service).unwrap());

        let said = |ingress: serde_json::Value| -> LoadBalancerStatus {
            serde_json::from_value(json!({"ingress": ingress})).unwrap()
        };
        let both = said(json!([{"ip": "2001:db8::7"}, {"ip": "203.0.113.7"}]));
        let elb = said(json!([{"hostname": "x.elb.example.com"}]));
        for none in [None, Some(&LoadBalancerStatus::default()), Some(&said(json!([])))] {
            assert_eq!(balanced_endpoint(host.as_ref(), none), Ok(None));
        }
        let url = |url: &str| Ok(Some(url.to_owned()));
        assert_eq!(balanced_endpoint(None, Some(&both)), url("https://203.0.113.7:6443"));
        assert_eq!(
            balanced_endpoint(None, Some(&said(json!([{"ip": "2001:db8::7"}])))),
            url("https://[2001:db8::7]:6443")
        );
        assert_eq!(balanced_endpoint(host.as_ref(), Some(&elb)), url("https://a.example.com:6443"));
        let told = balanced_endpoint(None, Some(&elb)).unwrap_err();
        assert!(told.contains("x.elb.example.com") && told.contains("spec.exposure.host"), "{told}");
    }
}
