//! What the lab's management cluster offers to guests, and what it costs: network, policies, names, volumes, an ingress
//! with TLS passthrough; hosts and an API server that fail when told to.
//!
//! It runs on the lab that is up, and leaves it as it was.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::command::Run;
use lab::tools::Image;
use lab::{Lab, cgroup, topology, wait_every, wait_for};
use serde_json::{Value, json};
use support::lab_command;

const MINUTE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "e2e-management";

type Step<'a> = Box<dyn Fn() -> Result<()> + 'a>;

/// The namespace of this test, which goes when it ends.
struct Place<'a>(&'a Lab);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A step that failed left its fault: hosts without power or network, an API server that does not answer.
            let _ = Run::new(env!("CARGO_BIN_EXE_lab")).arg("up").timeout(MINUTE * 5).output();
        }
        let words = ["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=100s"];
        let _ = self.0.kubectl_within(MINUTE * 2, &words);
    }
}

#[test]
fn the_management_cluster_offers_what_guests_need() {
    let lab = Lab::running().expect("no lab is running: `make lab-up` raises one");
    let images = ["toolbox", "nettools"].map(|name| Image::build(name).unwrap());
    for image in &images {
        lab.load(&image.archive).unwrap();
    }
    let place = Place(&lab);
    lab.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}).to_string()).unwrap();
    let [toolbox, nettools] = images.map(|image| image.reference);
    lab.apply(&webs(&toolbox, &nettools).to_string()).unwrap();
    let steps: [(&str, Step<'_>); 10] = [
        ("hosts are labelled with their zones", Box::new(|| zones(&lab))),
        ("pods on every host reach each other, by address and by name", Box::new(|| everybody_reaches_everybody(&lab))),
        ("pods on every host reach Vault, which is open", Box::new(|| everybody_reaches_vault(&lab))),
        (
            "a policy that denies blocks across hosts, and one that allows allows",
            Box::new(|| policies_hold(&lab, &nettools)),
        ),
        ("a volume's data outlives its pod", Box::new(|| data_outlives_pods(&lab, &toolbox))),
        (
            "TLS servers are reached by SNI, with their own certificates",
            Box::new(|| tls_passes_through(&lab, &nettools)),
        ),
        ("a stopped host is NotReady, and comes back", Box::new(|| stopped_host_returns(&lab))),
        ("an isolated host is NotReady, and heals", Box::new(|| isolated_host_heals(&lab))),
        ("the API server freezes, stops and returns", Box::new(|| apiserver_returns(&lab))),
        ("an idle lab costs little", Box::new(|| idles(&lab))),
    ];
    for (name, step) in &steps {
        let started = Instant::now();
        println!("--- {name}");
        step().unwrap_or_else(|error| panic!("{name}: {error:#}"));
        println!("    ok, {:.1?}", started.elapsed());
    }
    drop(place);
}

/// On every host a pod with a web server that says the host's name, and a client.
fn webs(toolbox: &str, nettools: &str) -> Value {
    let labels = json!({"app": "web"});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web", "namespace": NAMESPACE},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "server", "image": toolbox, "imagePullPolicy": "Never",
                        "env": [{"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                        "command": ["sh", "-c", "mkdir /tmp/www; echo $HOST > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"],
                        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 2},
                    },
                    {"name": "client", "image": nettools, "imagePullPolicy": "Never", "command": ["sleep", "86400"]},
                ],
            }}},
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": NAMESPACE},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    ]})
}

struct Web {
    pod: String,
    address: String,
    host: String,
}

/// The web pods, one per host.
fn web_pods(lab: &Lab) -> Result<Vec<Web>> {
    lab.kubectl_within(MINUTE * 3, &["-n", NAMESPACE, "rollout", "status", "daemonset/web", "--timeout=170s"])?;
    let pods = support::list(lab, &["-n", NAMESPACE, "pods", "-l", "app=web"])?;
    let text = |pod: &Value, path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let web = |pod: &Value| Web {
        pod: text(pod, "/metadata/name"),
        address: text(pod, "/status/podIP"),
        host: text(pod, "/spec/nodeName"),
    };
    let pods: Vec<_> = pods.iter().map(web).collect();
    ensure!(pods.len() == topology::HOSTS.len(), "{} pods", pods.len());
    Ok(pods)
}

