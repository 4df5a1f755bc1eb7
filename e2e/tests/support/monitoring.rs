//! A Prometheus of the management cluster, configured as the Prometheus operator would from the chart's monitors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::command::Run;
use lab::tools::Image;
use lab::{Lab, wait_for};
use serde_json::{Map, Value, json};

use super::processes::{Process, spawn, tied};
use super::{SYSTEM, helm_template, processes, root, tool};

/// The namespace that the chart's values let scrape.
pub const NAMESPACE: &str = "monitoring";
/// How often it asks here. An emulated API server needs seconds for an answer.
const INTERVAL: &str = "20s";
const ADDRESS: &str = "127.0.0.1:9090";
const MINUTE: Duration = Duration::from_secs(60);

/// A pod that does nothing, in a namespace of its own, with which it goes: whoever works in its network is subject to policies.
pub struct Post<'a> {
    lab: &'a Lab,
    namespace: &'static str,
    network: String,
}

impl<'a> Post<'a> {
    /// Makes it.
    pub fn new(lab: &'a Lab, namespace: &'static str) -> Result<Self> {
        let image = Image::build("toolbox")?;
        lab.load(&image.archive)?;
        // No other process of this machine has this command line, and a shell stays for a loop.
        let command = ["sh", "-c", &format!("while true; do sleep 3600; done # {namespace}")];
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "post", "namespace": namespace},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "main", "image": image.reference, "imagePullPolicy": "Never", "command": command},
            ]},
        });
        lab.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}).to_string())?;
        let mut post = Self { lab, namespace, network: String::new() };
        wait_for(MINUTE, "the pod to be taken", || lab.apply(&pod.to_string()))?;
        let words = ["-n", namespace, "wait", "--for=condition=Ready", "pod/post", "--timeout=100s"];
        lab.kubectl_within(MINUTE * 2, &words)?;
        let found = processes(&format!("{}\0", command.join("\0")))?;
        let [process] = found[..] else { bail!("the pod's process is {found:?}") };
        post.network = format!("--net=/proc/{process}/ns/net");
        Ok(post)
    }

    /// Whether a TCP port answers from here.
    pub fn reaches(&self, address: &str, port: u16) -> bool {
        let connect = format!("timeout 5 bash -c '</dev/tcp/{address}/{port}'");
        Run::new("nsenter").args([&self.network, "--", "bash", "-c", &connect]).output().is_ok()
    }
}

impl Drop for Post<'_> {
    fn drop(&mut self) {
        let _ = self.lab.kubectl_within(MINUTE * 2, &["delete", "namespace", self.namespace]);
    }
}

/// It ends with its pod.
pub struct Prometheus<'a> {
    process: Process,
    post: Post<'a>,
    folder: PathBuf,
}

