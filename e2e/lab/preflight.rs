//! Can this machine carry a lab? Answered before anything is started, all problems at once, each with what to do.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::facts::{COMMANDS, Facts, gather};
use crate::paths::Paths;
use crate::range::Range;
use crate::topology::{NODE_RANGE, POD_RANGE, SERVICE_RANGE};

const GIB: u64 = 1 << 30;
/// Free disk that logs, volumes and the disks of a few small guests may need.
const DISK: u64 = 4 * GIB;
/// Disk that the image stores of all hosts need; what of it is there already need not be free.
const IMAGES: u64 = 9 * GIB;
/// Free memory that the control plane, the hosts and a small guest need.
const MEMORY: u64 = 7 * GIB;

/// Something that stands in the lab's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What it is.
    pub what: String,
    /// What can be done about it.
    pub remedy: String,
}

/// Judges this machine.
///
/// # Errors
/// If it cannot carry a lab: the message lists every problem.
pub fn check(paths: &Paths) -> Result<()> {
    refuse(&judge(&gather(paths)))
}

/// The same before the lab's programs are built.
///
/// # Errors
/// As [`check`]'s.
pub fn check_before_build(paths: &Paths) -> Result<()> {
    refuse(&judge(&Facts { tools: None, ..gather(paths) }))
}

fn refuse(problems: &[Problem]) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = problems.iter().map(|problem| format!("  - {}: {}", problem.what, problem.remedy)).collect();
    bail!("this machine cannot carry a lab yet; nothing was started\n{}", lines.join("\n"))
}

