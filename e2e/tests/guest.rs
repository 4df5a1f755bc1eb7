//! One guest's whole life, on real parts: a Cluster object becomes a running guest; its VM can do no harm; it survives
//! what happens to it; and it leaves nothing. One boot, many checks: emulated guests are slow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "chart/expressions.rs"]
#[allow(dead_code, reason = "only the dashboards are asked for")]
mod expressions;
mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use giantnetes::pki::roots;
use k8s_openapi::ByteString;
use lab::command::Run;
use lab::{Lab, wait_every, wait_for};
use serde_json::Value;
use support::apart::{self, Overlay};
use support::traces::{KEPT, claims_go, etcd_content, etcd_has, fingerprints, key_words, nothing_is_left};
use support::{
    Guest, SYSTEM, image_path, in_steps, installed, installed_with, kill_manager, list, machines, monitoring,
    mounts_in_vault, patience, processes, requests,
};

/// What the design has for a guest of one node to become Ready, in seconds.
const READY_AIM: u64 = 90;
const MINUTE: Duration = Duration::from_secs(60);
/// Labels of the controller manager's pods.
const MANAGER: &str = "app.kubernetes.io/name=giantnetes";
/// A guest with wishes of its own: a name, authorities in Vault, an alpha feature, a flag.
const ALPHA: &str = "{exposure: {type: Ingress}, pki: {backend: Vault}, kubernetes: {featureGates: {HPAScaleToZero: true}, kubelet: {extraArgs: {max-pods: '60'}}}}";

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn a_guest_lives_and_leaves_nothing() {
    let theirs = "networkPolicy.from[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name";
    let namespace = monitoring::NAMESPACE;
    let lab = installed_with(&format!(",settings.network.monitoringNamespaces={{{namespace}}},{theirs}={namespace}"));
    let links = host_links().unwrap();
    let guest = Guest::create(&lab, "e2e-guest", "alpha", ALPHA);
    let steps: [(&str, Step); 15] = [
        ("kill -9 of the manager half-way changes nothing in the end", manager_killed_half_way),
        ("the guest becomes Ready", becomes_ready),
        ("a pod runs in it, and exec reaches it", pod_runs),
        ("Prometheus has of it what the dashboards ask for", is_scraped),
        ("what is asked for and approved inside it is signed", signs_what_is_approved),
        ("its authorities are in Vault, and nowhere else", is_kept_in_vault),
        ("nothing is written when nothing changes", rests),
        ("a restart of the manager changes no status", restarts_quietly),
        ("a policy that opens what is closed is told, and what it opens", tells_of_leaks),
        ("the VM pod has no more rights than designed", is_unprivileged),
        ("the guest reaches neither the pod's loopback nor its addresses", |lab, guest| {
            apart::is_held_in_place(lab, guest, Overlay::Native)
        }),
        ("no secret is in user data, pod, status, events or logs", shows_no_secret),
        ("the node lets nobody in, and starts from a small RAM disk", has_no_other_way_in),
        ("killing QEMU brings the node back with etcd's data", survives_qemu),
        ("deleting it leaves nothing", leaves_nothing),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
    assert_eq!(host_links().unwrap(), links, "network devices are left on the host");
}

fn manager_killed_half_way(lab: &Lab, guest: &Guest) -> Result<()> {
    // As early as possible, then while certificates and pods are made, then while the guest boots.
    for stage in ["NetworkReady", "PKIReady"] {
        let killed = kill_manager(lab)?;
        println!("    killed process {killed}, before {stage}");
        guest.await_condition(MINUTE, stage, "True")?;
    }
    let roots = fingerprints(guest)?;
    kill_manager(lab)?;
    let home = guest.home()?;
    wait_for(MINUTE, "the VM pod", || lab.kubectl(&["-n", &home, "get", "pod", "master-0"]))?;
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    // The fingerprints begin after the first kills; the record of writes begins before them.
    let (log, named) = (support::writes_on_record(lab)?, format!("\"name\":\"{}\"", roots::SECRET));
    let made = log.lines().filter(|line| {
        let parts = ["\"verb\":\"create\"", &format!("\"namespace\":\"{home}\""), &named, "\"code\":201"];
        parts.iter().all(|part| line.contains(part))
    });
    ensure!(made.count() == 1, "roots were made twice");
    ensure!(list(lab, &["networkclaims"])?.len() == 2, "there are other claims than one VNI and one host name");
    ensure!(list(lab, &["-n", &home, "pods"])?.len() == 1, "there is more than one VM pod");
    Ok(())
}

fn becomes_ready(lab: &Lab, guest: &Guest) -> Result<()> {
    guest.await_first_ready(READY_AIM)?;
    let object = guest.object()?;
    ensure!(object["status"]["phase"] == "Ready", "{}", object["status"]);
    let pods = guest.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.capacity.pods}"])?;
    ensure!(pods == "60", "a node takes {pods} pods: kubelet did not get the user's flag");
    let metrics = guest.kubectl(&["get", "--raw", "/metrics"])?;
    let gate = "kubernetes_feature_enabled{name=\"HPAScaleToZero\",stage=\"ALPHA\"} 1";
    ensure!(metrics.contains(gate), "the alpha feature is off");
    // Everything below that talks to the guest comes this way.
    let endpoint = object["status"]["endpoint"].as_str().unwrap_or_default();
    ensure!(endpoint == "https://alpha.e2e-guest.guests.test:10443", "the endpoint is {endpoint}");
    ensure!(object["status"]["nodes"] == "1/1", "{}", object["status"]);
    let nodes = guest.kubectl(&["get", "nodes", "-o", "wide", "--no-headers"])?;
    println!("    {}", nodes.trim());
    ensure!(nodes.contains(" Ready ") && nodes.contains("v1.36."), "{nodes}");
    let pod: Value =
        serde_json::from_str(&lab.kubectl(&["-n", &guest.home()?, "get", "pod", "master-0", "-o", "json"])?)?;
    let condition = |type_: &str| {
        let all = pod["status"]["conditions"].as_array()?;
        all.iter().find(|condition| condition["type"] == type_)?["lastTransitionTime"].as_str().map(str::to_owned)
    };
    let (from, to) = (condition("PodScheduled"), condition("Ready"));
    println!("    VM pod scheduled at {from:?}, its API ready at {to:?}");
    Ok(())
}