impl<'a> Prometheus<'a> {
    /// Starts one.
    pub fn start(lab: &'a Lab) -> Result<Self> {
        let post = Post::new(lab, NAMESPACE)?;
        let folder = std::env::temp_dir().join(format!("giantnetes-monitoring-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let config = folder.join("prometheus.yaml");
        // JSON is YAML too.
        std::fs::write(&config, configuration(lab)?.to_string())?;
        let words = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address={ADDRESS}"),
        ];
        let mut command = tied("nsenter");
        command.args([post.network.as_str(), "--"]).arg(tool("prometheus").join("prometheus")).args(words);
        let process = spawn(&mut command, &folder.join("log"))?;
        Ok(Self { process, post, folder })
    }

    /// What an expression comes to: nothing, or a line for each series.
    pub fn query(&self, expression: &str) -> Result<String> {
        let promtool = tool("prometheus").join("promtool");
        let words = ["query", "instant", &format!("http://{ADDRESS}"), expression];
        Run::new("nsenter").args([&self.post.network, "--"]).arg(promtool).args(words).timeout(MINUTE).output()
    }

    /// Draws the dashboards as they are now for this Cluster, into a folder. Answers which files that made.
    pub fn draw(&self, folder: &Path, namespace: &str, name: &str) -> Result<String> {
        std::fs::create_dir_all(folder)?;
        let words = [&format!("http://{ADDRESS}"), &folder.display().to_string(), namespace, name];
        let program = root().join("e2e/draw_dashboards.py");
        Run::new("nsenter").args([&self.post.network, "--"]).arg(program).args(words).timeout(MINUTE * 3).output()
    }

    /// The pod that it runs in.
    pub fn post(&self) -> &Post<'a> {
        &self.post
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // Before what it writes to.
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What Prometheus is told, from the chart's monitors.
fn configuration(lab: &Lab) -> Result<Value> {
    let set = format!(
        "podMonitor.enabled=true,podMonitor.interval={INTERVAL},settings.network.monitoringNamespaces={{{NAMESPACE}}}"
    );
    let text = helm_template("giantnetes").args(["--namespace", SYSTEM, "--set", &set]).output()?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let monitors: Vec<_> = documents.iter().filter(|document| document["kind"] == "PodMonitor").collect();
    ensure!(monitors.len() == 2, "the chart has {} PodMonitors", monitors.len());
    // Its process asks the machine's DNS server, which knows no Services.
    let manager = lab.kubectl(&["-n", SYSTEM, "get", "service", "giantnetes", "-o", "jsonpath={.spec.clusterIP}"])?;
    let mut jobs = vec![json!({
        "job_name": "giantnetes", "honor_labels": true,
        "static_configs": [{"targets": [format!("{manager}:8080")], "labels": {"namespace": SYSTEM}}],
    })];
    for monitor in monitors {
        let name = monitor["metadata"]["name"].as_str().context("no name")?;
        for (number, endpoint) in
            monitor["spec"]["podMetricsEndpoints"].as_array().context("no endpoints")?.iter().enumerate()
        {
            jobs.push(job(lab, &format!("podMonitor/{SYSTEM}/{name}/{number}"), &monitor["spec"], endpoint)?);
        }
    }
    Ok(json!({"global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}, "scrape_configs": jobs}))
}

/// One endpoint of a PodMonitor as a job, as the operator translates it.
fn job(lab: &Lab, name: &str, spec: &Value, endpoint: &Value) -> Result<Value> {
    let meta = |what: &str| format!("__meta_kubernetes_{}", what.replace(['.', '/', '-'], "_"));
    let keep = |source: &str, regex: &Value| json!({"source_labels": [meta(source)], "regex": regex, "action": "keep"});
    let selected = spec["selector"]["matchLabels"].as_object().context("no labels")?;
    let mut rules: Vec<_> = selected.iter().map(|(key, value)| keep(&format!("pod_label_{key}"), value)).collect();
    for expression in spec["selector"]["matchExpressions"].as_array().context("no expressions")? {
        ensure!(expression["operator"] == "Exists", "{expression}");
        let key = expression["key"].as_str().context("no key")?;
        rules.push(keep(&format!("pod_labelpresent_{key}"), &json!("true")));
    }
    rules.push(keep("pod_container_port_name", &endpoint["port"]));
    for (source, target) in [("namespace", "namespace"), ("pod_container_name", "container"), ("pod_name", "pod")] {
        rules.push(json!({"source_labels": [meta(source)], "target_label": target}));
    }
    rules.extend(relabeled(&endpoint["relabelings"]));
    let job = json!({
        "job_name": name,
        "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": lab.kubeconfig()}],
        "metrics_path": endpoint["path"],
        "scrape_interval": endpoint["interval"], "scrape_timeout": endpoint["scrapeTimeout"],
        "sample_limit": spec["sampleLimit"], "body_size_limit": spec["bodySizeLimit"],
        "relabel_configs": rules,
    });
    let missing = job.as_object().into_iter().flatten().find(|(_, value)| value.is_null());
    ensure!(missing.is_none(), "the chart's PodMonitor says nothing for {missing:?}");
    Ok(job)
}

/// Rules in the words of Prometheus' own configuration.
fn relabeled(rules: &Value) -> Vec<Value> {
    let rule = |rule: &Value| {
        let named = [("sourceLabels", "source_labels"), ("targetLabel", "target_label")];
        let rename = |key: &String| {
            named.iter().find(|(theirs, _)| *theirs == key.as_str()).map_or(key.clone(), |(_, ours)| (*ours).to_owned())
        };
        let fields: Map<_, _> =
            rule.as_object().into_iter().flatten().map(|(key, value)| (rename(key), value.clone())).collect();
        Value::Object(fields)
    };
    rules.as_array().into_iter().flatten().map(rule).collect()
}
