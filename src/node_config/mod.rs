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
    cluster::Valid,
    network::addresses::{self, EGRESS_MAC, Mac, NodeAddress},
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
}

/// The configuration of the `index`-th control-plane node.
pub fn control_plane(cluster: &Valid, index: u32) -> NodeConfig {
    let name = names::master(index);
    let address = addresses::master(&cluster.identity, cluster.ranges.overlay, index);
    let node = Node { name: name.clone(), address, cluster };
    let mut components = node::components(&node);
    components.extend(control_plane::components(&node));
    let mut files = pki_mount::files();
    files.extend(node::files(&node));
    files.extend(control_plane::files(&node));
    files.extend(components.iter().map(component::Component::unit));
    files.push(component::target(&components));
    NodeConfig { hostname: name, files, interfaces: interfaces(address), target: component::TARGET }
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

    #[test]
    fn the_control_plane_node_is_golden() {
        let config = control_plane(&valid(json!({})), 0);
        let mut text = String::new();
        for file in &config.files {
            text.push_str(&format!("===== {} {:o}\n{}\n", file.path, file.mode, file.content));
        }
        insta::assert_snapshot!(text);
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
