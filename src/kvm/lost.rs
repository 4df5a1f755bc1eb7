//! Nodes on hosts that are dead. A VM with a volume is never made twice: it waits until it is certain that the old one is off. A
//! worker has nothing to lose, and another one takes its part.

use k8s_openapi::Metadata as _;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tracing::warn;

use super::{
    host::OUT_OF_SERVICE_TAINT,
    reconcile::{Error, KvmOperator, State},
    survey::{Survey, Trouble},
    vm_pod::VmPod,
};
use crate::{
    api::{Reason, names},
    context::Target,
    runtime::{CallError, apply, call, events::Weight},
};

impl KvmOperator {
    /// Writes down which workers are given up now, before anything is made that follows from it.
    pub(super) async fn give_up(&self, target: &Target, survey: &Survey<'_>) -> Result<(), Error> {
        for (node, trouble) in &survey.trouble {
            let Trouble::Dead { host, .. } = trouble else { continue };
            let Some(config) = self.config_of(&target.identity, node).filter(|_| survey.has_lost(node)) else {
                continue;
            };
            if config.annotations.as_ref().is_some_and(|all| all.contains_key(names::LOST_ANNOTATION)) {
                continue;
            }
            let failed = |source| Error::Remove { node: node.clone(), source };
            let annotations = json!({names::LOST_ANNOTATION: host});
            let patch = Patch::Merge(json!({"metadata": {"uid": config.uid, "annotations": annotations}}));
            let params = PatchParams { field_manager: Some("giantnetes.kvm".into()), ..PatchParams::default() };
            let (name, maps) = (names::node_config_map(node), self.config_maps(&target.identity));
            let write = maps.patch_metadata(&name, &params, &patch);
            call("patch", format!("ConfigMap {name}"), write).await.map_err(failed)?;
            warn!(node, host, "its host is dead; another worker takes its part");
            let note = format!("host {host} is dead: node {node} is given up, and another takes its part");
            self.context.events.say(&*target.cluster, Weight::Warning, "NodeLost", "Reconcile", &note).await;
        }
        Ok(())
    }

    /// How a node is whose host is dead. `None`: its host is well, or may be yet.
    pub(super) async fn on_dead_host(
        &self,
        target: &Target,
        survey: &Survey<'_>,
        pod: &VmPod,
    ) -> Result<Option<State>, CallError> {
        let node = pod.node();
        Ok(match survey.trouble.get(node) {
            None => None,
            Some(Trouble::OutOfService { host }) => {
                // Nobody answers for it any more, and its volume may be attached elsewhere.
                warn!(node, host, "its host is out of service; the VM pod is forgotten");
                apply::delete(&self.pods(&target.identity), pod.metadata(), Some(0)).await?;
                Some(State::waits(format!("VM pod {node} to be forgotten with host {host}, which is out of service")))
            }
            Some(Trouble::Dead { host, since }) => Some(State::Waits {
                what: format!(
                    "host {host} of VM pod {node}, silent since {since:.0}: until it is back, its Node is deleted or has \
                     the taint {OUT_OF_SERVICE_TAINT}, the VM may run on"
                ),
                obstacle: Some(Reason::HostDead),
            }),
        })
    }
}