fn pod_runs(lab: &Lab, guest: &Guest) -> Result<()> {
    let manifest = std::fs::read_to_string(support::root().join("e2e/hello.yaml"))?;
    // A new cluster gives its namespaces their service accounts within moments.
    wait_for(MINUTE, "the pod to be accepted", || guest.kubectl_input(&["apply", "-f", "-"], &manifest))?;
    guest.kubectl(&["wait", "--for=condition=Ready", "pod/hello", "--timeout=180s"])?;
    let said = wait_for(MINUTE, "exec", || guest.kubectl(&["exec", "hello", "--", "hostname"]))?;
    ensure!(said.trim() == "hello", "exec said {said:?}");
    ensure!(guest.kubectl(&["logs", "hello"])?.trim() == "hello");
    ensure!(
        guest.kubectl(&["auth", "can-i", "*", "*", "-A"])?.trim() == "yes",
        "the kubeconfig is not an administrator's"
    );
    ensure!(!lab.kubectl(&["-n", guest.namespace, "get", "secret", "alpha-kubeconfig", "-o", "name"])?.is_empty());
    Ok(())
}

/// A real Prometheus, told what the chart's monitors say, has data for every expression of every dashboard; and whoever is not
/// of its namespace gets nothing.
fn is_scraped(lab: &Lab, guest: &Guest) -> Result<()> {
    let prometheus = monitoring::Prometheus::start(lab)?;
    let whose = "cluster_namespace=\"e2e-guest\",cluster_name=\"alpha\",node=\"master-0\"";
    let parts = format!("count by (guest_part) (up{{{whose}}} == 1)");
    let (pause, began) = (Duration::from_secs(3), Instant::now());
    wait_every(pause, MINUTE * 3, "Prometheus to be answered by all five parts", || {
        let answer = prometheus.query(&parts)?;
        ensure!(answer.lines().count() == 5, "{answer}{}", prometheus.query("up == 0")?);
        Ok(())
    })?;
    println!("    all parts are scraped after {:.1?}", began.elapsed());
    let stranger = monitoring::Post::new(lab, "e2e-stranger")?;
    let of_pod = ["-n", &guest.home()?, "get", "pod", "master-0", "-o", "jsonpath={.status.podIP}"];
    let address = lab.kubectl(&of_pod)?;
    ensure!(prometheus.post().reaches(&address, 8080), "what Prometheus reaches is not reached from its pod");
    ensure!(!stranger.reaches(&address, 8080), "a pod of another namespace reaches the supervisor");
    ensure!(stranger.reaches(&address, 6443), "a pod of another namespace does not even reach the API");
    let manager = ["-n", SYSTEM, "get", "pods", "-l", MANAGER, "-o", "jsonpath={.items[0].status.podIP}"];
    let manager = lab.kubectl(&manager)?;
    ensure!(prometheus.post().reaches(&manager, 8080), "Prometheus does not reach the controller manager");
    ensure!(!stranger.reaches(&manager, 8080), "a pod of another namespace reaches the controller manager");
    // A rate takes two answers, of the manager as of each part.
    wait_every(pause, MINUTE * 3, "every target to have answered three times", || {
        let seldom = prometheus.query("sum_over_time(up[5m]) < 3")?;
        let targets = prometheus.query("count(up == 1)")?;
        ensure!(seldom.trim().is_empty() && targets.contains("=> 6 "), "{targets}{seldom}");
        Ok(())
    })?;
    // Of what does not happen to a guest that is well.
    let silent = [
        "cluster: Conditions that are not as they should be",
        "cluster: Conditions that were not as they should be",
        "fleet: Conditions that are not as they should be",
        "fleet: Clusters with too few nodes",
        "fleet: Why Clusters are not Ready",
        "guest: Requests that failed",
        "manager: Failures",
        "manager: Answers other than success",
    ];
    let mut asked = 0;
    for expression in expressions::dashboards().concat() {
        // The longer name first: the other is its beginning.
        let text = expression.text.replace("$namespace", guest.namespace).replace("$name", guest.name);
        let answer = prometheus.query(&text).with_context(|| expression.place.clone())?;
        let may_be_silent = silent.contains(&expression.place.as_str());
        ensure!(may_be_silent || !answer.trim().is_empty(), "{}: no data for {text}", expression.place);
        asked += 1;
    }
    // PICTURES=docs/pictures keeps them.
    let folder = std::env::temp_dir().join(format!("giantnetes-pictures-{}", std::process::id()));
    let kept = std::env::var_os("PICTURES").map(|folder| support::root().join(folder));
    if kept.is_some() {
        // So that there is something to see.
        std::thread::sleep(MINUTE * 2);
    }
    let drawn = prometheus.draw(kept.as_deref().unwrap_or(&folder), guest.namespace, guest.name)?;
    let _ = std::fs::remove_dir_all(&folder);
    ensure!(drawn.lines().count() == expressions::dashboards().len(), "{drawn}");
    let series = prometheus.query(&format!("count({{{whose}}})"))?;
    println!("    {asked} expressions have data; of the guest there are {}", series.trim());
    // The API server has thousands of series, none of which stands under its own name.
    for (names, most) in [("guest_.+", 200), ("apiserver_.+|etcd_.+|kubelet_.+|container_.+", 0)] {
        let answer = prometheus.query(&format!("count({{{whose},__name__=~\"{names}\"}}) > {most}"))?;
        ensure!(answer.trim().is_empty(), "{answer}");
    }
    Ok(())
}

