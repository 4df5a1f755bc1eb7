//! What people get wrong, and changes of mind: a Cluster that cannot be made says why within half a minute and disturbs no
//! other; one that is deleted half-way leaves nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Lab, wait_every};
use serde_json::Value;
use support::traces::nothing_is_left;
use support::{Guest, NAMED, installed, installed_with, list, machines, patience};

const MINUTE: Duration = Duration::from_secs(60);
/// The design's time for a condition with the reason, times three.
const TOLD: Duration = Duration::from_secs(90);

/// A mistake: the spec, the condition that tells of it, its reason, and what its message says of cause and cure.
struct Mistake {
    name: &'static str,
    spec: &'static str,
    condition: &'static str,
    reason: &'static str,
    cause: &'static str,
    cure: &'static str,
}

const MISTAKES: [Mistake; 7] = [
    Mistake {
        name: "version",
        spec: "{kubernetes: {version: v1.42.0}}",
        condition: "Ready",
        reason: "InvalidSpec",
        cause: "spec.kubernetes.version: \"v1.42.0\"",
        cure: "there are v1.36.2, v1.36.3",
    },
    Mistake {
        name: "image",
        spec: "{provider: {kvm: {image: nobody-made-it}}}",
        condition: "Ready",
        reason: "InvalidSpec",
        cause: "spec.provider.kvm.image: \"nobody-made-it\" is not in the catalogue",
        cure: "there are v1.36.2, v1.36.3",
    },
    Mistake {
        name: "nowhere",
        spec: "{kubernetes: {version: v1.36.2}}",
        condition: "ControlPlaneReady",
        reason: "ImageNotFound",
        cause: "giantnetes/vm:nowhere",
        cure: "settings.kubernetes.images must name it as the hosts' registry does",
    },
    Mistake {
        name: "memory",
        spec: "{controlPlane: {machine: {memory: 500Gi}}}",
        condition: "ControlPlaneReady",
        reason: "Unschedulable",
        cause: "Insufficient memory",
        cure: "a host must have so much memory free: add one, or ask for a smaller machine",
    },
    Mistake {
        name: "zone",
        spec: "{controlPlane: {zones: [moon]}}",
        condition: "ControlPlaneReady",
        reason: "Unschedulable",
        cause: "didn't match Pod's node affinity",
        cure: "the hosts of a zone carry its name as label giantnetes.io/zone",
    },
    Mistake {
        name: "ingress",
        spec: "{exposure: {type: Ingress, className: gone}}",
        condition: "NetworkReady",
        reason: "IngressClassNotFound",
        cause: "no IngressClass gone",
        cure: "name another by spec.exposure.className",
    },
    Mistake {
        name: "host",
        spec: "{exposure: {type: Ingress, host: taken.guests.test}}",
        condition: "NetworkReady",
        reason: "HostInUse",
        cause: "host taken.guests.test belongs to another Cluster",
        cure: "ask for another",
    },
];

#[test]
fn a_mistake_is_told_and_disturbs_no_other() {
    let lab = installed_with(",settings.kubernetes.images.v1\\.36\\.2=giantnetes/vm:nowhere");
    // Its volume is never made, so that no VM of it takes the others' time.
    let quiet = "{etcd: {storage: {className: none}}, exposure: {type: Ingress, host: taken.guests.test}}";
    let neighbour = Guest::create(&lab, "e2e-neighbour", "neighbour", quiet);
    neighbour.await_condition(MINUTE, "NetworkReady", "True").unwrap();
    neighbour.await_condition(MINUTE, "PKIReady", "True").unwrap();
    let mut seen = Vec::new();
    // A status that differs in words alone waits three seconds.
    let before = wait_every(Duration::from_secs(5), MINUTE, "the neighbour to settle", || {
        let before = std::mem::replace(&mut seen, everything(&lab, &neighbour)?);
        ensure!(seen == before && seen.iter().any(|object| object.starts_with("Pod master-0")), "{seen:?}");
        Ok(before)
    })
    .unwrap();
    for Mistake { name, spec, condition: type_, reason, cause, cure } in MISTAKES {
        let started = Instant::now();
        let guest = Guest::create(&lab, "e2e-mistakes", name, spec);
        let condition = wait_every(Duration::from_secs(1), TOLD, &format!("{name}: the reason"), || {
            let condition = condition(&guest, type_)?;
            ensure!(condition["status"] == "False" && condition["reason"] == reason, "{condition}");
            Ok(condition)
        });
        let condition = condition.unwrap_or_else(|error| panic!("{error:#}"));
        println!("    {name}: {} after {:.1?}", condition["message"], started.elapsed());
        let message = condition["message"].as_str().unwrap_or_default();
        assert!(message.contains(cause) && message.contains(cure), "{condition}");
        println!("    {name}: gone after {:.1?}", guest.delete(MINUTE * 2).unwrap());
    }
    assert_eq!(everything(&lab, &neighbour).unwrap(), before, "the neighbour was disturbed");
}

