//! The chart without a cluster behind it, but with the real programs: helm renders and installs it, a real API server takes
//! every object, the real controller manager takes the settings, promtool and Prometheus take alerts and dashboards. kubeconform
//! compares what it renders with that server's schemas. Needs kube-apiserver, etcd, helm, kubeconform, prometheus and
//! prometheus-operator from e2e/tools, and no lab.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "chart/expressions.rs"]
mod expressions;
#[path = "chart/flannel.rs"]
mod flannel;
#[path = "chart/helm.rs"]
mod helm;
#[path = "chart/processes.rs"]
mod processes;
#[path = "chart/schemas.rs"]
mod schemas;
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use expressions::{Expression, Table, alerts, dashboards};
use helm::{Helm, chart};
use lab::command::Run;
use lab::wait_for;
use processes::{Manager, Prometheus, promtool};
use schemas::Schemas;
use serde_json::{Value, json};
use support::apiserver::ApiServer;

/// Values that switch everything on.
const EVERYTHING: &str = r#"{
  "serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
  "prometheusRule": {"enabled": true, "labels": {"release": "prometheus"}},
  "podMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
  "settings": {"network": {"monitoringNamespaces": ["monitoring"]}},
  "dashboards": {"enabled": true},
  "networkPolicy": {"ports": [443, 6443], "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]},
  "quotas": {"team-a": {"clusters": 3, "clusterAccesses": 20}, "team-b": {"clusters": 0}},
  "nodeSelector": {"kubernetes.io/os": "linux"},
  "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
  "kvm": {"devicePlugin": {"nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [{"operator": "Exists"}]}},
  "flannel": {"enabled": true, "etcd": {
    "replicas": 3, "storage": {"className": "fast"}, "nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [{"operator": "Exists"}]
  }}
}"#;
const NOTHING: &str = "{}";
/// The device plugin is.
const PRIVILEGED: &[&str] = &["--allow-privileged"];

fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap()
}

fn name(object: &Value) -> String {
    format!("{} {}", kind(object), object["metadata"]["name"].as_str().unwrap())
}

#[test]
fn helm_finds_nothing_to_say() {
    let helm = Helm::new("lint");
    for values in [NOTHING, EVERYTHING] {
        let said = helm.run(&["lint", "--strict", &chart()]).values(values).output().unwrap();
        assert!(said.contains("0 chart(s) failed"), "{said}");
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    let helm = Helm::new("wrong");
    for (values, words) in [
        (r#"{"replicas": "many"}"#, "/replicas"),
        (r#"{"podMonitor": {"interval": "5m"}}"#, "/podMonitor/interval"),
        (r#"{"replica": 3}"#, "'replica'"),
        (r#"{"image": {"pullPolicy": "Sometimes"}}"#, "/image/pullPolicy"),
        (r#"{"leaseDuration": "1500ms"}"#, "/leaseDuration"),
        (r#"{"log": {"format": "xml"}}"#, "/log/format"),
        (r#"{"resources": {"limit": {}}}"#, "'limit'"),
        (r#"{"networkPolicy": {"ports": ["https"]}}"#, "/networkPolicy/ports/0"),
        (r#"{"flannel": {"etcd": {"replicas": 2}}}"#, "/flannel/etcd/replicas"),
        (r#"{"quotas": {"team-a": {"clusters": -1}}}"#, "/quotas/team-a/clusters"),
        (r#"{"settings": {"kvm": {"cpuRequestRatio": 2}}}"#, "/settings/kvm/cpuRequestRatio"),
        (r#"{"settings": {"kvm": {"resolver": []}}}"#, "'resolver'"),
        (r#"{"settings": {"network": {"quarantine": "soon"}}}"#, "/settings/network/quarantine"),
        (r#"{"settings": {"exposure": {"port": 0}}}"#, "/settings/exposure/port"),
    ] {
        let template = helm.run(&["template", &chart(), "--kube-version", "1.36.3"]);
        let refusal = format!("{:#}", template.values(values).output().unwrap_err());
        assert!(refusal.contains(words), "{values}: {refusal}");
    }
}

#[test]
fn the_reference_is_that_of_the_values() {
    Run::new(support::root().join("charts/giantnetes/reference.py")).arg("--check").output().unwrap();
}

/// The kinds of whoever runs the Prometheus operator.
fn install_monitoring_kinds(server: &ApiServer) {
    let folder = support::tool("prometheus-operator").join("share/example/prometheus-operator-crd");
    for kind in ["podmonitors", "prometheusrules", "servicemonitors"] {
        let file = folder.join(format!("monitoring.coreos.com_{kind}.yaml"));
        server.install_kinds(&file, &[&format!("{kind}.monitoring.coreos.com")]).unwrap();
    }
}

#[test]
fn an_api_server_and_its_schemas_take_every_object() {
    let (helm, server) = (Helm::new("objects"), ApiServer::start("objects", PRIVILEGED).unwrap());
    server.install_crds().unwrap();
    install_monitoring_kinds(&server);
    for namespace in ["giantnetes-system", "team-a", "team-b"] {
        server.kubectl(&["create", "namespace", namespace]).output().unwrap();
    }
    // Which nobody makes here, and every pod names.
    server.kubectl(&["-n", "giantnetes-system", "create", "serviceaccount", "default"]).output().unwrap();
    let schemas = Schemas::of(&server);
    for values in [NOTHING, EVERYTHING] {
        let objects = helm.rendered(values);
        assert!(objects.len() > 15, "{}", objects.len());
        let apply = ["apply", "--server-side", "--force-conflicts", "--validate=strict", "--dry-run=server", "-f", "-"];
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let taken = server.kubectl(&apply).input(list.to_string()).output().unwrap();
        assert_eq!(taken.lines().count(), objects.len(), "{taken}");
        assert_eq!(schemas.judge(&objects).unwrap(), objects.len() as u64);
    }
    let manifests = support::root().join("manifests");
    assert!(schemas.judge_files(&[&manifests.join("crds"), &manifests.join("examples")]).unwrap() >= 7);

    let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec});
    let cluster = |spec: Value| json!({"apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "x"}, "spec": spec});
    for (wrong, words) in [
        (pod(json!({"containers": [{"name": "a", "imag": "b"}]})), "imag"),
        (pod(json!({"containers": [{"name": 1}]})), "/spec/containers/0/name"),
        (pod(json!({})), "containers"),
        (cluster(json!({"nodePools": [{"name": "a", "replica": 1}]})), "replica"),
        (json!({"apiVersion": "v1", "kind": "Pot", "metadata": {"name": "x"}}), "could not find schema"),
    ] {
        let said = format!("{:#}", schemas.judge(&[wrong]).unwrap_err());
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn what_is_off_is_not_there_and_what_is_on_is() {
    let helm = Helm::new("switches");
    let kinds = |values: &str| -> Vec<String> { helm.rendered(values).iter().map(|o| kind(o).to_owned()).collect() };
    let (few, all) = (kinds(NOTHING), kinds(EVERYTHING));
    for kind in ["ServiceMonitor", "PodMonitor", "PrometheusRule", "ResourceQuota"] {
        assert!(!few.iter().any(|one| one == kind) && all.iter().any(|one| one == kind), "{kind}");
    }
    let count = |kinds: &[String], kind: &str| kinds.iter().filter(|one| *one == kind).count();
    assert_eq!(count(&all, "ConfigMap") - count(&few, "ConfigMap"), dashboards().len());
    // Of the controller manager and of the device plugin.
    assert_eq!(count(&few, "NetworkPolicy"), 2);
    assert_eq!(count(&kinds(r#"{"kvm": {"devicePlugin": {"enabled": false}}}"#), "NetworkPolicy"), 1);
    assert_eq!(count(&kinds(r#"{"networkPolicy": {"enabled": false}}"#), "NetworkPolicy"), 0);
    let rule = helm.rendered(EVERYTHING).into_iter().find(|object| kind(object) == "PrometheusRule").unwrap();
    let named = rule["spec"]["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    assert_eq!(named.count(), alerts().len());
}

/// Every value of a field `image`, wherever it stands.
fn images_in(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("image").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| images_in(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| images_in(item, found)),
        _ => {}
    }
}

#[test]
fn a_site_without_internet_is_told_every_image() {
    let readme = std::fs::read_to_string(support::root().join("charts/giantnetes/README.md")).unwrap();
    let list = readme.split("<!-- images: begin -->\n").nth(1).unwrap().split("<!-- images: end -->").next().unwrap();
    let told: BTreeSet<_> = list.lines().map(|line| line.split('`').nth(1).unwrap().to_owned()).collect();
    let helm = Helm::new("images");
    let mut used = BTreeSet::new();
    helm.rendered(EVERYTHING).iter().for_each(|object| images_in(object, &mut used));
    let settings: Value = serde_saphyr::from_str(&settings(&helm)).unwrap();
    let of_guests = settings["kubernetes"]["images"].as_object().unwrap().values();
    used.extend(of_guests.map(|image| image.as_str().unwrap().to_owned()));
    assert_eq!(told, used);
}

#[test]
fn clusters_and_their_kinds_outlive_the_release_and_tenants_have_their_rights() {
    let (helm, server) = (Helm::new("release"), ApiServer::start("release", PRIVILEGED).unwrap());
    let system = ["--namespace", "giantnetes-system", "--create-namespace"];
    let install = |values: &str| {
        let chart = chart();
        let words = [&["upgrade", "--install", "giantnetes", &chart][..], &system].concat();
        helm.run(&words).against(&server).values(values).output().unwrap()
    };
    let said = install(NOTHING);
    // What is missing here is told.
    for word in ["settings.network.clusterDNS is empty", "No ranges of the management cluster are named"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let next = |verb: &str| {
        let line = said.lines().find(|line| line.trim_start().starts_with(&format!("kubectl {verb}")));
        line.unwrap_or_else(|| panic!("no next command kubectl {verb}:\n{said}")).trim().to_owned()
    };
    let established = ["wait", "--for=condition=Established", "--timeout=25s", "crd", "clusters.giantnetes.io"];
    server.kubectl(&established).output().unwrap();
    server.shell(&next("create")).unwrap();
    // One management cluster has one of them.
    let words = ["install", "second", &chart(), "--namespace", "other", "--create-namespace"];
    let second = format!("{:#}", helm.run(&words).against(&server).output().unwrap_err());
    assert!(second.contains("as release giantnetes in namespace giantnetes-system"), "{second}");
    assert!(second.contains("helm upgrade that one, or helm uninstall it first"), "{second}");
    // Nobody works on it here.
    let waited = format!("{:#}", server.shell(&next("wait").replace("15m", "1s")).unwrap_err());
    assert!(waited.contains("timed out waiting for the condition on clusters/demo"), "{waited}");

    let may = |user: &str, words: &str| {
        let user = format!("--as={user}");
        let words: Vec<_> = ["auth", "can-i", "-n", "default", &user].into_iter().chain(words.split(' ')).collect();
        server.kubectl(&words).succeeds()
    };
    for (user, role) in [("ada", "giantnetes-cluster-admin"), ("bob", "giantnetes-cluster-viewer")] {
        let role = format!("--clusterrole={role}");
        let bind = ["-n", "default", "create", "rolebinding", user, &role, &format!("--user={user}")];
        server.kubectl(&bind).output().unwrap();
    }
    for (user, words, allowed) in [
        ("ada", "create clusters.giantnetes.io", true),
        ("ada", "delete clusteraccesses.giantnetes.io", true),
        ("ada", "list events.events.k8s.io", true),
        ("ada", "update clusters.giantnetes.io --subresource=status", false),
        ("ada", "get networkclaims.giantnetes.io", false),
        ("ada", "get secrets", false),
        ("bob", "watch clusters.giantnetes.io", true),
        ("bob", "create clusters.giantnetes.io", false),
        ("bob", "create clusteraccesses.giantnetes.io", false),
        ("bob", "get secrets", false),
        ("eve", "get clusters.giantnetes.io", false),
    ] {
        assert_eq!(may(user, words), allowed, "{user} {words}");
    }

    let settings = r#"{"network": {"clusterDNS": "10.96.0.10", "podCIDRs": ["10.244.0.0/16", "fd00::/56"]}}"#;
    let said = install(&format!(r#"{{"dashboards": {{"enabled": true}}, "replicas": 1, "settings": {settings}}}"#));
    assert!(!said.contains("clusterDNS") && !said.contains("No ranges"), "{said}");
    let maps = ["-n", "giantnetes-system", "get", "configmaps", "-l", "grafana_dashboard=1", "-o", support::NAMED];
    assert_eq!(server.kubectl(&maps).output().unwrap().split(' ').count(), dashboards().len());
    helm.run(&["uninstall", "giantnetes", "--namespace", "giantnetes-system"]).against(&server).output().unwrap();
    assert!(!server.kubectl(&["-n", "giantnetes-system", "get", "deployment", "giantnetes"]).succeeds());
    server.kubectl(&["-n", "default", "get", "clusters.giantnetes.io", "demo"]).output().expect("it is still there");
}

#[test]
fn every_expression_names_what_the_table_has() {
    let table = Table::read();
    let mut wrong = Vec::new();
    let all: Vec<Expression> = alerts().iter().map(|alert| alert.expression()).chain(dashboards().concat()).collect();
    assert!(all.len() > 40, "{}", all.len());
    for expression in &all {
        wrong.extend(table.problems(expression));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // It does find what is wrong.
    for bad in [
        "sum(giantnetes_reconcile_total)",
        "giantnetes_queue_depth{operators=\"kvm\"}",
        "giantnetes_cluster_condition{reason=\"CaLost\"}",
        "sum by (verbs) (giantnetes_api_requests_total)",
        "rate(giantnetes_reconcile_seconds[5m])",
        "pods",
    ] {
        let expression = Expression { place: "test".into(), text: bad.into() };
        assert!(!table.problems(&expression).is_empty(), "{bad}");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let mut pages = BTreeSet::new();
    for entry in std::fs::read_dir(support::root().join("docs/runbooks")).unwrap() {
        pages.insert(entry.unwrap().file_name().into_string().unwrap());
    }
    let alerts = alerts();
    assert_eq!(pages, alerts.iter().map(|alert| format!("{}.md", alert.name)).collect());
    for alert in &alerts {
        assert_eq!(alert.annotation("runbook"), format!("docs/runbooks/{}.md", alert.name));
        let page = std::fs::read_to_string(support::root().join(alert.annotation("runbook"))).unwrap();
        for part in [format!("# {}\n", alert.name).as_str(), "## What it means\n", "## Look\n", "## Do\n"] {
            assert!(page.contains(part), "{}: {part}", alert.name);
        }
        assert!(["critical", "warning"].contains(&alert.severity()), "{}", alert.name);
        assert!(!alert.annotation("summary").is_empty() && !alert.annotation("description").is_empty());
    }
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    let root = support::root();
    let rules = root.join("charts/giantnetes/files/alerts.yaml");
    let cases = root.join("e2e/tests/chart/alerts.yaml");
    let text = std::fs::read_to_string(&cases).unwrap();
    for alert in alerts() {
        assert!(text.contains(&format!("alertname=\"{}\"", alert.name)), "{} fires in no case", alert.name);
    }
    promtool().args(["check", "rules", "--lint=all", "--lint-fatal"]).arg(rules).output().unwrap();
    promtool().args(["test", "rules"]).arg(cases).output().unwrap();
}

/// The settings that helm renders for the controller manager.
fn settings(helm: &Helm) -> String {
    let settings = helm.rendered(NOTHING).into_iter().find(|object| name(object) == "ConfigMap giantnetes-settings");
    settings.unwrap()["data"]["settings.yaml"].as_str().unwrap().to_owned()
}

/// What `giantnetes check` says of a controller manager within this time.
fn check(url: &str, timeout: &str) -> anyhow::Result<String> {
    let words = ["check", "--url", url, "--timeout", timeout];
    Run::new(support::giantnetes()).args(words).timeout(Duration::from_secs(90)).output()
}

#[test]
fn forgotten_custom_resource_definitions_are_told() {
    let server = ApiServer::start("bare", &[]).unwrap();
    let manager = Manager::start(&server, &settings(&Helm::new("bare")));
    let said = format!("{:#}", check(&manager.url(), "5s").unwrap_err());
    assert!(said.contains("first list of clusters (is its CustomResourceDefinition installed? The chart brings it, or `giantnetes crds"), "{said}");
    server.install_crds().unwrap();
    let said = check(&manager.url(), "60s").unwrap();
    assert!(said.contains("ready, and a replica leads"), "{said}");
}

#[test]
fn every_part_of_a_guest_is_scraped_under_the_name_of_its_cluster_alone() {
    let helm = Helm::new("scraped");
    let monitors: Vec<_> =
        helm.rendered(EVERYTHING).into_iter().filter(|object| kind(object) == "PodMonitor").collect();
    let mut parts = BTreeSet::new();
    for monitor in &monitors {
        let spec = &monitor["spec"];
        assert!(spec["sampleLimit"].as_u64().is_some_and(|limit| limit <= 500) && spec["bodySizeLimit"] == "1MB");
        let role = spec["selector"]["matchLabels"]["giantnetes.io/role"].as_str().unwrap();
        for endpoint in spec["podMetricsEndpoints"].as_array().unwrap() {
            let rules = endpoint["relabelings"].as_array().unwrap();
            let kept: Vec<_> = rules.iter().filter(|rule| rule["action"] == "keep").collect();
            assert_eq!(kept.len(), 3, "of other namespaces, and what says no Cluster or no node, nothing is taken");
            let of = |label: &str| rules.iter().find(|rule| rule["targetLabel"] == label).unwrap();
            for label in ["cluster_namespace", "cluster_name", "node"] {
                assert!(
                    of(label)["sourceLabels"][0].as_str().unwrap().starts_with("__meta_kubernetes_pod_"),
                    "{label}"
                );
            }
            let part = of("guest_part")["replacement"].as_str().unwrap();
            let path = if part == "supervisor" { "/metrics".to_owned() } else { format!("/guest/{part}/metrics") };
            assert_eq!((&endpoint["path"], &endpoint["honorLabels"]), (&Value::from(path), &Value::Null));
            parts.insert(format!("{role} {part}"));
        }
    }
    let [of_all, of_masters] = [["containers", "kubelet", "supervisor"].as_slice(), &["apiserver", "etcd"]];
    let named = |role: &str, parts: &[&str]| parts.iter().map(|part| format!("{role} {part}")).collect::<Vec<_>>();
    let all = [named("control-plane", of_all), named("control-plane", of_masters), named("worker", of_all)];
    assert_eq!(parts, all.concat().into_iter().collect());

    let alone = r#"{"podMonitor": {"enabled": true}}"#;
    let template = helm.run(&["template", &chart(), "--kube-version", "1.36.3"]);
    let refusal = format!("{:#}", template.values(alone).output().unwrap_err());
    assert!(refusal.contains("settings.network.monitoringNamespaces"), "{refusal}");
}

/// The settings that helm renders, the metrics that they lead to, and what Prometheus makes of these.
#[test]
fn prometheus_finds_what_dashboards_and_alerts_ask_for() {
    let (helm, server) = (Helm::new("metrics"), ApiServer::start("metrics", &[]).unwrap());
    server.install_crds().unwrap();
    let manager = Manager::start(&server, &settings(&helm));
    let said = check(&manager.url(), "60s").unwrap();
    assert!(said.contains("ready, and a replica leads"), "{said}");
    let refusal = format!("{:#}", check("http://127.0.0.1:9", "1s").unwrap_err());
    assert!(refusal.contains("http://127.0.0.1:9/ is not well after 1 s"), "{refusal}");

    // Paused ones are left alone, so they also go at once.
    let cluster = |name: &str| {
        format!(
            "{{apiVersion: giantnetes.io/v1alpha1, kind: Cluster, metadata: {{name: {name}, namespace: default}}, spec: {{pausedUntil: '2099-01-01T00:00:00Z'}}}}"
        )
    };
    for name in ["demo", "short"] {
        server.kubectl(&["create", "-f", "-"]).input(cluster(name)).output().unwrap();
    }
    let series =
        |name: &str| format!("giantnetes_cluster_nodes{{namespace=\"default\",name=\"{name}\",phase=\"Paused\"");
    let metrics = |what: &str, holds: &dyn Fn(&str) -> bool| {
        wait_for(Duration::from_secs(20), what, || {
            let text = manager.metrics()?;
            ensure!(holds(&text), "{text}");
            Ok(text)
        })
        .unwrap()
    };
    let text =
        metrics("series of both Clusters", &|text| ["demo", "short"].iter().all(|name| text.contains(&series(name))));
    let table = Table::read();
    let shown = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let strange: Vec<_> = shown.filter(|name| !table.has(name)).collect();
    assert!(strange.is_empty(), "docs/metrics.md lacks {strange:?}");
    let age = text.lines().filter(|line| line.starts_with("giantnetes_watch_age_seconds{"));
    assert!(age.clone().count() >= 13, "{text}");
    for line in age {
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() < 65.0, "{line}");
    }
    server.kubectl(&["delete", "clusters.giantnetes.io", "short", "--timeout=20s"]).output().unwrap();
    let text = metrics("the series to go with their Cluster", &|text| !text.contains("name=\"short\""));
    assert!(text.contains(&series("demo")));

    let prometheus = Prometheus::start(&server, &manager);
    wait_for(Duration::from_secs(30), "Prometheus to have asked twice", || {
        let answer = prometheus.query("count_over_time(giantnetes_leading[1m]) > 2")?;
        ensure!(!answer.trim().is_empty(), "nothing yet");
        Ok(())
    })
    .unwrap();
    // Of a manager that is well, and a Cluster that is paused, and has no certificates and no guest.
    let silent =
        ["guest_part=", "cluster_namespace=", "certificate_renewal", "giantnetes_reconcile_errors_total", "!=\"2xx\""];
    for expression in dashboards().concat() {
        let text = expression.text.replace("$namespace", "default").replace("$name", "demo");
        let answer = prometheus.query(&text).unwrap_or_else(|error| panic!("{}: {error:#}", expression.place));
        let may_be_silent = silent.iter().any(|words| text.contains(words));
        assert!(may_be_silent || !answer.trim().is_empty(), "{}: no data for {text}", expression.place);
    }
    for alert in alerts() {
        let answer = prometheus.query(&alert.expr).unwrap();
        // A Cluster that is paused from the start has no node.
        assert!(answer.trim().is_empty(), "{} would fire: {answer}", alert.name);
    }
}
