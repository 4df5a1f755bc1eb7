//! Nodes that are replaced or removed: the intent is written down first, then pods go elsewhere, then the VM is powered off.
//! Whoever comes after a crash finds the intent and goes on.

use k8s_openapi::{Metadata as _, api::core::v1::Pod};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tracing::info;

use super::{
    reconcile::{Error, KvmOperator, State},
    survey::Survey,
    vm_pod::VmPod,
};
use crate::{
    api::names,
    cluster::{Identity, Report},
    context::Target,
    pki::Turning,
    rollout::{Gate, Leaving, Why, gate},
    runtime::{CallError, apply, call, events::Weight},
};

/// Pods that are named when a worker's are waited for.
const NAMED: usize = 3;

impl KvmOperator {
    /// Goes on with a node that is leaving, or begins with it if it is its turn. `None`: it stays.
    pub(super) async fn leave(
        &self,
        target: &Target,
        survey: &Survey<'_>,
        pod: &VmPod,
    ) -> Result<Option<State>, Error> {
        let node = pod.node();
        let failed = |source| Error::Leave { node: node.to_owned(), source };
        let is_known = || {
            let told = self.context.reports.of(&target.identity).pki.is_some();
            told && self.turning(&target.identity) != Turning::Unknown
        };
        let what = if survey.wants(node) { "replaced" } else { "removed" };
        let ready = pod.is_ready() && !pod.is_going();
        if !pod.is_worker() && !is_known() {
            // After a start, a pause or a failure: it is not known yet whether another one turns.
            let goes = pod.leaving().is_some() || survey.rollout.leave.as_ref().is_some_and(|(next, _)| next == node);
            return Ok(goes.then(|| State::Changes { what: held(node, what), ready }));
        }
        let (why, rest) = if let Some(leaving) = pod.leaving() {
            let rest = self.go_on(target, survey, pod, &leaving).await.map_err(failed)?;
            (leaving.why, rest)
        } else {
            let Some((_, why)) = survey.rollout.leave.as_ref().filter(|(next, _)| next == node) else {
                return Ok(None);
            };
            if self.begin(&target.identity, survey, pod, why).await.map_err(failed)? {
                let note = format!("node {node} is {what}: {why}");
                self.context.events.say(&*target.cluster, Weight::Normal, "NodeLeaves", "Reconcile", &note).await;
            }
            (why.to_string(), String::new())
        };
        Ok(Some(State::Changes { what: format!("node {node}: being {what} ({why}){rest}"), ready }))
    }

    /// Writes the intent down, unless somebody else is leaving. Answers whether it did.
    async fn begin(&self, identity: &Identity, survey: &Survey<'_>, pod: &VmPod, why: &Why) -> Result<bool, CallError> {
        let api = self.pods(identity);
        // From the server: the cache may lag behind another that began a moment ago.
        let params = ListParams::default().labels(&identity.selector());
        let live = call("list", "VM pods", api.list_metadata(&params)).await?;
        let began = |name: &str| survey.nodes.iter().any(|node| node.name == name && !node.is_lost());
        let mut leaving = live.items.iter().map(|pod| &pod.metadata).filter(|meta| {
            let leaves = meta.annotations.as_ref().is_some_and(|all| all.contains_key(names::LEAVING_SINCE_ANNOTATION));
            leaves && identity.owner().owns(meta)
        });
        if leaving.any(|meta| began(meta.name.as_deref().unwrap_or_default())) {
            return Ok(false);
        }
        info!(node = pod.node(), why = why.to_string(), "the node is to go");
        let annotations = json!({
            names::LEAVING_SINCE_ANNOTATION: survey.now.to_string(),
            names::LEAVING_FOR_ANNOTATION: why.to_string(),
        });
        annotate(&api, pod, annotations).await
    }

