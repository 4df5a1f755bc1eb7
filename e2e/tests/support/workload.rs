//! What runs in guests while something happens to them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::wait_every;

use super::{Guest, NAMED};

/// A pod on each node with every right over it: what a tenant who is root there can do.
pub const ROOT_ON_EVERY_NODE: &str = r#"---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: root}
spec:
  selector: {matchLabels: {app: root}}
  template:
    metadata: {labels: {app: root}}
    spec:
      hostNetwork: true
      hostPID: true
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers:
      - name: root
        image: giantnetes/toolbox:1
        imagePullPolicy: Never
        command: [sleep, "86400"]
        securityContext: {privileged: true}
"#;

/// Runs a shell command as root of a node, by its pod of [`ROOT_ON_EVERY_NODE`]. The shell is named by its path, or the
/// toolbox's busybox would be its own, and every tool too.
pub fn in_node(guest: &Guest, node: &str, command: &str) -> Result<String> {
    let selector = format!("--field-selector=spec.nodeName={node}");
    let pod = guest.kubectl(&["get", "pods", "-l", "app=root", &selector, "-o", NAMED])?;
    guest.kubectl(&["exec", pod.trim(), "--", "chroot", "/proc/1/root", "/bin/sh", "-c", command])
}

/// A Deployment `web` of web servers that say their pod's name. `of_pods` and `of_containers` are further lines of a pod's
/// spec and of its container.
pub fn web_servers(replicas: u32, of_pods: &str, of_containers: &str) -> String {
    let at = |depth: usize, lines: &str| {
        lines.lines().map(|line| format!("{}{line}\n", " ".repeat(depth))).collect::<String>()
    };
    let (of_pods, of_containers) = (at(6, of_pods), at(8, of_containers));
    format!(
        r#"---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
{of_pods}      containers:
      - name: web
        image: giantnetes/toolbox:1
        imagePullPolicy: Never
        command: [sh, -c, "mkdir /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www"]
        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 2}}
{of_containers}"#
    )
}

/// Of a pod's spec: a node for each pod as far as there is room.
pub const SPREAD: &str = "topologySpreadConstraints:
- {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}";

/// Two servers, one of which always serves, and a client on every node that asks them twice a second. It asks by address:
/// whether names resolve while the one DNS server moves is another matter.
const CLIENTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: kept}
data: {a: b}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.80, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers:
      - name: client
        image: giantnetes/toolbox:1
        imagePullPolicy: Never
        command:
        - sh
        - -c
        - |
          mkdir -p /count
          # With -T of its own Debian's busybox ends by SIGSEGV.
          # The first answer on a node that has just come is waited for.
          until timeout 5 wget -q -O /dev/null http://10.96.0.80/; do sleep 1; done
          while :; do
            if timeout 10 wget -q -O /dev/null http://10.96.0.80/; then echo >> /count/served; else date >> /count/failed; fi
            sleep 0.5
          done
"#;

/// Of the servers' pods: as long as all nodes may take to hear that one goes, it serves.
const LINGERS: &str = "lifecycle: {preStop: {sleep: {seconds: 30}}}";

/// Two servers that are asked all the time from every node; each of `nodes` has had an answer.
pub fn asked_from(guest: &Guest, nodes: &[&str]) -> Result<()> {
    let servers = web_servers(2, &format!("terminationGracePeriodSeconds: 60\n{SPREAD}"), LINGERS);
    guest.kubectl_input(&["apply", "-f", "-"], &format!("{CLIENTS}{servers}"))?;
    for workload in ["deployment/web", "daemonset/client"] {
        guest.kubectl(&["rollout", "status", workload, "--timeout=180s"])?;
    }
    for node in nodes {
        wait_every(Duration::from_secs(2), Duration::from_secs(180), "answers", || {
            let (served, _) = counts(guest, node)?;
            ensure!(served > 0, "{node} got no answer yet");
            Ok(())
        })?;
    }
    Ok(())
}

/// How many requests of the client on a node were served since it started, and how many were not.
pub fn counts(guest: &Guest, node: &str) -> Result<(u64, u64)> {
    let selector = format!("--field-selector=spec.nodeName={node}");
    let pod = guest.kubectl(&["get", "pods", "-l", "app=client", &selector, "-o", NAMED])?;
    let count = "cd /count; for f in served failed; do cat $f 2>/dev/null | wc -l; done";
    let said = guest.kubectl(&["exec", pod.trim(), "--", "sh", "-c", count])?;
    let mut numbers = said.split_whitespace().map(str::parse);
    let mut next = || numbers.next().context("a number is missing");
    Ok((next()??, next()??))
}
