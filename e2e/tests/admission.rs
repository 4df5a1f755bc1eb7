//! Which Clusters a real API server admits, and that `giantnetes plan` says the same. Needs kube-apiserver, etcd and helm from
//! e2e/tools, and no lab.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "admission/cases.rs"]
mod cases;
mod support;

use std::time::Duration;

use cases::{Case, cases};
use lab::command::Run;
use lab::wait_for;
use serde_json::Value;
use support::{apiserver::ApiServer, helm_template, rendered};

/// What the API server says to a case: nothing, or why not.
fn ask_server(server: &ApiServer, case: &Case) -> Result<(), String> {
    let send = |args: &[&str], object: &Value| {
        let run = server.kubectl(args).input(object.to_string());
        run.output().map(drop).map_err(|error| format!("{error:#}"))
    };
    if let Some(old) = &case.old {
        let begun = |result: Result<(), String>| result.unwrap_or_else(|error| panic!("{}: {error}", case.case));
        begun(send(&["create", "--validate=strict", "-f", "-"], old));
        if old.get("status").is_some() {
            begun(send(&["replace", "--subresource=status", "-f", "-"], old));
        }
        return send(&["replace", "--validate=strict", "-f", "-"], &case.new);
    }
    send(&["create", "--validate=strict", "-f", "-"], &case.new)
}

/// What `giantnetes plan` says.
fn ask_plan(server: &ApiServer, case: &Case) -> Result<(), String> {
    let folder = server.folder().join("plan");
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let settings = write("settings.yaml", cases::SETTINGS);
    // JSON is YAML too.
    let new = write("new.yaml", &case.new.to_string());
    let mut run =
        Run::new(support::giantnetes()).args(["plan", "--settings", &settings, "-f", &new, "--format=summary"]);
    if let Some(old) = &case.old {
        run = run.args(["--against", &write("old.yaml", &old.to_string())]);
    }
    run.timeout(Duration::from_secs(30)).output().map(drop).map_err(|error| format!("{error:#}"))
}

/// What is wrong with a verdict.
fn judge(who: &str, case: &Case, said: Result<(), String>, rule: Option<&String>) -> Option<String> {
    let refused = case.refused.as_ref().zip(rule);
    match (said, refused) {
        (Ok(()), None) => None,
        (Err(message), Some((refused, rule))) if refused.is_said_by(&message, rule) => None,
        (Ok(()), Some((refused, _))) => Some(format!("{}: {who} accepts it, in spite of {}", case.case, refused.field)),
        (Err(message), _) => Some(format!("{}: {who} says {}", case.case, &message[..message.len().min(2000)])),
    }
}

#[test]
fn the_api_server_and_the_plan_give_every_case_its_verdict() {
    let server = ApiServer::start("admission", &[]).unwrap();
    server.install_crds().unwrap();
    server.kubectl(&["create", "namespace", "admission"]).output().unwrap();
    let cases = cases();
    let mut wrong = Vec::new();
    for case in &cases {
        let refused = case.refused.as_ref();
        let api = ask_server(&server, case);
        wrong.extend(judge("the API server", case, api, refused.and_then(|refused| refused.api.as_ref())));
        let plan = ask_plan(&server, case);
        wrong.extend(judge("plan", case, plan, refused.and_then(|refused| refused.valid.as_ref())));
    }
    let bad = cases.iter().filter(|case| case.refused.is_some()).count();
    println!("{} cases, {bad} of them bad", cases.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(bad >= 60);
}

/// The YAML of the documents, with where it is.
fn yaml_of_documents() -> Vec<(String, String)> {
    let root = support::root();
    let mut files = vec![root.join("README.md")];
    files.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(file).unwrap();
        for block in text.split("```yaml\n").skip(1) {
            let name = format!("{}, block {}", file.display(), found.len());
            found.push((name, block.split("```").next().unwrap().to_owned()));
        }
    }
    found
}