/// What a web server says to a client in another pod, within two seconds.
fn fetch(lab: &Lab, pod: &str, url: &str) -> Result<String> {
    let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "2", url];
    let words = [&["-n", NAMESPACE, "exec", pod, "-c", "client", "--"], &curl[..]].concat();
    Ok(lab.kubectl(&words)?.trim().to_owned())
}

fn zones(lab: &Lab) -> Result<()> {
    for host in topology::HOSTS {
        let node: Value = serde_json::from_str(&lab.kubectl(&["get", "node", host.name(), "-o", "json"])?)?;
        ensure!(node["metadata"]["labels"]["giantnetes.io/zone"] == host.zone, "{}", node["metadata"]["labels"]);
    }
    Ok(())
}

fn everybody_reaches_everybody(lab: &Lab) -> Result<()> {
    let pods = web_pods(lab)?;
    for from in &pods {
        for to in &pods {
            let url = format!("http://{}:8080/", to.address);
            let said =
                wait_for(MINUTE, &format!("{} reaching {}", from.host, to.host), || fetch(lab, &from.pod, &url))?;
            ensure!(said == to.host, "{} answered as {said}", to.host);
        }
        let name = format!("http://web.{NAMESPACE}.svc.cluster.local/");
        let said = wait_for(MINUTE, &format!("the Service's name on {}", from.host), || fetch(lab, &from.pod, &name))?;
        ensure!(pods.iter().any(|pod| pod.host == said), "the Service answered {said}");
        let pool = topology::host(&from.host)?.pods.trim_end_matches("0/24");
        ensure!(from.address.starts_with(pool), "{} has {}, not of its host's pool", from.pod, from.address);
    }
    Ok(())
}

fn everybody_reaches_vault(lab: &Lab) -> Result<()> {
    let url = format!("{}/v1/sys/seal-status", lab.vault().url());
    for from in web_pods(lab)? {
        // Its certificate is the lab's, which no pod knows.
        let curl = ["curl", "--insecure", "--silent", "--show-error", "--fail", "--max-time", "5", &url];
        let said = lab.kubectl(&[&["-n", NAMESPACE, "exec", &from.pod, "-c", "client", "--"], &curl[..]].concat())?;
        ensure!(said.contains("\"sealed\":false"), "to {} it says {said}", from.host);
    }
    Ok(())
}

fn policies_hold(lab: &Lab, nettools: &str) -> Result<()> {
    let pods = web_pods(lab)?;
    let friend = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "friend", "namespace": NAMESPACE, "labels": {"role": "friend"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "client", "image": nettools, "imagePullPolicy": "Never", "command": ["sleep", "86400"]},
        ]},
    });
    lab.apply(&friend.to_string())?;
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": [{"port": 8080}]}],
        },
    });
    lab.apply(&policy.to_string())?;
    for from in &pods {
        // A pod reaches itself whatever a policy says.
        for to in pods.iter().filter(|to| to.host != from.host) {
            let url = format!("http://{}:8080/", to.address);
            wait_for(MINUTE, &format!("{} being kept from {}", from.host, to.host), || {
                let said = fetch(lab, &from.pod, &url);
                ensure!(said.is_err_and(|error| error.to_string().contains("timed out")), "it still gets through");
                Ok(())
            })?;
        }
    }
    lab.kubectl_within(MINUTE, &["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/friend", "--timeout=50s"])?;
    for to in &pods {
        let url = format!("http://{}:8080/", to.address);
        let said = wait_for(MINUTE, &format!("the friend reaching {}", to.host), || fetch(lab, "friend", &url))?;
        ensure!(said == to.host);
    }
    lab.kubectl(&["-n", NAMESPACE, "delete", "networkpolicy", "web"])?;
    let (from, to) = (&pods[0], format!("http://{}:8080/", pods[1].address));
    wait_for(MINUTE, "the way being free again", || fetch(lab, &from.pod, &to)).map(drop)
}

