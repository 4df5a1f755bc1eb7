//! What the management cluster has of a Cluster's objects. Reads only.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Pod, Secret, Service},
        networking::v1::Ingress,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::json;

use super::{Change, Failure, Known, Outcome, State, Step, checked, compare::covers, document, listed, steps};
use crate::{
    api::{Cluster, NetworkClaim, names},
    cluster::{Identity, Valid, valid},
    kvm,
    network::{
        claims::{self, Holder, VniChoice},
        exposure,
        tls_route::TLSRoute,
    },
    pki::{
        keys::Wishes,
        plan::{self as pki, SecretMeta, World},
        roots,
    },
    runtime::{CallError, call},
    settings::Settings,
};

/// Compares the Cluster with what the cluster of the current kubeconfig has.
pub(super) async fn plan(cluster: &mut Cluster, settings: &Settings, now: Timestamp) -> Result<Outcome, Failure> {
    let client = Client::try_default().await?;
    let namespace = cluster.metadata.namespace.get_or_insert_with(|| client.default_namespace().to_owned()).clone();
    let name = cluster.name_any();
    let api = Api::<Cluster>::namespaced(client.clone(), &namespace);
    let there = call("get", format!("Cluster {namespace}/{name}"), api.get_opt(&name)).await?;
    if let Some(old) = &there {
        document::succeed(old, cluster);
        let forbidden = valid::update(old, cluster);
        if !forbidden.is_empty() {
            return Err(listed("this change is refused", &forbidden));
        }
    } else {
        // A UID that is not the API server's belongs to a Cluster of old.
        cluster.metadata.uid = None;
    }
    let valid = checked(cluster, settings)?;
    let vni = choose_vni(&client, &valid, settings).await?;
    let mut known = Known::nothing(&valid)?;
    if let VniChoice::Held(vni) | VniChoice::Claim(vni) | VniChoice::InUse(vni, _) = &vni {
        known.vni = *vni;
    }
    let status = there.as_ref().and_then(|old| old.status.as_ref());
    known.etcd_formed = status.is_some_and(|status| status.etcd_formed == Some(true));
    let found = match there {
        Some(_) => observe(&client, &valid, &mut known, settings).await?,
        None => Vec::new(),
    };
    let pki = pki_states(&client, &valid, &known, &found, now).await?;
    let steps = steps::of(&valid, settings, &known)?;
    let unwanted = match found.is_empty() {
        true => Vec::new(),
        false => unwanted(&client, &valid.identity, &steps).await?,
    };
    let changes = steps
        .into_iter()
        .map(|step| {
            let state = match (step.part, &vni) {
                ("pki", _) => pki.get(&step.object.name).cloned().unwrap_or(State::Created),
                ("aws", _) => State::Unknown("is in AWS and was not looked at".into()),
                ("guest", _) => State::Unknown("is inside the guest and was not looked at".into()),
                ("network", VniChoice::InUse(vni, Holder::Cluster(_))) if is_claim(&step) => {
                    State::Unknown(format!("VNI {vni} belongs to another Cluster"))
                }
                ("network", VniChoice::InUse(vni, Holder::Quarantine(end))) if is_claim(&step) => {
                    State::Unknown(format!("VNI {vni} was released and stays unused before {end}"))
                }
                ("network", VniChoice::Exhausted) if is_claim(&step) => State::Unknown("no VNI is free".into()),
                _ => {
                    let live = found.iter().find(|(object, _)| *object == step.object).map(|(_, live)| live);
                    state_of(&step, &valid.identity, live)
                }
            };
            Change { step, state }
        })
        .chain(unwanted)
        .collect();
    Ok(Outcome { valid, changes, has_uid: cluster.metadata.uid.is_some() })
}

fn is_claim(step: &Step) -> bool {
    step.object.resource.kind == "NetworkClaim"
}

async fn choose_vni(client: &Client, valid: &Valid, settings: &Settings) -> Result<VniChoice, Failure> {
    let api = Api::<NetworkClaim>::all(client.clone());
    let claims = call("list", "NetworkClaims", api.list(&ListParams::default())).await?;
    let holders = claims.items.iter().filter_map(|claim| {
        let holder = claims::holder(claim, &valid.identity.uid, settings.network.quarantine);
        Some((claims::vni_of(&claim.name_any())?, holder))
    });
    let holders: BTreeMap<_, _> = holders.collect();
    let ours = Holder::Cluster(valid.identity.uid.clone());
    let held = holders.iter().find(|(_, holder)| **holder == ours).map(|(vni, _)| *vni);
    Ok(claims::choose_vni(&valid.identity, valid.requested_vni, held, |vni| holders.get(&vni).cloned()))
}

