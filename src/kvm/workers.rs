//! Effects on node pools: workers come, and those that are wanted no more go, with all that was made for them.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{Metadata as _, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::api::ListParams;
use tracing::info;

use super::{
    PoolFacts,
    plan::{self, Surroundings},
    reconcile::{Error, KvmOperator, State},
};
use crate::{
    api::{Reason, names},
    cluster::{Identity, Report, Valid},
    context::Target,
    network::places::{self, Place, Places},
    runtime::{apply, call, queue::Outcome},
};

/// Pause before somebody is looked for again who is going.
const LEAVING_POLL: Duration = Duration::from_secs(2);

type Answer = (Report<PoolFacts>, Outcome);

impl KvmOperator {
    /// Looks after the node pools.
    pub(super) async fn look_at_pools(&self, target: &Target) -> Result<Answer, Error> {
        let waiting = |what: &str| Ok((Report::waiting(what), Outcome::AwaitChange));
        if target.is_deleting() {
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        let Some(valid) = target.workable() else { return waiting("a valid and protected Cluster") };
        let identity = &valid.identity;
        let known = self.known(identity);
        if valid.pools.is_empty() && known.is_empty() {
            return Ok((Report::Ready(PoolFacts::default()), Outcome::AwaitChange));
        }
        if !self.context.settings.kvm.enabled {
            let message = "kvm is switched off in the controller manager's settings".to_owned();
            return Ok((Report::Pending { reason: Reason::ProviderPending, message }, Outcome::AwaitChange));
        }
        let Some(namespace) = self.context.namespace(identity) else { return waiting("the namespace") };
        let reports = self.context.reports.of(identity);
        let Some(network) = reports.network.as_ref().and_then(Report::facts) else { return waiting("the network") };
        let leaving = self.remove(valid, &known).await?;
        let places = self.places(valid, &known).await?;
        let around = self.around(&namespace, network);
        let (mut facts, mut states, mut failed) = (PoolFacts::default(), Vec::new(), None);
        for (pool, node) in valid.workers() {
            facts.wanted += 1;
            let Some(place) = places.given.get(&node) else { continue };
            match self.worker(valid, pool, &node, *place, around).await {
                Ok(State::Ready) => facts.ready += 1,
                Ok(state) => states.push(state),
                // One that cannot be made stops no other.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let outcome = if leaving.is_empty() { Outcome::AwaitChange } else { Outcome::After(LEAVING_POLL) };
        Ok((report(facts, &places.homeless, &states, &leaving), outcome))
    }

    async fn worker(
        &self,
        valid: &Valid,
        pool: &crate::cluster::valid::NodePool,
        node: &str,
        place: Place,
        around: Surroundings<'_>,
    ) -> Result<State, Error> {
        let objects = plan::worker_node(valid, pool, node, place, around)?;
        if self.has_keys(&valid.identity, node) {
            return self.node(valid, node, objects).await;
        }
        // Its certificates are for its address: the place is written down first.
        let failed = |source| Error::Node { node: node.to_owned(), source };
        self.ensure_config(&valid.identity, &objects.config).await.map_err(failed)?;
        Ok(State::waits(format!("the certificates of {node}")))
    }

    /// Every worker that there is anything of, with its place. What its pod says comes first: that is what runs.
    fn known(&self, identity: &Identity) -> Vec<(String, Option<Place>)> {
        let owner = identity.owner();
        let pods = self.context.vm_pods(identity);
        let maps = self.context.config_maps(identity);
        let metas = pods.iter().map(|pod| pod.metadata()).chain(maps.iter().map(|map| &map.metadata));
        metas.filter(|meta| owner.owns(meta)).filter_map(worker_of).collect()
    }

    /// Who has which place. A new one is given only by what the server itself has: the cache may lag behind another that was
    /// given a moment ago.
    async fn places(&self, valid: &Valid, known: &[(String, Option<Place>)]) -> Result<Places, Error> {
        let placed = |known: &[(String, Option<Place>)]| {
            known.iter().filter_map(|(node, place)| Some((node.clone(), (*place)?))).collect::<Vec<_>>()
        };
        let taken = placed(known);
        let all: BTreeMap<_, _> = taken.iter().map(|(node, place)| (node, place)).collect();
        let nodes: Vec<_> = valid.workers().map(|(_, node)| node).collect();
        let wanted = || nodes.iter().map(String::as_str);
        let room = places::room(&valid.ranges);
        if nodes.iter().all(|node| all.contains_key(node)) {
            return Ok(places::plan(wanted(), taken, room));
        }
        let (identity, owner) = (&valid.identity, valid.identity.owner());
        let params = ListParams::default().labels(&identity.selector());
        let maps = self.config_maps(identity);
        let live = call("list", "ConfigMaps", maps.list_metadata(&params)).await.map_err(Error::Places)?;
        let live: Vec<_> =
            live.items.iter().map(|map| &map.metadata).filter(|m| owner.owns(m)).filter_map(worker_of).collect();
        Ok(places::plan(wanted(), taken.into_iter().chain(placed(&live)), room))
    }

    /// Removes the workers that are wanted no more: first the VM pod, and when that is gone what was made for it. Answers who
    /// is still there. Its keys are pki's to remove.
    async fn remove(&self, valid: &Valid, known: &[(String, Option<Place>)]) -> Result<Vec<String>, Error> {
        let identity = &valid.identity;
        let unwanted = plan::unwanted(valid, known.iter().map(|(node, _)| node.clone()));
        for node in &unwanted {
            let failed = |source| Error::Remove { node: node.clone(), source };
            // From the server: a place that is given away while its VM still runs would be there twice.
            let pods = self.pods(identity);
            let pod = call("get", format!("Pod {node}"), pods.get_metadata_opt(node)).await.map_err(failed)?;
            if let Some(pod) = pod.filter(|pod| identity.owner().owns(&pod.metadata)) {
                if pod.metadata.deletion_timestamp.is_none() {
                    info!(node, "wanted no more; its VM is powered off");
                    apply::delete(&pods, &pod.metadata, None).await.map_err(failed)?;
                }
                continue;
            }
            let name = names::node_config_map(node);
            let config = self.context.meta(&self.context.cache.config_maps, &identity.namespace, &name);
            if let Some(config) = config.filter(|meta| identity.owner().owns(meta)) {
                apply::delete(&self.config_maps(identity), &config, None).await.map_err(failed)?;
            }
        }
        Ok(unwanted)
    }
}

/// The worker that an object was made for.
fn worker_of(meta: &ObjectMeta) -> Option<(String, Option<Place>)> {
    let labels = meta.labels.as_ref()?;
    let is_worker = labels.get(names::ROLE_LABEL).is_some_and(|role| role == names::ROLE_WORKER);
    is_worker.then(|| labels.get(names::NODE_LABEL)).flatten().map(|node| (node.clone(), Place::of(meta)))
}

fn report(facts: PoolFacts, homeless: &[String], states: &[State], leaving: &[String]) -> Report<PoolFacts> {
    if let Some(node) = homeless.first() {
        let message = format!(
            "node {node}: network.overlay.cidr and kubernetes.podCIDR have no room for another; lower replicas of a pool"
        );
        return Report::Failed { reason: Reason::InvalidSpec, message, facts: Some(facts) };
    }
    // What nobody but a person can mend is said before what just takes its time.
    let waits = |must_be_mended: bool| {
        states.iter().find_map(|state| match state {
            State::Waits { what, obstacle } if obstacle.is_some() == must_be_mended => Some((*obstacle, what.clone())),
            _ => None,
        })
    };
    let leaves = || Some((None, format!("node {} to go", leaving.first()?)));
    match waits(true).or_else(|| waits(false)).or_else(leaves) {
        Some((obstacle, what)) => Report::held_up(obstacle, what, Some(facts)),
        None => Report::Ready(facts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_without_hosts_is_said_before_what_takes_its_time() {
        let facts = PoolFacts { ready: 1, wanted: 3 };
        let words = "VM pod b-0: 0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.";
        let states = [
            State::waits("VM pod a-1: its container to start"),
            State::Waits { what: words.into(), obstacle: Some(Reason::Unschedulable) },
        ];
        let report_of = report(facts, &[], &states, &[]);
        let reason = Reason::Unschedulable;
        assert_eq!(report_of, Report::Failed { reason, message: words.into(), facts: Some(facts) });
        assert_eq!(report(facts, &[], &[], &[]), Report::Ready(facts));
        assert!(
            matches!(report(facts, &[], &[], &["a-2".into()]), Report::Waiting { what, .. } if what == "node a-2 to go")
        );
        assert!(matches!(report(facts, &["a-2".into()], &states, &[]), Report::Failed { .. }));
    }
}
