//! Flags that Giantnetes sets itself, by the command line or by a configuration file, or that would undo what it sets.
//! `extraArgs` may not name them. (Nor those with which a program does something else than its work and ends.)

/// Flags of kube-apiserver.
pub const API_SERVER: &[&str] = &[
    "admission-control",
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
    "help",
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
    "service-account-signing-endpoint",
    "service-account-signing-key-file",
    "service-cluster-ip-range",
    "storage-backend",
    "tls-cert-file",
    "tls-min-version",
    "tls-private-key-file",
    "tls-sni-cert-key",
    "token-auth-file",
    "version",
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
    "help",
    "kubeconfig",
    "leader-elect",
    "master",
    "node-cidr-mask-size",
    "node-cidr-mask-size-ipv4",
    "profiling",
    "requestheader-client-ca-file",
    "root-ca-file",
    "secure-port",
    "service-account-private-key-file",
    "service-cluster-ip-range",
    "tls-cert-file",
    "tls-private-key-file",
    "use-service-account-credentials",
    "version",
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
    "help",
    "kubeconfig",
    "leader-elect",
    "master",
    "profiling",
    "requestheader-client-ca-file",
    "secure-port",
    "tls-cert-file",
    "tls-private-key-file",
    "version",
    "write-config-to",
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
    "help",
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
    "version",
    "volume-plugin-dir",
];

/// Flags of kube-proxy.
pub const PROXY: &[&str] = &[
    "bind-address",
    "cleanup",
    "cluster-cidr",
    "config",
    "feature-gates",
    "healthz-bind-address",
    "help",
    "hostname-override",
    "init-only",
    "kubeconfig",
    "master",
    "metrics-bind-address",
    "proxy-mode",
    "version",
    "write-config-to",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        node_config::{self, Blank},
        testing::{example, valid},
    };

    #[test]
    fn every_flag_that_a_node_sets_is_owned() {
        // With a flag of a user's kube-proxy is given no file, and with the maximal example all other forms there are.
        let bare = valid(json!({"kubernetes": {"proxy": {"extraArgs": {"v": "2"}}}}));
        let gates =
            valid(json!({"kubernetes": {"featureGates": {"AllAlpha": true}, "proxy": {"extraArgs": {"v": "2"}}}}));
        let all = [(valid(json!({})), 0), (bare, 1), (gates, 1), (example("maximal.yaml"), 5)];
        let owners = [
            ("kube-apiserver", API_SERVER),
            ("kube-controller-manager", CONTROLLER_MANAGER),
            ("kube-scheduler", SCHEDULER),
            ("kubelet", KUBELET),
            ("kube-proxy", PROXY),
        ];
        for (cluster, of_users) in all {
            let config = node_config::control_plane(&cluster, 0, Blank::Forms);
            let (mut checked, mut foreign) = (0, Vec::new());
            for (component, owned) in owners {
                for argument in config.argv(component).unwrap() {
                    let Some(flag) = argument.strip_prefix("--") else { continue };
                    let flag = flag.split('=').next().unwrap().to_owned();
                    checked += 1;
                    if !owned.contains(&flag.as_str()) {
                        foreign.push(format!("{component} --{flag}"));
                    }
                }
            }
            assert!(checked > 50, "only {checked} flags were found");
            assert_eq!(foreign.len(), of_users, "these are given, and users may give them too: {foreign:?}");
        }
    }

    /// Where a configuration file says what a flag could say too, the flag would win.
    #[test]
    fn every_field_of_a_configuration_file_is_owned_by_its_flag() {
        let config = node_config::control_plane(&valid(json!({})), 0, Blank::Forms);
        let flags = [
            ("/etc/kubernetes/kubelet.yaml", "tlsCertFile", KUBELET, "tls-cert-file"),
            ("/etc/kubernetes/kubelet.yaml", "tlsPrivateKeyFile", KUBELET, "tls-private-key-file"),
            ("/etc/kubernetes/kubelet.yaml", "tlsMinVersion", KUBELET, "tls-min-version"),
            ("/etc/kubernetes/kubelet.yaml", "authentication", KUBELET, "anonymous-auth"),
            ("/etc/kubernetes/kubelet.yaml", "authorization", KUBELET, "authorization-mode"),
            ("/etc/kubernetes/kubelet.yaml", "readOnlyPort", KUBELET, "read-only-port"),
            ("/etc/kubernetes/kubelet.yaml", "cgroupDriver", KUBELET, "cgroup-driver"),
            ("/etc/kubernetes/kubelet.yaml", "containerRuntimeEndpoint", KUBELET, "container-runtime-endpoint"),
            ("/etc/kubernetes/kubelet.yaml", "clusterDomain", KUBELET, "cluster-domain"),
            ("/etc/kubernetes/kubelet.yaml", "clusterDNS", KUBELET, "cluster-dns"),
            ("/etc/kubernetes/kubelet.yaml", "resolvConf", KUBELET, "resolv-conf"),
            ("/etc/kubernetes/kubelet.yaml", "protectKernelDefaults", KUBELET, "protect-kernel-defaults"),
            ("/etc/kubernetes/kubelet.yaml", "imageGCHighThresholdPercent", KUBELET, "image-gc-high-threshold"),
            ("/etc/kubernetes/kubelet.yaml", "evictionHard", KUBELET, "eviction-hard"),
            ("/etc/kubernetes/kube-proxy.yaml", "mode", PROXY, "proxy-mode"),
            ("/etc/kubernetes/kube-proxy.yaml", "clientConnection", PROXY, "kubeconfig"),
            ("/etc/kubernetes/kube-proxy.yaml", "clusterCIDR", PROXY, "cluster-cidr"),
            ("/etc/kubernetes/kube-proxy.yaml", "hostnameOverride", PROXY, "hostname-override"),
        ];
        for file in ["/etc/kubernetes/kubelet.yaml", "/etc/kubernetes/kube-proxy.yaml"] {
            let parsed: serde_json::Value = serde_saphyr::from_str(&config.file(file).unwrap().content).unwrap();
            for field in
                parsed.as_object().unwrap().keys().filter(|field| !["apiVersion", "kind"].contains(&field.as_str()))
            {
                let known = flags.iter().find(|(of, name, ..)| *of == file && name == field);
                let (_, _, owned, flag) = known.unwrap_or_else(|| panic!("{file}: which flag says {field}?"));
                assert!(owned.contains(flag), "{file} says {field}, and users may give --{flag}");
            }
        }
    }

    #[test]
    fn the_tables_are_sorted() {
        for table in [API_SERVER, CONTROLLER_MANAGER, SCHEDULER, KUBELET, PROXY] {
            assert!(table.is_sorted());
        }
    }
}
