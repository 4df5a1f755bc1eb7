//! What is drawn of a Cluster. Pure: the time is an input.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{core::v1::Pod, events::v1::Event},
    jiff::Timestamp,
};
use kube::ResourceExt as _;

use super::{draw::Branch, observe::Observed};
use crate::{
    api::{ClusterStatus, Condition, ConditionType, RotationStatus, names},
    cli::events,
    kvm::vm_pod::VmPod,
};

/// How many events are shown.
const EVENTS: usize = 5;

/// The tree of a Cluster, at `now`.
pub(super) fn tree(observed: &Observed, now: Timestamp) -> Branch {
    let cluster = &observed.cluster;
    let fresh = ClusterStatus::default();
    let status = cluster.status.as_ref().unwrap_or(&fresh);
    let name = format!("{}/{}", cluster.namespace().unwrap_or_default(), cluster.name_any());
    let phase = status.phase.as_deref().unwrap_or("not seen by a controller manager yet");
    let mut under = facts(observed, status);
    under.push(conditions(status));
    under.push(control_plane(observed, status));
    under.extend(pools(observed));
    under.extend(holdings(observed));
    under.extend(events(observed, now));
    under.extend(not_shown(observed));
    Branch::of(format!("Cluster {name}: {phase}"), under)
}

fn facts(observed: &Observed, status: &ClusterStatus) -> Vec<Branch> {
    let cluster = &observed.cluster;
    let mut lines = Vec::new();
    if status.observed_generation < cluster.metadata.generation {
        lines.push("the last change of the spec was not looked at yet".to_owned());
    }
    let list = [
        ("version", status.version.clone()),
        ("endpoint", status.endpoint.clone()),
        ("ingress", status.ingress.clone()),
        ("VNI", status.vni.map(|vni| vni.to_string())),
        ("next certificate is renewed", status.certificates_renew_at.clone()),
        ("first certificate ends", status.certificates_end_at.clone()),
        ("authorities", status.rotation.as_ref().and_then(RotationStatus::going_on)),
        ("namespace", status.id.as_deref().map(names::guest_namespace)),
        ("nodes Ready", status.nodes.clone()),
    ];
    lines.extend(list.into_iter().filter_map(|(what, value)| Some(format!("{what}: {}", value?))));
    lines.into_iter().map(Branch::leaf).collect()
}

/// Those that are not as they should be.
fn conditions(status: &ClusterStatus) -> Branch {
    let bad: Vec<_> = status.conditions.iter().filter(|condition| !is_well(condition)).map(said).collect();
    let is_known = !status.conditions.is_empty();
    let text = if bad.is_empty() && is_known { "conditions: as they should be" } else { "conditions" };
    Branch::of(if is_known { text } else { "conditions: none yet" }, bad)
}

fn is_well(condition: &Condition) -> bool {
    let of = |types: &[ConditionType]| types.iter().any(|type_| type_.name() == condition.type_);
    use ConditionType as Type;
    // What goes on is said by the others, too.
    of(&[Type::Progressing]) || (condition.status == "True") != of(&[Type::Degraded, Type::Paused, Type::Deleting])
}

fn said(condition: &Condition) -> Branch {
    let Condition { type_, status, reason, message, .. } = condition;
    let message = if message.is_empty() { String::new() } else { format!(": {message}") };
    Branch::leaf(format!("{type_} {status} ({reason}){message}"))
}

fn control_plane(observed: &Observed, status: &ClusterStatus) -> Branch {
    let spec = &observed.cluster.spec.control_plane;
    // How many the controller manager makes, it says itself; it makes one at least.
    let counts = status.control_plane.as_deref().and_then(|counts| counts.split_once('/'));
    let wanted = counts.and_then(|(_, wanted)| wanted.parse().ok()).unwrap_or(1);
    let wanted: Vec<_> = (0..wanted).map(names::master).collect();
    let text = match &status.control_plane {
        Some(counts) => format!("control plane: {counts} ready"),
        None => "control plane".to_owned(),
    };
    Branch::of(text + &zones(&spec.zones), machines(observed, &wanted, |pod| label(pod, names::POOL_LABEL).is_none()))
}

