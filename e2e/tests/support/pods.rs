//! What pods of a guest reach, and how their network finds its ways.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{wait_every, wait_for};

use super::{Guest, NAMED};

const MINUTE: Duration = Duration::from_secs(60);

/// A Service in front of all web servers.
pub const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

/// A web server on a node that says who it is.
pub fn web_server(name: &str, node: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: giantnetes/toolbox:1
    imagePullPolicy: Never
    command: [sh, -c, "mkdir /www; hostname > /www/index.html; echo serving; exec httpd -f -p 8080 -h /www"]
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 2}}
"#
    )
}

/// Asks `from` for the page at `url`. (The limit is not wget's own: with `-T` Debian's busybox ends by SIGSEGV.)
pub fn fetch(guest: &Guest, from: &str, url: &str) -> Result<String> {
    guest.kubectl(&["exec", from, "--", "timeout", "5", "wget", "-q", "-O", "-", url])
}

/// Whether `from` gets the page at `url`. A command that does not get into the pod says nothing about that.
pub fn is_open(guest: &Guest, from: &str, url: &str) -> Result<bool> {
    match fetch(guest, from, url) {
        Ok(_) => Ok(true),
        // Of busybox' and of GNU's timeout: nothing came for five seconds.
        Err(error) if ["exit code 143", "exit code 124"].iter().any(|code| format!("{error:#}").contains(code)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// A pod's address.
pub fn address(guest: &Guest, pod: &str) -> Result<String> {
    guest.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
}

/// Each of these web servers gets the page of each.
pub fn reach_each_other(guest: &Guest, pods: &[&str]) -> Result<()> {
    for pod in pods {
        let url = format!("http://{}:8080/", address(guest, pod)?);
        for from in pods {
            ensure!(fetch(guest, from, &url)?.trim() == *pod, "{from} does not reach {pod}");
        }
    }
    Ok(())
}

/// From each of these pods, Service `web` leads to all of them, sooner or later.
pub fn reach_by_service(guest: &Guest, pods: &[&str]) -> Result<()> {
    let service = guest.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    for from in pods {
        let mut missing: Vec<_> = pods.to_vec();
        wait_every(Duration::from_millis(200), MINUTE, "all endpoints of the Service", || {
            let said = fetch(guest, from, &format!("http://{service}/"))?;
            missing.retain(|pod| *pod != said.trim());
            ensure!(missing.is_empty(), "{from} never got to {missing:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// BIRD's sessions between these nodes are established, and each learned a block of pods by one.
pub fn bgp_is_established(guest: &Guest, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        let selector = format!("--field-selector=spec.nodeName={node}");
        let pods = ["-n", "kube-system", "get", "pods", "-l", "k8s-app=calico-node", &selector, "-o", NAMED];
        let pod = guest.kubectl(&pods)?;
        let show = ["-n", "kube-system", "exec", pod.trim(), "-c", "calico-node", "--"];
        let ask =
            |words: &[&str]| guest.kubectl(&[&show[..], &["birdcl", "-s", "/var/run/calico/bird.ctl"], words].concat());
        let protocols = wait_every(Duration::from_secs(2), MINUTE * 2, "established sessions", || {
            let protocols = ask(&["show", "protocols"])?;
            let established = protocols.lines().filter_map(session).count();
            ensure!(established == nodes.len() - 1, "{established} of {}: {protocols}", nodes.len() - 1);
            Ok(protocols)
        })?;
        println!("    {node}: {}", protocols.lines().find(|line| line.contains("Established")).unwrap_or_default());
        let routes = ask(&["show", "route", "protocol", protocols.lines().find_map(session).unwrap_or_default()])?;
        // In columns: a block of pods, and the neighbour that it lies behind.
        let routes = routes.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(routes.contains("/26 via 172.26."), "{node} learned no block of pods: {routes}");
    }
    Ok(())
}

/// Name of the established session that a line of `show protocols` is about.
fn session(line: &str) -> Option<&str> {
    line.contains("Established").then(|| line.split_whitespace().next())?
}

/// A pod that serves nothing. (What a pod sends to its own address meets no policy.)
fn visitor(node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: visitor}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: visitor
    image: giantnetes/toolbox:1
    imagePullPolicy: Never
    command: [sleep, "86400"]
"#
    )
}

/// A NetworkPolicy on the web servers holds for a visitor on this node: shut, open for a friend, and open again without it.
pub fn policies_hold(guest: &Guest, pods: &[&str], node: &str) -> Result<()> {
    let policy = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "only-friends"},
      "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
               "ingress": [{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}]}}"#;
    guest.kubectl_input(&["apply", "-f", "-"], &visitor(node))?;
    guest.kubectl(&["wait", "--for=condition=Ready", "pod/visitor", "--timeout=180s"])?;
    let urls: Vec<_> =
        pods.iter().map(|pod| Ok(format!("http://{}:8080/", address(guest, pod)?))).collect::<Result<_>>()?;
    let becomes = |what: &str, open: bool| {
        urls.iter().try_for_each(|url| {
            wait_every(Duration::from_secs(1), MINUTE, what, || {
                // What is slow once is not shut.
                for _ in 0..if open { 1 } else { 3 } {
                    let state = if open { "shut" } else { "open" };
                    ensure!(is_open(guest, "visitor", url)? == open, "{url} is {state}");
                }
                Ok(())
            })
        })
    };
    becomes("a pod without a policy to be open", true)?;
    guest.kubectl_input(&["apply", "-f", "-"], policy)?;
    becomes("the policy to hold", false)?;
    guest.kubectl(&["label", "pod", "visitor", "friend=yes"])?;
    becomes("a friend to get through", true)?;
    let other = urls.last().context("no web servers")?;
    ensure!(!is_open(guest, pods[0], other)?, "{other} is open to who is no friend");
    guest.kubectl(&["delete", "networkpolicy", "only-friends"])?;
    guest.kubectl(&["label", "pod", "visitor", "friend-"])?;
    becomes("everybody to get through again", true)
}

/// Waits until each of these pods serves.
pub fn await_pods(guest: &Guest, pods: &[&str]) -> Result<()> {
    for pod in pods {
        guest.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=180s"])?;
    }
    // What kubelet says of a pod is known to Services a moment later.
    wait_for(MINUTE, "endpoints of the Service", || {
        let ready = "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
        let found = guest.kubectl(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", ready])?;
        ensure!(found.split_whitespace().count() == pods.len(), "{found}");
        Ok(())
    })
}