/// A key of the user's own, and the way of Kubernetes to a certificate for it.
fn signs_what_is_approved(_: &Lab, guest: &Guest) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("giantnetes-dora-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (csr, key) = requests::request(&folder, "dora", &["-newkey", "rsa:2048"], "/O=dev/CN=dora", None)?;
    let object = requests::object("dora", &csr, "kube-apiserver-client", &["client auth"], Some(3600))?;
    guest.kubectl_input(&["create", "-f", "-"], &object)?;
    guest.kubectl(&["certificate", "approve", "dora"])?;
    let began = Instant::now();
    let certificate = wait_for(MINUTE, "the certificate", || {
        let text = guest.kubectl(&["get", "csr", "dora", "-o", "jsonpath={.status.certificate}"])?;
        ensure!(!text.is_empty(), "there is none yet");
        Ok(serde_json::from_value::<ByteString>(text.into())?)
    })?;
    println!("    signed after {:.1?}", began.elapsed());
    let file = folder.join("dora.crt");
    std::fs::write(&file, certificate.0)?;
    let (file, key) = (format!("--client-certificate={}", file.display()), format!("--client-key={}", key.display()));
    let who = guest.kubectl(&[&file, &key, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])?;
    ensure!(who == "dora", "it is of {who:?}");
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// The management API's own record: no write of the manager, not even one that would change nothing.
fn rests(lab: &Lab, guest: &Guest) -> Result<()> {
    let before = support::manager_writes(lab)?;
    let count = before - guest.writes_before;
    ensure!(count > 10, "the audit log has only {count} writes of the manager");
    println!("    {count} writes brought the guest up, with the manager killed three times");
    // An absence can only be watched for a while: longer than every interval at which the manager looks by itself.
    std::thread::sleep(Duration::from_secs(20));
    let after = support::manager_writes(lab)?;
    ensure!(after == before, "{} writes while nothing changed", after - before);
    Ok(())
}

/// What is known after a start is less than what the status says: it must not fall back and come again.
fn restarts_quietly(lab: &Lab, guest: &Guest) -> Result<()> {
    let version = || -> Result<Value> { Ok(guest.object()?["metadata"]["resourceVersion"].clone()) };
    let (before, writes) = (version()?, support::manager_writes(lab)?);
    let killed = kill_manager(lab)?;
    let ready = || -> Result<()> {
        ensure!(processes("giantnetes\0run\0")?.iter().any(|process| *process != killed), "not started");
        let state = ["-n", SYSTEM, "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].ready}"];
        ensure!(lab.kubectl(&state)? == "true", "not ready");
        Ok(())
    };
    wait_for(MINUTE * 2, "the manager to be back", ready)?;
    // Longer than its first look at everything takes, the guest's API included.
    std::thread::sleep(Duration::from_secs(5));
    ensure!(version()? == before, "the Cluster was written: {}", guest.object()?["status"]);
    let after = support::manager_writes(lab)?;
    ensure!(after == writes, "{} writes after a restart", after - writes);
    Ok(())
}

/// Policies add up: somebody else's may open what the guest's closes, and nobody would see it.
fn tells_of_leaks(lab: &Lab, guest: &Guest) -> Result<()> {
    guest.await_condition(MINUTE, "NetworkIsolated", "True")?;
    let open = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "open"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}}"#;
    lab.apply_in(&guest.home()?, open)?;
    let began = Instant::now();
    guest.await_condition(MINUTE * 3, "NetworkIsolated", "False")?;
    let message = guest.object()?["status"]["message"].as_str().unwrap_or_default().to_owned();
    println!("    told after {:.1?}: {message}", began.elapsed());
    for what in ["the management cluster's API (", "the kubelet of host "] {
        let pair = format!("VM pod master-0 reaches {what}");
        ensure!(message.contains(&pair), "{message}");
    }
    lab.kubectl(&["-n", &guest.home()?, "delete", "networkpolicy", "open"])?;
    let began = Instant::now();
    guest.await_condition(MINUTE * 3, "NetworkIsolated", "True")?;
    println!("    seen to be closed after {:.1?}", began.elapsed());
    Ok(())
}

