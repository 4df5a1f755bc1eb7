//! What runs inside a guest node: components, files and units, rendered as cloud-init.
//!
//! Pure. Nothing here is secret: keys and certificates come by the mount that [`pki_mount`] describes, and files refer to
//! them by path.

mod agent;
mod api_serves;
mod audit;
mod authentication;
pub mod cloud_init;
mod component;
mod control_plane;
mod etcd;
pub mod exec;
pub mod machine;
mod node;
pub mod paths;
mod pki_mount;

pub use etcd::Blank;
use ipnet::Ipv4Net;
pub use machine::Ec2;
use machine::Machine;
pub use pki_mount::TURN_LINE;

use crate::{
    api::names,
    cluster::{Valid, valid::NodePool},
    network::{
        addresses::{self, EGRESS_MAC, Fabric, Mac, NodeAddress, Overlay},
        places::Place,
    },
};

/// Revision of what this module renders. Nodes keep the revision that they were made with until they are rolled.
pub const RENDER_REVISION: u32 = 5;

/// A file of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// The whole text.
    pub content: String,
}

impl File {
    fn new(path: impl Into<String>, content: impl Into<String>) -> Self {
        Self { path: path.into(), mode: 0o644, content: content.into() }
    }

    fn script(path: impl Into<String>, content: impl Into<String>) -> Self {
        Self { mode: 0o755, ..Self::new(path, content) }
    }
}

/// A network interface of the node, found by its Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name that the node gives it.
    pub name: &'static str,
    /// Ethernet address.
    pub mac: Mac,
    /// Address and prefix length.
    pub address: Ipv4Net,
    /// What is reached by a router there.
    pub route: Option<Route>,
}

/// A way to what is not at an interface itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Whereto.
    pub to: Ipv4Net,
    /// By which router.
    pub via: std::net::Ipv4Addr,
}

/// Everything that makes a booted image a node of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The name that its machine gets. None: it has one already.
    pub hostname: Option<String>,
    /// Files, units among them.
    pub files: Vec<File>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// The unit that starts everything.
    pub target: &'static str,
}

impl NodeConfig {
    /// A file by its path.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The command line of a component such as `kube-apiserver`, as its unit says it: the program and its arguments.
    pub fn argv(&self, component: &str) -> Option<Vec<String>> {
        let unit = &self.file(&component::unit_path(component))?.content;
        let (_, line) = unit.split_once("\nExecStart=")?;
        let (line, _) = line.split_once("\nRestart=")?;
        exec::split(line)
    }
}

/// What the rendering of one node needs to know.
#[derive(Clone, Debug)]
struct Node<'a> {
    /// The node's name, or the variable that holds it.
    name: String,
    machine: Machine<'a>,
    cluster: &'a Valid,
    /// URL of the API, as this node reaches it.
    api: String,
    /// The pool that it belongs to.
    pool: Option<&'a NodePool>,
}

impl Node<'_> {
    /// By what control-plane nodes reach this one of them.
    fn host_of(&self, index: u32) -> String {
        match self.machine {
            Machine::Qemu(_) => self.cluster.ranges.overlay.master(&self.cluster.identity, index).ip.addr().to_string(),
            Machine::Ec2(ec2) => ec2.master(index),
        }
    }

    /// By what they reach this node, which is one of them.
    fn host(&self) -> String {
        self.host_of(names::master_index(&self.name).unwrap_or_default())
    }

    /// Whether nobody but the machine knows its name.
    fn names_itself(&self) -> bool {
        self.name == machine::variable(machine::NODE)
    }
}

/// The configuration of the `index`-th control-plane node. `blank` is what its etcd does if its disk is.
pub fn control_plane(cluster: &Valid, index: u32, blank: Blank) -> NodeConfig {
    let address = cluster.ranges.overlay.master(&cluster.identity, index);
    let interfaces = interfaces(cluster.ranges.overlay, address);
    NodeConfig { interfaces, ..a_control_plane_node(cluster, index, blank, Machine::Qemu(address)) }
}