type Found = Vec<(steps::Object, DynamicObject)>;

/// Reads what is there of the steps' objects. The namespace's UID and the Service's address become known on the way.
async fn observe(client: &Client, valid: &Valid, known: &mut Known, settings: &Settings) -> Result<Found, Failure> {
    let mut found = Vec::new();
    let namespace = &valid.identity.namespace;
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&valid.identity.selector());
    let maps = call("list", format!("ConfigMaps of {namespace}"), maps.list_metadata(&params)).await?;
    known.workers = maps.items.iter().filter_map(|map| kvm::plan::Known::of(&map.metadata)).collect();
    for step in steps::of(valid, settings, known)? {
        let object = step.object;
        if object.in_guest || step.part == "pki" {
            continue;
        }
        if let Some(live) = get(client, &object).await? {
            match object.resource.kind.as_str() {
                "Namespace" => known.namespace_uid = live.uid().unwrap_or_default(),
                "Service" if object.name == names::MASTER_SERVICE => {
                    let address = live.data["spec"]["clusterIP"].as_str().and_then(|text| text.parse::<IpAddr>().ok());
                    if let Some(address) = address {
                        known.api_address = address;
                        let endpoint = exposure::endpoint(&valid.exposure, address, &settings.exposure);
                        known.endpoint = endpoint.unwrap_or(known.endpoint.clone());
                    }
                }
                "Service" if object.name == names::BALANCED_SERVICE => {
                    let status = serde_json::from_value(live.data["status"]["loadBalancer"].clone()).ok();
                    if let Ok(Some(endpoint)) = exposure::balanced_endpoint(valid.exposure.host(), status.as_ref()) {
                        known.endpoint = endpoint;
                    }
                }
                _ => {}
            }
            found.push((object, live));
        }
    }
    Ok(found)
}

async fn get(client: &Client, object: &steps::Object) -> Result<Option<DynamicObject>, CallError> {
    let api: Api<DynamicObject> = match &object.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &object.resource),
        None => Api::all_with(client.clone(), &object.resource),
    };
    call("get", object.to_string(), api.get_opt(&object.name)).await
}

/// What the guest has and no step makes: nodes that are too many, what led to its API before. Volumes and roots are never
/// among them: they go with the guest.
async fn unwanted(client: &Client, identity: &Identity, steps: &[Step]) -> Result<Vec<Change>, Failure> {
    let mut changes = Vec::new();
    for (part, resource) in [
        ("kvm", ApiResource::erase::<Pod>(&())),
        ("kvm", ApiResource::erase::<ConfigMap>(&())),
        ("pki", ApiResource::erase::<Secret>(&())),
        ("network", ApiResource::erase::<Ingress>(&())),
        ("network", ApiResource::erase::<TLSRoute>(&())),
        ("network", ApiResource::erase::<Service>(&())),
    ] {
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), &identity.namespace, &resource);
        let params = ListParams::default().labels(&identity.selector());
        let what = format!("{} of {}", resource.plural, identity.namespace);
        let list = match call("list", what, api.list_metadata(&params)).await {
            // Not every management cluster has the Gateway API.
            Err(error) if error.status() == Some(404) => continue,
            list => list?,
        };
        for live in list {
            let namespace = Some(identity.namespace.clone());
            let object =
                steps::Object { resource: resource.clone(), namespace, name: live.name_any(), in_guest: false };
            let roots = roots::generation_of(&object.name).is_some();
            if roots || !identity.owner().owns(&live.metadata) || steps.iter().any(|step| step.object == object) {
                continue;
            }
            let body = json!({"apiVersion": resource.api_version, "kind": resource.kind,
                "metadata": {"namespace": identity.namespace, "name": object.name}});
            let (purpose, waits_for, rolls) = ("is wanted no more", Vec::new(), None);
            changes
                .push(Change { step: Step { part, object, purpose, waits_for, body, rolls }, state: State::Removed });
        }
    }
    Ok(changes)
}

