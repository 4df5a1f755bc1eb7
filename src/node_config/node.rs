//! What every node runs: containerd, kubelet and kube-proxy.

use serde_json::json;

use super::{
    File, Node, api_serves,
    component::{Component, Started, gates_section, kubeconfig, kubeconfig_path},
    paths::{CA, certificate, in_pki, key},
};
use crate::{
    api::names,
    cluster::valid::{NodePool, Taint},
    network::addresses::dns,
};

const KUBELET: &str = "/etc/kubernetes/kubelet.yaml";
const KUBE_PROXY: &str = "/etc/kubernetes/kube-proxy.yaml";
/// The pause image that the node image carries; see images/.
const PAUSE: &str = "giantnetes/pause:1";

pub(super) fn components(node: &Node) -> Vec<Component> {
    vec![containerd(), kubelet(node).with_flags(&node.cluster.kubernetes.kubelet), kube_proxy(node)]
}

pub(super) fn files(node: &Node) -> Vec<File> {
    let mut files = api_serves::files(node);
    files.extend([
        node.machine.resolver(),
        File::new("/etc/containerd/config.toml", containerd_config()),
        File::new(KUBELET, kubelet_config(node)),
    ]);
    if !proxy_takes_flags(node) {
        files.push(File::new(KUBE_PROXY, kube_proxy_config(node)));
    }
    files.push(kubeconfig("kubelet", &node.api));
    files.push(kubeconfig("kube-proxy", &node.api));
    files
}

fn containerd() -> Component {
    Component {
        name: "containerd",
        description: "containerd",
        argv: vec!["/usr/bin/containerd".into()],
        started: Started::Notify,
        after: vec!["local-fs.target"],
        waits_for: None,
        service: vec![
            "Delegate=yes",
            "KillMode=process",
            "LimitNOFILE=1048576",
            "LimitNPROC=infinity",
            "TasksMax=infinity",
            "OOMScoreAdjust=-999",
        ],
        flags: vec![],
    }
}

fn kubelet(node: &Node) -> Component {
    Component {
        name: "kubelet",
        description: "kubelet",
        argv: [
            "/usr/local/bin/kubelet".into(),
            format!("--config={KUBELET}"),
            format!("--kubeconfig={}", kubeconfig_path("kubelet")),
            format!("--hostname-override={}", node.name),
            format!("--node-ip={}", node.machine.address()),
        ]
        .into_iter()
        .chain(node.machine.kubelet_flags())
        .chain(node.pool.map(labels))
        .collect(),
        started: Started::Exec,
        after: vec!["containerd.service", "giantnetes-pki.service", "giantnetes-growfs.service"],
        waits_for: Some(api_serves::UNIT),
        service: vec!["KillMode=process", "OOMScoreAdjust=-999"],
        flags: vec![],
    }
}

/// Labels that a kubelet gives its Node when it registers: the pool's, and ours that says which pool it is. No key of
/// kubernetes.io is among them, which a kubelet may not set; users' keys were checked.
fn labels(pool: &NodePool) -> String {
    let ours = format!("{}={}", names::POOL_LABEL, pool.name);
    let theirs = pool.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let all: Vec<_> = std::iter::once(ours).chain(theirs).collect();
    format!("--node-labels={}", all.join(","))
}

/// Taints that a kubelet gives its Node when it registers.
fn taints(pool: &NodePool) -> String {
    if pool.taints.is_empty() {
        return String::new();
    }
    let taint =
        |taint: &Taint| format!("- {}\n", json!({"key": taint.key, "value": taint.value, "effect": taint.effect}));
    format!("registerWithTaints:\n{}", pool.taints.iter().map(taint).collect::<String>())
}

/// Beside a configuration file kube-proxy heeds no flag but a few. A user's flags would be read and ignored, so where there
/// are any it is told everything by flags.
fn proxy_takes_flags(node: &Node) -> bool {
    !node.cluster.kubernetes.proxy.is_empty()
}

fn kube_proxy(node: &Node) -> Component {
    let wishes = &node.cluster.kubernetes;
    let component = |arguments: Vec<String>| Component {
        name: "kube-proxy",
        description: "Kubernetes Services",
        argv: ["/usr/local/bin/kube-proxy".to_owned()].into_iter().chain(arguments).collect(),
        started: Started::Exec,
        after: vec!["giantnetes-pki.service"],
        waits_for: Some(api_serves::UNIT),
        service: vec!["OOMScoreAdjust=-999"],
        flags: vec![],
    };
    if !proxy_takes_flags(node) {
        let own = node.names_itself().then(|| format!("--hostname-override={}", node.name));
        return component(std::iter::once(format!("--config={KUBE_PROXY}")).chain(own).collect());
    }
    let arguments = vec![
        "--proxy-mode=iptables".into(),
        format!("--kubeconfig={}", kubeconfig_path("kube-proxy")),
        format!("--cluster-cidr={}", node.cluster.ranges.pods),
        format!("--hostname-override={}", node.name),
    ];
    component(arguments).with_gates(&wishes.feature_gates).with_flags(&wishes.proxy)
}

fn containerd_config() -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
"#
    )
}

fn kubelet_config(node: &Node) -> String {
    let config = format!(
        "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {ca}}}
authorization: {{mode: Webhook}}
tlsCertFile: {certificate}
tlsPrivateKeyFile: {key}
tlsMinVersion: VersionTLS12
readOnlyPort: 0
cgroupDriver: systemd
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDomain: cluster.local
clusterDNS: [{dns}]
resolvConf: /etc/resolv.conf
protectKernelDefaults: true
# The sandbox image came with the node; where no registry is reached, nothing could bring it back.
imageGCHighThresholdPercent: 100
# Nodes of a guest are small: the defaults would keep a tenth of them free.
evictionHard:
  memory.available: 100Mi
  nodefs.available: 5%
  imagefs.available: 5%
{taints}",
        ca = in_pki(CA),
        certificate = in_pki(certificate("kubelet-server")),
        key = in_pki(key("kubelet-server")),
        dns = dns(node.cluster.ranges.services),
        taints = node.pool.map(taints).unwrap_or_default(),
    );
    config + &gates_section(&node.cluster.kubernetes.feature_gates)
}

fn kube_proxy_config(node: &Node) -> String {
    let config = format!(
        "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection:
  kubeconfig: {kubeconfig}
clusterCIDR: {pods}
{hostname}",
        kubeconfig = kubeconfig_path("kube-proxy"),
        pods = node.cluster.ranges.pods,
        // A flag says it in its place.
        hostname = if node.names_itself() { String::new() } else { format!("hostnameOverride: {}\n", node.name) },
    );
    config + &gates_section(&node.cluster.kubernetes.feature_gates)
}