/// The configuration of the `index`-th control-plane node as an instance of EC2.
pub fn control_plane_on_ec2(cluster: &Valid, index: u32, blank: Blank, ec2: &Ec2) -> NodeConfig {
    a_control_plane_node(cluster, index, blank, Machine::Ec2(ec2))
}

fn a_control_plane_node(cluster: &Valid, index: u32, blank: Blank, machine: Machine) -> NodeConfig {
    let name = names::master(index);
    let api = control_plane::LOCAL_API.to_owned();
    let node = Node { name: name.clone(), machine, cluster, api, pool: None };
    let mut components = node::components(&node);
    components.extend(control_plane::components(&node));
    let mut files = pki_mount::files();
    files.extend(node::files(&node));
    files.extend(control_plane::files(&node, blank));
    files.extend(components.iter().map(component::Component::unit));
    files.push(component::target(&components));
    NodeConfig { hostname: Some(name), files, interfaces: vec![], target: component::TARGET }
}

/// The configuration of a worker of `pool`. Its API is the gateway's, which its VM pod forwards.
pub fn worker(cluster: &Valid, pool: &NodePool, name: &str, place: Place) -> NodeConfig {
    let address = cluster.ranges.overlay.worker(&cluster.identity, place);
    let (hostname, interfaces) = (Some(name.to_owned()), interfaces(cluster.ranges.overlay, address));
    NodeConfig { hostname, interfaces, ..a_worker(cluster, pool, name.to_owned(), Machine::Qemu(address)) }
}

/// The configuration of every worker of `pool` as an instance of EC2. A node is called after its instance.
pub fn worker_on_ec2(cluster: &Valid, pool: &NodePool, ec2: &Ec2) -> NodeConfig {
    a_worker(cluster, pool, machine::variable(machine::NODE), Machine::Ec2(ec2))
}

fn a_worker(cluster: &Valid, pool: &NodePool, name: String, machine: Machine) -> NodeConfig {
    let api = machine.api(cluster.ranges.overlay.gateway());
    let node = Node { name, machine, cluster, api, pool: Some(pool) };
    let components = node::components(&node);
    let mut files = pki_mount::files();
    files.extend(node::files(&node));
    files.extend(components.iter().map(component::Component::unit));
    files.push(component::target(&components));
    NodeConfig { hostname: None, files, interfaces: vec![], target: component::TARGET }
}

