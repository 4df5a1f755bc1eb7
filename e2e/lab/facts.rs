//! What the machine is like, as far as a lab depends on it. Gathered without changing anything.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::command::Run;
use crate::paths::Paths;
use crate::tools::{Tools, find_command};
use crate::topology::{BRIDGE, HOSTS, INGRESS_PORTS, MACHINE};

/// An address range that something on the machine uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The range, `192.0.2.0/24`.
    pub range: String,
    /// What uses it: `the address of eth0`, `the route to it over eth0`.
    pub by: String,
}

/// What [`judge`](crate::preflight::judge) looks at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Whether this process has root's rights.
    pub root: bool,
    /// Whether a lab is set up already, and so has its share of memory and disk.
    pub lab_exists: bool,
    /// Free bytes on the file system of each folder that the lab fills.
    pub free: Vec<(PathBuf, u64)>,
    /// Bytes on disk that the hosts' image stores take already.
    pub image_stores: u64,
    /// Bytes of memory that a new process could have; none if the kernel does not tell.
    pub memory: Option<u64>,
    /// Commands that are not installed.
    pub missing_commands: Vec<&'static str>,
    /// Features of the kernel that do not work, and what happened when they were tried.
    pub broken_features: Vec<(&'static str, String)>,
    /// Address ranges in use by others than the lab.
    pub used: Vec<Used>,
    /// The cache, if it lies where the lab's rooms have folders of their own and so could not see it.
    pub hidden_cache: Option<PathBuf>,
    /// Ports of 127.0.0.1 that the lab needs and others than the lab listen at.
    pub taken_ports: Vec<u16>,
    /// Whether the machine's firewall drops frames between the ports of a bridge.
    pub bridge_filtered: bool,
    /// Products of e2e/tools that are not built, or why that cannot be told.
    pub tools: Option<Result<Vec<&'static str>, String>>,
}