/// The pools of the spec, and those of which there is a VM pod still.
fn pools(observed: &Observed) -> Vec<Branch> {
    let spec = &observed.cluster.spec.node_pools;
    let mut branches: Vec<_> = spec
        .iter()
        .map(|pool| {
            let replicas = u32::try_from(pool.replicas.unwrap_or(1)).unwrap_or_default();
            let wanted: Vec<_> = (0..replicas).map(|index| names::worker(&pool.name, index)).collect();
            let of_pool = |pod: &Pod| label(pod, names::POOL_LABEL) == Some(&pool.name);
            let ready = ready(observed, of_pool).map(|ready| format!("{ready}/{replicas} ready"));
            let text = format!("pool {}: {}", pool.name, ready.unwrap_or_else(|| format!("{replicas} wanted")));
            let mut under: Vec<_> = deserted(observed, &pool.zones).into_iter().collect();
            under.extend(machines(observed, &wanted, of_pool));
            Branch::of(text + &zones(&pool.zones), under)
        })
        .collect();
    let known: BTreeSet<_> = spec.iter().map(|pool| pool.name.as_str()).collect();
    let pods = observed.pods.iter().flatten();
    let gone: BTreeSet<_> = pods.filter_map(|pod| label(pod, names::POOL_LABEL)).collect();
    branches.extend(gone.into_iter().filter(|pool| !known.contains(pool)).map(|pool| {
        let of_pool = |pod: &Pod| label(pod, names::POOL_LABEL) == Some(pool);
        Branch::of(format!("pool {pool}: wanted no more"), machines(observed, &[], of_pool))
    }));
    branches
}

fn zones(zones: &[String]) -> String {
    match zones {
        [] => String::new(),
        zones => format!(", in zone {}", zones.join(" or ")),
    }
}

/// Says so if no host is in one of the zones.
fn deserted(observed: &Observed, zones: &[String]) -> Option<Branch> {
    let hosts = observed.hosts.as_ref().ok().filter(|_| !zones.is_empty())?;
    let has_host = hosts.iter().any(|host| host.labels().get(names::ZONE_LABEL).is_some_and(|z| zones.contains(z)));
    (!has_host).then(|| Branch::leaf("no host has such a label giantnetes.io/zone"))
}

fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.labels().get(name).map(String::as_str)
}

fn ready(observed: &Observed, of: impl Fn(&Pod) -> bool) -> Option<usize> {
    let pods = observed.pods.as_ref().ok()?;
    Some(pods.iter().filter(|pod| of(pod) && slim(pod).is_ready()).count())
}

/// The VM pods of a group, and the names of those that should be and are not.
fn machines(observed: &Observed, wanted: &[String], of: impl Fn(&Pod) -> bool) -> Vec<Branch> {
    let Ok(pods) = &observed.pods else { return Vec::new() };
    let mut lines: BTreeMap<(usize, String), Branch> = BTreeMap::new();
    // By length first: a-10 comes after a-9.
    let key = |name: &str| (name.len(), name.to_owned());
    for name in wanted {
        lines.insert(key(name), Branch::leaf(format!("{name}: no VM pod yet")));
    }
    for pod in pods.iter().filter(|pod| of(pod)) {
        lines.insert(key(&pod.name_any()), machine(observed, pod));
    }
    lines.into_values().collect()
}

