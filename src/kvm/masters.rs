//! Effects on the control plane: all of its nodes, and etcd, which is formed once in a guest's life.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;

use super::{
    KvmFacts,
    plan::{self, Surroundings},
    reconcile::{Answer, Error, KvmOperator, State, after, foremost},
    survey::Survey,
};
use crate::{
    api::{Reason, names},
    cluster::{Report, Valid},
    context::Target,
    runtime::{call, queue::Outcome},
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
        let Some(network) = reports.network.as_ref().and_then(Report::facts) else { return waiting("the network") };
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
        if let Some(error) = failed {
            return Err(error);
        }
        let wanted = usize::try_from(valid.control_plane.replicas).unwrap_or(usize::MAX);
        let facts = KvmFacts {
            ready: states.iter().filter(|state| state.is_ready()).count(),
            wanted,
            runs: survey.has_arrived().then(|| valid.version.clone()),
            changing: survey.is_changing(true),
        };
        if survey.masters.len() < wanted {
            states.push(State::waits("the control plane to be replaced before it grows"));
        }
        let report = match foremost(&states, survey.waits(true)) {
            None => Report::Ready(facts),
            Some((what, obstacle)) => Report::held_up(obstacle, what, Some(facts)),
        };
        Ok((report, after(survey.next)))
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
        self.node(target, survey, node, plan::control_plane_node(valid, index, around)?).await
    }

    /// What to say if etcd has held the guest's objects and none of its volumes is left. Whatever were made then would be
    /// another guest, which takes this one's pods for leftovers.
    async fn lost_etcd(&self, target: &Target, survey: &Survey<'_>) -> Result<Option<String>, Error> {
        let identity = &target.identity;
        if !target.has_formed_etcd() || survey.masters.iter().any(|(_, node)| self.has_volume(identity, node)) {
            return Ok(None);
        }
        let api = Api::<PersistentVolumeClaim>::namespaced(self.context.client.clone(), &identity.namespace);
        for (_, node) in &survey.masters {
            // The cache does not show what has lost its labels.
            let name = names::etcd_claim(node);
            let live = call("get", format!("PersistentVolumeClaim {name}"), api.get_metadata_opt(&name)).await;
            if live.map_err(Error::Volumes)?.is_some() {
                return Ok(None);
            }
        }
        Ok(Some(format!(
            "etcd's volume {}/{} is gone, and with it the guest's objects; it is not made anew: restore the \
             PersistentVolumeClaim with its labels and annotations from a backup, or delete the Cluster",
            identity.namespace,
            names::etcd_claim(&names::master(0))
        )))
    }
}

/// Whether an API server of the guest was ready once, as far as this process knows.
fn has_answered(report: &Report<KvmFacts>) -> bool {
    report.facts().is_some_and(|facts| facts.ready > 0)
}