fn is_unprivileged(lab: &Lab, guest: &Guest) -> Result<()> {
    let pod: Value =
        serde_json::from_str(&lab.kubectl(&["-n", &guest.home()?, "get", "pod", "master-0", "-o", "json"])?)?;
    let container = &pod["spec"]["containers"][0]["securityContext"];
    ensure!(container["privileged"] != true && container["allowPrivilegeEscalation"] == false, "{container}");
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        ensure!(pod["spec"][shared].is_null(), "it has {shared}");
    }
    ensure!(pod["spec"]["automountServiceAccountToken"] == false);
    let token = guest.in_vm_pod("ls /var/run/secrets/kubernetes.io 2>&1 || true")?;
    ensure!(token.contains("No such file"), "there is a token: {token}");
    let qemu = machines()?;
    let [qemu] = qemu[..] else { bail!("QEMU runs {} times", qemu.len()) };
    let status = std::fs::read_to_string(format!("/proc/{qemu}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        ensure!(field(set) == "0000000000000000", "QEMU has capabilities: {set} {}", field(set));
    }
    ensure!(field("Uid:") == "107 107 107 107" && field("Gid:") == "107 107 107 107" && field("Groups:").is_empty());
    ensure!(field("NoNewPrivs:") == "1", "QEMU could gain rights");
    ensure!(field("Seccomp:") == "2", "QEMU may make every system call");
    Ok(())
}

