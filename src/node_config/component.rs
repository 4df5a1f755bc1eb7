//! One component model for all that runs on a node, rendered as systemd units.

use std::collections::BTreeMap;

use super::{File, exec, machine, pki_mount::TIMERS};
use crate::cluster::valid::Flags;

/// The unit that pulls everything in; user data starts it.
pub(super) const TARGET: &str = "giantnetes-node.target";

/// When systemd holds a component for started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Started {
    /// As soon as it runs.
    Exec,
    /// When it says so itself (`sd_notify`).
    Notify,
}

/// A long-running part of the node.
#[derive(Clone, Debug)]
pub(super) struct Component {
    pub name: &'static str,
    pub description: &'static str,
    /// Absolute path of the program, then its arguments.
    pub argv: Vec<String>,
    pub started: Started,
    /// Units that must be up before.
    pub after: Vec<&'static str>,
    /// A unit that is waited for, whether it succeeds or not.
    pub waits_for: Option<&'static str>,
    /// Extra lines of the `[Service]` section.
    pub service: Vec<&'static str>,
    /// Arguments that users add.
    pub flags: Vec<String>,
}

impl Component {
    /// The systemd unit.
    pub(super) fn unit(&self) -> File {
        let kind = match self.started {
            Started::Exec => "exec",
            Started::Notify => "notify",
        };
        let after = self.after.join(" ");
        let waits_for = self.waits_for.map(|unit| format!("Wants={unit}\nAfter={unit}\n")).unwrap_or_default();
        let mut text = format!(
            "[Unit]\nDescription={}\nRequires={after}\nAfter={after}\n{waits_for}StartLimitIntervalSec=0\n\n[Service]\nType={kind}\nExecStart={}\nRestart=always\nRestartSec=2\nTimeoutStartSec=600\n",
            self.description,
            self.line().join(" \\\n  "),
        );
        if self.argv.iter().any(|argument| machine::is_put_in(argument)) {
            text.push_str(&format!("EnvironmentFile={}\n", machine::FACTS));
        }
        for line in &self.service {
            text.push_str(line);
            text.push('\n');
        }
        File::new(unit_path(self.name), text)
    }

    /// With the feature gates as a flag, for what is given no configuration file.
    pub(super) fn with_gates(mut self, gates: &BTreeMap<String, bool>) -> Self {
        if !gates.is_empty() {
            let gates: Vec<_> = gates.iter().map(|(gate, on)| format!("{gate}={on}")).collect();
            self.argv.push(format!("--feature-gates={}", gates.join(",")));
        }
        self
    }

    /// With what users add: after all of ours, in the order of the names.
    pub(super) fn with_flags(mut self, flags: &Flags) -> Self {
        self.flags.extend(flags.iter().map(|(name, value)| format!("--{name}={value}")));
        self
    }

    /// The words of its command line: ours, in which the machine may put in what it is, and users', of which nothing is made.
    fn line(&self) -> Vec<String> {
        let ours = |argument: &String| {
            if machine::is_put_in(argument) { argument.clone() } else { exec::quote(argument) }
        };
        self.argv.iter().map(ours).chain(self.flags.iter().map(|argument| exec::quote(argument))).collect()
    }
}

/// The feature gates as configuration files have them; nothing if there are none.
pub(super) fn gates_section(gates: &BTreeMap<String, bool>) -> String {
    let mut text = String::new();
    for (gate, on) in gates {
        // In quotes: a gate might be called `No`.
        let begin = if text.is_empty() { "featureGates:\n" } else { "" };
        text.push_str(&format!("{begin}  \"{gate}\": {on}\n"));
    }
    text
}

/// Where the unit of a component is.
pub(super) fn unit_path(component: &str) -> String {
    format!("/etc/systemd/system/{component}.service")
}

/// The target that wants every component.
pub(super) fn target(components: &[Component]) -> File {
    let wants: Vec<_> = components.iter().map(|component| format!("{}.service", component.name)).collect();
    let text = format!("[Unit]\nDescription=A node of a guest cluster\nWants={TIMERS} {}\n", wants.join(" "));
    File::new(format!("/etc/systemd/system/{TARGET}"), text)
}

/// A kubeconfig that refers to a certificate by path and holds nothing secret.
pub(super) fn kubeconfig(leaf: &str, server: &str) -> File {
    use super::paths::{CA, certificate, in_pki, key};
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: guest\n  cluster:\n    server: {server}\n    certificate-authority: {ca}\nusers:\n- name: {leaf}\n  user:\n    client-certificate: {certificate}\n    client-key: {key}\ncontexts:\n- name: guest\n  context: {{cluster: guest, user: {leaf}}}\ncurrent-context: guest\n",
        ca = in_pki(CA),
        certificate = in_pki(certificate(leaf)),
        key = in_pki(key(leaf)),
    );
    File::new(kubeconfig_path(leaf), text)
}

/// Where [`kubeconfig`] puts it.
pub(super) fn kubeconfig_path(leaf: &str) -> String {
    format!("/etc/kubernetes/{leaf}.kubeconfig")
}
