//! Ways to a guest's API that somebody else opens: an ingress controller, known by its class, or a provider of load balancers.

use anyhow::{Result, ensure};
use giantnetes::network::tls_route::{self, TLSRoute};
use k8s_openapi::{
    api::{
        core::v1::Service,
        networking::v1::{Ingress, IngressClass, NetworkPolicy},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    servers::ingress_class,
    world::{SECOND, World, condition, eventually},
};

const DNS_NAME: &str = "external-dns.alpha.kubernetes.io/hostname";
/// By which a provider keeps the Service until its load balancer is gone.
const CLEANUP: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Cluster `a/demo`, and what a provider of load balancers does for it.
struct Balanced<'a> {
    world: &'a World,
    services: Api<Service>,
}

impl<'a> Balanced<'a> {
    /// Creates it, and waits until it waits for a load balancer.
    async fn create(world: &'a World, exposure: Value) -> Self {
        Self::waiting(world, exposure, "the load balancer of Service g8s-").await
    }

    /// Creates it, and waits until it waits for this.
    async fn waiting(world: &'a World, exposure: Value, what: &str) -> Self {
        world.namespace("a").await.unwrap();
        world.create("a", "demo", json!({"exposure": exposure})).await.unwrap();
        Self::told(world, what).await
    }

    /// Waits until what is there waits for this.
    async fn told(world: &'a World, what: &str) -> Self {
        let waits = ("NetworkReady", "False", "Waiting");
        let told = async || {
            let (message, _) = world.condition(SECOND * 5, ("a", "demo"), waits).await?;
            ensure!(message.contains(what), "{message}");
            Ok(())
        };
        eventually(SECOND * 60, "to be told what is waited for", told).await.unwrap();
        let id = world.clusters("a").get("demo").await.unwrap().status.unwrap().id.unwrap();
        Self { world, services: Api::namespaced(world.client.clone(), &format!("g8s-{id}")) }
    }

    async fn provide(&self, ingress: Value) {
        let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": [ingress]}}}));
        self.services.patch_status("api", &PatchParams::default(), &status).await.unwrap();
    }

