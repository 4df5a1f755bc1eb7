//! The way to a guest's API by a gateway of the management cluster: a TLSRoute of the Gateway API, which passes TLS through by
//! host name. Pure.
//!
//! Version `v1` is what the Gateway API serves from 1.5 on, in its standard channel
//! (<https://gateway-api.sigs.k8s.io/api-types/tlsroute/>).

use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::{
    api::names,
    cluster::{Identity, valid::HostName},
    settings::GatewaySettings,
};

/// Name of the route in a guest's namespace.
pub const ROUTE: &str = "master";
/// Where nothing may be but what is wanted: it decides who is led where.
pub const EXACTLY: [&str; 4] = ["/spec/parentRefs", "/spec/hostnames", "/spec/rules", "/spec/useDefaultGateways"];
/// The watch's name, which is the kind's plural.
pub const WATCH: &str = "tlsroutes";

/// What of a TLSRoute is ours to say.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "TLSRoute",
    plural = "tlsroutes",
    namespaced,
    status = "TLSRouteStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct TLSRouteSpec {
    /// The gateways.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Names that clients ask for (SNI).
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Where they are led.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Whether gateways are its that it does not name (experimental).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<String>,
}

/// A gateway, or one of its listeners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// As the server fills it in, so that what is wanted can be compared with what is there; likewise below.
    #[serde(default)]
    pub group: String,
    /// See `group`.
    #[serde(default)]
    pub kind: String,
    /// Of the gateway.
    pub namespace: Option<String>,
    /// Of the gateway.
    pub name: String,
    /// Name of the listener. None: every one that takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Port of the listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// Where clients are led.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Services.
    #[serde(default)]
    pub backend_refs: Vec<Backend>,
}

/// A Service of the route's namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// See [`ParentRef`].
    #[serde(default)]
    pub group: String,
    /// See [`ParentRef`].
    #[serde(default)]
    pub kind: String,
    /// See [`ParentRef`].
    #[serde(default)]
    pub weight: u32,
    /// Its namespace, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// What gateways' controllers say of a TLSRoute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TLSRouteStatus {
    /// Of each gateway.
    #[serde(default)]
    pub parents: Vec<ParentStatus>,
}

/// What a gateway's controller says of a TLSRoute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The gateway.
    pub parent_ref: ParentRef,
    /// `Accepted`, `ResolvedRefs` and others.
    #[serde(default)]
    pub conditions: Vec<Said>,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// For programs.
    #[serde(default)]
    pub reason: String,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// Generation of the route that it is about.
    #[serde(default)]
    pub observed_generation: Option<i64>,
}

/// Whether a gateway takes a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Taken,
    /// Its controller has not said yet.
    Open,
    /// It does not; why.
    Refused(String),
    /// It does, but does not know what the route leads to; why.
    LeadsNowhere(String),
}

/// The route for `host` at this gateway.
pub fn route(identity: &Identity, host: &HostName, gateway: &GatewaySettings) -> TLSRoute {
    let backend = Backend {
        group: String::new(),
        kind: "Service".into(),
        weight: 1,
        namespace: None,
        name: names::MASTER_SERVICE.into(),
        port: Some(names::API_PORT.into()),
    };
    TLSRoute {
        metadata: identity.metadata(ROUTE),
        spec: TLSRouteSpec {
            parent_refs: vec![ParentRef {
                group: "gateway.networking.k8s.io".into(),
                kind: "Gateway".into(),
                namespace: Some(gateway.namespace.clone()),
                name: gateway.name.clone(),
                section_name: gateway.section_name.clone(),
                port: None,
            }],
            hostnames: vec![host.to_string()],
            rules: vec![Rule { name: None, backend_refs: vec![backend] }],
            use_default_gateways: None,
        },
        status: None,
    }
}

