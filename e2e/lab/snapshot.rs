//! What the machine has, so that a test can compare before and after.
//!
//! Tests do not have the machine for themselves (builds, other programs), so what others make and remove all the time is
//! left out: processes that are neither in the lab's cgroup nor orphans that are called like a server of the lab or live in
//! other namespaces than the test's; in /tmp what is not called like something of the lab's; and the mounts of image builds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::read_link;
use std::path::Path;

use anyhow::Result;

use crate::cgroup::{hierarchies, tree};
use crate::command::Run;
use crate::mounts::mountinfo;
use crate::paths::Paths;
use crate::topology::CGROUP;

/// What the machine has: a set of names per kind of thing.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    things: BTreeMap<&'static str, BTreeSet<String>>,
}

/// Looks at the machine.
///
/// # Errors
/// If one of the kinds cannot be listed.
pub fn snapshot() -> Result<Snapshot> {
    let lines = |run: Run| -> Result<BTreeSet<String>> { Ok(run.output()?.lines().map(str::to_owned).collect()) };
    let mut things = BTreeMap::new();
    things.insert("process", processes());
    things.insert("link", names("/sys/class/net"));
    things.insert("network namespace", names("/run/netns"));
    things.insert("route", lines(Run::line("ip -4 route show table all"))?);
    things.insert("IPv6 route", ipv6_routes()?);
    things.insert("routing rule", lines(Run::line("ip rule show"))?);
    things.insert("firewall rule", firewall_rules()?);
    things.insert("mount", mounts()?);
    things.insert("cgroup", cgroups()?);
    things.insert("file", files());
    things.insert("kernel setting", settings());
    Ok(Snapshot { things })
}

impl Snapshot {
    /// What came and went between this snapshot and a later one, a line each. A process that has ended is not listed.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let mut lines = Vec::new();
        for (kind, after) in &later.things {
            let before = self.things.get(kind).unwrap_or(&none);
            lines.extend(after.difference(before).map(|name| format!("{kind} appeared: {name}")));
            if *kind != "process" {
                lines.extend(before.difference(after).map(|name| format!("{kind} vanished: {name}")));
            }
        }
        lines
    }
}