    async fn edit(&self, change: Value) {
        self.services.patch("api", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    async fn change(&self, exposure: Value) {
        let patch = Patch::Merge(json!({"spec": {"exposure": exposure}}));
        self.world.clusters("a").patch("demo", &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits until the kubeconfig leads there, by this name in the server's certificate.
    async fn leads(&self, server: &str, name: Option<&str>) {
        let found = async || {
            let secret = self.world.secrets("a").get("demo-kubeconfig").await?;
            let text = String::from_utf8(secret.data.unwrap_or_default()["value"].0.clone())?;
            let kubeconfig: Value = serde_saphyr::from_str(&text)?;
            let cluster = &kubeconfig["clusters"][0]["cluster"];
            ensure!(cluster["server"] == server, "it leads to {}", cluster["server"]);
            ensure!(cluster["tls-server-name"].as_str() == name, "by {}", cluster["tls-server-name"]);
            Ok(())
        };
        eventually(SECOND * 20, server, found).await.unwrap();
    }

    /// Waits until the Service is as it should be.
    async fn service(&self, what: &str, is_so: impl Fn(&Service) -> bool) {
        let looked = async || {
            let service = self.services.get("api").await?;
            ensure!(is_so(&service), "{service:?}");
            Ok(())
        };
        eventually(SECOND * 20, what, looked).await.unwrap();
    }

    /// Waits until there is none.
    async fn gone(&self) {
        let left = async || {
            ensure!(self.services.get_opt("api").await?.is_none(), "it is there");
            Ok(())
        };
        eventually(SECOND * 20, "the Service with a load balancer to go", left).await.unwrap();
    }

    /// Host names that are held.
    async fn held(&self) -> usize {
        let claims = self.world.claims().await.unwrap();
        claims.iter().filter(|claim| claim.name_any().starts_with("host-") && claim.spec.released_at.is_none()).count()
    }

    async fn delete(&self) {
        self.world.delete("a", "demo").await.unwrap();
        self.world.gone(SECOND * 30, "a", "demo").await.unwrap();
    }
}

fn annotation<'a>(service: &'a Service, key: &str) -> Option<&'a str> {
    service.annotations().get(key).map(String::as_str)
}

#[test]
fn a_load_balancer_leads_to_the_guest_as_soon_as_it_has_an_address() {
    on_servers("balanced", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        let named = json!({"type": "LoadBalancer", "host": "api.example.com"});
        let balanced = Balanced::create(&world, named.clone()).await;
        let service = balanced.services.get("api").await.unwrap();
        assert_eq!(annotation(&service, DNS_NAME), Some("api.example.com"));
        let spec = service.spec.unwrap();
        let selector = balanced.services.get("master").await.unwrap().spec.unwrap().selector;
        assert_eq!((spec.type_.as_deref(), &spec.selector), (Some("LoadBalancer"), &selector));
        // Without a name of the guest's the provider's does not do, and an address does.
        balanced.change(json!({"host": null})).await;
        balanced.service("the name to be taken back", |service| annotation(service, DNS_NAME).is_none()).await;
        balanced.provide(json!({"hostname": "x.elb.example.com"})).await;
        let invalid = ("NetworkReady", "False", "InvalidSpec");
        let (message, _) = world.condition(SECOND * 15, ("a", "demo"), invalid).await.unwrap();
        assert!(message.contains("x.elb.example.com") && message.contains("spec.exposure.host"), "{message}");
        balanced.provide(json!({"ip": "203.0.113.7"})).await;
        balanced.leads("https://203.0.113.7:6443", Some("kubernetes")).await;
        world.converged(SECOND * 20, "a", "demo").await.unwrap();
        assert_eq!(balanced.held().await, 0);
        balanced.change(named).await;
        balanced.leads("https://api.example.com:6443", None).await;
        assert_eq!(balanced.held().await, 1);

        // What its provider writes is its provider's; who is led to is not.
        manager.settled().await;
        manager.proxy.forget();
        balanced.edit(json!({"metadata": {"annotations": {"provider.example.com/id": "7"}}})).await;
        balanced.provide(json!({"ip": "203.0.113.7", "ipMode": "VIP"})).await;
        manager.settled().await;
        assert!(manager.proxy.writes().is_empty(), "{:?}", manager.proxy.writes());
        balanced.edit(json!({"spec": {"selector": {"nobody": "has-it"}}})).await;
        balanced
            .service("its selector to be put right", |service| service.spec.as_ref().unwrap().selector == selector)
            .await;
        let service = balanced.services.get("api").await.unwrap();
        assert_eq!(annotation(&service, "provider.example.com/id"), Some("7"));
        balanced.services.delete("api", &DeleteParams::default()).await.unwrap();
        balanced.service("it to return", |_| true).await;
        balanced.delete().await;
    });
}

#[test]
fn a_way_stays_open_until_the_next_one_is_and_its_name_until_nothing_leads_there() {
    on_servers("ways", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        let balanced = Balanced::create(&world, json!({"type": "LoadBalancer", "host": "one.example.com"})).await;
        balanced.provide(json!({"ip": "203.0.113.7"})).await;
        balanced.leads("https://one.example.com:6443", None).await;
        balanced.edit(json!({"metadata": {"finalizers": [CLEANUP]}})).await;
        balanced.change(json!({"type": "Ingress", "host": "two.example.com"})).await;
        balanced.leads("https://two.example.com", None).await;
        balanced.service("the Service to be going", |service| service.metadata.deletion_timestamp.is_some()).await;
        manager.settled().await;
        assert_eq!(balanced.held().await, 2, "a name is given back to which a load balancer leads");
        manager.proxy.forget();
        balanced.edit(json!({"metadata": {"annotations": {"provider.example.com/tries": "2"}}})).await;
        manager.settled().await;
        assert!(manager.proxy.writes().is_empty(), "{:?}", manager.proxy.writes());
        balanced.edit(json!({"metadata": {"finalizers": null}})).await;
        balanced.gone().await;
        let released = async || {
            let held = balanced.held().await;
            ensure!(held == 1, "{held} names are held");
            Ok(())
        };
        eventually(SECOND * 15, "the name to be given back", released).await.unwrap();

        // Nobody has a load balancer yet: the Ingress stays.
        balanced.change(json!({"type": "LoadBalancer", "host": null})).await;
        balanced.service("the Service", |_| true).await;
        manager.settled().await;
        let ingresses = Api::<Ingress>::all(world.client.clone());
        assert_eq!(ingresses.list(&ListParams::default()).await.unwrap().items.len(), 1);
        balanced.leads("https://two.example.com", None).await;
        balanced.provide(json!({"ip": "203.0.113.8"})).await;
        balanced.leads("https://203.0.113.8:6443", Some("kubernetes")).await;
        let closed = async || {
            let left = ingresses.list(&ListParams::default()).await?.items.len();
            ensure!(left == 0 && balanced.held().await == 0, "{left} Ingresses, {} names", balanced.held().await);
            Ok(())
        };
        eventually(SECOND * 15, "the Ingress to go", closed).await.unwrap();

        // With the Cluster the load balancer goes first; who keeps it is told.
        balanced.edit(json!({"metadata": {"finalizers": [CLEANUP]}})).await;
        world.delete("a", "demo").await.unwrap();
        let waits = async || {
            let cluster = world.clusters("a").get("demo").await?;
            let (_, _, message) = condition(&cluster, "NetworkReady").unwrap_or_default();
            ensure!(message.contains("the load balancers of Services api and ingress in g8s-"), "{message}");
            Ok(())
        };
        eventually(SECOND * 20, "to be told what is waited for", waits).await.unwrap();
        assert!(
            world.claims().await.unwrap().iter().any(|claim| claim.spec.released_at.is_none()),
            "the VNI is given back"
        );
        balanced.edit(json!({"metadata": {"finalizers": null}})).await;
        world.gone(SECOND * 30, "a", "demo").await.unwrap();
    });
}