/// What the gateway's controller says of the route as it is now. Of several controllers, as after a change of the gateway's
/// class, one that takes it is believed.
pub fn verdict(route: &TLSRoute, gateway: &GatewaySettings) -> Verdict {
    let of_ours = |parent: &&ParentStatus| {
        let ParentRef { namespace, name, section_name, .. } = &parent.parent_ref;
        (namespace.as_ref(), name, section_name) == (Some(&gateway.namespace), &gateway.name, &gateway.section_name)
    };
    let parents = route.status.iter().flat_map(|status| &status.parents).filter(of_ours);
    let verdicts: Vec<_> = parents.map(|parent| said_by(parent, route.metadata.generation)).collect();
    let taken = verdicts.iter().find(|verdict| **verdict == Verdict::Taken);
    taken.or(verdicts.first()).cloned().unwrap_or(Verdict::Open)
}

fn said_by(parent: &ParentStatus, generation: Option<i64>) -> Verdict {
    let is_new = |said: &&Said| said.observed_generation.is_none_or(|seen| generation <= Some(seen));
    let found = |type_: &str, status: &str| {
        parent.conditions.iter().filter(is_new).find(|said| said.type_ == type_ && said.status == status)
    };
    let words = |said: &Said| format!("{}: {}", said.reason, said.message);
    if let Some(said) = found("Accepted", "False") {
        return Verdict::Refused(words(said));
    }
    match (found("Accepted", "True"), found("ResolvedRefs", "False")) {
        (Some(_), None) => Verdict::Taken,
        // A Service that was made a moment ago may have no endpoints that it could know.
        (_, Some(said)) if said.reason != "BackendNotFound" => Verdict::LeadsNowhere(words(said)),
        _ => Verdict::Open,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::valid;

    fn gateway() -> GatewaySettings {
        serde_json::from_value(json!({"namespace": "ingress", "name": "public", "sectionName": "guests"})).unwrap()
    }

    fn plain() -> TLSRoute {
        let cluster = valid(json!({"exposure": {"type": "Ingress", "host": "api.demo.example.com"}}));
        route(&cluster.identity, cluster.exposure.host().unwrap(), &gateway())
    }

    #[test]
    fn the_route_is_golden() {
        insta::assert_snapshot!(serde_saphyr::to_string(&plain()).unwrap());
    }

    #[test]
    fn what_the_gateway_says_of_this_route_counts() {
        let said = |type_: &str, status: &str, generation: i64| {
            json!({
                "type": type_, "status": status, "reason": "NotAllowedByListeners", "message": "no listener takes it",
                "observedGeneration": generation, "lastTransitionTime": "2030-01-01T00:00:00Z",
            })
        };
        let told = |name: &str, conditions: Value| {
            let mut route = plain();
            route.metadata.generation = Some(2);
            let parent = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "ingress", "name": name, "sectionName": "guests"});
            let status = json!({"parents": [{"parentRef": parent, "controllerName": "x", "conditions": conditions}]});
            route.status = Some(serde_json::from_value(status).unwrap());
            verdict(&route, &gateway())
        };
        assert_eq!(verdict(&plain(), &gateway()), Verdict::Open);
        let both = json!([said("Accepted", "True", 2), said("ResolvedRefs", "True", 2)]);
        assert_eq!(told("public", both.clone()), Verdict::Taken);
        assert_eq!(told("private", both), Verdict::Open);
        assert_eq!(told("public", json!([said("Accepted", "True", 1)])), Verdict::Open);
        let why = "NotAllowedByListeners: no listener takes it".to_owned();
        assert_eq!(told("public", json!([said("Accepted", "False", 2)])), Verdict::Refused(why.clone()));
        let unresolved = |reason: &str| {
            let mut refs = said("ResolvedRefs", "False", 2);
            refs["reason"] = json!(reason);
            json!([said("Accepted", "True", 2), refs])
        };
        assert_eq!(told("public", unresolved("NotAllowedByListeners")), Verdict::LeadsNowhere(why));
        assert_eq!(told("public", unresolved("BackendNotFound")), Verdict::Open);
    }
}