fn interfaces(overlay: Overlay, address: NodeAddress) -> Vec<Interface> {
    let egress = crate::cluster::valid::EGRESS_CIDR;
    // 10.0.2.2 and 10.0.2.15 are what QEMU's user-mode network gives its gateway and its first guest.
    let way_out = Ipv4Net::new(addresses::nth(egress, 15), egress.prefix_len()).unwrap_or(egress);
    let to_nodes = match overlay.fabric {
        Fabric::Segment => None,
        Fabric::Routed => Some(Route { to: overlay.net, via: address.router() }),
    };
    let out = Route { to: Ipv4Net::default(), via: addresses::nth(egress, 2) };
    vec![
        Interface { name: "overlay", mac: address.mac, address: address.ip, route: to_nodes },
        Interface { name: "egress", mac: EGRESS_MAC, address: way_out, route: Some(out) },
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{example, valid};

    fn shown(config: &NodeConfig) -> String {
        config.files.iter().map(|file| format!("===== {} {:o}\n{}\n", file.path, file.mode, file.content)).collect()
    }

    /// Without a wish of a user nothing of this may move: every node would be outdated.
    #[test]
    fn the_control_plane_node_is_golden() {
        insta::assert_snapshot!(shown(&control_plane(&valid(json!({})), 0, Blank::Forms)));
    }

    #[test]
    fn the_control_plane_node_with_every_wish_is_golden() {
        insta::assert_snapshot!(shown(&control_plane(&example("maximal.yaml"), 0, Blank::Forms)));
    }

    fn ec2(has_cloud_controller: bool) -> Ec2 {
        Ec2 { domain: "abcde.giantnetes.internal".into(), has_cloud_controller }
    }

    #[test]
    fn the_control_plane_node_on_ec2_is_golden() {
        let cluster = valid(json!({"controlPlane": {"replicas": 3}}));
        insta::assert_snapshot!(shown(&control_plane_on_ec2(&cluster, 1, Blank::Joins, &ec2(false))));
    }

    #[test]
    fn a_worker_on_ec2_is_golden() {
        let valid = valid(json!({"nodePools": [{"name": "a"}]}));
        insta::assert_snapshot!(shown(&worker_on_ec2(&valid, &valid.pools[0], &ec2(true))));
    }

    #[test]
    fn on_ec2_nothing_is_left_of_qemus_network_and_disks() {
        let valid = valid(json!({"nodePools": [{"name": "a"}], "controlPlane": {"replicas": 3}}));
        let nodes = [
            control_plane_on_ec2(&valid, 0, Blank::Forms, &ec2(false)),
            worker_on_ec2(&valid, &valid.pools[0], &ec2(false)),
        ];
        for node in nodes {
            assert_eq!(node.interfaces, []);
            let text = shown(&node.with_agent(""));
            for word in ["10.0.2.", "172.26.", "virtio", "9p"] {
                assert_eq!(text.lines().find(|line| line.contains(word)), None, "{word}");
            }
        }
    }

    /// What a user writes is never what the machine puts in.
    #[test]
    fn on_ec2_flags_of_users_are_quoted_as_everywhere() {
        let args = json!({"extraArgs": {"x": "${GIANTNETES_NODE}"}});
        let valid = valid(json!({"nodePools": [{"name": "a"}], "kubernetes": {"kubelet": args}}));
        let unit = worker_on_ec2(&valid, &valid.pools[0], &ec2(false));
        let unit = &unit.file(&component::unit_path("kubelet")).unwrap().content;
        assert!(unit.contains("  \"--x=$${GIANTNETES_NODE}\"\n"), "{unit}");
        assert!(unit.contains("  --hostname-override=${GIANTNETES_NODE} \\\n"), "{unit}");
    }

    fn flag(config: &NodeConfig, component: &str, name: &str) -> Option<String> {
        let argv = config.argv(component).unwrap();
        let mut found = argv.iter().filter_map(|argument| argument.strip_prefix(&format!("--{name}=")));
        let value = found.next().map(str::to_owned);
        assert_eq!(found.next(), None, "{component} gets --{name} twice");
        value
    }

    fn yaml(config: &NodeConfig, path: &str) -> Value {
        serde_saphyr::from_str(&config.file(path).unwrap().content).unwrap()
    }

    #[test]
    fn flags_come_as_they_were_written_after_ours_and_in_order() {
        let nasty = r#" a "b" 'c' $HOME ${HOME} %n 100% C:\\n ; # "#;
        let args = json!({"extraArgs": {"v": "4", "logging-format": "json", "x": nasty, "empty": ""}});
        let config = control_plane(
            &valid(json!({"kubernetes": {
                "apiServer": args, "controllerManager": args, "scheduler": args, "kubelet": args, "proxy": args,
            }})),
            0,
            Blank::Forms,
        );
        for component in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"] {
            let argv = config.argv(component).unwrap();
            let last = ["--empty=".into(), "--logging-format=json".into(), "--v=4".into(), format!("--x={nasty}")];
            assert_eq!(argv[argv.len() - 4..], last, "{component}");
        }
        assert_eq!(config.argv("etcd"), control_plane(&valid(json!({})), 0, Blank::Forms).argv("etcd"));
    }

    #[test]
    fn feature_gates_reach_every_component_in_order() {
        let gates = json!({"Zebra": true, "AllAlpha": false, "No": true});
        let of = |spec| control_plane(&valid(json!({"kubernetes": spec})), 0, Blank::Forms);
        let config = of(json!({"featureGates": gates}));
        for component in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            let flag = flag(&config, component, "feature-gates");
            assert_eq!(flag.as_deref(), Some("AllAlpha=false,No=true,Zebra=true"), "{component}");
        }
        for (component, file) in [("kubelet", "kubelet.yaml"), ("kube-proxy", "kube-proxy.yaml")] {
            assert_eq!(yaml(&config, &format!("/etc/kubernetes/{file}"))["featureGates"], gates);
            assert_eq!(flag(&config, component, "feature-gates"), None);
        }
        // kube-proxy would not look at its flags if it had a file.
        let config = of(json!({"featureGates": gates, "proxy": {"extraArgs": {"oom-score-adj": "-998"}}}));
        assert_eq!(config.file("/etc/kubernetes/kube-proxy.yaml"), None);
        assert_eq!(flag(&config, "kube-proxy", "config"), None);
        assert_eq!(flag(&config, "kube-proxy", "feature-gates").as_deref(), Some("AllAlpha=false,No=true,Zebra=true"));
        assert_eq!(flag(&config, "kube-proxy", "hostname-override").as_deref(), Some("master-0"));
    }

    #[test]
    fn a_node_is_as_closed_as_it_was_designed() {
        let all: Vec<_> =
            ["minimal.yaml", "maximal.yaml"].map(|name| control_plane(&example(name), 0, Blank::Forms)).into();
        for config in &all {
            let flag = |component, name| flag(config, component, name).unwrap();
            assert_eq!(flag("kube-apiserver", "authorization-mode"), "Node,RBAC");
            assert_eq!(flag("kube-apiserver", "enable-admission-plugins"), "NodeRestriction");
            assert_eq!(flag("kube-apiserver", "tls-min-version"), "VersionTLS12");
            assert_eq!(flag("etcd", "tls-min-version"), "TLS1.2");
            for component in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
                assert_eq!(flag(component, "profiling"), "false");
            }
            for component in ["kube-controller-manager", "kube-scheduler"] {
                assert_eq!(flag(component, "bind-address"), "127.0.0.1");
            }
            assert!(flag("kube-apiserver", "encryption-provider-config").starts_with(paths::PKI));
            assert!(config.file(&flag("kube-apiserver", "audit-policy-file")).is_some());
            assert!(config.file(&flag("kube-apiserver", "authentication-config")).is_some());
            let etcd = config.argv("etcd").unwrap();
            for required in ["--client-cert-auth", "--peer-client-cert-auth"] {
                assert!(etcd.iter().any(|argument| argument == required), "{required}");
            }
            let kubelet = yaml(config, "/etc/kubernetes/kubelet.yaml");
            assert_eq!(kubelet["authentication"]["anonymous"]["enabled"], false);
            assert_eq!(kubelet["authentication"]["webhook"]["enabled"], true);
            assert_eq!(kubelet["authorization"]["mode"], "Webhook");
            assert_eq!(kubelet["tlsMinVersion"], "VersionTLS12");
            assert_eq!(kubelet["readOnlyPort"], 0);
        }
    }

    #[test]
    fn a_worker_is_golden_and_runs_no_part_of_the_control_plane() {
        let valid = valid(json!({"nodePools": [{
            "name": "a", "labels": {"example.com/disk": "fast"},
            "taints": [{"key": "example.com/only", "value": "us", "effect": "NoSchedule"}],
        }]}));
        let text = shown(&worker(&valid, &valid.pools[0], "a-0", Place(64)));
        for foreign in ["etcd", "apiserver", "controller-manager", "scheduler", "sa.key", "127.0.0.1:6443"] {
            assert!(!text.contains(foreign), "{foreign}");
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn pools_change_nothing_of_the_control_plane_node() {
        let with_pools = valid(json!({"nodePools": [{"name": "a"}]}));
        assert_eq!(control_plane(&with_pools, 0, Blank::Forms), control_plane(&valid(json!({})), 0, Blank::Forms));
    }

    #[test]
    fn rendering_is_deterministic_and_paths_are_unique() {
        let valid = valid(json!({}));
        let config = control_plane(&valid, 0, Blank::Forms);
        assert_eq!(config, control_plane(&valid, 0, Blank::Forms));
        let mut paths: Vec<_> = config.files.iter().map(|file| &file.path).collect();
        let count = paths.len();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), count);
    }
}
