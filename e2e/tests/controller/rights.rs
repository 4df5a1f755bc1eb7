//! The rights that the chart gives the controller manager are those that it uses. Every manager of these tests has them and no
//! others; here it is seen that each of them is used.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use giantnetes::network::tls_route::{self, TLSRoute};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    exposure::say_of_route,
    manager::{Manager, Options},
    on_servers_that,
    rollout::Guest,
    servers::{Audited, Record, Servers},
    world::{SECOND, World, eventually},
};

/// Resource and verb.
type Right = (String, String);

/// Rights that this life does not use, and what does.
const ELSEWHERE: [(&str, &str, &str); 3] = [
    ("events.events.k8s.io", "patch", "what happens again is counted on the event that is there"),
    ("clusters.giantnetes.io", "get", "a claim's Cluster that the cache does not know is looked for once more"),
    ("networkclaims.giantnetes.io", "get", "a claim that is there already when it is made: whose is it"),
];

fn granted(rules: impl IntoIterator<Item = PolicyRule>) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                rights.extend(rule.verbs.iter().map(|verb| (name(group, resource), verb.clone())));
            }
        }
    }
    rights
}

fn name(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// What the manager asked for, and of that what it was refused.
fn used(servers: &Servers) -> (BTreeSet<Right>, Vec<String>) {
    let (mut rights, mut refused) = (BTreeSet::new(), Vec::new());
    for call in servers.audit() {
        if call.user["username"] != "system:serviceaccount:default:core" || call.object_ref.is_null() {
            continue;
        }
        let text = |key: &str| call.object_ref[key].as_str().unwrap_or_default();
        let resource = match text("subresource") {
            "" => text("resource").to_owned(),
            part => format!("{}/{part}", text("resource")),
        };
        if call.response_status["code"] == 403 {
            refused.push(format!("{} {}", call.verb, call.uri));
        }
        rights.insert((name(text("apiGroup"), &resource), call.verb));
    }
    (rights, refused)
}

/// Changes objects of a guest as nobody should, of each kind, and waits until all is as it was.
async fn spoil(servers: &Servers, manager: &Manager, guest: &Guest<'_>, vni: &str) {
    let nobody = json!({"matchLabels": {"nobody": "has-it"}});
    let deeds = [
        ("service/master", "{.spec.selector}", json!({"spec": {"selector": {"nobody": "has-it"}}})),
        ("service/nodes", "{.spec.selector}", json!({"spec": {"selector": {"nobody": "has-it"}}})),
        ("networkpolicy/guest", "{.spec.podSelector}", json!({"spec": {"podSelector": nobody}})),
        ("ingress/master", "{.spec.rules[0].host}", json!({"spec": {"rules": [{"host": "other.example.com"}]}})),
        ("poddisruptionbudget/nodes", "{.spec.selector}", json!({"spec": {"selector": nobody}})),
        ("secret/x-0-pki", "{.data.kubelet\\.key}", json!({"data": {"kubelet.key": "AAAA"}})),
        ("configmap/x-0-config", "{.data.user-data}", json!({"data": {"user-data": "x"}})),
    ];
    let shown = |object: &str, path: &str| {
        servers.kubectl(&["-n", &guest.namespace, "get", object, "-o", &format!("jsonpath={path}")]).output()
    };
    let before = deeds.each_ref().map(|(object, path, _)| shown(object, path).unwrap());
    for (object, _, patch) in &deeds {
        let patch = patch.to_string();
        servers.kubectl(&["-n", &guest.namespace, "patch", object, "--type=merge", "-p", &patch]).output().unwrap();
    }
    // What the cache does not see any more is met when it is made.
    for object in ["service/master", "networkpolicy/guest", "ingress/master", "pvc/master-0-etcd"] {
        let words = ["-n", guest.namespace.as_str(), "label", object, "giantnetes.io/cluster-"];
        servers.kubectl(&words).output().unwrap();
    }
    let namespace =
        ["label", "namespace", &guest.namespace, "pod-security.kubernetes.io/enforce=restricted", "--overwrite"];
    servers.kubectl(&namespace).output().unwrap();
    let claim = ["patch", "networkclaim", vni, "--type=merge", "-p", r#"{"spec": {"value": 1}}"#];
    servers.kubectl(&claim).output().unwrap();
    let all_is_well = async || {
        let value = servers.kubectl(&["get", "networkclaim", vni, "-o", "jsonpath={.spec.value}"]).output()?;
        ensure!(vni == format!("vni-{value}"), "{vni} says {value}");
        for object in ["service/master", "networkpolicy/guest", "ingress/master", "pvc/master-0-etcd"] {
            let label = "jsonpath={.metadata.labels.giantnetes\\.io/cluster}";
            let found = servers.kubectl(&["-n", &guest.namespace, "get", object, "-o", label]).output()?;
            ensure!(!found.is_empty(), "{object} has no label");
        }
        for ((object, path, _), before) in deeds.iter().zip(&before) {
            let now = shown(object, path)?;
            // A key is not made a second time: there is another one.
            let is_well = if object.starts_with("secret/") { now.len() > 100 } else { now == *before };
            ensure!(!before.is_empty() && is_well, "{path} of {object} was {before} and is {now}");
        }
        Ok(())
    };
    let ((), took) = eventually(SECOND * 15, "all to be put right", all_is_well).await.unwrap();
    println!("    what was spoiled was put right within {took:.1?}");
    manager.settled().await;
}

async fn a_life(servers: &Servers, manager: &Manager, world: &World) {
    let spec = json!({
        "exposure": {"type": "Ingress", "host": "one.example.com"}, "nodePools": [{"name": "x", "replicas": 1}],
    });
    let guest = Guest::of(world, spec, &["master-0", "x-0"]).await;
    let access = json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "ClusterAccess", "metadata": {"name": "alice", "namespace": "a"},
        "spec": {"clusterRef": {"name": "demo"}, "user": "alice"},
    });
    servers.kubectl(&["apply", "-f", "-"]).input(access.to_string()).output().unwrap();
    let secret = async || Ok(world.secrets("a").get("alice-access").await?);
    eventually(SECOND * 20, "alice's kubeconfig", secret).await.unwrap();
    for node in ["master-0", "x-0"] {
        guest.ready(node).await;
    }
    // Whose VM pods run is asked what they reach; nobody answers here.
    let running = json!({"status": {
        "podIP": "127.77.0.9", "podIPs": [{"ip": "127.77.0.9"}],
        "containerStatuses": [{
            "name": "vm", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }],
    }});
    guest.pods.patch_status("master-0", &PatchParams::default(), &Patch::Merge(running)).await.unwrap();
    manager.settled().await;
    let vni = world.clusters("a").get("demo").await.unwrap().status.unwrap().vni.unwrap();
    spoil(servers, manager, &guest, &format!("vni-{vni}")).await;
    // The way from outside becomes another one; then a machine is changed, and that way and the pool are given up.
    guest.change(json!({"exposure": {"type": "LoadBalancer", "host": null}})).await;
    let balanced = async || Ok(servers.kubectl(&["-n", &guest.namespace, "get", "service", "api"]).output()?);
    eventually(SECOND * 20, "the Service with a load balancer", balanced).await.unwrap();
    guest.change(json!({"exposure": {"type": "TLSRoute", "host": "two.example.com"}})).await;
    let routes = Api::<TLSRoute>::namespaced(world.client.clone(), &guest.namespace);
    eventually(SECOND * 20, "the route", async || say_of_route(&routes, true).await).await.unwrap();
    manager.settled().await;
    let spoilt = Patch::Merge(json!({
        "metadata": {"labels": {"giantnetes.io/cluster": null}}, "spec": {"hostnames": ["other.example.com"]},
    }));
    routes.patch(tls_route::ROUTE, &PatchParams::default(), &spoilt).await.unwrap();
    let restored = async || {
        let route = routes.get(tls_route::ROUTE).await?;
        ensure!(route.labels().contains_key("giantnetes.io/cluster"), "it has no label");
        ensure!(route.spec.hostnames == ["two.example.com"], "{:?}", route.spec.hostnames);
        say_of_route(&routes, true).await
    };
    eventually(SECOND * 20, "the route to be put right", restored).await.unwrap();
    guest.change(json!({"controlPlane": {"machine": {"cpus": 3}}, "exposure": null, "nodePools": []})).await;
    let fewer = async || {
        let uids = guest.uids().await?;
        ensure!(!uids.contains_key("x-0"), "{uids:?}");
        Ok(())
    };
    eventually(SECOND * 60, "the pool to be gone", fewer).await.unwrap();
    servers.kubectl(&["-n", "a", "delete", "clusteraccess", "alice"]).output().unwrap();
    manager.settled().await;
    world.delete("a", "demo").await.unwrap();
    world.gone(SECOND * 60, "a", "demo").await.unwrap();
    let none = async || {
        let claims = world.claims().await?.len();
        ensure!(claims == 0, "{claims} are left");
        Ok(())
    };
    eventually(SECOND * 20, "the claims to be gone", none).await.unwrap();
}

