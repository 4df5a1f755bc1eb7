//! The lab's hosts, for tests that take them away.

use std::time::Duration;

use anyhow::Result;
use lab::Lab;

use super::{lab_command, list};

const MINUTE: Duration = Duration::from_secs(60);

/// Gives the hosts power and work again, whatever happened.
pub struct Hosts<'a>(pub &'a Lab);

impl Drop for Hosts<'_> {
    fn drop(&mut self) {
        for host in ["host1", "host2", "host3"] {
            let _ = lab_command(&format!("host start {host}"));
            let _ = self.0.kubectl(&["uncordon", host]);
            let _ = self.0.kubectl(&["taint", "node", host, "e2e-going-"]);
        }
    }
}

/// Leads the management cluster's own pods off a host that is to die: they would be missed for the five minutes that a
/// Deployment waits, and these tests are about guests.
pub fn spare_the_management_cluster(lab: &Lab, host: &str) -> Result<()> {
    lab.kubectl(&["taint", "--overwrite", "node", host, "e2e-going=yes:NoSchedule"])?;
    for pod in list(lab, &["pods", "-A", &format!("--field-selector=spec.nodeName={host}")])? {
        let metadata = &pod["metadata"];
        if metadata["ownerReferences"][0]["kind"] == "ReplicaSet" {
            let [namespace, name] = ["namespace", "name"].map(|field| metadata[field].as_str().unwrap_or_default());
            lab.kubectl_within(MINUTE, &["-n", namespace, "delete", "pod", name])?;
        }
    }
    for deployment in list(lab, &["deployments", "-A"])? {
        let metadata = &deployment["metadata"];
        let [namespace, name] = ["namespace", "name"].map(|field| metadata[field].as_str().unwrap_or_default());
        let words = ["-n", namespace, "rollout", "status", &format!("deployment/{name}"), "--timeout=110s"];
        lab.kubectl_within(MINUTE * 2, &words)?;
    }
    Ok(())
}
