//! A guest of two nodes, as its users see it: what they expect of any Kubernetes works in it. One boot, many checks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::command::Run;
use lab::{Lab, wait_every, wait_for};
use support::apart::{self, Overlay};
use support::pods::{self, SERVICE, address, fetch, web_server};
use support::processes::Process;
use support::traces::{KEPT, etcd_content, etcd_has, fingerprints};
use support::workload::{ROOT_ON_EVERY_NODE, in_node};
use support::{Guest, in_steps, installed, patience};

/// What the design has for a guest of 1 + 1 nodes to become Ready, in seconds.
const READY_AIM: u64 = 180;
const MINUTE: Duration = Duration::from_secs(60);

/// Web servers, one on each node.
const WEB: [&str; 2] = ["web-master", "web-worker"];

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn a_typical_guest_is_a_whole_kubernetes() {
    let lab = installed();
    let example = std::fs::read_to_string(support::root().join("manifests/examples/typical.yaml")).unwrap();
    let guest = Guest::apply(&lab, "e2e-typical", "typical", &example);
    let steps: [(&str, Step); 14] = [
        ("two nodes become Ready", become_ready),
        ("a workload runs on both nodes", workload_runs),
        ("BGP is established on both nodes", bgp_is_established),
        ("pods reach each other and Services, on and across nodes", pods_reach_each_other),
        ("names resolve", names_resolve),
        ("logs, exec and port-forward reach both nodes", logs_exec_and_port_forward),
        ("a NetworkPolicy blocks what it says", policies_hold),
        ("rights are as RBAC says", rbac_holds),
        ("a user has the rights that a ClusterAccess names, for as long as it is there", users_have_their_rights),
        ("an Ingress answers from outside, for as long as there is an ingress controller", ingresses_are_served),
        ("a gateway leads to its API as the Ingress did", gateway_leads),
        ("root in a VM reaches no other guest and nothing of the management cluster", |lab, guest| {
            apart::is_apart(lab, guest, Overlay::Native, "{}")
        }),
        ("a renewed certificate is served without a reboot", renewed_certificates_are_served),
        ("a deleted VM pod of a worker comes back, with its place and its pods", worker_returns),
    ];
    in_steps(&steps, |step| step(&lab, &guest));
}

fn become_ready(lab: &Lab, guest: &Guest) -> Result<()> {
    guest.await_first_ready(READY_AIM)?;
    let nodes = guest.kubectl(&["get", "nodes", "-o", "wide", "--no-headers"])?;
    println!("{nodes}");
    ensure!(nodes.lines().filter(|line| line.contains(" Ready ")).count() == 2, "{nodes}");
    let home = guest.home()?;
    let times = "{range .items[*]}{.metadata.name}{'\\t'}{.status.startTime}{'\\t'}{.status.conditions[?(@.type=='Ready')].lastTransitionTime}{'\\n'}{end}";
    println!(
        "    VM pods started and ready:\n{}",
        lab.kubectl(&["-n", &home, "get", "pods", "-o", &format!("jsonpath={times}")])?
    );
    println!("    {} writes of the manager", support::manager_writes(lab)? - guest.writes_before);
    Ok(())
}

fn workload_runs(_: &Lab, guest: &Guest) -> Result<()> {
    let servers = web_server("web-master", "master-0") + &web_server("web-worker", "default-0");
    guest.kubectl_input(&["apply", "-f", "-"], &format!("{SERVICE}{ROOT_ON_EVERY_NODE}{servers}"))?;
    pods::await_pods(guest, &WEB)?;
    // Privileged, with the node's network: they run, or nobody is root in a VM below.
    guest.kubectl(&["rollout", "status", "daemonset/root", "--timeout=180s"]).map(drop)
}

