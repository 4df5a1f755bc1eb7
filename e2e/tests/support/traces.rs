//! What guests leave behind: their roots and what lies in etcd while they live, and nothing after them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use giantnetes::{api::names::CA_ANNOTATION_PREFIX, pki::roots};
use lab::{Lab, wait_for};
use serde_json::Value;

use super::{Guest, list, machines};

const MINUTE: Duration = Duration::from_secs(60);

/// Fingerprints of a guest's roots, as their Secret says, with its UID.
pub fn fingerprints(guest: &Guest) -> Result<Vec<String>> {
    let secret = guest.lab.kubectl(&["-n", &guest.home()?, "get", "secret", roots::SECRET, "-o", "json"])?;
    let meta = &serde_json::from_str::<Value>(&secret)?["metadata"];
    let annotations = meta["annotations"].as_object().context("a Secret with annotations")?;
    let roots = annotations.iter().filter(|(name, _)| name.starts_with(CA_ANNOTATION_PREFIX));
    let found: Vec<_> = roots.map(|(name, value)| format!("{name} {value} {}", meta["uid"])).collect();
    ensure!(found.len() == 5, "there are {} roots", found.len());
    Ok(found)
}

/// Fails if anything is left of a deleted Cluster, which was the only one and had the namespace `home`.
pub fn nothing_is_left(lab: &Lab, guest: &Guest, home: &str) -> Result<()> {
    let gone = |args: &[&str]| -> Result<()> {
        let found = lab.kubectl(&[&["get"], args, &["--ignore-not-found", "-o", "name"]].concat())?;
        ensure!(found.trim().is_empty(), "left: {}", found.trim());
        Ok(())
    };
    ensure!(machines()?.is_empty(), "QEMU still runs");
    // The Cluster's finalizer went, so all of this is gone by now: no waiting.
    gone(&["namespace", home])?;
    gone(&["secret", "-n", guest.namespace, &format!("{}-kubeconfig", guest.name)])?;
    gone(&["pods,persistentvolumeclaims,secrets,services", "-n", home])?;
    claims_go(lab)?;
    // The volume behind the claim is the storage provider's to remove, a little later.
    wait_for(MINUTE, "the volume to be removed", || gone(&["persistentvolumes"]))
}

/// What a test puts into a guest's etcd.
pub const KEPT: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}, data: {a: b}}";

/// What lies in the guest's etcd and changes only if somebody writes it: UIDs and versions.
pub fn etcd_content(guest: &Guest) -> Result<String> {
    let each =
        "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.resourceVersion}{'\\n'}{end}";
    let said = guest.kubectl(&["get", "configmaps,clusterroles,clusterrolebindings,services", "-A", "-o", each])?;
    ensure!(said.contains("ConfigMap kept "), "the workload's ConfigMap is gone");
    // Written at every turn of whoever holds it, or by the operator for every new VM pod.
    let moves = |line: &&str| !line.contains(" giantnetes-addons ");
    Ok(said.lines().filter(moves).collect::<Vec<_>>().join("\n"))
}

/// Fails unless a guest's etcd has what it had.
pub fn etcd_has(guest: &Guest, before: &str) -> Result<()> {
    let now = etcd_content(guest)?;
    ensure!(now == before, "etcd's content was\n{before}\nand is\n{now}");
    Ok(())
}

/// Every claim is released by now, and goes when its quarantine is over.
pub fn claims_go(lab: &Lab) -> Result<()> {
    for claim in list(lab, &["networkclaims"])? {
        ensure!(claim["spec"]["releasedAt"].is_string(), "{} is not released", claim["metadata"]["name"]);
    }
    wait_for(MINUTE, "the quarantine of the claims to end", || {
        let left = list(lab, &["networkclaims"])?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
}

/// What of a key nobody may know: the long words of base64. What of a kubeconfig is a certificate, everybody may.
pub fn key_words(text: &str) -> Vec<&str> {
    let public = ["certificate-authority-data:", "client-certificate-data:", "-----"];
    let lines = text.lines().map(str::trim).filter(|line| !public.iter().any(|start| line.starts_with(start)));
    let is_other = |letter: char| !(letter.is_ascii_alphanumeric() || "+/=".contains(letter));
    lines.flat_map(|line| line.split(is_other)).filter(|word| word.len() >= 40).collect()
}