fn data_outlives_pods(lab: &Lab, toolbox: &str) -> Result<()> {
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": toolbox, "imagePullPolicy": "Never", "command": ["sleep", "86400"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            },
        })
    };
    // No class is named: the default one is asked.
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": NAMESPACE},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    let ready = |name: &str| {
        let pod = format!("pod/{name}");
        lab.kubectl_within(MINUTE, &["-n", NAMESPACE, "wait", "--for=condition=Ready", "--timeout=50s", &pod])
    };
    let shell = |name: &str, script: &str| lab.kubectl(&["-n", NAMESPACE, "exec", name, "--", "sh", "-c", script]);
    lab.apply(&claim.to_string())?;
    lab.apply(&pod("writer").to_string())?;
    ready("writer")?;
    shell("writer", "echo kept > /data/file")?;
    lab.kubectl_within(MINUTE, &["-n", NAMESPACE, "delete", "pod", "writer"])?;
    lab.apply(&pod("reader").to_string())?;
    ready("reader")?;
    let said = shell("reader", "cat /data/file")?;
    ensure!(said == "kept\n", "{said:?}");
    Ok(())
}

/// Two TLS servers behind one address: which of them answers is told by the name that the client asks for, and the
/// client sees that server's own certificate, so nobody in between has ended TLS.
fn tls_passes_through(lab: &Lab, nettools: &str) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("giantnetes-sni-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let outcome = (|| {
        for name in ["alpha", "beta"] {
            let certified = rcgen::generate_simple_self_signed([format!("{name}.lab.test")])?;
            std::fs::write(folder.join(name), certified.cert.pem())?;
            lab.apply(
                &tls_server(name, nettools, &certified.cert.pem(), &certified.signing_key.serialize_pem()).to_string(),
            )?;
        }
        for name in ["alpha", "beta"] {
            wait_for(MINUTE * 2, &format!("{name} answering with its own certificate"), || ask(&folder, name, name))?;
        }
        let error = ask(&folder, "alpha", "beta").expect_err("alpha's certificate passed for beta's").to_string();
        ensure!(error.contains("certificate"), "{error}");
        Ok(())
    })();
    std::fs::remove_dir_all(&folder)?;
    outcome
}

/// Asks for a name through the ingress, from the machine's loopback, trusting one server's certificate only.
fn ask(folder: &Path, name: &str, trusted: &str) -> Result<()> {
    let port = topology::INGRESS_PORTS.iter().find(|(_, port)| *port == 443).context("no port for TLS")?.0;
    let resolve = format!("{name}.lab.test:{port}:{}", topology::MACHINE.address);
    let curl = Run::line("curl --silent --show-error --fail --max-time 5 --output /dev/null --cacert");
    let url = format!("https://{name}.lab.test:{port}/");
    curl.arg(folder.join(trusted)).args(["--resolve", &resolve, &url]).output().map(drop)
}

fn tls_server(name: &str, nettools: &str, certificate: &str, key: &str) -> Value {
    let labels = json!({"app": name});
    let command = "openssl s_server -accept 8443 -cert /tls/tls.crt -key /tls/tls.key -www -quiet";
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE},
            "type": "kubernetes.io/tls", "stringData": {"tls.crt": certificate, "tls.key": key},
        },
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": nettools, "imagePullPolicy": "Never",
                    "command": command.split(' ').collect::<Vec<_>>(),
                    "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
                }],
                "volumes": [{"name": "tls", "secret": {"secretName": name}}],
            },
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": labels, "ports": [{"port": 443, "targetPort": 8443}]},
        },
        {
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "annotations": {"nginx.ingress.kubernetes.io/ssl-passthrough": "true"},
            },
            "spec": {"ingressClassName": "nginx", "rules": [{
                "host": format!("{name}.lab.test"),
                "http": {"paths": [{
                    "path": "/", "pathType": "Prefix", "backend": {"service": {"name": name, "port": {"number": 443}}},
                }]},
            }]},
        },
    ]})
}

fn await_node(lab: &Lab, name: &str, ready: bool) -> Result<()> {
    let started = Instant::now();
    wait_every(Duration::from_secs(1), MINUTE * 2, &format!("{name} being ready: {ready}"), || {
        let query = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let status = lab.kubectl(&["get", "node", name, "-o", query])?;
        ensure!((status == "True") == ready, "Ready is {status}");
        Ok(())
    })?;
    println!("    {name} {} after {:.1?}", if ready { "Ready" } else { "NotReady" }, started.elapsed());
    Ok(())
}

