//! Effects of the isolation operator: VM pods are asked what they reach.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::future::join_all;
use jiff::Timestamp;
use kube::Config;
use tracing::{debug, warn};

use super::plan::{self, Leak, Surroundings, Targets};
use crate::{
    api::{Reason, names},
    cluster::{ClusterKey, Identity, Report},
    context::Context,
    kvm::vm_pod::VmPod,
    runtime::{
        CallError, call, chain,
        link::{self, Server},
        operator::Reconciler,
        queue::Outcome,
    },
    supervisor::reach,
};

/// Pause between two looks at a guest: a leak is told within a minute.
const PERIOD: Duration = Duration::from_secs(30);
/// VM pods of one guest that are asked at a time; of more it is the turn of each.
const AT_A_TIME: usize = 4;
/// A supervisor is in the hands of nobody but us, and has little to say.
const SERVER: Server = Server { name: "vm-pod", connecting: Duration::from_secs(5), answer: 16 << 10 };

/// What is known of a guest.
#[derive(Clone)]
struct Known {
    uid: String,
    /// When it was last looked at, and which VM pods there were.
    at: Instant,
    pods: Vec<IpAddr>,
    turn: u64,
    leaks: Vec<Leak>,
}

/// The isolation operator.
pub struct IsolationOperator {
    context: Context,
    /// Where pods find the management cluster's API.
    api: Option<SocketAddr>,
    known: Mutex<HashMap<ClusterKey, Known>>,
}

impl IsolationOperator {
    /// An isolation operator. `api` is where pods find the management cluster's API.
    pub fn new(context: Context, api: Option<SocketAddr>) -> Self {
        Self { context, api, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ClusterKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn surroundings(&self, identity: &Identity) -> Surroundings {
        let pods = self.context.cache.pods.state();
        let hosts = pods.iter().filter_map(|pod| pod.status.host_ip).collect();
        let home = Some(identity.namespace.as_str());
        let others = pods.iter().filter(|pod| pod.metadata.namespace.as_deref() != home && serves(pod));
        let named = |pod: &Arc<VmPod>| {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            Some((pod.status.pod_ip?, format!("{namespace}/{}", pod.node())))
        };
        Surroundings {
            api: self.api,
            hosts,
            others: others.filter_map(named).collect(),
            allowed: self.context.settings.network.egress_allowed.clone(),
        }
    }

    /// Asks some of the guest's VM pods, and says what came of it. There is one at least. Those that
    /// do not answer say nothing: what was known of them stays.
    async fn look(&self, key: &ClusterKey, identity: &Identity, pods: &BTreeMap<IpAddr, String>) {
        let before = self.known().get(key).filter(|known| known.uid == identity.uid).cloned();
        let (turn, former) = before.map_or((0, Vec::new()), |known| (known.turn + 1, known.leaks));
        let targets = plan::targets(&self.surroundings(identity), turn, &former);
        let first = usize::try_from(turn).unwrap_or_default().wrapping_mul(AT_A_TIME);
        let asked = pods.iter().cycle().skip(first % pods.len()).take(pods.len().min(AT_A_TIME));
        let answers = join_all(asked.map(|(address, pod)| answer(key, *address, pod, &targets))).await;
        let answers: Vec<_> = answers.into_iter().flatten().collect();
        let mut leaks = plan::leaks(&targets, &answers);
        // Whose turn it is not, or who does not answer, may still reach what it reached.
        let silent = |leak: &&Leak| {
            !answers.iter().any(|(pod, _)| *pod == leak.pod) && pods.values().any(|pod| *pod == leak.pod)
        };
        leaks.extend(former.iter().filter(silent).cloned());
        leaks.sort();
        if leaks != former && !leaks.is_empty() {
            warn!(cluster = %key, leaks = plan::message(&leaks), "a guest is not kept apart");
        }
        if !answers.is_empty() {
            let report = match leaks.is_empty() {
                true => Report::Ready(()),
                false => Report::failed(Reason::NotIsolated, plan::message(&leaks), None),
            };
            self.context.reports.update(identity, |reports| reports.isolation = Some(report));
        }
        let pods = pods.keys().copied().collect();
        let known = Known { uid: identity.uid.clone(), at: Instant::now(), pods, turn, leaks };
        self.known().insert(key.clone(), known);
    }
}

/// Whether its supervisor is to be reached: it serves from its start on, long before the guest does.
fn serves(pod: &VmPod) -> bool {
    pod.started_at().is_some() && !pod.is_going() && !pod.is_finished()
}

/// What a VM pod reaches of the targets, if it says so.
async fn answer(key: &ClusterKey, address: IpAddr, pod: &str, targets: &Targets) -> Option<(String, Vec<SocketAddr>)> {
    match ask(address, targets).await {
        Ok(reached) => Some((pod.to_owned(), reached)),
        Err(error) => {
            debug!(cluster = %key, pod, error = chain(&error), "a VM pod does not say what it reaches");
            None
        }
    }
}

/// Which of the targets the VM pod at `address` reaches.
async fn ask(address: IpAddr, targets: &Targets) -> Result<Vec<SocketAddr>, CallError> {
    let path = reach::question(targets.keys());
    let ask = async {
        let url = format!("http://{}", SocketAddr::from((address, names::SUPERVISOR_PORT)));
        let config = Config::new(url.parse().map_err(http::Error::from).map_err(kube::Error::HttpError)?);
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        link::connect_to(SERVER, config, None)?.request::<Vec<SocketAddr>>(request).await
    };
    call("get", format!("{} of {address}", reach::PATH), ask).await
}

impl Reconciler for IsolationOperator {
    const NAME: &'static str = "isolation";
    type Key = ClusterKey;
    type Error = Infallible;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Infallible> {
        let target = self.context.target(key).filter(|target| !target.is_deleting());
        let Some(target) = target.filter(|target| target.paused(Timestamp::now()).is_none()) else {
            self.known().remove(key);
            return Ok(Outcome::AwaitChange);
        };
        let identity = &target.identity;
        let serving: Vec<_> = self.context.vm_pods(identity).into_iter().filter(|pod| serves(pod)).collect();
        let pods: BTreeMap<_, _> =
            serving.iter().filter_map(|pod| Some((pod.status.pod_ip?, pod.node().to_owned()))).collect();
        if pods.is_empty() {
            return Ok(Outcome::AwaitChange);
        }
        // Every change of a guest's objects leads here: only that of its VM pods is a reason to ask before the time.
        let rest = self.known().get(key).and_then(|known| {
            let same = known.uid == identity.uid && known.pods.iter().eq(pods.keys());
            PERIOD.checked_sub(known.at.elapsed()).filter(|_| same)
        });
        if let Some(rest) = rest {
            return Ok(Outcome::After(rest));
        }
        self.look(key, identity, &pods).await;
        Ok(Outcome::After(PERIOD))
    }
}