/// Judges facts.
pub fn judge(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |what: String, remedy: &str| problems.push(Problem { what, remedy: remedy.to_owned() });
    if !facts.root {
        add("not root".into(), "namespaces and mounts need root: run it as root, for example with sudo -E");
    }
    if !facts.lab_exists {
        let needed = DISK + IMAGES.saturating_sub(facts.image_stores);
        for (folder, free) in facts.free.iter().filter(|(_, free)| *free < needed) {
            add(
                format!(
                    "only {} GiB of disk are free at {}, {} are needed",
                    free / GIB,
                    folder.display(),
                    needed.div_ceil(GIB)
                ),
                "make room there; GIANTNETES_CACHE moves the cache",
            );
        }
        if let Some(memory) = facts.memory.filter(|memory| *memory < MEMORY) {
            let (there, needed) = (memory as f64 / GIB as f64, MEMORY / GIB);
            add(format!("only {there:.1} GiB of memory are available, {needed} are needed"), "end other programs");
        }
    }
    if !facts.missing_commands.is_empty() {
        let package = |command: &&str| COMMANDS.iter().find(|(name, _)| name == command).map(|(_, package)| *package);
        let packages: BTreeSet<_> = facts.missing_commands.iter().filter_map(package).collect();
        let packages: Vec<_> = packages.into_iter().collect();
        add(
            format!("commands are missing: {}", facts.missing_commands.join(", ")),
            &format!("apt-get install {}", packages.join(" ")),
        );
    }
    for (feature, why) in &facts.broken_features {
        let remedy = "use a kernel that has it, or load its module (in a container: on the machine around it)";
        add(format!("{feature} do not work here ({why})"), remedy);
    }
    if facts.bridge_filtered {
        add(
            "the machine's firewall drops frames inside bridges (FORWARD is DROP and bridge-nf-call-iptables is 1)"
                .into(),
            "sysctl -w net.bridge.bridge-nf-call-iptables=0, or iptables -I FORWARD -i g8s-lab -o g8s-lab -j ACCEPT",
        );
    }
    if let Some(cache) = &facts.hidden_cache {
        add(
            format!("the cache {} lies in a folder of which the lab's hosts have their own", cache.display()),
            "set GIANTNETES_CACHE to a folder that is neither in /tmp nor in /run",
        );
    }
    for port in &facts.taken_ports {
        add(
            format!("port {port} of 127.0.0.1, which leads to the lab's ingress controller, is taken"),
            "end the program that listens there while the lab is up (ss -ltnp tells which it is)",
        );
    }
    for (range, purpose) in [(NODE_RANGE, "hosts"), (POD_RANGE, "pods"), (SERVICE_RANGE, "Services")] {
        let taken = |used: &str| Some(Range::parse(used)?.overlaps(Range::parse(range)?));
        for used in facts.used.iter().filter(|used| taken(&used.range) == Some(true)) {
            add(
                format!("{range}, which the lab uses for {purpose}, overlaps {} ({})", used.range, used.by),
                "remove that address or route while the lab is up",
            );
        }
    }
    match &facts.tools {
        Some(Ok(missing)) if !missing.is_empty() => {
            let missing = missing.join(" ");
            add(format!("not built: {missing}"), &format!("e2e/tools/build.sh {missing} (some minutes, once)"));
        }
        Some(Err(error)) => add(format!("e2e/tools/build.sh does not work ({error})"), "install Go 1.26 or newer"),
        _ => {}
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Used;

    fn fit() -> Facts {
        Facts {
            root: true,
            free: vec![("/var/lib/giantnetes-lab".into(), 50 * GIB)],
            memory: Some(16 * GIB),
            used: vec![Used { range: "192.0.2.2/24".into(), by: "the address of eth0".into() }],
            tools: Some(Ok(Vec::new())),
            ..Facts::default()
        }
    }

    /// The one problem that a change makes of a fit machine.
    fn problem(change: impl FnOnce(&mut Facts)) -> String {
        let mut facts = fit();
        change(&mut facts);
        let problems = judge(&facts);
        assert_eq!(problems.len(), 1, "{problems:?}");
        format!("{}: {}", problems[0].what, problems[0].remedy)
    }

    #[test]
    fn a_fit_machine_has_no_problem() {
        assert_eq!(judge(&fit()), []);
    }

    #[test]
    fn every_failing_fact_is_told_with_its_remedy() {
        let told = [
            (problem(|facts| facts.root = false), "not root: namespaces and mounts need root: run it as root"),
            (
                problem(|facts| facts.free[0].1 = 3 * GIB),
                "only 3 GiB of disk are free at /var/lib/giantnetes-lab, 13 are needed: make room there",
            ),
            (
                problem(|facts| (facts.free[0].1, facts.image_stores) = (3 * GIB, 20 * GIB)),
                "only 3 GiB of disk are free at /var/lib/giantnetes-lab, 4 are needed: make room there",
            ),
            (
                problem(|facts| facts.memory = Some(GIB + GIB / 2)),
                "only 1.5 GiB of memory are available, 7 are needed: end other programs",
            ),
            (
                problem(|facts| facts.missing_commands = vec!["ctr", "containerd", "conntrack"]),
                "commands are missing: ctr, containerd, conntrack: apt-get install conntrack containerd",
            ),
            (
                problem(|facts| facts.broken_features = vec![("VXLAN", "Unknown device type".into())]),
                "VXLAN do not work here (Unknown device type): use a kernel that has it",
            ),
            (
                problem(|facts| facts.hidden_cache = Some("/tmp/cache/lab".into())),
                "the cache /tmp/cache/lab lies in a folder of which the lab's hosts have their own: set GIANTNETES_CACHE",
            ),
            (problem(|facts| facts.bridge_filtered = true), "the machine's firewall drops frames inside bridges"),
        ];
        for (said, expected) in told {
            assert!(said.starts_with(expected), "{said}\n  does not start with\n{expected}");
        }
    }

    #[test]
    fn a_taken_range_is_told() {
        let said = problem(|facts| {
            facts.used.push(Used { range: "10.232.7.0/24".into(), by: "a route over vpn0".into() });
        });
        assert_eq!(
            said,
            "10.232.0.0/16, which the lab uses for pods, overlaps 10.232.7.0/24 (a route over vpn0): remove that address \
             or route while the lab is up"
        );
    }

    #[test]
    fn a_taken_port_is_told() {
        let said = problem(|facts| facts.taken_ports = vec![10443]);
        assert_eq!(
            said,
            "port 10443 of 127.0.0.1, which leads to the lab's ingress controller, is taken: end the program that listens \
             there while the lab is up (ss -ltnp tells which it is)"
        );
    }

    #[test]
    fn tools_that_are_not_built_are_told() {
        let said = problem(|facts| facts.tools = Some(Ok(vec!["etcd", "calico"])));
        assert_eq!(said, "not built: etcd calico: e2e/tools/build.sh etcd calico (some minutes, once)");
        let said = problem(|facts| facts.tools = Some(Err("go is not installed".into())));
        assert_eq!(said, "e2e/tools/build.sh does not work (go is not installed): install Go 1.26 or newer");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let mut facts = fit();
        facts.root = false;
        facts.memory = Some(0);
        facts.missing_commands = vec!["runc"];
        assert_eq!(judge(&facts).len(), 3);
    }

    #[test]
    fn a_lab_that_is_up_has_its_share_of_memory_and_disk_already() {
        let facts = Facts { lab_exists: true, memory: Some(GIB), free: vec![("/".into(), 0)], ..fit() };
        assert_eq!(judge(&facts), []);
    }
}