fn shows_no_secret(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    let mut needles = Vec::new();
    let mut secrets = list(lab, &["-n", &home, "secrets"])?;
    secrets.extend(list(lab, &["-n", guest.namespace, "secrets"])?);
    for secret in &secrets {
        for (key, value) in secret["data"].as_object().context("a Secret without data")? {
            if key.ends_with(".crt") || key.ends_with(".pub") {
                continue;
            }
            let encoded = value.as_str().unwrap_or_default();
            // The middle of the encoded value, too: headers are in every key.
            needles.extend(encoded.get(60..100).map(str::to_owned));
            let text = Run::new("base64").args(["-d"]).input(encoded).output()?;
            needles.extend(key_words(&text).into_iter().map(str::to_owned));
        }
    }
    ensure!(needles.len() > 50, "only {} pieces of key material found", needles.len());
    // The same search where they are.
    let kept = lab.kubectl(&["-n", &home, "get", "secrets", "-o", "yaml"])?;
    ensure!(needles.iter().any(|needle| kept.contains(needle.as_str())), "key material is not found where it lies");
    let namespace = guest.namespace;
    for args in [
        vec!["-n", &home, "get", "configmaps,pods,services,events,persistentvolumeclaims", "-o", "yaml"],
        vec!["get", "namespace", &home, "-o", "yaml"],
        vec!["-n", namespace, "get", "clusters.giantnetes.io,events", "-o", "yaml"],
        vec!["get", "networkclaims", "-o", "yaml"],
        vec!["-n", &home, "logs", "master-0"],
        vec!["-n", SYSTEM, "logs", "deployment/giantnetes"],
        vec!["-n", SYSTEM, "get", "all,configmaps", "-o", "yaml"],
    ] {
        let text = lab.kubectl(&args)?;
        ensure!(text.len() > 100, "kubectl {} shows nothing", args.join(" "));
        ensure!(!text.contains("PRIVATE KEY"), "kubectl {} shows a key", args.join(" "));
        let found = needles.iter().filter(|needle| text.contains(needle.as_str())).count();
        ensure!(found == 0, "kubectl {} shows {found} pieces of key material", args.join(" "));
    }
    let user_data = guest.kubectl(&[
        "exec",
        "root",
        "--",
        "chroot",
        "/proc/1/root",
        "cat",
        "/var/lib/cloud/instance/user-data.txt",
    ])?;
    ensure!(user_data.contains("#cloud-config"), "there is no user data in the node");
    ensure!(!user_data.contains("PRIVATE KEY"), "user data holds a key");
    ensure!(!needles.iter().any(|needle| user_data.contains(needle.as_str())), "user data holds key material");
    Ok(())
}