fn machine(observed: &Observed, pod: &Pod) -> Branch {
    let (name, vm) = (pod.name_any(), slim(pod));
    let state = if pod.metadata.deletion_timestamp.is_some() {
        "is being powered off"
    } else if vm.is_ready() {
        "ready"
    } else {
        "not ready"
    };
    let host = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let mut text = format!("{name}: {state}{}", host.map(|host| on_host(observed, host)).unwrap_or_default());
    if is_outdated(observed, pod) {
        text += ", outdated";
    }
    let waits = pod.metadata.deletion_timestamp.is_none() && !vm.is_ready();
    Branch::of(text, waits.then(|| Branch::leaf(format!("waits: {}", vm.trouble()))))
}

fn on_host(observed: &Observed, name: &str) -> String {
    let hosts = observed.hosts.iter().flatten();
    let zone = hosts.into_iter().find(|host| host.name_any() == name).and_then(|host| {
        let zone = host.labels().get(names::ZONE_LABEL)?;
        Some(format!(" (zone {zone})"))
    });
    format!(", on {name}{}", zone.unwrap_or_default())
}

/// Whether a node is not as the Cluster now asks for. Without the operator's settings only its image can tell.
fn is_outdated(observed: &Observed, pod: &Pod) -> bool {
    if let Some(Ok(outdated)) = &observed.outdated {
        return outdated.contains(&pod.name_any());
    }
    let wanted = observed.cluster.status.as_ref().and_then(|status| status.image.as_ref());
    let images = pod.spec.iter().flat_map(|spec| &spec.containers).filter_map(|container| container.image.as_ref());
    wanted.is_some_and(|wanted| images.into_iter().any(|image| image != wanted))
}

/// The pod as the controller manager sees it, which knows the words for what it waits for.
fn slim(pod: &Pod) -> VmPod {
    serde_json::to_value(pod).and_then(serde_json::from_value).unwrap_or_default()
}

/// What the guest holds of what all share.
fn holdings(observed: &Observed) -> Option<Branch> {
    let claims = observed.claims.iter().flatten().map(|claim| {
        let released = claim.spec.released_at.as_ref().map(|at| format!(", released at {}", at.0));
        Branch::leaf(format!("NetworkClaim {}{}", claim.name_any(), released.unwrap_or_default()))
    });
    let volumes = observed.volumes.iter().flatten().map(|volume| {
        let status = volume.status.clone().unwrap_or_default();
        let size = status.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
        let size = size.map(|size| format!(", {}", size.0)).unwrap_or_default();
        let phase = status.phase.unwrap_or_else(|| "Pending".into());
        Branch::leaf(format!("PersistentVolumeClaim {}: {phase}{size}", volume.name_any()))
    });
    let all: Vec<_> = claims.chain(volumes).collect();
    (!all.is_empty()).then(|| Branch::of("claims", all))
}

fn events(observed: &Observed, now: Timestamp) -> Option<Branch> {
    let events = observed.events.as_ref().ok()?;
    let mut events: Vec<_> = events.iter().collect();
    events.sort_by_key(|event| events::last_seen(event));
    let last = events.split_off(events.len().saturating_sub(EVENTS));
    let lines: Vec<_> = last.into_iter().map(|event| happened(event, now)).collect();
    Some(Branch::of(if lines.is_empty() { "events: none" } else { "events" }, lines))
}

fn happened(event: &Event, now: Timestamp) -> Branch {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let when = events::ago(event, now);
    Branch::leaf(format!("{when}: {} {}: {}", text(&event.type_), text(&event.reason), text(&event.note)))
}

/// What could not be looked at: it is missing above for that reason and no other.
fn not_shown(observed: &Observed) -> Option<Branch> {
    let errors = [
        observed.pods.as_ref().err(),
        observed.volumes.as_ref().err(),
        observed.claims.as_ref().err(),
        observed.hosts.as_ref().err(),
        observed.events.as_ref().err(),
        observed.outdated.as_ref().and_then(|outdated| outdated.as_ref().err()),
    ];
    let lines: Vec<_> = errors.into_iter().flatten().map(Branch::leaf).collect();
    (!lines.is_empty()).then(|| Branch::of("not shown, since it could not be read", lines))
}
