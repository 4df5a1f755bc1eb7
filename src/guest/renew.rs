//! What inside a guest has to learn of other authorities while they are rotated: what its objects publish, and add-ons' pods, which
//! read whom they trust when they start.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::ConfigMap,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::info;
use x509_parser::pem::Pem;

use super::addons;
use crate::{
    api::names,
    cluster::Report,
    pki::{
        Going, PkiFacts,
        rotation::{Published, add_ons_for},
    },
    runtime::{CallError, call},
    supervisor::consumers::fingerprint,
};

/// Namespace of what API servers publish.
const NAMESPACE: &str = "kube-system";
/// Whom pods trust, by the guest's own controllers.
const ROOTS: (&str, &str) = ("kube-root-ca.crt", "ca.crt");
/// Whom extensions of the API trust, by its API servers. These add to it what they trust, and never take away what they do no more.
const EXTENSIONS: &str = "extension-apiserver-authentication";
const CLIENTS: [&str; 2] = ["client-ca-file", "requestheader-client-ca-file"];

/// The rotation that is seen to, if it is known how far it is.
pub(super) fn going(pki: Option<&Report<PkiFacts>>) -> Option<&Going> {
    pki.and_then(Report::facts)?.rotation.as_ref()?.going.as_ref().filter(|going| going.is_known)
}

/// The mark that add-ons' pods have to have been started for now. It is the last node's: what some API server still trusts it publishes
/// again, and pods that start then would read it.
fn add_ons_due(going: &Going, roots: &BTreeSet<String>) -> Option<String> {
    // Who starts earlier reads what was published before.
    let due = add_ons_for(going.last).filter(|_| roots.is_disjoint(&going.kept_out));
    due.map(|mark| mark.to_string())
}

/// Sees to what is published, and answers what is.
///
/// # Errors
/// A call.
pub(super) async fn tend(client: &Client, going: &Going, silent: usize) -> Result<Published, CallError> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    let get = async |name: &str| call("get", format!("the guest's ConfigMap {name}"), maps.get_opt(name)).await;
    let roots = get(ROOTS.0).await?.map(|map| held(&map, &[ROOTS.1])).unwrap_or_default();
    let extensions = match get(EXTENSIONS).await? {
        Some(map) => kept_out(&maps, map, &going.kept_out).await?,
        None => BTreeSet::new(),
    };
    let add_ons = match add_ons_due(going, &roots) {
        Some(mark) => started(client, &mark, silent).await?.then_some(mark),
        None => None,
    };
    Ok(Published { roots, extensions, add_ons })
}

/// SHA-256 of the certificates in some values of a ConfigMap.
fn held(map: &ConfigMap, keys: &[&str]) -> BTreeSet<String> {
    let texts = keys.iter().filter_map(|key| map.data.as_ref()?.get(*key));
    texts
        .flat_map(|text| Pem::iter_from_buffer(text.as_bytes()).flatten())
        .map(|pem| fingerprint(&pem.contents))
        .collect()
}

/// A bundle without some certificates; none if none of these is in it.
fn without(bundle: &str, out: &BTreeSet<String>) -> Option<String> {
    let all: Vec<_> = Pem::iter_from_buffer(bundle.as_bytes()).flatten().collect();
    let kept: Vec<_> = all.iter().filter(|pem| !out.contains(&fingerprint(&pem.contents))).collect();
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let write = |kept: &&Pem| pem::encode_config(&pem::Pem::new(kept.label.as_str(), kept.contents.as_slice()), lines);
    // An empty one would trust nobody: those who take their place come first.
    (kept.len() < all.len() && !kept.is_empty()).then(|| kept.iter().map(write).collect())
}

/// Takes what is to be trusted no more out of what is published. Answers what was left when it was read.
async fn kept_out(
    maps: &Api<ConfigMap>,
    map: ConfigMap,
    out: &BTreeSet<String>,
) -> Result<BTreeSet<String>, CallError> {
    let texts = CLIENTS.iter().filter_map(|key| Some((*key, without(map.data.as_ref()?.get(*key)?, out)?)));
    let changed: serde_json::Map<_, _> = texts.map(|(key, text)| (key.to_owned(), json!(text))).collect();
    if !changed.is_empty() {
        let version = map.metadata.resource_version.as_ref();
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "data": changed}));
        let what = format!("the guest's ConfigMap {EXTENSIONS}");
        match call("patch", what, maps.patch(EXTENSIONS, &PatchParams::default(), &patch)).await {
            // An API server was faster; the next look sees what is there.
            Err(error) if error.status() == Some(409) => {}
            Err(error) => return Err(error),
            Ok(_) => info!("extensions of the guest's API are told to trust former authorities no more"),
        }
    }
    Ok(held(&map, &CLIENTS))
}