/// The default StorageClass is one no more, until this is dropped.
struct NoDefault<'a>(&'a Lab, String);

impl<'a> NoDefault<'a> {
    fn of(lab: &'a Lab) -> Result<Self> {
        let name = lab.kubectl(&["get", "storageclasses", "-o", NAMED])?;
        ensure!(!name.is_empty() && !name.contains(' '), "the lab's StorageClasses are {name:?}");
        let none = Self(lab, name);
        none.set(false)?;
        Ok(none)
    }

    fn set(&self, default: bool) -> Result<String> {
        let annotation = format!("storageclass.kubernetes.io/is-default-class={default}");
        self.0.kubectl(&["annotate", "--overwrite", "storageclass", &self.1, &annotation])
    }
}

impl Drop for NoDefault<'_> {
    fn drop(&mut self) {
        let _ = self.set(true);
    }
}

#[test]
fn a_missing_default_storage_class_is_told_and_what_is_said_helps() {
    let lab = installed();
    let none = NoDefault::of(&lab).unwrap();
    let guest = Guest::create(&lab, "e2e-no-class", "homeless", "{}");
    let said = |words: &'static str, there: bool| {
        wait_every(Duration::from_secs(1), TOLD, words, || {
            let condition = condition(&guest, "ControlPlaneReady")?;
            let message = condition["message"].as_str().unwrap_or_default().to_owned();
            ensure!(message.contains(words) == there && message.contains("VM pod"), "{message}");
            Ok(message)
        })
        .unwrap()
    };
    println!("    {}", said("a StorageClass must be the default", true));
    drop(none);
    println!("    {}", said("a StorageClass must be the default", false));
    println!("    gone after {:.1?}", guest.delete(MINUTE * 2).unwrap());
}

fn condition(guest: &Guest, type_: &str) -> Result<Value> {
    let object = guest.object()?;
    let conditions = object["status"]["conditions"].as_array().context("no conditions yet")?;
    conditions.iter().find(|condition| condition["type"] == type_).cloned().context("no such condition yet")
}

/// What a guest has in the management cluster, with UIDs; what the operator writes, with versions.
fn everything(lab: &Lab, guest: &Guest) -> Result<Vec<String>> {
    let kinds =
        "secrets,configmaps,services,networkpolicies,persistentvolumeclaims,pods,ingresses,poddisruptionbudgets";
    let mut found: Vec<_> = list(lab, &["-n", &guest.home()?, kinds])?
        .iter()
        .map(|object| {
            let metadata = &object["metadata"];
            // The scheduler goes on writing into the pod that finds no volume, and so does who makes volumes.
            let written_by_others = ["Pod", "PersistentVolumeClaim"].iter().any(|kind| object["kind"] == *kind);
            let version = if written_by_others { &Value::Null } else { &metadata["resourceVersion"] };
            [&object["kind"], &metadata["name"], &metadata["uid"], version]
                .map(|v| v.as_str().unwrap_or_default())
                .join(" ")
        })
        .collect();
    found.push(format!("Cluster {}", guest.object()?["status"]));
    Ok(found)
}

/// Waits until a guest has come that far, and no farther.
type Reached = fn(&Guest) -> Result<()>;

#[test]
fn a_cluster_that_is_deleted_half_way_leaves_nothing() {
    let lab = installed();
    let points: [(&str, Reached); 3] = [
        ("before its certificates are made", has_an_id),
        ("while its VM boots", boots),
        ("when its API answers and its node is not Ready", answers),
    ];
    for (when, reached) in points {
        let guest = Guest::create(&lab, "e2e-doomed", "doomed", "{exposure: {type: Ingress}}");
        reached(&guest).unwrap_or_else(|error| panic!("{when}: {error:#}"));
        let home = guest.home().unwrap();
        let took = guest.delete(MINUTE * 3).unwrap();
        println!("    {when}: gone after {took:.1?}");
        nothing_is_left(&lab, &guest, &home).unwrap_or_else(|error| panic!("{when}: {error:#}"));
    }
}

fn has_an_id(guest: &Guest) -> Result<()> {
    wait_every(Duration::from_millis(20), MINUTE, "an id", || guest.home().map(drop))?;
    ensure!(condition(guest, "PKIReady").map_or(true, |condition| condition["status"] != "True"), "it was too late");
    Ok(())
}

fn boots(guest: &Guest) -> Result<()> {
    wait_every(Duration::from_secs(1), MINUTE * 2, "a running machine", || {
        ensure!(!machines()?.is_empty(), "QEMU does not run");
        Ok(())
    })?;
    ensure!(condition(guest, "ControlPlaneReady")?["status"] == "False", "it was too late");
    Ok(())
}

fn answers(guest: &Guest) -> Result<()> {
    guest.await_condition(patience(), "ControlPlaneReady", "True")?;
    ensure!(condition(guest, "GuestReady")?["status"] == "False", "it was too late");
    Ok(())
}
