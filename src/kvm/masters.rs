//! Effects on the control plane: all of its nodes, and etcd, which is formed once in a guest's life.

use std::time::Duration;

use k8s_openapi::{api::core::v1::PersistentVolumeClaim, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    KvmFacts,
    plan::{self, Surroundings},
    reconcile::{Answer, Error, KvmOperator, State, foremost},
    survey::Survey,
    vm_pod::VmPod,
};
use crate::{
    api::{Reason, names},
    cluster::{Blames as _, Identity, Report, Valid},
    context::Target,
    runtime::{CallError, call, chain, queue::Outcome},
};

/// Pause before lost volumes of etcd are looked for again.
const LOST_POLL: Duration = Duration::from_secs(60);

impl KvmOperator {
    /// Looks after the control plane, and what belongs to all nodes.
    pub(super) async fn look_at_masters(&self, target: &Target, survey: Option<&Survey<'_>>) -> Result<Answer, Error> {
        if target.is_deleting() {
            return self.delete(&target.identity).await;
        }
        let (Some(valid), Some(survey)) = (target.workable(), survey) else {
            return Ok((Report::waiting("a valid and protected Cluster"), Outcome::AwaitChange));
        };
        if !self.context.settings.kvm.enabled {
            let message = "kvm is switched off in the controller manager's settings".to_owned();
            return Ok((Report::Pending { reason: Reason::ProviderPending, message }, Outcome::AwaitChange));
        }
        let identity = &valid.identity;
        let waiting = |what: &str| Ok((Report::waiting(what), Outcome::AwaitChange));
        let Some(namespace) = self.context.namespace(identity) else { return waiting("the namespace") };
        let reports = self.context.reports.of(identity);
        let Some(network) = reports.network.as_ref().and_then(Report::facts).and_then(|facts| facts.inside.as_ref())
        else {
            return waiting("the network");
        };
        if target.asks_for_flannel() && reports.flannel.as_ref().and_then(Report::facts).is_none() {
            return waiting("what flanneld needs");
        }
        self.ensure_budget(valid, survey.workers.len()).await.map_err(Error::Budget)?;
        if survey.masters.iter().all(|(_, node)| !self.has_keys(identity, node)) {
            return waiting("the certificates");
        }
        if let Some(message) = self.lost_etcd(target, survey).await? {
            let before = reports.kvm.as_ref();
            return Ok((Report::failed(Reason::EtcdLost, message, before), Outcome::After(LOST_POLL)));
        }
        let around = Surroundings {
            etcd_formed: target.has_formed_etcd() || reports.kvm.as_ref().is_some_and(has_answered),
            ..self.around(&namespace, network)
        };
        let (mut states, mut failed) = (Vec::new(), None);
        for (index, node) in &survey.masters {
            let look = self.master(target, survey, valid, (*index, node), around).await;
            match look {
                Ok(state) => states.push(state),
                // One that cannot be made stops no other.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let wanted = usize::try_from(valid.control_plane.replicas).unwrap_or(usize::MAX);
        let facts = KvmFacts {
            ready: states.iter().filter(|state| state.is_ready()).count(),
            wanted,
            runs: survey.has_arrived().then(|| valid.version.clone()),
            changing: survey.is_changing(true),
        };
        if let Some(error) = failed {
            // What is known of the others stays known.
            let report = Report::Failed { reason: error.reason(), message: chain(&error), facts: Some(facts) };
            self.context.reports.update(identity, |reports| reports.kvm = Some(report));
            return Err(error);
        }
        if survey.masters.len() < wanted {
            states.push(State::waits("the control plane to be replaced before it grows"));
        }
        let report = match foremost(&states, survey.waits(true)) {
            None => Report::Ready(facts),
            Some((what, obstacle)) => Report::held_up(obstacle, what, Some(facts)),
        };
        Ok((report, Outcome::at(survey.next)))
    }

    async fn master(
        &self,
        target: &Target,
        survey: &Survey<'_>,
        valid: &Valid,
        (index, node): (u32, &str),
        around: Surroundings<'_>,
    ) -> Result<State, Error> {
        if !self.has_keys(&valid.identity, node) {
            return Ok(State::waits(format!("the certificates of {node}")));
        }
        let mut objects = plan::control_plane_node(valid, index, around)?;
        if let Some(claim) = objects.claim.as_mut().filter(|_| index > 0 || around.etcd_formed) {
            let annotations = claim.metadata.annotations.get_or_insert_default();
            annotations.insert(names::ETCD_JOINS_ANNOTATION.into(), "true".into());
        }
        let state = self.node(target, survey, node, objects).await?;
        if state == State::Ready {
            self.has_joined(&valid.identity, node).await.map_err(Error::Volumes)?;
        }
        Ok(state)
    }

    /// Takes note that a member's volume has all that etcd knows, if that was not so.
    async fn has_joined(&self, identity: &Identity, node: &str) -> Result<(), CallError> {
        let Some(claim) = self.volume_of(identity, node).filter(joins) else { return Ok(()) };
        let made = |meta: &ObjectMeta| meta.creation_timestamp.as_ref().map(|made| made.0);
        let vm_pods = self.context.vm_pods(identity);
        let runs_on_it = |pod: &VmPod| pod.node() == node && made(&pod.metadata) >= made(&claim);
        if !vm_pods.iter().any(|pod| runs_on_it(pod)) {
            // The last look at the VM pod is older than this volume, which took the place of its own and is blank.
            return Ok(());
        }
        let annotations = json!({names::ETCD_JOINS_ANNOTATION: null});
        let patch = Patch::Merge(json!({"metadata": {"uid": claim.uid, "annotations": annotations}}));
        let params = PatchParams { field_manager: Some("giantnetes.kvm".into()), ..PatchParams::default() };
        let name = names::etcd_claim(node);
        let write = self.volumes(identity);
        call("patch", format!("PersistentVolumeClaim {name}"), write.patch_metadata(&name, &params, &patch)).await?;
        Ok(())
    }

    /// What to say if etcd has held the guest's objects and none of its volumes does any more. Whatever were made then would
    /// be another guest, which takes this one's pods for leftovers, or wait for ever for somebody who knows them.
    async fn lost_etcd(&self, target: &Target, survey: &Survey<'_>) -> Result<Option<String>, Error> {
        let identity = &target.identity;
        let holds = |node: &str| self.volume_of(identity, node).is_some_and(|claim| !joins(&claim));
        if !target.has_formed_etcd() || survey.masters.iter().any(|(_, node)| holds(node)) {
            return Ok(None);
        }
        let api = self.volumes(identity);
        for (_, node) in &survey.masters {
            // The cache does not show what has lost its labels.
            let name = names::etcd_claim(node);
            let live = call("get", format!("PersistentVolumeClaim {name}"), api.get_metadata_opt(&name)).await;
            if live.map_err(Error::Volumes)?.is_some_and(|claim| !joins(&claim.metadata)) {
                return Ok(None);
            }
        }
        Ok(Some(format!(
            "no PersistentVolumeClaim master-<n>-etcd in namespace {} holds the guest's objects any more, and none is made \
             anew: set spec.pausedUntil, restore those of most control-plane nodes from a backup, with their labels and \
             annotations, and end the pause; or delete the Cluster",
            identity.namespace
        )))
    }

    fn volumes(&self, identity: &Identity) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.context.client.clone(), &identity.namespace)
    }
}

/// Whether a member has yet to fill its volume from the others.
fn joins(claim: &ObjectMeta) -> bool {
    claim.annotations.as_ref().is_some_and(|all| all.contains_key(names::ETCD_JOINS_ANNOTATION))
}

/// Whether an API server of the guest was ready at the last look.
fn has_answered(report: &Report<KvmFacts>) -> bool {
    report.facts().is_some_and(|facts| facts.ready > 0)
}
