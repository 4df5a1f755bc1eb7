//! Keys and certificates by an agent on the node, which has them signed itself, where nobody could mount them into it.

use super::{
    File, NodeConfig, component, machine,
    pki_mount::{self, MOUNT, SERVICE, TIMERS},
};

/// Where the agent's configuration is.
const CONFIG: &str = "/etc/giantnetes/node-agent.yaml";
/// The program, in the image that instances are made of.
const PROGRAM: &str = "/usr/local/bin/giantnetes";
/// The unit that renews.
const UNIT: &str = "giantnetes-node-agent.service";
/// The unit after which the machine has what is its own, and has said what it is.
pub(super) const MACHINE: &str = "giantnetes-machine.service";

impl NodeConfig {
    /// With an agent, whose configuration this is, in place of the mount from outside.
    ///
    /// What waited for keys to be copied waits under the same name for the agent to have them. Files are replaced by rename
    /// where they are read, so who reads them is told by the kernel.
    #[must_use]
    pub fn with_agent(mut self, config: &str) -> Self {
        let mounts: Vec<_> = pki_mount::files().into_iter().map(|file| file.path).collect();
        let kept = pki_mount::unit(MOUNT);
        self.files.retain(|file| file.path == kept || !mounts.contains(&file.path));
        for file in self.files.iter_mut().filter(|file| file.path == pki_mount::unit(component::TARGET)) {
            file.content = file.content.replace(TIMERS, UNIT);
        }
        self.files.extend([
            File::new(CONFIG, config),
            File::new(pki_mount::unit(MACHINE), its_own()),
            File::new(pki_mount::unit(SERVICE), first()),
            File::new(pki_mount::unit(UNIT), agent()),
        ]);
        self
    }
}

/// Until the machine has its disk and its lasting address, and is known.
fn its_own() -> String {
    format!(
        "[Unit]\nDescription=Have what is this machine's own\nAfter=network-online.target\nWants=network-online.target\n{}ExecStart={PROGRAM} node-agent --config={CONFIG} --machine={}\n{}{CLOSED}",
        oneshot(),
        machine::FACTS,
        once_it_went_well()
    )
}

/// Until every certificate is there; however long Vault is away, a node that has none can do nothing.
fn first() -> String {
    format!(
        "[Unit]\nDescription=Get keys and certificates\nRequires={MOUNT} {MACHINE}\nAfter={MOUNT} {MACHINE}\n{}ExecStart={PROGRAM} node-agent --config={CONFIG} --once\n{}{CLOSED}",
        oneshot(),
        once_it_went_well()
    )
}

fn oneshot() -> &'static str {
    "StartLimitIntervalSec=0\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=infinity\nRestart=on-failure\nRestartSec=10\n"
}

/// Whoever waits for a unit that failed is given up with it, and nobody starts him when that went well at last: so all that
/// is wanted is started, if it does not run.
fn once_it_went_well() -> String {
    format!("ExecStartPost=/bin/systemctl --no-block start {}\n", component::TARGET)
}

fn agent() -> String {
    format!(
        "[Unit]\nDescription=Renew keys and certificates\nRequires={MOUNT}\nAfter={SERVICE}\nStartLimitIntervalSec=0\n\n[Service]\nType=exec\nExecStart={PROGRAM} node-agent --config={CONFIG}\nRestart=always\nRestartSec=10\n{CLOSED}"
    )
}

/// It writes in two folders, and needs nothing else of the node.
const CLOSED: &str = "NoNewPrivileges=yes\nProtectHome=yes\nPrivateTmp=yes\n";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        node_config::{Blank, control_plane, paths::PKI},
        testing::valid,
    };

    #[test]
    fn nothing_is_left_of_the_mount_and_everything_else_is_as_it_was() {
        let before = control_plane(&valid(json!({})), 0, Blank::Forms);
        let after = before.clone().with_agent("config: here\n");
        let text: String = after.files.iter().map(|file| file.content.as_str()).collect();
        for word in ["9p", "giantnetes-pki.timer", "run-giantnetes-pki.mount"] {
            assert!(!text.contains(word), "{word}");
        }
        assert_eq!(after.file(CONFIG).unwrap().content, "config: here\n");
        // Where keys are, and for what kubelet waits, is the same.
        assert_eq!(after.file(&pki_mount::unit(MOUNT)), before.file(&pki_mount::unit(MOUNT)));
        assert!(after.file(&pki_mount::unit(MOUNT)).unwrap().content.contains(&format!("Where={PKI}\n")));
        assert!(after.file(&pki_mount::unit("kubelet.service")).unwrap().content.contains(SERVICE));
        let target = &after.file(&pki_mount::unit(component::TARGET)).unwrap().content;
        assert!(target.contains(UNIT), "{target}");
        let mounts: Vec<_> = pki_mount::files().into_iter().map(|file| file.path).collect();
        let target = pki_mount::unit(component::TARGET);
        for file in before.files.iter().filter(|file| file.path != target && !mounts.contains(&file.path)) {
            assert_eq!(after.file(&file.path), Some(file));
        }
    }
}
