//! Flags that Giantnetes sets itself, by the command line or by a configuration file, or that would undo what it sets.
//! `extraArgs` may not name them.

/// Flags of kube-apiserver.
pub const API_SERVER: &[&str] = &[
    "advertise-address",
    "allow-privileged",
    "anonymous-auth",
    "audit-log-maxage",
    "audit-log-maxbackup",
    "audit-log-maxsize",
    "audit-log-path",
    "audit-policy-file",
    "authentication-config",
    "authorization-config",
    "authorization-mode",
    "bind-address",
    "cert-dir",
    "client-ca-file",
    "disable-admission-plugins",
    "enable-admission-plugins",
    "encryption-provider-config",
    "etcd-cafile",
    "etcd-certfile",
    "etcd-keyfile",
    "etcd-prefix",
    "etcd-servers",
    "etcd-servers-overrides",
    "feature-gates",
    "kubelet-certificate-authority",
    "kubelet-client-certificate",
    "kubelet-client-key",
    "kubelet-preferred-address-types",
    "oidc-ca-file",
    "oidc-client-id",
    "oidc-groups-claim",
    "oidc-groups-prefix",
    "oidc-issuer-url",
    "oidc-required-claim",
    "oidc-signing-algs",
    "oidc-username-claim",
    "oidc-username-prefix",
    "profiling",
    "proxy-client-cert-file",
    "proxy-client-key-file",
    "requestheader-allowed-names",
    "requestheader-client-ca-file",
    "requestheader-extra-headers-prefix",
    "requestheader-group-headers",
    "requestheader-uid-headers",
    "requestheader-username-headers",
    "secure-port",
    "service-account-issuer",
    "service-account-key-file",
    "service-account-signing-key-file",
    "service-cluster-ip-range",
    "storage-backend",
    "tls-cert-file",
    "tls-min-version",
    "tls-private-key-file",
    "tls-sni-cert-key",
    "token-auth-file",
];

/// Flags of kube-controller-manager.
pub const CONTROLLER_MANAGER: &[&str] = &[
    "allocate-node-cidrs",
    "authentication-kubeconfig",
    "authorization-kubeconfig",
    "bind-address",
    "cert-dir",
    "client-ca-file",
    "cluster-cidr",
    "cluster-name",
    "cluster-signing-cert-file",
    "cluster-signing-key-file",
    "feature-gates",
    "kubeconfig",
    "leader-elect",
    "master",
    "node-cidr-mask-size",
    "profiling",
    "requestheader-client-ca-file",
    "root-ca-file",
    "secure-port",
    "service-account-private-key-file",
    "service-cluster-ip-range",
    "tls-cert-file",
    "tls-private-key-file",
    "use-service-account-credentials",
];

/// Flags of kube-scheduler.
pub const SCHEDULER: &[&str] = &[
    "authentication-kubeconfig",
    "authorization-kubeconfig",
    "bind-address",
    "cert-dir",
    "client-ca-file",
    "config",
    "feature-gates",
    "kubeconfig",
    "leader-elect",
    "master",
    "profiling",
    "requestheader-client-ca-file",
    "secure-port",
    "tls-cert-file",
    "tls-private-key-file",
];

/// Flags of kubelet.
pub const KUBELET: &[&str] = &[
    "address",
    "anonymous-auth",
    "authentication-token-webhook",
    "authorization-mode",
    "bootstrap-kubeconfig",
    "cert-dir",
    "cgroup-driver",
    "client-ca-file",
    "cloud-provider",
    "cluster-dns",
    "cluster-domain",
    "config",
    "config-dir",
    "container-runtime-endpoint",
    "eviction-hard",
    "feature-gates",
    "healthz-bind-address",
    "healthz-port",
    "hostname-override",
    "image-gc-high-threshold",
    "kubeconfig",
    "node-ip",
    "node-labels",
    "port",
    "protect-kernel-defaults",
    "read-only-port",
    "register-node",
    "register-with-taints",
    "resolv-conf",
    "root-dir",
    "rotate-certificates",
    "rotate-server-certificates",
    "tls-cert-file",
    "tls-min-version",
    "tls-private-key-file",
    "volume-plugin-dir",
];

/// Flags of kube-proxy.
pub const PROXY: &[&str] = &[
    "bind-address",
    "cluster-cidr",
    "config",
    "feature-gates",
    "healthz-bind-address",
    "hostname-override",
    "kubeconfig",
    "master",
    "metrics-bind-address",
    "proxy-mode",
    "write-config-to",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{node_config, testing::valid};

    #[test]
    fn every_flag_that_a_node_sets_is_owned() {
        let config = node_config::control_plane(&valid(serde_json::json!({})), 0);
        let owners = [
            ("kube-apiserver", API_SERVER),
            ("kube-controller-manager", CONTROLLER_MANAGER),
            ("kube-scheduler", SCHEDULER),
            ("kubelet", KUBELET),
            ("kube-proxy", PROXY),
        ];
        let mut checked = 0;
        for (component, owned) in owners {
            let unit = format!("/etc/systemd/system/{component}.service");
            let unit = config.files.iter().find(|file| file.path == unit).unwrap();
            for word in unit.content.split_whitespace() {
                if let Some(flag) = word.strip_prefix("--") {
                    let flag = flag.split('=').next().unwrap();
                    assert!(owned.contains(&flag), "{component} gets --{flag}, and users may set it too");
                    checked += 1;
                }
            }
        }
        assert!(checked > 50, "only {checked} flags were found");
    }

    #[test]
    fn the_tables_are_sorted() {
        for table in [API_SERVER, CONTROLLER_MANAGER, SCHEDULER, KUBELET, PROXY] {
            assert!(table.is_sorted());
        }
    }
}
