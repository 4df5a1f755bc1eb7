//! `giantnetes plan --live` against a real API server: what is made, changed and as it should be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use lab::command::Run;
use serde_json::Value;
use support::apiserver::ApiServer;

const CLUSTER: &str =
    "{apiVersion: giantnetes.io/v1alpha1, kind: Cluster, metadata: {name: demo, namespace: default}, spec: {}}";

fn plan(server: &ApiServer, format: &str) -> String {
    let file = |name: &str, text: &str| {
        let file = server.folder().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let settings = file("settings.yaml", "kubernetes: {defaultVersion: v1.36.3, images: {v1.36.3: a}}");
    Run::new("env")
        .arg(format!("KUBECONFIG={}", server.kubeconfig().display()))
        .arg(support::giantnetes())
        .args(["plan", "--live", "--settings", &settings, "-f", &file("cluster.yaml", CLUSTER), "--format", format])
        .timeout(Duration::from_secs(60))
        .output()
        .unwrap()
}

/// The sign before the only step of this kind and name.
fn sign(summary: &str, object: &str) -> char {
    let steps = summary.lines().filter(|line| !line.contains("waits for"));
    let found: Vec<_> = steps.filter(|line| line.contains(object)).collect();
    assert_eq!(found.len(), 1, "{object} in\n{summary}");
    found[0].chars().next().unwrap()
}

#[test]
fn the_plan_sees_what_is_there_what_differs_and_what_is_missing() {
    let server = ApiServer::start("plan", &[]).unwrap();
    server.install_crds().unwrap();
    let nothing = plan(&server, "summary");
    assert!(nothing.lines().filter(|line| line.starts_with('+')).count() >= 11, "{nothing}");
    assert!(nothing.starts_with("# The id"), "{nothing}");

    server.kubectl(&["apply", "-f", "-"]).input(CLUSTER).output().unwrap();
    let uid = ["get", "clusters.giantnetes.io", "demo", "-o", "jsonpath={.metadata.uid}"];
    let uid = server.kubectl(&uid).output().unwrap();
    // The id follows from the UID by now. Carry out what the manager would, as far as it needs no keys: twice, because the
    // pod names the UID of the namespace.
    for _ in 0..2 {
        let mut documents: Vec<Value> = serde_saphyr::from_multiple(&plan(&server, "yaml")).unwrap();
        // What it makes, the manager marks as made for this Cluster.
        for document in documents.iter_mut().filter(|document| document["metadata"].is_object()) {
            document["metadata"]["annotations"]["giantnetes.io/cluster-uid"] = uid.trim().into();
        }
        let objects = documents.iter().filter(|object| {
            let kind = object["kind"].as_str().unwrap_or_default();
            ["Namespace", "NetworkClaim", "Service", "PersistentVolumeClaim", "ConfigMap"].contains(&kind)
        });
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects.collect::<Vec<_>>()});
        server.kubectl(&["apply", "--server-side", "-f", "-"]).input(list.to_string()).output().unwrap();
    }
    let made = plan(&server, "summary");
    for object in ["Namespace g8s-", "NetworkClaim vni-", "Service g8s-", "PersistentVolumeClaim ", "ConfigMap "] {
        assert_eq!(sign(&made, object), '=', "{object} in\n{made}");
    }
    assert_eq!((sign(&made, "Pod "), sign(&made, "master-0-pki")), ('+', '+'), "{made}");
    assert!(made.ends_with("no node rolls\ndisruption: none\n"), "{made}");

    let home = made.lines().find_map(|line| line.split("Namespace ").nth(1)).unwrap();
    let patch = r#"{"spec":{"ports":[{"name":"api","port":7443,"targetPort":6443,"protocol":"TCP"}]}}"#;
    server.kubectl(&["-n", home, "patch", "service", "master", "--type=merge", "-p", patch]).output().unwrap();
    server.kubectl(&["-n", home, "delete", "configmap", "master-0-config"]).output().unwrap();
    let spoilt = plan(&server, "summary");
    assert_eq!((sign(&spoilt, "Service g8s-"), sign(&spoilt, "ConfigMap ")), ('~', '+'), "{spoilt}");
    assert_eq!(sign(&spoilt, "PersistentVolumeClaim "), '=', "{spoilt}");

    let unowned = ["-n", home, "annotate", "service", "master", "giantnetes.io/cluster-uid-"];
    server.kubectl(&unowned).output().unwrap();
    let foreign = plan(&server, "summary");
    assert_eq!(sign(&foreign, "Service g8s-"), '?', "{foreign}");
    assert!(foreign.contains("exists and is not this Cluster's"), "{foreign}");
}