/// What the controller of Gateway `ingress/public` says of a guest's route as it is now.
pub async fn say_of_route(routes: &Api<TLSRoute>, accepted: bool) -> Result<()> {
    let route = routes.get(tls_route::ROUTE).await?;
    let condition = json!({
        "type": "Accepted", "status": if accepted { "True" } else { "False" }, "reason": "NotAllowedByListeners",
        "message": "no listener takes it", "observedGeneration": route.metadata.generation,
        "lastTransitionTime": "2030-01-01T00:00:00Z",
    });
    let parent =
        json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "ingress", "name": "public"});
    let status = json!({"status": {"parents": [
        {"parentRef": parent, "controllerName": "example.com/gateways", "conditions": [condition]},
    ]}});
    routes.patch_status(tls_route::ROUTE, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

#[test]
fn a_gateway_leads_to_the_guest_as_soon_as_it_takes_the_route() {
    on_servers("gateway", async |servers, world| {
        let manager = Manager::start(servers, "one", Options { gateway: true, ..Options::default() }).await;
        let told = async || {
            let said = manager.get("/readyz").await.unwrap_or_else(|refusal| refusal.to_string());
            ensure!(said.contains("is the Gateway API installed, 1.5 or newer?"), "{said}");
            Ok(())
        };
        eventually(SECOND * 20, "to be told what is missing", told).await.unwrap();
        // Guests are made all the same, and those that asked for a route are told.
        world.namespace("a").await.unwrap();
        let by_gateway = json!({"type": "TLSRoute", "host": "api.example.com"});
        world.create("a", "demo", json!({"exposure": by_gateway})).await.unwrap();
        let refused = ("NetworkReady", "False", "RouteNotAccepted");
        let (message, _) = world.condition(SECOND * 60, ("a", "demo"), refused).await.unwrap();
        assert!(message.contains("/master cannot be made: "), "{message}");
        servers.install_routes().unwrap();
        let guest = Balanced::told(&world, "Gateway ingress/public to take TLSRoute g8s-").await;
        let home = guest.services.namespace().unwrap_or_default().to_owned();
        let routes = Api::<TLSRoute>::namespaced(world.client.clone(), &home);
        say_of_route(&routes, false).await.unwrap();
        let (message, _) = world.condition(SECOND * 20, ("a", "demo"), refused).await.unwrap();
        assert!(message.contains("no listener takes it") && message.contains("mode Passthrough"), "{message}");
        say_of_route(&routes, true).await.unwrap();
        world.converged(SECOND * 20, "a", "demo").await.unwrap();
        guest.leads("https://api.example.com:10443", None).await;
        assert_eq!(guest.held().await, 1);

        let by_ingress = json!({"exposure": {"type": "Ingress", "host": "api.example.com"}});
        let plan = manager.live_plan(servers, "demo", &by_ingress);
        assert!(plan.contains(&format!("- network  TLSRoute {home}/master")), "{plan}");
        assert!(plan.ends_with("disruption: the way to the API from outside changes\n"), "{plan}");

        // It leads nowhere else, whoever wants that.
        manager.settled().await;
        manager.proxy.forget();
        manager.settled().await;
        assert!(manager.proxy.writes().is_empty(), "{:?}", manager.proxy.writes());
        let astray = json!([{"name": "master", "port": 6443, "namespace": "elsewhere"}]);
        let other = json!({"spec": {"hostnames": ["other.example.com"], "rules": [{"backendRefs": astray}]}});
        let other = Patch::Merge(other);
        routes.patch(tls_route::ROUTE, &PatchParams::default(), &other).await.unwrap();
        let restored = async || {
            let spec = routes.get(tls_route::ROUTE).await?.spec;
            let backend = &spec.rules[0].backend_refs[0];
            ensure!(spec.hostnames == ["api.example.com"] && backend.namespace.is_none(), "{spec:?}");
            Ok(())
        };
        eventually(SECOND * 20, "the route to be put right", restored).await.unwrap();
        say_of_route(&routes, true).await.unwrap();
        world.converged(SECOND * 20, "a", "demo").await.unwrap();

        guest.change(json!({"type": "Ingress"})).await;
        guest.leads("https://api.example.com", None).await;
        let gone = async || {
            ensure!(routes.get_opt(tls_route::ROUTE).await?.is_none(), "it is there");
            Ok(())
        };
        eventually(SECOND * 20, "the route to go", gone).await.unwrap();
        guest.change(json!({"type": "TLSRoute"})).await;
        eventually(SECOND * 20, "the route", async || say_of_route(&routes, true).await).await.unwrap();
        guest.leads("https://api.example.com:10443", None).await;
        guest.delete().await;
    });
}

#[test]
fn a_way_leads_to_the_guests_ingress_controller_for_as_long_as_there_is_one() {
    on_servers("guest-ingress", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "demo", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "demo").await.unwrap();
        let clusters = world.clusters("a");
        let status = async || clusters.get("demo").await.map(|cluster| cluster.status.unwrap_or_default());
        let home = format!("g8s-{}", status().await.unwrap().id.unwrap());
        let services = Api::<Service>::namespaced(world.client.clone(), &home);
        let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &home);
        let change = async |controller: Value| {
            let patch = Patch::Merge(json!({"spec": {"ingressController": controller}}));
            clusters.patch("demo", &PatchParams::default(), &patch).await.unwrap();
        };
        // Ports of VM pods that anybody reaches, what sort of Service leads there, and what the status says of it.
        let is = async |ports: &[i32], sort: Option<&str>, address: Option<&str>| {
            let looked = async || {
                let rules = policies.get("guest").await?.spec.unwrap_or_default().ingress.unwrap_or_default();
                let open = rules.iter().filter(|rule| rule.from.is_none()).flat_map(|rule| rule.ports.iter().flatten());
                let open: Vec<_> = open.filter_map(|port| port.port.clone()).collect();
                ensure!(open == ports.iter().map(|port| IntOrString::Int(*port)).collect::<Vec<_>>(), "{open:?}");
                let service = services.get_opt("ingress").await?.and_then(|service| service.spec);
                ensure!(service.as_ref().and_then(|spec| spec.type_.as_deref()) == sort, "{service:?}");
                let inside = service.and_then(|spec| spec.cluster_ip);
                let wanted =
                    address.map(
                        |address| if address == "inside" { inside.clone().unwrap_or_default() } else { address.into() },
                    );
                ensure!(status().await?.ingress == wanted, "{:?}", status().await?.ingress);
                Ok(())
            };
            eventually(SECOND * 20, "the way to the ingress controller", looked).await.unwrap();
        };
        is(&[6443], None, None).await;
        change(json!({"enabled": true})).await;
        is(&[6443, 30080, 30081], Some("ClusterIP"), Some("inside")).await;
        let ports = services.get("ingress").await.unwrap().spec.unwrap().ports.unwrap();
        let led: Vec<_> = ports.into_iter().map(|port| (port.port, port.target_port.unwrap())).collect();
        assert_eq!(led, [(80, IntOrString::Int(30080)), (443, IntOrString::Int(30081))]);

        change(json!({"service": "LoadBalancer"})).await;
        is(&[6443, 30080, 30081], Some("LoadBalancer"), None).await;
        let given = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}));
        services.patch_status("ingress", &PatchParams::default(), &given).await.unwrap();
        is(&[6443, 30080, 30081], Some("LoadBalancer"), Some("203.0.113.9")).await;
        services.delete("ingress", &DeleteParams::default()).await.unwrap();
        is(&[6443, 30080, 30081], Some("LoadBalancer"), None).await;
        change(json!({"service": null})).await;
        is(&[6443, 30080, 30081], Some("ClusterIP"), Some("inside")).await;
        manager.settled().await;
        manager.proxy.forget();
        manager.settled().await;
        assert!(manager.proxy.writes().is_empty(), "{:?}", manager.proxy.writes());

        change(json!({"enabled": false})).await;
        is(&[6443], None, None).await;
        change(json!({"enabled": true, "service": "LoadBalancer"})).await;
        is(&[6443, 30080, 30081], Some("LoadBalancer"), None).await;
        // With the Cluster the load balancer goes first.
        let kept = Patch::Merge(json!({"metadata": {"finalizers": [CLEANUP]}}));
        services.patch("ingress", &PatchParams::default(), &kept).await.unwrap();
        world.delete("a", "demo").await.unwrap();
        let waits = async || {
            let (_, _, message) = condition(&clusters.get("demo").await?, "NetworkReady").unwrap_or_default();
            ensure!(message.contains("the load balancers of Services api and ingress in g8s-"), "{message}");
            Ok(())
        };
        eventually(SECOND * 20, "to be told what is waited for", waits).await.unwrap();
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        services.patch("ingress", &PatchParams::default(), &free).await.unwrap();
        world.gone(SECOND * 30, "a", "demo").await.unwrap();
    });
}