fn stopped_host_returns(lab: &Lab) -> Result<()> {
    let host = topology::host("host3")?;
    lab_command("host stop host3")?;
    let left = cgroup::processes(&format!("{}/{}", topology::CGROUP, host.name()))?;
    ensure!(left.is_empty(), "{left:?} still run on a host without power");
    await_node(lab, "host3", false)?;
    lab_command("host start host3")?;
    await_node(lab, "host3", true)?;
    wait_every(Duration::from_secs(1), MINUTE * 3, "pods on all hosts again", || everybody_reaches_everybody(lab))
}

fn isolated_host_heals(lab: &Lab) -> Result<()> {
    let pods = web_pods(lab)?;
    let on = |name: &str| pods.iter().find(|pod| pod.host == name).context("no pod there");
    let (here, there) = (on("host1")?, on("host2")?);
    lab_command("host isolate host2")?;
    let url = format!("http://{}:8080/", there.address);
    ensure!(fetch(lab, &here.pod, &url).is_err(), "an isolated host answers");
    await_node(lab, "host2", false)?;
    lab_command("host heal host2")?;
    await_node(lab, "host2", true)?;
    wait_for(MINUTE, "the healed host's pod", || fetch(lab, &here.pod, &url))?;
    ensure!(web_pods(lab)?.iter().any(|pod| pod.pod == there.pod), "its pod was replaced");
    Ok(())
}

fn apiserver_returns(lab: &Lab) -> Result<()> {
    let ask = || lab.kubectl_within(Duration::from_secs(5), &["get", "--raw", "/readyz", "--request-timeout=3s"]);
    for fault in ["freeze", "stop"] {
        ensure!(ask()? == "ok");
        lab_command(&format!("apiserver {fault}"))?;
        let error = ask().expect_err("it answers although it should not").to_string();
        ensure!(error.contains("refused") == (fault == "stop"), "{error}");
        lab_command("apiserver start")?;
        ensure!(ask()? == "ok");
    }
    // What lost its watches has them again: nodes stay Ready, and a new pod runs.
    topology::HOSTS.iter().try_for_each(|host| await_node(lab, host.name(), true))?;
    lab.kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/web"])?;
    wait_every(Duration::from_secs(1), MINUTE * 3, "new pods everywhere", || everybody_reaches_everybody(lab))
}

/// The lab alone: at most half a core and 3 GiB.
fn idles(lab: &Lab) -> Result<()> {
    lab.kubectl_within(MINUTE * 2, &["delete", "namespace", NAMESPACE, "--timeout=100s"])?;
    // What was just ended or started still works a little, and the machine does other things: the middle one of some
    // windows counts.
    let mut cores = Vec::new();
    for _ in 0..5 {
        let (before, started) = (cpu_seconds()?, Instant::now());
        std::thread::sleep(Duration::from_secs(15));
        cores.push((cpu_seconds()? - before) / started.elapsed().as_secs_f64());
    }
    cores.sort_by(f64::total_cmp);
    let (quietest, median, busiest) = (cores[0], cores[2], cores[4]);
    let memory = resident()? as f64 / f64::from(1 << 30);
    println!("    {quietest:.2} to {busiest:.2} of a core, {median:.2} in the middle, {memory:.2} GiB");
    ensure!(median <= 0.5, "{median:.2} of a core when idle");
    ensure!(memory <= 3.0, "{memory:.2} GiB");
    Ok(())
}

/// CPU time of all processes of the lab together.
fn cpu_seconds() -> Result<f64> {
    let group = |file: &str| format!("/sys/fs/cgroup/{file}").replace("GROUP", topology::CGROUP);
    if let Ok(text) = std::fs::read_to_string(group("cpu,cpuacct/GROUP/cpuacct.usage"))
        .or_else(|_| std::fs::read_to_string(group("cpuacct/GROUP/cpuacct.usage")))
    {
        return Ok(text.trim().parse::<f64>()? / 1e9);
    }
    let text = std::fs::read_to_string(group("GROUP/cpu.stat")).context("no cgroup of the lab tells its CPU time")?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    Ok(usage.context("no usage_usec")?.parse::<f64>()? / 1e6)
}

/// Bytes that the lab's processes hold, what several share divided among them.
fn resident() -> Result<u64> {
    let pss = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let total: u64 = cgroup::processes(topology::CGROUP)?.into_iter().filter_map(pss).sum();
    Ok(total * 1024)
}