/// Nothing in the running node has a password or an ssh key; in the image neither, or it would be there.
fn has_no_other_way_in(_: &Lab, guest: &Guest) -> Result<()> {
    let look = "awk -F: '$2 !~ /^[!*]/' /etc/shadow; find / -ignore_readdir_race -xdev \\( -name 'ssh_host_*' -o -name authorized_keys \\)";
    // The shell by its path, or the toolbox's busybox would be its own, and every tool too.
    let in_node =
        |script: &str| guest.kubectl(&["exec", "root", "--", "chroot", "/proc/1/root", "/bin/sh", "-ec", script]);
    let found = in_node(look)?;
    ensure!(found.is_empty(), "the node can be entered by {found}");
    // The same look finds what is there.
    let found =
        in_node("awk -F: '$1 == \"root\"' /etc/shadow; find / -ignore_readdir_race -xdev -name kubelet -type f")?;
    ensure!(
        found.contains("root:") && found.contains("/usr/local/bin/kubelet"),
        "the node's files are not seen: {found}"
    );
    let size = image_path("node").join("initrd.img").metadata()?.len();
    println!("    the initial RAM disk has {:.1} MB", size as f64 / 1e6);
    ensure!(size < 10_000_000, "the initial RAM disk has {size} bytes");
    Ok(())
}

fn survives_qemu(lab: &Lab, guest: &Guest) -> Result<()> {
    let roots = fingerprints(guest)?;
    guest.kubectl_input(&["apply", "-f", "-"], KEPT)?;
    let content = etcd_content(guest)?;
    let restarts = || -> Result<u64> {
        let home = guest.home()?;
        let pod: Value = serde_json::from_str(&lab.kubectl(&["-n", &home, "get", "pod", "master-0", "-o", "json"])?)?;
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64().context("no restart count")
    };
    let before = restarts()?;
    let qemu = machines()?;
    Run::new("kill").args(["-9", &qemu.first().context("QEMU does not run")?.to_string()]).output()?;
    let started = Instant::now();
    wait_for(MINUTE, "the container's restart", || {
        ensure!(restarts()? == before + 1, "not restarted");
        Ok(())
    })?;
    guest.await_condition(MINUTE, "Ready", "False")?;
    guest.await_ready()?;
    println!("    Ready again after {:.1?}", started.elapsed());
    etcd_has(guest, &content)?;
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    wait_for(patience(), "the pod to run again", || guest.kubectl(&["exec", "hello", "--", "true"]))?;
    Ok(())
}

/// Whoever reads everything that the management cluster has of the guest cannot sign in its name.
fn is_kept_in_vault(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    let mounts = mounts_in_vault(lab)?;
    let id = home.trim_start_matches("g8s-");
    ensure!(mounts.len() == 3 && mounts.iter().all(|mount| mount.contains(&format!("/{id}/"))), "{mounts:?}");
    let secret = lab.kubectl(&["-n", &home, "get", "secret", roots::SECRET, "-o", "json"])?;
    let secret: Value = serde_json::from_str(&secret)?;
    let held = secret["data"].as_object().context("a Secret with data")?;
    for root in ["kubernetes", "etcd", "front-proxy"] {
        let of_it = held.keys().filter(|key| key.starts_with(&format!("{root}.")));
        ensure!(
            of_it.eq(["crt", "vault-mount"].map(|kind| format!("{root}.{kind}")).iter()),
            "{root}: {:?}",
            held.keys()
        );
    }
    // What the API server shows is signed there: the certificate that Vault has for the guest verifies it.
    let vault = lab.vault();
    let answer = vault.ask(None, "GET", &format!("giantnetes/{id}/kubernetes/cert/ca"), &Value::Null)?;
    let root = answer["data"]["certificate"].as_str().context("a certificate")?.trim();
    let known = guest.kubectl(&[
        "-n",
        "kube-system",
        "get",
        "configmap",
        "kube-root-ca.crt",
        "-o",
        "jsonpath={.data.ca\\.crt}",
    ])?;
    ensure!(known.trim() == root, "the guest trusts another root than Vault has");
    Ok(())
}

