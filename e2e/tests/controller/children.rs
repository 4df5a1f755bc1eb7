//! What of a guest's objects somebody edits or deletes returns.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use giantnetes::pki::roots;
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    steady::home,
    world::{SECOND, World, eventually},
};

/// What somebody does.
enum Deed {
    Delete,
    /// Changes the object so; at this place it must be as it was before.
    Edit(Value, &'static str),
    /// Changes the object so; at this place it must not stay so, but what was there is not made a second time.
    Spoil(Value, &'static str),
}

use Deed::{Delete, Edit, Spoil};

/// An object of a guest.
pub struct Child {
    pub kind: &'static str,
    pub namespace: Option<String>,
    pub name: String,
}

impl Child {
    /// What the API server calls its kind.
    pub fn resource(&self) -> ApiResource {
        let (group, version) = match self.kind {
            "NetworkPolicy" | "Ingress" => ("networking.k8s.io", "v1"),
            "NetworkClaim" => ("giantnetes.io", "v1alpha1"),
            "PodDisruptionBudget" => ("policy", "v1"),
            _ => ("", "v1"),
        };
        let plural = match self.kind {
            "NetworkPolicy" => "networkpolicies".to_owned(),
            "Ingress" => "ingresses".to_owned(),
            kind => format!("{}s", kind.to_lowercase()),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, self.kind), &plural)
    }

    pub fn api(&self, world: &World) -> Api<DynamicObject> {
        let resource = self.resource();
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(world.client.clone(), namespace, &resource),
            None => Api::all_with(world.client.clone(), &resource),
        }
    }
}

async fn read(api: &Api<DynamicObject>, name: &str) -> Result<Value> {
    Ok(serde_json::to_value(api.get_opt(name).await?.context("it is not there")?)?)
}

fn at<'a>(object: &'a Value, place: &str) -> &'a Value {
    object.pointer(place).unwrap_or(&Value::Null)
}

/// Does it, and waits until it is put right. Answers how long that took.
async fn put_right(world: &World, child: &Child, deed: Deed) -> Result<Duration> {
    let (api, name) = (child.api(world), child.name.as_str());
    let before = read(&api, name).await?;
    let began = Instant::now();
    let mut edited = Value::Null;
    match &deed {
        Delete => drop(api.delete(name, &DeleteParams::default()).await?),
        Edit(patch, place) | Spoil(patch, place) => {
            let after = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            edited = serde_json::to_value(after)?;
            ensure!(at(&edited, place) != at(&before, place), "{patch} changes nothing at {place}");
        }
    }
    let is_right = async || {
        let now = read(&api, name).await?;
        match &deed {
            Delete => ensure!(at(&now, "/metadata/uid") != at(&before, "/metadata/uid"), "it is the old one"),
            Edit(_, place) => ensure!(at(&now, place) == at(&before, place), "it says {}", at(&now, place)),
            Spoil(_, place) => ensure!(at(&now, place) != at(&edited, place), "it is spoiled"),
        }
        Ok(())
    };
    eventually(SECOND * 15, "it to be put right", is_right).await?;
    Ok(began.elapsed())
}

