//! What runs in guests while something happens to them.

use anyhow::Result;

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