fn leaves_nothing(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    kill_manager(lab)?;
    let took = guest.delete(MINUTE * 3)?;
    println!("    gone after {took:.1?}, with the manager killed at the beginning");
    let mounts = mounts_in_vault(lab)?;
    ensure!(mounts.is_empty(), "left in Vault: {mounts:?}");
    nothing_is_left(lab, guest, &home)
}

/// Network devices of the lab's hosts, but for those that lead to pods: pods of others come and go.
fn host_links() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for host in lab::topology::HOSTS {
        let text = Run::line("ip -o -netns").args([&host.room.netns(), "link", "show"]).output()?;
        let names = text.lines().filter_map(|line| line.split(": ").nth(1));
        let names = names.filter(|name| !name.starts_with("cali")).map(|name| format!("{} {name}", host.name()));
        found.extend(names);
    }
    Ok(found)
}

/// The namespace holds the roots: without it the guest is lost, and must not be replaced by another in its name.
#[test]
fn a_deleted_namespace_is_not_replaced() {
    let lab = installed();
    // A volume that no class provides keeps the VM pod from being scheduled: this test needs none.
    let spec = "{etcd: {storage: {className: none}}}";
    let guest = Guest::create(&lab, "e2e-namespace", "beta", spec);
    guest.await_condition(MINUTE, "PKIReady", "True").unwrap();
    let home = guest.home().unwrap();
    lab.kubectl_within(MINUTE, &["delete", "namespace", &home]).unwrap();
    guest.await_condition(MINUTE, "Degraded", "True").unwrap();
    let status = guest.object().unwrap()["status"].clone();
    assert!(status["message"].as_str().unwrap().contains(&format!("namespace {home} was deleted")), "{status}");
    let there = lab.kubectl(&["get", "namespace", &home, "--ignore-not-found", "-o", "name"]).unwrap();
    assert_eq!(there, "", "it was made anew");
    let took = guest.delete(MINUTE).unwrap();
    println!("    gone after {took:.1?}");
    claims_go(&lab).unwrap();
}

/// What the API server itself refuses, by name of the field.
#[test]
fn changes_that_no_roll_can_bring_are_refused() {
    let lab = installed();
    let guest = Guest::create(&lab, "e2e-admission", "gamma", "{etcd: {storage: {className: none}}}");
    wait_for(MINUTE, "the version to be pinned", || {
        ensure!(guest.object()?["status"]["version"].is_string(), "it is not");
        Ok(())
    })
    .unwrap();
    for (change, word) in [
        (r#"{"kubernetes":{"podCIDR":"10.1.0.0/16"}}"#, "spec.kubernetes.podCIDR: Invalid value: is immutable"),
        (r#"{"kubernetes":{"serviceCIDR":"10.2.0.0/16"}}"#, "spec.kubernetes.serviceCIDR: Invalid value: is immutable"),
        (r#"{"kubernetes":{"version":"v1.39.0"}}"#, "spec.kubernetes.version: Invalid value: must not skip"),
        (
            r#"{"network":{"overlay":{"cidr":"172.27.0.0/20"}}}"#,
            "spec.network.overlay.cidr: Invalid value: is immutable",
        ),
        (r#"{"network":{"overlay":{"vni":1234}}}"#, "spec.network.overlay.vni: Invalid value: is immutable"),
        (r#"{"controlPlane":{"replicas":2}}"#, "spec.controlPlane.replicas: Invalid value: 2: must be 1, 3 or 5"),
        (r#"{"etcd":{"storage":{"size":"9Gi"}}}"#, "spec.etcd.storage.size: Invalid value: is immutable"),
        (r#"{"controlPlane":{"machine":{"cpus":0}}}"#, "spec.controlPlane.machine.cpus"),
    ] {
        let patch = format!("{{\"spec\":{change}}}");
        let error = guest.change(&patch).expect_err(change).to_string();
        assert!(error.contains(word), "{change}: {error}");
    }
}
