//! What runs inside a guest node: components, files and units, rendered as cloud-init.
//!
//! Pure. Nothing here is secret: keys and certificates come by the mount that [`pki_mount`] describes, and files refer to
//! them by path.

pub mod cloud_init;
mod component;
mod control_plane;
mod node;
pub mod paths;
mod pki_mount;

use ipnet::Ipv4Net;

use crate::{
    api::names,
    cluster::{Valid, valid::NodePool},
    network::{
        addresses::{self, EGRESS_MAC, Mac, NodeAddress},
        places::Place,
    },
};

/// Revision of what this module renders. Nodes keep the revision that they were made with until they are rolled.
pub const RENDER_REVISION: u32 = 1;

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
    /// Default gateway, if the way out leads through this interface.
    pub gateway: Option<std::net::Ipv4Addr>,
}

/// Everything that makes a booted image a node of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's name.
    pub hostname: String,
    /// Files, units among them.
    pub files: Vec<File>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// The unit that starts everything.
    pub target: &'static str,
}

/// What the rendering of one node needs to know.
#[derive(Clone, Debug)]
struct Node<'a> {
    name: String,
    address: NodeAddress,
    cluster: &'a Valid,
    /// URL of the API, as this node reaches it.
    api: String,
    /// The range of its pods.
    pods: Ipv4Net,
    /// The pool that it belongs to.
    pool: Option<&'a NodePool>,
}

/// The configuration of the `index`-th control-plane node.
pub fn control_plane(cluster: &Valid, index: u32) -> NodeConfig {
    let name = names::master(index);
    let address = addresses::master(&cluster.identity, cluster.ranges.overlay, index);
    let pods = Ipv4Net::new(cluster.ranges.pods.network(), 24).unwrap_or(cluster.ranges.pods);
    let api = control_plane::LOCAL_API.to_owned();
    let node = Node { name: name.clone(), address, cluster, api, pods, pool: None };
    let mut components = node::components(&node);
    components.extend(control_plane::components(&node));
    let mut files = pki_mount::files();
    files.extend(node::files(&node));
    files.extend(control_plane::files(&node));
    files.extend(components.iter().map(component::Component::unit));
    files.push(component::target(&components));
    NodeConfig { hostname: name, files, interfaces: interfaces(address), target: component::TARGET }
}

/// The configuration of a worker of `pool`. Its API is the gateway's, which its VM pod forwards.
pub fn worker(cluster: &Valid, pool: &NodePool, name: &str, place: Place) -> NodeConfig {
    let overlay = cluster.ranges.overlay;
    let address = addresses::worker(&cluster.identity, overlay, place);
    let api = format!("https://{}:{}", addresses::gateway(overlay), names::API_PORT);
    let pods = place.pods(cluster.ranges.pods);
    let node = Node { name: name.to_owned(), address, cluster, api, pods, pool: Some(pool) };
    let components = node::components(&node);
    let mut files = pki_mount::files();
    files.extend(node::files(&node));
    files.extend(components.iter().map(component::Component::unit));
    files.push(component::target(&components));
    NodeConfig { hostname: node.name, files, interfaces: interfaces(address), target: component::TARGET }
}

fn interfaces(address: NodeAddress) -> Vec<Interface> {
    let egress = crate::cluster::valid::EGRESS_CIDR;
    // 10.0.2.2 and 10.0.2.15 are what QEMU's user-mode network gives its gateway and its first guest.
    let way_out = Ipv4Net::new(addresses::nth(egress, 15), egress.prefix_len()).unwrap_or(egress);
    vec![
        Interface { name: "overlay", mac: address.mac, address: address.ip, gateway: None },
        Interface { name: "egress", mac: EGRESS_MAC, address: way_out, gateway: Some(addresses::nth(egress, 2)) },
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::valid;

    fn text(config: &NodeConfig) -> String {
        let mut text = String::new();
        for file in &config.files {
            text.push_str(&format!("===== {} {:o}\n{}\n", file.path, file.mode, file.content));
        }
        text
    }

    #[test]
    fn the_control_plane_node_is_golden() {
        insta::assert_snapshot!(text(&control_plane(&valid(json!({})), 0)));
    }

    #[test]
    fn a_worker_is_golden_and_runs_no_part_of_the_control_plane() {
        let valid = valid(json!({"nodePools": [{
            "name": "a", "labels": {"example.com/disk": "fast"},
            "taints": [{"key": "example.com/only", "value": "us", "effect": "NoSchedule"}],
        }]}));
        let text = text(&worker(&valid, &valid.pools[0], "a-0", Place(64)));
        for foreign in ["etcd", "apiserver", "controller-manager", "scheduler", "sa.key", "127.0.0.1:6443"] {
            assert!(!text.contains(foreign), "{foreign}");
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn pools_change_nothing_of_the_control_plane_node() {
        let with_pools = valid(json!({"nodePools": [{"name": "a"}]}));
        assert_eq!(control_plane(&with_pools, 0), control_plane(&valid(json!({})), 0));
    }

    #[test]
    fn rendering_is_deterministic_and_paths_are_unique() {
        let valid = valid(json!({}));
        let config = control_plane(&valid, 0);
        assert_eq!(config, control_plane(&valid, 0));
        let mut paths: Vec<_> = config.files.iter().map(|file| &file.path).collect();
        let count = paths.len();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), count);
    }
}