/// What a step comes to, given the object as it is. A VM pod says by its wish what it was made for; a volume is never
/// changed.
fn state_of(step: &Step, identity: &Identity, live: Option<&DynamicObject>) -> State {
    let Some(live) = live else { return State::Created };
    let ours = match step.object.resource.kind.as_str() {
        "NetworkClaim" => live.data["spec"]["clusterRef"]["uid"] == *identity.uid,
        _ => identity.owner().owns(&live.metadata),
    };
    if !ours {
        return State::Unknown("exists and is not this Cluster's: it is left alone, delete or rename it".into());
    }
    let same = match step.object.resource.kind.as_str() {
        "PersistentVolumeClaim" => true,
        "Pod" => {
            let wish = &step.body["metadata"]["annotations"][names::NODE_WISH_ANNOTATION];
            // One that was made before there were wishes is taken for what it should be.
            live.annotations().get(names::NODE_WISH_ANNOTATION).is_none_or(|made_for| *wish == **made_for)
        }
        _ => {
            let mut whole = live.data.clone();
            whole["metadata"] = json!(live.metadata);
            let mut wanted = step.body.clone();
            for typed in ["apiVersion", "kind"] {
                wanted.as_object_mut().map(|fields| fields.remove(typed));
            }
            covers(&whole, &wanted)
        }
    };
    if same { State::Unchanged } else { State::Changed }
}

/// What becomes of each Secret of pki, by name.
async fn pki_states(
    client: &Client,
    valid: &Valid,
    known: &Known,
    found: &Found,
    now: Timestamp,
) -> Result<BTreeMap<String, State>, Failure> {
    let Some((_, namespace)) = found.iter().find(|(object, _)| object.resource.kind == "Namespace") else {
        return Ok(BTreeMap::new());
    };
    let identity = &valid.identity;
    let noted = namespace.metadata.annotations.as_ref();
    let mut world = World {
        namespace: true,
        records: roots::fingerprints(noted),
        generation: noted.and_then(|all| all.get(names::GENERATION_ANNOTATION)?.parse().ok()),
        next_records: roots::next_fingerprints(noted),
        workers: kvm::plan::workers(valid, &known.workers).into_iter().map(|(_, node)| node).collect(),
        places: known.places().collect(),
        endpoint: known.endpoint.contains('<').then_some(()).map_or_else(|| Some(known.endpoint.clone()), |()| None),
        ..World::default()
    };
    let api = Api::<Secret>::namespaced(client.clone(), &identity.namespace);
    let what = format!("Secrets of {}", identity.namespace);
    let secrets = call("list", what, api.list_metadata(&ListParams::default())).await?;
    world.secrets.extend(secrets.items.iter().map(|secret| (secret.name_any(), meta(&secret.metadata))));
    let name = names::kubeconfig_secret(&identity.key.name);
    let api = Api::<Secret>::namespaced(client.clone(), &identity.key.namespace);
    let what = format!("Secret {}/{name}", identity.key.namespace);
    if let Some(secret) = call("get", what, api.get_metadata_opt(&name)).await? {
        world.secrets.insert(name, meta(&secret.metadata));
    }
    let plan = pki::plan(valid, &world, now);
    let current = roots::secret_of(world.generation());
    let mut states: BTreeMap<_, _> = world.secrets.keys().map(|name| (name.clone(), State::Unchanged)).collect();
    for step in &plan.steps {
        if *step == pki::Step::RecordRoots {
            let recorded_next = State::Unknown("was made, and is recorded on the namespace next".into());
            states.insert(current.clone(), recorded_next);
        }
        if let Some((_, name)) = steps::secret_of(valid, step) {
            let state = if world.secrets.contains_key(&name) { State::Changed } else { State::Created };
            states.insert(name, state);
        }
    }
    if plan.lost {
        let lost = State::Unknown("is lost, and never made anew: restore it from a backup".into());
        states.insert(current, lost);
    }
    Ok(states)
}

fn meta(meta: &ObjectMeta) -> SecretMeta {
    let annotation = |name: &str| meta.annotations.as_ref().and_then(|all| all.get(name).cloned());
    SecretMeta {
        hash: annotation(names::HASH_ANNOTATION),
        renew_at: annotation(names::RENEW_AT_ANNOTATION).and_then(|at| at.parse().ok()),
        fingerprints: roots::fingerprints(meta.annotations.as_ref()),
        mark: annotation(names::AUTHORITIES_ANNOTATION).and_then(|text| text.parse().ok()),
        rotated_for: annotation(names::ROTATED_FOR_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or_default(),
        keys_for: Wishes::noted(annotation),
        ..SecretMeta::default()
    }
}
