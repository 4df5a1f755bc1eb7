//! What a control-plane node runs beside what every node runs.

use super::{
    File, Node, api_serves, audit, authentication,
    component::{Component, Started, kubeconfig, kubeconfig_path},
    etcd::{self, Blank},
    paths::{
        CA, ENCRYPTION, ETCD_CA, FRONT_PROXY_CA, SERVICE_ACCOUNT_KEY, SERVICE_ACCOUNT_PUB, certificate, in_pki, key,
    },
};
use crate::api::names::API_PORT;

/// URL of the API for components on the same node.
pub(super) const LOCAL_API: &str = "https://127.0.0.1:6443";
const AUDIT_POLICY: &str = "/etc/kubernetes/audit-policy.yaml";
const AUTHENTICATION: &str = "/etc/kubernetes/authentication.yaml";

pub(super) fn components(node: &Node) -> Vec<Component> {
    let wishes = &node.cluster.kubernetes;
    let gates = &wishes.feature_gates;
    vec![
        etcd::component(node),
        api_server(node).with_gates(gates).with_flags(&wishes.api_server.flags),
        controller_manager(node).with_gates(gates).with_flags(&wishes.controller_manager),
        scheduler(node).with_gates(gates).with_flags(&wishes.scheduler),
    ]
}

pub(super) fn files(node: &Node, blank: Blank) -> Vec<File> {
    let wishes = &node.cluster.kubernetes.api_server;
    let mut files = vec![
        File::new(AUDIT_POLICY, audit::policy(wishes.audit)),
        File::new(AUTHENTICATION, authentication::configuration(wishes.oidc.as_ref())),
    ];
    files.extend(etcd::files(node, blank));
    files.push(kubeconfig("controller-manager", LOCAL_API));
    files.push(kubeconfig("scheduler", LOCAL_API));
    files
}

fn api_server(node: &Node) -> Component {
    let ranges = node.cluster.ranges;
    let alone = node.cluster.has_one_master();
    Component {
        name: "kube-apiserver",
        description: "Kubernetes API",
        argv: vec![
            "/usr/local/bin/kube-apiserver".into(),
            format!("--advertise-address={}", node.machine.address()),
            format!("--secure-port={API_PORT}"),
            "--etcd-servers=https://127.0.0.1:2379".into(),
            format!("--etcd-cafile={}", in_pki(ETCD_CA)),
            format!("--etcd-certfile={}", in_pki(certificate("apiserver-etcd-client"))),
            format!("--etcd-keyfile={}", in_pki(key("apiserver-etcd-client"))),
            format!("--client-ca-file={}", in_pki(CA)),
            format!("--tls-cert-file={}", in_pki(certificate("apiserver"))),
            format!("--tls-private-key-file={}", in_pki(key("apiserver"))),
            "--tls-min-version=VersionTLS12".into(),
            format!("--kubelet-client-certificate={}", in_pki(certificate("apiserver-kubelet-client"))),
            format!("--kubelet-client-key={}", in_pki(key("apiserver-kubelet-client"))),
            format!("--kubelet-certificate-authority={}", in_pki(CA)),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--proxy-client-cert-file={}", in_pki(certificate("front-proxy-client"))),
            format!("--proxy-client-key-file={}", in_pki(key("front-proxy-client"))),
            format!("--requestheader-client-ca-file={}", in_pki(FRONT_PROXY_CA)),
            "--requestheader-allowed-names=front-proxy-client".into(),
            "--requestheader-username-headers=X-Remote-User".into(),
            "--requestheader-group-headers=X-Remote-Group".into(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            format!("--service-account-signing-key-file={}", in_pki(SERVICE_ACCOUNT_KEY)),
            format!("--service-account-key-file={}", in_pki(SERVICE_ACCOUNT_PUB)),
            format!("--service-cluster-ip-range={}", ranges.services),
            "--authorization-mode=Node,RBAC".into(),
            format!("--authentication-config={AUTHENTICATION}"),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--allow-privileged=true".into(),
            format!("--encryption-provider-config={}", in_pki(ENCRYPTION)),
            format!("--audit-policy-file={AUDIT_POLICY}"),
            "--audit-log-path=/var/log/kubernetes/audit.log".into(),
            "--audit-log-maxsize=50".into(),
            "--audit-log-maxbackup=3".into(),
            "--audit-log-maxage=7".into(),
            "--profiling=false".into(),
        ],
        started: Started::Notify,
        after: if alone { vec!["etcd.service", "giantnetes-pki.service"] } else { vec!["giantnetes-pki.service"] },
        // A member that fails to come in is tried again. What required it would not be started after that.
        waits_for: (!alone).then_some("etcd.service"),
        service: vec!["OOMScoreAdjust=-997", "LimitNOFILE=65536", "LogsDirectory=kubernetes", "LogsDirectoryMode=0700"],
        flags: vec![],
    }
}

fn controller_manager(node: &Node) -> Component {
    let (ranges, kubeconfig) = (node.cluster.ranges, kubeconfig_path("controller-manager"));
    Component {
        name: "kube-controller-manager",
        description: "Kubernetes controllers",
        argv: vec![
            "/usr/local/bin/kube-controller-manager".into(),
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--client-ca-file={}", in_pki(CA)),
            format!("--requestheader-client-ca-file={}", in_pki(FRONT_PROXY_CA)),
            format!("--root-ca-file={}", in_pki(CA)),
            format!("--service-account-private-key-file={}", in_pki(SERVICE_ACCOUNT_KEY)),
            "--use-service-account-credentials".into(),
            format!("--cluster-cidr={}", ranges.pods),
            // Calico gives each node blocks of it as it needs them.
            "--allocate-node-cidrs=false".into(),
            elects(node),
            format!("--service-cluster-ip-range={}", ranges.services),
            "--bind-address=127.0.0.1".into(),
            "--profiling=false".into(),
        ],
        started: Started::Exec,
        after: vec!["kube-apiserver.service"],
        waits_for: Some(api_serves::UNIT),
        service: vec![],
        flags: vec![],
    }
}

/// Alone there is nobody to lead: an election could only be lost, by a slow node, and end what works.
fn elects(node: &Node) -> String {
    format!("--leader-elect={}", !node.cluster.has_one_master())
}

fn scheduler(node: &Node) -> Component {
    let kubeconfig = kubeconfig_path("scheduler");
    Component {
        name: "kube-scheduler",
        description: "Kubernetes scheduler",
        argv: vec![
            "/usr/local/bin/kube-scheduler".into(),
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            elects(node),
            "--bind-address=127.0.0.1".into(),
            "--profiling=false".into(),
        ],
        started: Started::Exec,
        after: vec!["kube-apiserver.service"],
        waits_for: Some(api_serves::UNIT),
        service: vec![],
        flags: vec![],
    }
}