#[test]
fn every_right_is_used_and_none_is_missing() {
    on_servers_that(Record::All, "rights", async |servers, world| {
        servers.install_routes().unwrap();
        let options = Options { kvm: true, gateway: true, drain_timeout: "1s", ..Options::default() };
        let mut manager = Manager::start(servers, "one", options).await;
        a_life(servers, &manager, &world).await;
        // Another replica waits for its turn, and takes it.
        let second = Manager::start(servers, "two", Options { kvm: true, gateway: true, ..Options::default() }).await;
        let watches = async || {
            let mut calls = servers.audit().into_iter();
            let is_it =
                |call: &Audited| call.user_agent == "two" && call.verb == "watch" && call.uri.contains("/leases");
            ensure!(calls.any(|call| is_it(&call)), "it does not watch the lease");
            Ok(())
        };
        eventually(SECOND * 20, "the second replica to wait", watches).await.unwrap();
        manager.signal("TERM");
        manager.ended(SECOND * 20).unwrap();
        let leads = async || {
            ensure!(
                second.get("/metrics").await?.lines().any(|line| line == "giantnetes_leading 1"),
                "it does not lead"
            );
            Ok(())
        };
        eventually(SECOND * 20, "the second replica to lead", leads).await.unwrap();

        let (used, refused) = used(servers);
        assert_eq!(refused, Vec::<String>::new());
        let cluster = Api::<ClusterRole>::all(world.client.clone()).get("core").await.unwrap();
        let role = Api::<Role>::namespaced(world.client.clone(), "default").get("core").await.unwrap();
        let granted = granted(cluster.rules.into_iter().flatten().chain(role.rules.into_iter().flatten()));
        let elsewhere: BTreeMap<_, _> =
            ELSEWHERE.iter().map(|(what, verb, why)| (((*what).to_owned(), (*verb).to_owned()), why)).collect();
        let idle: Vec<_> = granted.difference(&used).filter(|right| !elsewhere.contains_key(right)).collect();
        assert!(idle.is_empty(), "granted and not used: {idle:?}");
        let stale: Vec<_> = elsewhere.keys().filter(|right| !granted.contains(right)).collect();
        assert!(stale.is_empty(), "said to be used elsewhere, and not granted: {stale:?}");
        println!("    {} rights, {} of them used in this life", granted.len(), granted.intersection(&used).count());
    });
}