    /// Powers a leaving node off when it may go. Answers what there is to say of it.
    async fn go_on(
        &self,
        target: &Target,
        survey: &Survey<'_>,
        pod: &VmPod,
        leaving: &Leaving,
    ) -> Result<String, CallError> {
        const OFF: &str = "; its VM is powered off";
        if pod.is_going() {
            return Ok(OFF.into());
        }
        let (node, timeout) = (pod.node(), self.context.settings.rollout.drain_timeout);
        let reports = self.context.reports.of(&target.identity);
        let uid = pod.metadata().uid.as_deref().unwrap_or_default();
        let drain = reports.guest.as_ref().and_then(Report::facts).and_then(|facts| facts.drains.get(uid));
        let drained = !pod.is_worker() || !pod.runs() || drain.is_some_and(Vec::is_empty);
        let left = match drain.map(Vec::as_slice) {
            None => "; the guest's API has yet to say what runs there".to_owned(),
            Some([]) => String::new(),
            Some(pods) => format!("; still there: {}", shown(pods)),
        };
        // Asked after the intent was written: whoever began to turn before has said so by now, and nobody begins after it.
        match self.turning(&target.identity) {
            Turning::Node(other) if !pod.is_worker() && other != node => {
                return Ok(format!("; waits for node {other}, whose etcd is started anew"));
            }
            Turning::Unknown if !pod.is_worker() => return Ok("; waits for what its authorities are at".into()),
            _ => {}
        }
        match gate(leaving.since, drained, survey.now, timeout) {
            Gate::Closed(_) => return Ok(left),
            Gate::Open => info!(node, why = leaving.why, "its VM is powered off"),
            Gate::Overdue => {
                let note = format!("node {node} could not be drained within {timeout:#}, and goes{left}");
                info!(node, "{note}");
                self.context.events.say(&*target.cluster, Weight::Warning, "DrainTimedOut", "Reconcile", &note).await;
            }
        }
        apply::delete(&self.pods(&target.identity), pod.metadata(), None).await?;
        Ok(OFF.into())
    }

    /// Takes note of what a node was made for that was made before there were wishes: of what is wanted now.
    pub(super) async fn adopt(&self, identity: &Identity, pod: &VmPod, wish: &Value) -> Result<(), Error> {
        let failed = |source| Error::Leave { node: pod.node().to_owned(), source };
        let annotations = json!({names::NODE_WISH_ANNOTATION: wish});
        annotate(&self.pods(identity), pod, annotations).await.map(drop).map_err(failed)
    }
}

/// Writes annotations onto exactly the pod that was seen. Answers whether it did; if not, the next look sees what is there now.
async fn annotate(api: &Api<Pod>, pod: &VmPod, annotations: Value) -> Result<bool, CallError> {
    let meta = pod.metadata();
    let patch = json!({"metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "annotations": annotations,
    }});
    let params = PatchParams { field_manager: Some("giantnetes.kvm".into()), ..PatchParams::default() };
    let name = pod.node();
    match call("patch", format!("Pod {name}"), api.patch_metadata(name, &params, &Patch::Merge(patch))).await {
        Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(false),
        Err(error) => Err(error),
        Ok(_) => Ok(true),
    }
}

/// Why a node stays that is to go, as long as nobody knows what its authorities are at.
fn held(node: &str, what: &str) -> String {
    format!(
        "node {node}: to be {what}, once it is known whether another one's etcd is started anew for a rotation of authorities (annotation {} \
         of the guest's namespace)",
        names::ROTATION_ANNOTATION
    )
}

/// Some of the pods, and how many more there are.
fn shown(pods: &[String]) -> String {
    let named = pods.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match pods.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut() {
        let pods: Vec<_> = (0..5).map(|n| format!("a/{n}")).collect();
        assert_eq!(shown(&pods[..2]), "a/0, a/1");
        assert_eq!(shown(&pods), "a/0, a/1, a/2 and 2 more");
    }

    #[test]
    fn who_stays_because_of_a_rotation_says_by_what() {
        let held = held("master-1", "replaced");
        assert!(
            held.starts_with("node master-1: to be replaced") && held.contains(names::ROTATION_ANNOTATION),
            "{held}"
        );
    }
}
