//! Effects on node pools: workers come, and those that are wanted no more go, with all that was made for them.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::Metadata as _;
use kube::api::ListParams;
use tracing::info;

use super::{
    PoolFacts,
    plan::{self, Known, Surroundings},
    reconcile::{Error, KvmOperator, State, foremost},
    survey::{Survey, Trouble},
    vm_pod::VmPod,
};
use crate::{
    api::Reason,
    cluster::{Report, Valid, valid::NodePool},
    context::Target,
    network::places::{self, Place, Places},
    runtime::{apply, cache, call, queue::Outcome},
};

/// Pause before somebody is looked for again who is gone by what the cache says.
const LEAVING_POLL: Duration = Duration::from_secs(2);

type Answer = (Report<PoolFacts>, Outcome);

impl KvmOperator {
    /// Looks after the node pools.
    pub(super) async fn look_at_pools(&self, target: &Target, survey: Option<&Survey<'_>>) -> Result<Answer, Error> {
        let waiting = |what: &str| Ok((Report::waiting(what), Outcome::AwaitChange));
        if target.is_deleting() {
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        let (Some(valid), Some(survey)) = (target.workable(), survey) else {
            return waiting("a valid and protected Cluster");
        };
        let identity = &valid.identity;
        if valid.pools.is_empty() && survey.known.is_empty() {
            return Ok((Report::Ready(PoolFacts::default()), Outcome::AwaitChange));
        }
        if !self.context.settings.kvm.enabled {
            let message = "kvm is switched off in the controller manager's settings".to_owned();
            return Ok((Report::Pending { reason: Reason::ProviderPending, message }, Outcome::AwaitChange));
        }
        let Some(namespace) = self.context.namespace(identity) else { return waiting("the namespace") };
        let reports = self.context.reports.of(identity);
        let Some(network) = reports.network.as_ref().and_then(Report::facts).and_then(|facts| facts.inside.as_ref())
        else {
            return waiting("the network");
        };
        if target.asks_for_flannel() && reports.flannel.as_ref().and_then(Report::facts).is_none() {
            return waiting("what flanneld needs");
        }
        self.give_up(target, survey).await?;
        let (mut states, poll) = self.remove(target, survey).await?;
        let places = self.places(valid, survey).await?;
        let around = self.around(&namespace, network);
        let mut failed = None;
        let wanted = survey.workers.len();
        let mut facts = PoolFacts { ready: 0, wanted, changing: survey.is_changing(false) };
        for (pool, node) in &survey.workers {
            let Some(place) = places.given.get(node) else { continue };
            match self.worker(target, survey, (pool, node, *place), around).await {
                Ok(state) => {
                    facts.ready += usize::from(state.is_ready());
                    states.push(state);
                }
                // One that cannot be made stops no other.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let outcome = if poll { Outcome::After(LEAVING_POLL) } else { Outcome::AwaitChange };
        let report = report(facts, &places.homeless, &states, survey.waits(false));
        Ok((report, outcome.or_sooner(Outcome::at(survey.next))))
    }

    async fn worker(
        &self,
        target: &Target,
        survey: &Survey<'_>,
        (pool, node, place): (&NodePool, &str, Place),
        around: Surroundings<'_>,
    ) -> Result<State, Error> {
        let Some(valid) = target.workable() else { return Ok(State::waits("a valid and protected Cluster")) };
        let there = cache::get(&self.context.cache.pods, Some(&valid.identity.namespace), node).is_some();
        if survey.rollout.holds_workers && !there {
            return Ok(State::waits(format!("the control plane to be replaced before {node}")));
        }
        let objects = plan::worker_node(valid, pool, node, place, around)?;
        if self.has_keys(&valid.identity, node) {
            return self.node(target, survey, node, objects).await;
        }
        // Its certificates are for its address: the place is written down first.
        let failed = |source| Error::Node { node: node.to_owned(), source };
        self.ensure_config(&valid.identity, &objects.config).await.map_err(failed)?;
        Ok(State::waits(format!("the certificates of {node}")))
    }

    /// Who has which place. A new one is given only by what the server itself has: the cache may lag behind another that was
    /// given a moment ago.
    async fn places(&self, valid: &Valid, survey: &Survey<'_>) -> Result<Places, Error> {
        let placed =
            |known: &[Known]| known.iter().filter_map(|one| Some((one.node.clone(), one.place?))).collect::<Vec<_>>();
        let taken = placed(&survey.known);
        let all: BTreeMap<_, _> = taken.iter().map(|(node, place)| (node, place)).collect();
        let wanted = || survey.workers.iter().map(|(_, node)| node.as_str());
        let room = places::room(valid);
        if survey.workers.iter().all(|(_, node)| all.contains_key(node)) {
            return Ok(places::plan(wanted(), taken, room));
        }
        let (identity, owner) = (&valid.identity, valid.identity.owner());
        let params = ListParams::default().labels(&identity.selector());
        let maps = self.config_maps(identity);
        let live = call("list", "ConfigMaps", maps.list_metadata(&params)).await.map_err(Error::Places)?;
        let live = live.items.iter().map(|map| &map.metadata).filter(|meta| owner.owns(meta));
        let live: Vec<_> = live.filter_map(Known::of).collect();
        Ok(places::plan(wanted(), taken.into_iter().chain(placed(&live)), room))
    }

    /// Removes the workers that are wanted no more: first the VM pod, and when that is gone what was made for it. Answers how
    /// those are that are still there, and whether to look again soon. Its keys are pki's to remove.
    async fn remove(&self, target: &Target, survey: &Survey<'_>) -> Result<(Vec<State>, bool), Error> {
        let identity = &target.identity;
        let (mut states, mut poll) = (Vec::new(), false);
        for node in &survey.unwanted {
            let failed = |source| Error::Remove { node: node.clone(), source };
            let cached = cache::get(&self.context.cache.pods, Some(&identity.namespace), node);
            if let Some(pod) = cached.filter(|pod| identity.owner().owns(pod.metadata())) {
                states.push(self.send_away(target, survey, &pod).await?);
                continue;
            }
            // From the server: a place that is given away while its VM still runs would be there twice.
            let pods = self.pods(identity);
            let pod = call("get", format!("Pod {node}"), pods.get_metadata_opt(node)).await.map_err(failed)?;
            if pod.is_some_and(|pod| identity.owner().owns(&pod.metadata)) {
                poll = true;
                continue;
            }
            if let Some(config) = self.config_of(identity, node) {
                apply::delete(&self.config_maps(identity), &config, None).await.map_err(failed)?;
            }
        }
        Ok((states, poll))
    }

    /// Goes on with a worker that is wanted no more: where a VM runs its pods go elsewhere first, when it is its turn.
    async fn send_away(&self, target: &Target, survey: &Survey<'_>, pod: &VmPod) -> Result<State, Error> {
        let node = pod.node();
        let failed = |source| Error::Remove { node: node.to_owned(), source };
        if let Some(Trouble::OutOfService { .. }) = survey.trouble.get(node) {
            let state = self.on_dead_host(target, survey, pod).await.map_err(failed)?;
            return Ok(state.unwrap_or(State::Ready));
        }
        if pod.runs() && !survey.has_lost(node) {
            let state = self.leave(target, survey, pod).await?;
            return Ok(state.unwrap_or_else(|| State::waits(format!("node {node} to be removed"))));
        }
        if !pod.is_going() {
            info!(node, "wanted no more, and nothing is to be drained");
            apply::delete(&self.pods(&target.identity), pod.metadata(), None).await.map_err(failed)?;
        }
        Ok(match survey.trouble.get(node) {
            // It goes when its host is back. Its successor is there; nobody waits for this one.
            Some(Trouble::Dead { .. }) => State::Ready,
            _ => State::waits(format!("node {node} to go")),
        })
    }
}

fn report(facts: PoolFacts, homeless: &[String], states: &[State], waits: Option<String>) -> Report<PoolFacts> {
    if let Some(node) = homeless.first() {
        let message = format!(
            "node {node}: network.overlay.cidr and kubernetes.podCIDR have no room for another; lower replicas of a pool"
        );
        return Report::Failed { reason: Reason::InvalidSpec, message, facts: Some(facts) };
    }
    match foremost(states, waits) {
        Some((what, obstacle)) => Report::held_up(obstacle, what, Some(facts)),
        None => Report::Ready(facts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_without_hosts_is_said_before_what_takes_its_time() {
        let facts = PoolFacts { ready: 1, wanted: 3, changing: false };
        let words = "VM pod b-0: 0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.";
        let changes = State::Changes { what: "node a-2: being removed".into(), ready: true };
        let states = [
            State::waits("VM pod a-1: its container to start"),
            changes.clone(),
            State::Waits { what: words.into(), obstacle: Some(Reason::Unschedulable) },
            State::Ready,
        ];
        let said = |states: &[State], waits: Option<&str>| match report(facts, &[], states, waits.map(str::to_owned)) {
            Report::Waiting { what, facts: Some(_) } => what,
            Report::Failed { reason: Reason::Unschedulable, message, .. } => message,
            Report::Ready(_) => "ready".into(),
            other => panic!("{other:?}"),
        };
        assert_eq!(said(&states, None), words);
        assert_eq!(said(&states[..2], Some("x")), "node a-2: being removed");
        assert_eq!(said(&states[..1], Some("node a-0 to be ready")), "node a-0 to be ready");
        assert_eq!(said(&states[..1], None), "VM pod a-1: its container to start");
        assert_eq!(said(&[State::Ready], None), "ready");
        assert!(matches!(report(facts, &["a-2".into()], &states, None), Report::Failed { .. }));
    }
}