fn gateway_leads(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    for (type_, there, gone) in [("TLSRoute", "tlsroute", "ingress"), ("Ingress", "ingress", "tlsroute")] {
        guest.change(&format!(r#"{{"spec": {{"exposure": {{"type": "{type_}"}}}}}}"#))?;
        wait_for(MINUTE, "the other way to be the only one", || {
            let of =
                |kind: &str| lab.kubectl(&["-n", &home, "get", kind, "master", "--ignore-not-found", "-o", "name"]);
            ensure!(!of(there)?.is_empty() && of(gone)?.is_empty(), "{type_}: {}{}", of(there)?, of(gone)?);
            Ok(())
        })?;
        // The gateway's controller follows within moments.
        wait_for(MINUTE, "the API to be reached that way", || guest.kubectl(&["get", "--raw", "/readyz"]))?;
    }
    Ok(())
}

fn bgp_is_established(_: &Lab, guest: &Guest) -> Result<()> {
    pods::bgp_is_established(guest, &["master-0", "default-0"])
}

fn pods_reach_each_other(_: &Lab, guest: &Guest) -> Result<()> {
    pods::reach_each_other(guest, &WEB)?;
    pods::reach_by_service(guest, &WEB)
}

fn names_resolve(_: &Lab, guest: &Guest) -> Result<()> {
    for from in WEB {
        let said = fetch(guest, from, "http://web.default.svc.cluster.local/")?;
        ensure!(said.starts_with("web-"), "{from} got {said}");
        let answer = guest.kubectl(&["exec", from, "--", "nslookup", "kubernetes.default.svc.cluster.local"])?;
        ensure!(answer.contains("10.96.0.1"), "{answer}");
    }
    Ok(())
}

fn logs_exec_and_port_forward(_: &Lab, guest: &Guest) -> Result<()> {
    for pod in WEB {
        ensure!(guest.kubectl(&["logs", pod])?.trim() == "serving", "no logs of {pod}");
        ensure!(guest.kubectl(&["exec", pod, "--", "hostname"])?.trim() == pod, "no exec into {pod}");
        let free = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut forward = Process(
            guest
                .command(&["port-forward", &format!("pod/{pod}"), &format!("{free}:8080")])?
                .stdout(Stdio::null())
                .spawn()?,
        );
        let said = wait_for(MINUTE, "the forwarded port", || {
            ensure!(forward.0.try_wait()?.is_none(), "kubectl port-forward ended");
            Run::new("curl").args(["-sS", "-m", "5", &format!("http://127.0.0.1:{free}/")]).output()
        })?;
        ensure!(said.trim() == pod, "the forwarded port answers {said}");
    }
    Ok(())
}

fn policies_hold(_: &Lab, guest: &Guest) -> Result<()> {
    // From one node to the other, and on one node.
    pods::policies_hold(guest, &WEB, "default-0")
}

fn rbac_holds(_: &Lab, guest: &Guest) -> Result<()> {
    guest.kubectl(&["create", "serviceaccount", "reader"])?;
    guest.kubectl(&["create", "role", "reader", "--verb=get,list", "--resource=pods"])?;
    guest.kubectl(&["create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:reader"])?;
    let may = |verb: &str, what: &str| {
        is_yes(guest.kubectl(&["auth", "can-i", verb, what, "--as=system:serviceaccount:default:reader"]))
    };
    wait_for(MINUTE, "the right to list pods", || {
        ensure!(may("list", "pods")?, "not yet");
        Ok(())
    })?;
    ensure!(!may("delete", "pods")? && !may("list", "secrets")?, "the reader may more than its role says");
    Ok(())
}

/// What `kubectl auth can-i` says. It ends with 1 where that is no.
fn is_yes(said: Result<String>) -> Result<bool> {
    match said {
        Ok(said) => Ok(said.trim() == "yes"),
        Err(error) if format!("{error:#}").contains("ended with status 1: no") => Ok(false),
        Err(error) => Err(error),
    }
}

fn users_have_their_rights(lab: &Lab, guest: &Guest) -> Result<()> {
    let access = |words: &[&str]| lab.kubectl(&[&["-n", guest.namespace], words].concat());
    let may = |verb: &str, namespace: &str| {
        is_yes(guest.kubectl_as("alice", &["auth", "can-i", verb, "pods", "-n", namespace]))
    };
    let mut words = vec!["--user", "alice", "--cluster-role", "view", "--in", "default"];
    // What is bound is known to the API server a moment later.
    let comes = |verb: &str, namespace: &str| {
        wait_every(Duration::from_secs(1), MINUTE, "a right that was told to be there", || {
            ensure!(may(verb, namespace)?, "alice may not {verb} pods in {namespace}");
            Ok(())
        })
    };
    guest.kubeconfig("alice", &words)?;
    comes("list", "default")?;
    guest.kubectl_as("alice", &["get", "pods"])?;
    ensure!(!may("delete", "default")?, "who may look may delete");
    ensure!(!may("list", "kube-system")?, "who may look into one namespace may look into others");

    words[3] = "edit";
    guest.kubeconfig("alice", &words)?;
    comes("delete", "default")?;
    let roles = "jsonpath={.items[*].roleRef.name}";
    let bound = || guest.kubectl(&["get", "rolebindings", "-A", "-l", "giantnetes.io/access", "-o", roles]);
    ensure!(bound()?.trim() == "edit", "the former role is bound still: {}", bound()?);

    // A namespace that is not there is told, and waited for.
    let patch = r#"{"spec": {"rights": {"namespaces": ["default", "later"]}}}"#;
    access(&["patch", "gca", "typical.alice", "--type=merge", "-p", patch])?;
    let message = "jsonpath={.status.conditions[0].status} {.status.conditions[0].message}";
    let says = |what: &str| {
        wait_every(Duration::from_secs(1), MINUTE, "what the ClusterAccess says", || {
            let said = access(&["get", "gca", "typical.alice", "-o", message])?;
            ensure!(said.contains(what), "{said}");
            Ok(())
        })
    };
    says("False waits for namespace later of the guest")?;
    guest.kubectl(&["create", "namespace", "later"])?;
    says("True ")?;
    comes("delete", "later")?;

    access(&["delete", "gca", "typical.alice"])?;
    wait_every(Duration::from_secs(1), MINUTE, "the rights to end with the ClusterAccess", || {
        ensure!(!may("list", "default")?, "they have not");
        Ok(())
    })?;
    ensure!(bound()?.is_empty(), "a binding is left: {}", bound()?);
    guest.kubectl(&["delete", "namespace", "later", "--wait=false"]).map(drop)
}

/// A way to both web servers by a name.
const INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  rules:
  - host: web.example.test
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
";

fn ingresses_are_served(lab: &Lab, guest: &Guest) -> Result<()> {
    let started = Instant::now();
    guest.change(r#"{"spec": {"ingressController": {"enabled": true}}}"#)?;
    let address = wait_for(MINUTE, "an address of the ingress controller", || {
        guest.object()?["status"]["ingress"].as_str().map(str::to_owned).context("there is none yet")
    })?;
    // Whose class is the default one is decided when an Ingress is made.
    wait_for(MINUTE * 2, "the class of the ingress controller", || {
        guest.kubectl(&["get", "ingressclass", "giantnetes"])
    })?;
    guest.kubectl_input(&["apply", "-f", "-"], INGRESS)?;
    // A host of the management cluster, in front of the Service that leads to the VM pods.
    let host = lab::topology::HOSTS[0].room.netns();
    let ask = |scheme: &str, name: &str| {
        let port = if scheme == "http" { 80 } else { 443 };
        Run::line("ip netns exec")
            .args([host.to_string()])
            // Nobody has signed the ingress controller's own certificate.
            .args(["curl", "-sSfk", "-m", "5", "--resolve", &format!("{name}:{port}:{address}")])
            .args([format!("{scheme}://{name}/")])
            .output()
    };
    for scheme in ["http", "https"] {
        let said = wait_every(Duration::from_secs(2), patience(), "the Ingress to answer from outside", || {
            ask(scheme, "web.example.test")
        })?;
        ensure!(said.starts_with("web-"), "{scheme} answers {said}");
        println!("    {scheme} answers from outside after {:.1?}", started.elapsed());
    }
    let other = format!("{:#}", ask("http", "other.example.test").err().context("a name of no Ingress is served")?);
    ensure!(other.contains("404"), "{other}");
    guest.await_ready()?;

    guest.change(r#"{"spec": {"ingressController": {"enabled": false}}}"#)?;
    let kinds = "deployments,services,serviceaccounts,ingressclasses,clusterroles,clusterrolebindings";
    wait_every(Duration::from_secs(2), MINUTE * 3, "the ingress controller to go", || {
        let left = guest.kubectl(&["get", kinds, "-A", "-l", "giantnetes.io/optional", "-o", "name"])?;
        ensure!(left.trim().is_empty(), "left in the guest: {left}");
        let service = ["-n", &guest.home()?, "get", "service", "ingress", "--ignore-not-found", "-o", "name"];
        ensure!(lab.kubectl(&service)?.is_empty(), "the way there is left");
        Ok(())
    })?;
    ensure!(ask("http", "web.example.test").is_err(), "who serves it?");
    guest.kubectl(&["delete", "ingress", "web"]).map(drop)
}

/// What the API server serves to who comes through the Ingress, and what a kubelet serves inside the guest.
fn served(guest: &Guest) -> Result<[String; 2]> {
    let object = guest.object()?;
    let endpoint = object["status"]["endpoint"].as_str().unwrap_or_default().to_owned();
    let host = endpoint.trim_start_matches("https://").split(':').next().unwrap_or_default().to_owned();
    let api = Command::new("openssl")
        .args(["s_client", "-connect", "127.0.0.1:10443", "-servername", &host])
        .stdin(Stdio::null())
        .output()?;
    let api = String::from_utf8_lossy(&api.stdout).into_owned();
    let begin = api.find("-----BEGIN CERTIFICATE-----").context("the API server serves no certificate")?;
    let end = api.find("-----END CERTIFICATE-----").context("half a certificate")?;
    let kubelet = in_node(
        guest,
        "default-0",
        "python3 -c \"import ssl; print(ssl.get_server_certificate(('127.0.0.1', 10250)))\"",
    )?;
    Ok([api[begin..end].to_owned(), kubelet])
}

/// Every pod of the guest, and how often each of its containers was started anew.
fn restarts(guest: &Guest) -> Result<String> {
    let each = "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].restartCount}{'\\n'}{end}";
    guest.kubectl(&["get", "pods", "-A", "-o", each])
}

/// Does something while clients go on all the time: to the API through the Ingress, and by way of it to a kubelet. Fails if one of
/// them is not served.
fn while_clients_ask(guest: &Guest, deed: impl FnOnce() -> Result<()>) -> Result<()> {
    const CLIENTS: [&[&str]; 2] = [&["get", "--raw", "/readyz"], &["exec", "web-worker", "--", "true"]];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients = CLIENTS.map(|words| {
            let stop = &stop;
            scope.spawn(move || {
                let (mut served, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match guest.kubectl(words) {
                        Ok(_) => served += 1,
                        Err(error) => failed.push(format!("{error:#}")),
                    }
                }
                (words, served, failed)
            })
        });
        let done = deed();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let (words, served, failed) = client.join().expect("a client does not panic");
            println!("    kubectl {}: served {served} times, {} times not", words.join(" "), failed.len());
            ensure!(failed.is_empty(), "{failed:?}");
            ensure!(served > 5, "a client asked {served} times only");
        }
        done
    })
}

fn renewed_certificates_are_served(lab: &Lab, guest: &Guest) -> Result<()> {
    let before = restarts(guest)?;
    while_clients_ask(guest, || renew_certificates(lab, guest))?;
    let after = restarts(guest)?;
    ensure!(after == before, "pods were {before} and are {after}");
    Ok(())
}

fn renew_certificates(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    let boots = |node: &str| in_node(guest, node, "cat /proc/sys/kernel/random/boot_id");
    let (before, booted) = (served(guest)?, [boots("master-0")?, boots("default-0")?]);
    for node in ["master-0", "default-0"] {
        let args = [
            "-n",
            &home,
            "annotate",
            "--overwrite",
            "secret",
            &format!("{node}-pki"),
            "giantnetes.io/renew-at=2020-01-01T00:00:00Z",
        ];
        lab.kubectl(&args)?;
    }
    let started = Instant::now();
    // Kubelet of the host refreshes the volume within a minute and a half, the guest looks every half minute.
    wait_every(Duration::from_secs(3), MINUTE * 6, "both renewed certificates", || {
        let now = served(guest)?;
        ensure!(now[0] != before[0], "the API server serves the old one");
        ensure!(now[1] != before[1], "kubelet serves the old one");
        Ok(())
    })?;
    println!("    both are served after {:.1?}", started.elapsed());
    ensure!([boots("master-0")?, boots("default-0")?] == booted, "a node was booted");
    ensure!(guest.kubectl(&["logs", "web-worker"])?.trim() == "serving", "kubelet's new certificate is not accepted");
    Ok(())
}

fn worker_returns(lab: &Lab, guest: &Guest) -> Result<()> {
    let home = guest.home()?;
    let place = [
        "-n",
        &home,
        "get",
        "pod",
        "default-0",
        "-o",
        "jsonpath={.metadata.uid} {.metadata.annotations.giantnetes\\.io/place}",
    ];
    guest.kubectl_input(&["apply", "-f", "-"], KEPT)?;
    let (before, roots, content) = (lab.kubectl(&place)?, fingerprints(guest)?, etcd_content(guest)?);
    // What its supervisor says to the last: that the guest has powered off, and was not ended.
    let last_words = std::thread::scope(|scope| -> Result<String> {
        let log = scope.spawn(|| lab.kubectl_within(MINUTE * 4, &["-n", &home, "logs", "-f", "--tail=1", "default-0"]));
        lab.kubectl_within(MINUTE * 3, &["-n", &home, "delete", "pod", "default-0"])?;
        log.join().expect("kubectl does not panic")
    })?;
    ensure!(last_words.contains("the guest is off"), "the VM was not powered off: {last_words}");
    guest.await_condition(MINUTE, "Ready", "False")?;
    guest.await_ready()?;
    ensure!(fingerprints(guest)? == roots, "a root was made anew");
    etcd_has(guest, &content)?;
    let after = lab.kubectl(&place)?;
    ensure!(before.split(' ').next() != after.split(' ').next(), "the VM pod was not made anew");
    ensure!(before.split(' ').next_back() == after.split(' ').next_back(), "its place changed: {before}, {after}");
    wait_every(Duration::from_secs(2), patience(), "the pod on the worker to serve again", || {
        fetch(guest, "web-master", &format!("http://{}:8080/", address(guest, "web-worker")?))
    })
    .map(drop)
}