/// Commands that the lab runs, and the Debian package of each.
pub const COMMANDS: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("iptables-restore", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("ipset", "ipset"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("sysctl", "procps"),
    ("socat", "socat"),
    ("curl", "curl"),
];

/// Features of the kernel, each with a command that fails without it. What it makes is in a namespace that ends with it;
/// the kernel loads its module for it if it has one.
const FEATURES: &[(&str, &[&str])] = &[
    ("network namespaces", &["unshare", "--net", "true"]),
    ("mount namespaces", &["unshare", "--mount", "true"]),
    ("bridges", &["unshare", "--net", "ip", "link", "add", "probe", "type", "bridge"]),
    ("veth pairs", &["unshare", "--net", "ip", "link", "add", "probe", "type", "veth", "peer", "name", "probe1"]),
    ("VXLAN", &["unshare", "--net", "ip", "link", "add", "probe", "type", "vxlan", "id", "1", "dstport", "8472"]),
    ("nftables", &["unshare", "--net", "nft", "add", "table", "ip", "probe"]),
    (
        "sets of addresses in iptables",
        &[
            "unshare",
            "--net",
            "sh",
            "-ec",
            "ipset create probe hash:net; iptables -A FORWARD -m set --match-set probe src -j DROP",
        ],
    ),
    ("NAT by iptables", &["unshare", "--net", "iptables", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"]),
    (
        "overlay file systems",
        &[
            "unshare",
            "--mount",
            "sh",
            "-ec",
            "mount -nt tmpfs probe /tmp; cd /tmp; mkdir l u w m; mount -nt overlay -o lowerdir=l,upperdir=u,workdir=w probe m",
        ],
    ),
    ("TUN devices", &["test", "-c", "/dev/net/tun"]),
];

/// Looks at this machine.
pub fn gather(paths: &Paths) -> Facts {
    let root = rustix::process::geteuid().is_root();
    let missing_commands = COMMANDS.iter().map(|(command, _)| *command).filter(|name| find_command(name).is_err());
    Facts {
        root,
        lab_exists: paths.state.join("lab.json").exists(),
        free: [&paths.state, &paths.cache].into_iter().filter_map(|folder| free(folder)).collect(),
        image_stores: size(&paths.cache).unwrap_or_default(),
        memory: memory("MemAvailable"),
        missing_commands: missing_commands.collect(),
        // Only root may try the features, or see whether root's tools are there.
        broken_features: if root { broken_features() } else { Vec::new() },
        used: used_ranges(),
        hidden_cache: ["/tmp", "/run", "/var/run"]
            .iter()
            .any(|covered| paths.cache.starts_with(covered))
            .then(|| paths.cache.clone()),
        // A lab that is up has them itself.
        taken_ports: if paths.processes().is_dir() { Vec::new() } else { taken_ports() },
        bridge_filtered: root && bridge_filtered(),
        tools: root.then(|| Tools::locate().map(|tools| tools.missing()).map_err(|error| format!("{error:#}"))),
    }
}

/// Free space where a folder is, or will be.
fn free(folder: &Path) -> Option<(PathBuf, u64)> {
    let there = folder.ancestors().find(|ancestor| ancestor.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some((folder.to_path_buf(), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// Bytes on disk of all that is in a folder; a file with several names counts once.
fn size(folder: &Path) -> Option<u64> {
    let text = Run::line("du --summarize --block-size=1").arg(folder).timeout(Duration::from_secs(30)).output().ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn memory(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

/// Ports of the loopback device that the lab is going to listen at and somebody else has.
fn taken_ports() -> Vec<u16> {
    let taken = |port: &u16| TcpListener::bind((MACHINE.address, *port)).is_err();
    INGRESS_PORTS.iter().map(|(port, _)| *port).filter(taken).collect()
}

fn broken_features() -> Vec<(&'static str, String)> {
    let broken = |(name, words): &(&'static str, &[&str])| {
        let (program, args) = words.split_first()?;
        let error = Run::new(program).args(args.iter().copied()).output().err()?;
        Some((*name, format!("{error:#}")))
    };
    FEATURES.iter().filter_map(broken).collect()
}

fn used_ranges() -> Vec<Used> {
    let ask = |words: &str| -> Vec<Value> {
        let answer = Run::line(words).output().unwrap_or_default();
        serde_json::from_str(&answer).unwrap_or_default()
    };
    let mut used = used_by_addresses(&ask("ip -json -4 address show"));
    used.extend(used_by_routes(&ask("ip -json -4 route show table main")));
    used
}

fn used_by_addresses(links: &[Value]) -> Vec<Used> {
    let mut used = Vec::new();
    for link in links.iter().filter(|link| link["ifname"] != BRIDGE) {
        for address in link["addr_info"].as_array().into_iter().flatten() {
            if let (Some(local), Some(length)) = (address["local"].as_str(), address["prefixlen"].as_u64()) {
                let by = format!("the address of {}", link["ifname"].as_str().unwrap_or("a device"));
                used.push(Used { range: format!("{local}/{length}"), by });
            }
        }
    }
    used
}

fn used_by_routes(routes: &[Value]) -> Vec<Used> {
    // The lab's own routes: over its bridge, and what a crash left of them.
    let ours = |route: &Value| {
        let gateway = route["gateway"].as_str().unwrap_or_default();
        route["dev"] == BRIDGE || HOSTS.iter().any(|host| host.room.address.to_string() == gateway)
    };
    let others = routes.iter().filter(|route| !ours(route) && route["dst"] != "default");
    others
        .filter_map(|route| {
            let by = format!("a route over {}", route["dev"].as_str().unwrap_or("nothing"));
            Some(Used { range: route["dst"].as_str()?.to_owned(), by })
        })
        .collect()
}

/// Frames between two ports of a bridge pass the machine's FORWARD chain if br_netfilter says so; Docker, for one, sets
/// that chain to drop.
fn bridge_filtered() -> bool {
    let switch = std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables").unwrap_or_default();
    switch.trim() == "1"
        && Run::line("iptables -S FORWARD")
            .output()
            .is_ok_and(|rules| rules.lines().any(|rule| rule == "-P FORWARD DROP"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_labs_own_addresses_and_routes_are_not_in_the_way() {
        let links = [
            json!({"ifname": "eth0", "addr_info": [{"local": "10.231.0.9", "prefixlen": 24}]}),
            json!({"ifname": "g8s-lab", "addr_info": [{"local": "10.231.0.1", "prefixlen": 24}]}),
        ];
        let used = used_by_addresses(&links);
        assert_eq!(used, [Used { range: "10.231.0.9/24".into(), by: "the address of eth0".into() }]);
        let routes = [
            json!({"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"}),
            json!({"dst": "10.232.1.0/24", "gateway": "10.231.0.11", "dev": "g8s-lab"}),
            json!({"dst": "10.0.0.0/8", "gateway": "192.0.2.9", "dev": "vpn0"}),
        ];
        assert_eq!(used_by_routes(&routes), [Used { range: "10.0.0.0/8".into(), by: "a route over vpn0".into() }]);
    }
}