#[test]
fn what_the_documents_show_is_accepted() {
    let server = ApiServer::start("documents", &[]).unwrap();
    server.install_crds().unwrap();
    server.kubectl(&["create", "namespace", "team-a"]).output().unwrap();
    let (mut applied, mut values) = (0, 0);
    for (name, yaml) in yaml_of_documents() {
        if yaml.contains("\nkind: ") {
            let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
            let said = server.kubectl(&apply).input(&yaml).output();
            said.unwrap_or_else(|error| panic!("{name}: {error:#}\n{yaml}"));
            applied += 1;
        } else {
            // Values of the chart, which its schema judges.
            let file = server.folder().join("values.yaml");
            std::fs::write(&file, &yaml).unwrap();
            let said = helm_template("x").args(["-f", &file.display().to_string()]).output();
            said.unwrap_or_else(|error| panic!("{name}: {error:#}\n{yaml}"));
            values += 1;
        }
    }
    println!("{applied} objects and {values} files of values");
    assert!(applied >= 5 && values >= 1);
}

#[test]
fn a_protected_cluster_cannot_be_deleted() {
    let server = ApiServer::start("protection", &[]).unwrap();
    server.install_crds().unwrap();
    server.kubectl(&["apply", "-f", "-"]).input(rendered("giantnetes", "deletion-protection.yaml")).output().unwrap();
    let cluster = |protected: bool| {
        let spec = format!("{{deletionProtection: {protected}}}");
        format!(
            "{{apiVersion: giantnetes.io/v1alpha1, kind: Cluster, metadata: {{name: kept, namespace: default}}, spec: {spec}}}"
        )
    };
    let delete = || server.kubectl(&["delete", "clusters.giantnetes.io", "kept", "--wait=false"]).output();
    server.kubectl(&["apply", "--server-side", "-f", "-"]).input(cluster(true)).output().unwrap();
    // The API server takes note of a new policy within seconds; a dry run tells when.
    let dry_run = ["delete", "clusters.giantnetes.io", "kept", "--dry-run=server"];
    wait_for(Duration::from_secs(30), "the policy to be in force", || match server.kubectl(&dry_run).output() {
        Ok(_) => anyhow::bail!("the deletion would succeed"),
        Err(_) => Ok(()),
    })
    .unwrap();
    let refusal = format!("{:#}", delete().unwrap_err());
    for words in ["default/kept is protected by spec.deletionProtection", "set that to false first"] {
        assert!(refusal.contains(words), "{refusal}");
    }
    let all = ["delete", "clusters.giantnetes.io", "--all", "--wait=false"];
    assert!(server.kubectl(&all).output().is_err(), "deleting one after the other goes around the policy");
    let collection = ["delete", "--raw", "/apis/giantnetes.io/v1alpha1/namespaces/default/clusters"];
    let refusal = format!("{:#}", server.kubectl(&collection).output().unwrap_err());
    assert!(refusal.contains("is protected by spec.deletionProtection"), "all in one request: {refusal}");
    server.kubectl(&["get", "clusters.giantnetes.io", "kept"]).output().expect("it is still there");
    server.kubectl(&["apply", "--server-side", "-f", "-"]).input(cluster(false)).output().unwrap();
    delete().unwrap();
    // One that says nothing is not protected.
    server
        .kubectl(&["create", "-f", "-"])
        .input(cluster(false).replace("deletionProtection: false", ""))
        .output()
        .unwrap();
    delete().unwrap();
}