#[test]
fn a_guest_whose_ingress_nobody_serves_says_so() {
    on_servers("ingress-class", async |servers, world| {
        let classes = Api::<IngressClass>::all(world.client.clone());
        classes.delete("nginx", &DeleteParams::default()).await.unwrap();
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        let exposed = |name: &str, class: Option<&str>| json!({"exposure": {"type": "Ingress", "host": format!("{name}.example.com"), "className": class}});
        world.create("a", "any", exposed("any", None)).await.unwrap();
        world.create("a", "other", exposed("other", Some("other"))).await.unwrap();
        let unserved = ("NetworkReady", "False", "IngressClassNotFound");
        for (name, words) in [("any", "is the default"), ("other", "there is no IngressClass other")] {
            let (message, took) = world.condition(SECOND * 90, ("a", name), unserved).await.unwrap();
            assert!(message.contains(words) && message.contains("spec.exposure.className"), "{message}");
            println!("    told after {took:.1?}: {message}");
            world.condition(SECOND * 30, ("a", name), ("PKIReady", "True", "AsExpected")).await.unwrap();
        }
        let ingresses = Api::<Ingress>::all(world.client.clone());
        let listed = async || ingresses.list(&ListParams::default()).await.unwrap().items;
        assert!(listed().await.is_empty(), "an Ingress without a class was made: it would keep none");

        let install = |name: &str, default| {
            servers.kubectl(&["create", "-f", "-"]).input(ingress_class(name, default)).output().unwrap();
        };
        install("other", false);
        world.converged(SECOND * 15, "a", "other").await.unwrap();
        world.condition(SECOND, ("a", "any"), unserved).await.unwrap();
        install("best", true);
        world.converged(SECOND * 15, "a", "any").await.unwrap();
        let mut given: Vec<_> =
            listed().await.into_iter().map(|found| found.spec.unwrap().ingress_class_name.unwrap()).collect();
        given.sort();
        assert_eq!(given, ["best", "other"]);

        // One that goes is missed, and what leads there stays as it is until it is back.
        manager.settled().await;
        classes.delete("other", &DeleteParams::default()).await.unwrap();
        world.condition(SECOND * 15, ("a", "other"), unserved).await.unwrap();
        let status = world.clusters("a").get("other").await.unwrap().status.unwrap();
        assert_eq!(status.endpoint.as_deref(), Some("https://other.example.com"));
        assert_eq!(listed().await.len(), 2);
        for name in ["any", "other"] {
            world.delete("a", name).await.unwrap();
            world.gone(SECOND * 30, "a", name).await.unwrap();
        }
        eventually(SECOND * 15, "the Ingresses to go", || async {
            let left = listed().await.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await
        .unwrap();
    });
}