#[test]
fn deleted_and_edited_children_return() {
    on_servers("children", async |servers, world| {
        let manager = Manager::start(servers, "one", Options { quarantine: "1h", ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        let exposure = json!({"exposure": {"type": "Ingress", "host": "one.example.com"}});
        world.create("a", "one", exposure).await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        manager.settled().await;
        let (before, roots) = (world.inventory().await.unwrap(), world.roots().await.unwrap());
        let home = home(&world, "one").await;
        let vni = world.clusters("a").get("one").await.unwrap().status.unwrap().vni.unwrap();
        let claims = world.claims().await.unwrap();
        let host = claims.iter().find_map(|claim| claim.metadata.name.clone().filter(|name| name.starts_with("host-")));
        let (vni, host) = (format!("vni-{vni}"), host.unwrap());

        let other = json!([{"host": "other.example.com"}]);
        let nobody = json!({"matchLabels": {"nobody": "has-it"}});
        let unlabelled = || json!({"metadata": {"labels": {"giantnetes.io/cluster": null}}});
        let released = || json!({"spec": {"releasedAt": "2020-01-01T00:00:00Z"}});
        let enforced = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
        let unfingerprinted = json!({"metadata": {"annotations": {"giantnetes.io/ca-encryption": "another"}}});
        let unowned = json!({"metadata": {"annotations": {"giantnetes.io/cluster-uid": null}}});
        let unrecorded = json!({"metadata": {"annotations": {"giantnetes.io/ca-kubernetes": null}}});
        let deeds = [
            ("Service", "master", Delete),
            (
                "Service",
                "master",
                Edit(json!({"spec": {"selector": {"giantnetes.io/role": "nobody"}}}), "/spec/selector"),
            ),
            ("Service", "master", Edit(json!({"spec": {"selector": {"nobody": "has-it"}}}), "/spec/selector")),
            ("NetworkPolicy", "guest", Delete),
            ("NetworkPolicy", "guest", Edit(json!({"spec": {"podSelector": nobody}}), "/spec")),
            ("NetworkPolicy", "guest", Edit(json!({"spec": {"ingress": [{}], "egress": [{}]}}), "/spec")),
            ("Ingress", "master", Delete),
            ("Ingress", "master", Edit(json!({"spec": {"rules": other}}), "/spec/rules")),
            ("Secret", "master-0-pki", Delete),
            ("Secret", "master-0-pki", Spoil(json!({"data": {"apiserver.key": "AAAA"}}), "/data/apiserver.key")),
            ("Secret", "master-0-pki", Edit(unlabelled(), "/metadata/labels")),
            // Never made anew: what somebody took from the one that is there returns to it.
            ("Secret", roots::SECRET, Edit(unlabelled(), "/metadata/labels")),
            ("Secret", roots::SECRET, Edit(unfingerprinted, "/metadata/annotations")),
            ("Secret", roots::SECRET, Edit(unowned, "/metadata/annotations")),
            ("Secret", "one-kubeconfig", Delete),
            ("Secret", "one-kubeconfig", Spoil(json!({"data": {"value": "AAAA"}}), "/data/value")),
            ("Namespace", home.as_str(), Edit(enforced, "/metadata/labels")),
            ("Namespace", home.as_str(), Edit(unlabelled(), "/metadata/labels")),
            ("Namespace", home.as_str(), Edit(unrecorded, "/metadata/annotations")),
            ("Service", "master", Edit(unlabelled(), "/metadata/labels")),
            ("NetworkPolicy", "guest", Edit(unlabelled(), "/metadata/labels")),
            ("Ingress", "master", Edit(unlabelled(), "/metadata/labels")),
            // Its name is what it claims, so the very same returns.
            ("NetworkClaim", vni.as_str(), Delete),
            ("NetworkClaim", vni.as_str(), Edit(released(), "/spec")),
            ("NetworkClaim", vni.as_str(), Edit(json!({"spec": {"value": 1}}), "/spec")),
            ("NetworkClaim", vni.as_str(), Edit(unlabelled(), "/metadata/labels")),
            ("NetworkClaim", host.as_str(), Delete),
            ("NetworkClaim", host.as_str(), Edit(released(), "/spec")),
        ];
        let mut slowest = Duration::ZERO;
        for (number, (kind, name, deed)) in deeds.into_iter().enumerate() {
            let namespace = match (kind, name) {
                ("Namespace" | "NetworkClaim", _) => None,
                (_, "one-kubeconfig") => Some("a".to_owned()),
                _ => Some(home.clone()),
            };
            let child = Child { kind, namespace, name: name.into() };
            let what = match &deed {
                Delete => "deleted".to_owned(),
                Edit(patch, _) | Spoil(patch, _) => format!("edited {patch}"),
            };
            let took = put_right(&world, &child, deed).await;
            let took = took.unwrap_or_else(|error| panic!("{number}: {kind} {name} {what}: {error:#}"));
            println!("    {kind} {name} {what}: back after {took:.2?}");
            slowest = slowest.max(took);
        }
        println!("    slowest: {slowest:.2?}");
        world.converged(SECOND * 15, "a", "one").await.unwrap();
        manager.settled().await;
        assert_eq!(world.inventory().await.unwrap(), before);
        assert_eq!(world.roots().await.unwrap(), roots, "a root was made anew");
        assert!(!manager.log_text().contains("panicked"));
    });
}