/// The operator's annotations on a Namespace say which zones and groups it may use.
#[test]
fn a_namespace_uses_what_it_is_allowed_to() {
    let server = ApiServer::start("tenancy", &[]).unwrap();
    server.install_crds().unwrap();
    server.kubectl(&["apply", "-f", "-"]).input(rendered("giantnetes", "tenancy.yaml")).output().unwrap();
    for (namespace, annotations) in [
        ("limited", "{giantnetes.io/allowed-zones: 'front, data', giantnetes.io/allowed-groups: dev}"),
        ("closed", "{giantnetes.io/allowed-zones: '', giantnetes.io/allowed-groups: ''}"),
        ("free", "{}"),
    ] {
        let object =
            format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, annotations: {annotations}}}}}");
        server.kubectl(&["create", "-f", "-"]).input(object).output().unwrap();
    }
    let try_out = |namespace: &str, kind: &str, spec: &str, how: &str| {
        let object =
            format!("{{apiVersion: giantnetes.io/v1alpha1, kind: {kind}, metadata: {{name: one}}, spec: {spec}}}");
        server.kubectl(&["apply", "--server-side", how, "-n", namespace, "-f", "-"]).input(object).output()
    };
    let cluster = |namespace: &str, spec: &str| try_out(namespace, "Cluster", spec, "--dry-run=server");
    let access = |namespace: &str, groups: &str| {
        let spec = format!("{{clusterRef: {{name: one}}, user: alice, groups: {groups}}}");
        try_out(namespace, "ClusterAccess", &spec, "--dry-run=server")
    };
    // The API server takes note of new policies within seconds.
    wait_for(Duration::from_secs(30), "the policies to be in force", || {
        let zones = cluster("limited", "{controlPlane: {zones: [other]}}").map_err(|error| format!("{error:#}"));
        let groups = access("limited", "[ops]").map_err(|error| format!("{error:#}"));
        let refused =
            |answer: &Result<String, String>| answer.as_ref().is_err_and(|error| error.contains("may use the"));
        anyhow::ensure!(refused(&zones) && refused(&groups), "{zones:?} {groups:?}");
        Ok(())
    })
    .unwrap();
    for (namespace, spec) in [
        ("free", "{nodePools: [{name: a}, {name: b, zones: [other]}]}"),
        ("limited", "{}"),
        (
            "limited",
            "{controlPlane: {zones: [data]}, nodePools: [{name: a, zones: [front]}, {name: b, zones: [data, front]}]}",
        ),
        ("closed", "{}"),
    ] {
        cluster(namespace, spec).unwrap_or_else(|error| panic!("{namespace} {spec}: {error:#}"));
    }
    for (namespace, spec, words) in [
        (
            "limited",
            "{controlPlane: {zones: [data, other]}}",
            "spec.controlPlane.zones: namespace limited may use the zones front, data",
        ),
        (
            "limited",
            "{nodePools: [{name: a, zones: [front]}, {name: b}]}",
            "spec.nodePools: each pool must name its zones",
        ),
        ("limited", "{nodePools: [{name: a, zones: [other]}]}", "spec.nodePools: namespace limited may use the zones"),
        ("closed", "{nodePools: [{name: a}]}", "spec.nodePools: each pool must name its zones"),
    ] {
        let refusal = format!("{:#}", cluster(namespace, spec).expect_err(spec));
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
    for (namespace, groups) in [("free", "[ops]"), ("limited", "[dev]"), ("limited", "[]"), ("closed", "[]")] {
        access(namespace, groups).unwrap_or_else(|error| panic!("{namespace} {groups}: {error:#}"));
    }
    for (namespace, groups) in [("limited", "[ops]"), ("closed", "[dev]")] {
        let refusal = format!("{:#}", access(namespace, groups).expect_err(groups));
        assert!(refusal.contains(&format!("spec.groups: namespace {namespace} may use the groups")), "{refusal}");
    }
    // What is there stays, and goes, whatever was allowed since; what is asked for next is judged.
    try_out("free", "Cluster", "{controlPlane: {zones: [other]}}", "--validate=true").unwrap();
    server.kubectl(&["annotate", "namespace", "free", "giantnetes.io/allowed-zones=front"]).output().unwrap();
    wait_for(Duration::from_secs(30), "the annotation to be seen", || {
        match cluster("free", "{controlPlane: {zones: [another]}}") {
            Err(error) if format!("{error:#}").contains("may use the zones front") => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .unwrap();
    cluster("free", "{controlPlane: {zones: [other]}, deletionProtection: true}").unwrap();
    server.kubectl(&["label", "-n", "free", "clusters.giantnetes.io", "one", "a=b"]).output().unwrap();
    server.kubectl(&["delete", "-n", "free", "clusters.giantnetes.io", "one"]).output().unwrap();
}