fn names(folder: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

const SERVERS: &[&str] = &["containerd", "etcd", "kube", "lab", "nsenter", "pause", "runc", "unshare", "vault"];

fn processes() -> BTreeSet<String> {
    let pids = names("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let own = std::process::id().to_string();
    pids.filter(|pid| *pid != own).filter_map(|pid| interesting(&pid)).collect()
}

fn interesting(pid: &str) -> Option<String> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let arguments = read("cmdline")?.replace('\0', " ");
    let name = read("comm")?.trim().to_owned();
    let elsewhere = |kind: &str| {
        let theirs = read_link(format!("/proc/{pid}/ns/{kind}"));
        theirs.is_ok_and(|theirs| read_link(format!("/proc/self/ns/{kind}")).is_ok_and(|ours| ours != theirs))
    };
    // The field after name and state; what the lab leaves has no other parent than init.
    let orphan = read("stat")?.rsplit_once(") ")?.1.split(' ').nth(1) == Some("1");
    // A server with another parent is somebody else's, who looks after it.
    let ours = read("cgroup")?.contains(CGROUP)
        || orphan && (SERVERS.iter().any(|server| name.starts_with(server)) || elsewhere("net") || elsewhere("mnt"));
    // Kernel threads have no arguments.
    (ours && !arguments.is_empty()).then(|| format!("{pid} {name} {arguments}"))
}

fn mounts() -> Result<BTreeSet<String>> {
    let images = Paths::of_machine()?.cache.with_file_name("images");
    let mounts = mountinfo(Path::new("/proc/self/mountinfo"))?;
    let others = mounts.iter().filter(|mount| !mount.target.starts_with(&images));
    Ok(others.map(|mount| format!("{} {}", mount.fstype, mount.target.display())).collect())
}

/// Without what a route that a router announced has left to live. None where the kernel has no IPv6.
fn ipv6_routes() -> Result<BTreeSet<String>> {
    if !Path::new("/proc/self/net/if_inet6").exists() {
        return Ok(BTreeSet::new());
    }
    let routes = Run::line("ip -6 route show table all").output()?;
    Ok(routes.lines().map(without_expiry).collect())
}

fn without_expiry(route: &str) -> String {
    let mut words = Vec::new();
    let mut all = route.split_whitespace();
    while let Some(word) = all.next() {
        if word == "expires" {
            all.next();
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

/// Without counters. nftables shows the rules of today's iptables, too.
fn firewall_rules() -> Result<BTreeSet<String>> {
    Ok(Run::line("nft --stateless list ruleset").output()?.lines().map(str::to_owned).collect())
}

/// The first level of every hierarchy, and the lab's and Kubernetes' at any level.
fn cgroups() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies()? {
        for folder in tree(&hierarchy.root) {
            let name = folder.display().to_string();
            let first_level = folder.parent() == Some(&hierarchy.root);
            if first_level || [CGROUP, "kubepods", "containerd"].iter().any(|part| name.contains(part)) {
                found.insert(name);
            }
        }
    }
    Ok(found)
}

const FOLDERS: &[&str] = &[
    "/",
    "/etc",
    "/etc/cni",
    "/opt",
    "/opt/cni",
    "/run",
    "/run/containerd",
    "/run/lock",
    "/run/mount",
    "/tmp",
    "/var",
    "/var/lib",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log",
    "/var/log/containers",
    "/var/log/pods",
    "/dev/shm",
];
/// Folders in the home of who runs the lab that kubectl and helm would write to.
const HOME_FOLDERS: &[&str] = &[".kube", ".cache", ".config", ".local/share"];
/// How names in /tmp begin that the lab's programs might leave there.
const SUSPECTS: &[&str] = &[
    "hostpath",
    "containerd",
    "ctd",
    "ctr",
    "etcd",
    "g8s",
    "giantnetes",
    "helm",
    "k8s",
    "kube",
    "lab",
    "runc",
    "tmp.",
];

fn files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let of_home = HOME_FOLDERS.iter().map(|folder| format!("{home}/{folder}"));
    for folder in FOLDERS.iter().map(|folder| (*folder).to_owned()).chain(of_home) {
        let watched = |name: &str| folder != "/tmp" || SUSPECTS.iter().any(|start| name.starts_with(start));
        let names = names(&folder).into_iter().filter(|name| watched(name));
        found.extend(names.map(|name| format!("{}/{name}", folder.trim_end_matches('/'))));
    }
    found
}

const SETTINGS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_max",
    "net/ipv4/conf/all/route_localnet",
];

fn settings() -> BTreeSet<String> {
    let value =
        |name: &&str| std::fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|value| value.trim().to_owned());
    SETTINGS.iter().filter_map(|name| Some(format!("{name} = {}", value(name)?))).collect()
}

/// What listens in this process's network namespace: `tcp 0.0.0.0:22` in the kernel's own spelling, `tcp 00000000:0016`.
pub fn listeners() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // 0A is LISTEN; udp sockets that are bound are in state 07.
    for (protocol, state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let table = std::fs::read_to_string(format!("/proc/self/net/{protocol}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if let [_, local, _, found_state, ..] = fields.as_slice()
                && *found_state == state
            {
                found.insert(format!("{protocol} {local}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_tell_what_came_and_went_but_not_which_processes_ended() {
        let with = |kind, names: &[&str]| Snapshot {
            things: BTreeMap::from([(kind, names.iter().map(|name| (*name).to_owned()).collect())]),
        };
        let found = with("link", &["lo", "a"]).differences(&with("link", &["lo", "b"]));
        assert_eq!(found, ["link appeared: b", "link vanished: a"]);
        assert!(with("process", &["7 x"]).differences(&with("process", &[])).is_empty());
    }

    #[test]
    fn the_time_that_an_announced_route_has_left_makes_no_other_route() {
        let route = |left: &str| without_expiry(&format!("default via fe80::1 dev eth0 proto ra {left}pref medium"));
        assert_eq!(route("expires 1799sec "), route("expires 12sec "));
        assert_eq!(route("expires 12sec "), route(""));
    }

    #[test]
    fn a_listener_is_seen() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = format!(":{:04X}", listener.local_addr().unwrap().port());
        assert!(listeners().iter().any(|line| line.starts_with("tcp ") && line.ends_with(&port)));
    }
}