/// Starts add-ons' pods anew for a mark. Answers whether all have been.
async fn started(client: &Client, mark: &str, silent: usize) -> Result<bool, CallError> {
    let params = ListParams::default().labels(addons::SELECTOR);
    let sets = Api::<DaemonSet>::namespaced(client.clone(), addons::NAMESPACE);
    let deployments = Api::<Deployment>::namespaced(client.clone(), addons::NAMESPACE);
    let listed = call("list", "the guest's DaemonSets", sets.list(&params)).await?.items;
    let others = call("list", "the guest's Deployments", deployments.list(&params)).await?.items;
    let is_for = |template: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>| {
        let annotations = template.and_then(|meta| meta.annotations.as_ref());
        annotations.and_then(|all| all.get(names::AUTHORITIES_ANNOTATION)).is_some_and(|of| of == mark)
    };
    let mut all = true;
    for set in &listed {
        if !is_for(set.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref())) {
            all = false;
            start(&sets, set, mark).await?;
        }
    }
    for deployment in &others {
        if !is_for(deployment.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref())) {
            all = false;
            start(&deployments, deployment, mark).await?;
        }
    }
    Ok(all && others.iter().all(is_renewed) && addons::unready(&listed, &others, silent).is_none())
}

/// Whether no pod of a Deployment is left that was started before: those that serve are kept until others are ready.
fn is_renewed(deployment: &Deployment) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    let current = status.observed_generation >= deployment.metadata.generation;
    current && status.replicas.unwrap_or(0) <= status.updated_replicas.unwrap_or(0)
}

async fn start<K>(api: &Api<K>, object: &K, mark: &str) -> Result<(), CallError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let annotations = json!({names::AUTHORITIES_ANNOTATION: mark});
    let patch = Patch::Merge(json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}));
    let (kind, name) = (K::kind(&()), object.name_any());
    info!(add_on = name, mark, "its pods are started anew for other authorities");
    let what = format!("the guest's {kind} {name}");
    call("patch", what, api.patch(&name, &PatchParams::default(), &patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::RotationStatus,
        pki::{
            RotationFacts,
            keys::Subject,
            rotation::{Mark, Phase},
        },
    };

    #[test]
    fn add_ons_are_started_by_the_last_node_and_when_it_is_known_how_far_it_is() {
        let mark = |phase| Mark { generation: 2, phase };
        let of = |last, kept_out: &[&str], is_known| {
            let kept_out = kept_out.iter().map(|&sum| sum.to_owned()).collect();
            Going {
                mark: mark(Phase::Drop),
                subject: Subject::Authorities,
                rewrites: Vec::new(),
                last: mark(last),
                kept_out,
                turning: None,
                is_known,
            }
        };
        let roots = ["former".to_owned(), "new".to_owned()].into();
        let due = |going: Going| add_ons_due(&going, &roots);
        assert_eq!(due(of(Phase::Serve, &[], true)).as_deref(), Some("2.trust"));
        assert_eq!(due(of(Phase::Drop, &["former"], true)), None, "the former authority is published");
        assert_eq!(due(of(Phase::Drop, &["other"], true)).as_deref(), Some("2.drop"));
        for is_known in [false, true] {
            let rotation =
                RotationFacts { status: RotationStatus::default(), going: Some(of(Phase::Drop, &[], is_known)) };
            let facts = PkiFacts { renew_at: None, end_at: None, vault: None, rotation: Some(rotation) };
            assert_eq!(going(Some(&Report::Ready(facts))).is_some(), is_known);
        }
    }

    #[test]
    fn an_add_on_whose_former_pods_serve_is_not_started_anew() {
        let deployment = |observed: i64, replicas: i32, updated: i32| {
            let status = json!({"observedGeneration": observed, "replicas": replicas, "readyReplicas": 2,
                "updatedReplicas": updated});
            let object = json!({"metadata": {"name": "coredns", "generation": 2}, "status": status,
                "spec": {"replicas": 2, "selector": {}, "template": {}}});
            serde_json::from_value::<Deployment>(object).unwrap()
        };
        // The new pod of a rolling update does not start: two that are ready are the former ones.
        for (observed, replicas, updated) in [(1, 2, 2), (2, 3, 1), (2, 2, 0), (2, 3, 2)] {
            assert!(!is_renewed(&deployment(observed, replicas, updated)), "{observed} {replicas} {updated}");
        }
        let renewed = deployment(2, 2, 2);
        assert!(is_renewed(&renewed) && addons::unready(&[], &[renewed], 0).is_none());
    }

    #[test]
    fn what_is_kept_out_goes_and_the_last_one_never() {
        let (a, b) = (crate::testing::certificate(), {
            let root =
                crate::pki::embedded::root("b", "x/y", jiff::Timestamp::now(), std::time::Duration::from_secs(60));
            root.unwrap().certificate
        });
        let of = |text: &str| fingerprint(&x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap().1.contents);
        let bundle = format!("# a comment\n{a}{b}");
        assert_eq!(without(&bundle, &[of(&a)].into()).map(|left| of(&left)), Some(of(&b)));
        assert_eq!(without(&bundle, &BTreeSet::new()), None);
        assert_eq!(without(&a, &[of(&a)].into()), None);
        let map = ConfigMap { data: Some([("ca.crt".to_owned(), bundle)].into()), ..ConfigMap::default() };
        assert_eq!(held(&map, &["ca.crt", "other"]), [of(&a), of(&b)].into());
    }
}
