//! Effects of the isolation operator: VM pods are asked what they reach.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use tracing::{debug, warn};

use super::{
    PROBES,
    narrow::Ways,
    plan::{self, Answer, Fleet, Leak, Member},
};
use crate::{
    api::{ConditionType, Reason, Status, names},
    cluster::{ClusterKey, Identity, Report},
    context::{Context, Target},
    kvm::vm_pod::VmPod,
    runtime::{CallError, call, chain, operator::Reconciler, queue::Outcome},
    supervisor::{
        client,
        path_mtu::{self, Narrow},
        reach,
    },
};

/// Pause between two looks at a guest.
const PERIOD: Duration = Duration::from_secs(30);
/// A connection that comes about is tried once more after this time: a network takes moments to learn of a new pod.
const CERTAINTY: Duration = Duration::from_secs(5);
/// Guests whose VM pods say nothing in so many looks are not known to be apart.
const SILENT: usize = 5;
/// How long what is known of the fleet is good for, and of its API servers.
const FLEET: Duration = Duration::from_secs(10);
const APIS: Duration = Duration::from_secs(300);
/// How long a VM pod may take to answer: longer than it tries.
const TIMEOUT: Duration = Duration::from_secs(6);
/// Bytes that an answer may have: it lists addresses.
const ANSWER: usize = 16 << 10;

/// What is known of a guest.
#[derive(Clone)]
struct Known {
    uid: String,
    /// Looks so far.
    turn: usize,
    /// When it was last looked at, and which VM pods there were.
    at: Instant,
    members: Vec<Member>,
    /// Looks in a row in which nobody answered, and in which all who were asked did.
    silent: usize,
    whole: usize,
    /// Whether an earlier process said that something leaks, and not all was tried since.
    inherited: bool,
    leaks: BTreeSet<Leak>,
    /// What VM pods said of the ways between them.
    ways: Ways,
    /// Whether an earlier process said that some are too narrow, and not all VM pods have said anything since.
    narrow_before: bool,
}

/// The isolation operator.
pub struct IsolationOperator {
    context: Context,
    known: Mutex<HashMap<ClusterKey, Known>>,
    fleet: Mutex<Option<(Instant, Arc<Fleet>)>>,
    /// Where the API servers are, and until when that is good.
    apis: tokio::sync::Mutex<Option<(Instant, BTreeSet<SocketAddr>)>>,
}

impl IsolationOperator {
    /// An isolation operator.
    pub fn new(context: Context) -> Self {
        Self { context, known: Mutex::default(), fleet: Mutex::default(), apis: tokio::sync::Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ClusterKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the management cluster. It is the same for all guests, so it is put together once in a while.
    async fn fleet(&self) -> Arc<Fleet> {
        let known = || self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, fleet)) = known().as_ref().filter(|(at, _)| at.elapsed() < FLEET) {
            return fleet.clone();
        }
        let apis = self.apis().await;
        let hosts = self.context.cache.hosts.state();
        let pods = self.context.cache.pods.state();
        let ours = pods.iter().filter(|pod| serves(pod) && is_guests(pod));
        let named = |pod: &Arc<VmPod>| {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            Some((pod.status.pod_ip?, (namespace, pod.node().to_owned())))
        };
        let fleet = Arc::new(Fleet {
            apis,
            hosts: hosts.iter().flat_map(|host| host.addresses()).collect(),
            pods: ours.filter_map(named).collect(),
            allowed: self.context.settings.network.egress_allowed.clone(),
        });
        *known() = Some((Instant::now(), fleet.clone()));
        fleet
    }

    /// Where the management cluster's API servers are: a policy sees these, and not the address of their Service.
    async fn apis(&self) -> BTreeSet<SocketAddr> {
        let mut known = self.apis.lock().await;
        if let Some((_, apis)) = known.as_ref().filter(|(until, _)| *until > Instant::now()) {
            return apis.clone();
        }
        let before = known.as_ref().map(|(_, apis)| apis.clone()).unwrap_or_default();
        let slices = Api::<EndpointSlice>::namespaced(self.context.client.clone(), "default");
        let found = match call("get", "EndpointSlice default/kubernetes", slices.get_opt("kubernetes")).await {
            Ok(slice) => slice.as_ref().map(addresses).unwrap_or_default(),
            Err(error) => {
                debug!(error = chain(&error), "it is not known where the API servers are");
                BTreeSet::new()
            }
        };
        // A lone one that is started anew is in no list for a while.
        let (apis, good) = if found.is_empty() { (before, FLEET) } else { (found, APIS) };
        *known = Some((Instant::now() + good, apis.clone()));
        apis
    }

    /// Asks some of the guest's VM pods, and says what came of it. There is one at least.
    async fn look(&self, key: &ClusterKey, target: &Target, members: Vec<Member>, all: &BTreeSet<String>) {
        let (identity, fleet) = (&target.identity, self.fleet().await);
        let home = identity.namespace.as_str();
        let before = self.known().get(key).filter(|known| known.uid == identity.uid).cloned();
        let fresh = || Known {
            uid: identity.uid.clone(),
            turn: 0,
            at: Instant::now(),
            members: Vec::new(),
            silent: 0,
            whole: 0,
            inherited: was_open(target),
            leaks: BTreeSet::new(),
            ways: Ways::default(),
            narrow_before: was_narrow(target),
        };
        let mut known = before.unwrap_or_else(fresh);
        let questions: Vec<_> = plan::whose_turn(&members, known.turn)
            .map(|(member, seed)| (member.clone(), fleet.question(home, member, seed, &known.leaks)))
            .filter(|(_, question)| !question.is_empty())
            .collect();
        let (mut answers, ways) = tokio::join!(ask_all(&questions), ask_for_ways(&members, known.turn));
        known.ways.heed(ways, all);
        let suspects: Vec<_> = suspects(&questions, &answers, &known.leaks);
        if !suspects.is_empty() {
            tokio::time::sleep(CERTAINTY).await;
            let again = ask_all(&suspects).await;
            for answer in &mut answers {
                answer.reached.retain(|address| {
                    let leak = Leak { pod: answer.pod.clone(), address: *address };
                    let confirmed = |other: &Answer| other.pod == leak.pod && other.reached.contains(&leak.address);
                    known.leaks.contains(&leak) || again.iter().any(confirmed)
                });
            }
        }
        let on_its_host = |leak: &Leak| {
            members.iter().any(|member| member.name == leak.pod && member.host == Some(leak.address.ip()))
        };
        let is_there =
            |leak: &Leak| all.contains(&leak.pod) && fleet.what(home, leak.address).is_some() && !on_its_host(leak);
        let leaks = plan::leaks(&known.leaks, &answers, is_there);
        if leaks != known.leaks && !leaks.is_empty() {
            warn!(cluster = %key, leaks = fleet.message(home, &leaks), "a guest is not kept apart");
        }
        known.turn = known.turn.wrapping_add(1);
        known.leaks = leaks;
        known.silent = if answers.is_empty() && !questions.is_empty() { known.silent + 1 } else { 0 };
        known.whole = if answers.len() == questions.len() { known.whole + 1 } else { 0 };
        known.inherited &= known.whole < fleet.looks(home, members.len());
        let report = match () {
            // What an earlier process said stands, in its words, until all was tried.
            () if known.inherited => None,
            () if !known.leaks.is_empty() => {
                Some(Report::failed(Reason::NotIsolated, fleet.message(home, &known.leaks), None))
            }
            () if !answers.is_empty() => Some(Report::Ready(())),
            () if known.silent >= SILENT => {
                Some(Report::waiting("VM pods to say what they reach (an earlier version's cannot: roll them)"))
            }
            () => None,
        };
        known.narrow_before &= !known.ways.are_known(&members) && known.turn < SILENT * plan::groups(members.len());
        let ways = known.ways.message(&members);
        let ways = match ways {
            None if known.narrow_before => None,
            None => Some(Report::Ready(())),
            Some(message) => Some(Report::failed(Reason::PathMTUTooSmall, message, None)),
        };
        self.context.reports.update(identity, |reports| {
            reports.isolation = report.or(reports.isolation.take());
            reports.ways = ways.or(reports.ways.take());
        });
        (known.at, known.members) = (Instant::now(), members);
        self.known().insert(key.clone(), known);
    }

    /// The guest's VM pods that can be asked, and the names of all.
    fn members(&self, identity: &Identity) -> (Vec<Member>, BTreeSet<String>) {
        let pods = self.context.vm_pods(identity);
        let member = |pod: &Arc<VmPod>| {
            let (name, host) = (pod.node().to_owned(), pod.status.host_ip);
            Some(Member { name, address: pod.status.pod_ip.filter(|_| serves(pod))?, host })
        };
        let mut members: Vec<_> = pods.iter().filter_map(member).collect();
        members.sort();
        (members, pods.iter().map(|pod| pod.node().to_owned()).collect())
    }
}

/// Whether it is said that something leaks.
fn was_open(target: &Target) -> bool {
    let name = ConditionType::NetworkIsolated.name();
    let said = target.cluster.status.iter().flat_map(|status| &status.conditions).find(|said| said.type_ == name);
    said.is_some_and(|said| said.status == Status::False.name())
}

/// Whether it is said that packets of full size do not pass.
fn was_narrow(target: &Target) -> bool {
    let mut said = target.cluster.status.iter().flat_map(|status| &status.conditions);
    said.any(|said| said.reason == Reason::PathMTUTooSmall.name())
}

/// Whether its supervisor is to be reached: it serves from its start on, long before the guest does.
fn serves(pod: &VmPod) -> bool {
    pod.started_at().is_some() && !pod.is_going() && !pod.is_finished()
}

/// Whether it is one of ours, as far as a pod can tell.
fn is_guests(pod: &VmPod) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let owned = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(names::OWNER_UID_ANNOTATION));
    owned && namespace.starts_with(names::NAMESPACE_PREFIX)
}

fn addresses(slice: &EndpointSlice) -> BTreeSet<SocketAddr> {
    let ports = slice.ports.iter().flatten().filter_map(|port| u16::try_from(port.port?).ok());
    let of_port = |port| {
        let all = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
        all.filter_map(move |address| Some(SocketAddr::new(address.parse().ok()?, port))).collect::<Vec<_>>()
    };
    ports.flat_map(of_port).collect()
}

type Question = (Member, BTreeSet<SocketAddr>);

/// What was reached and is no leak that is known: it is tried once more before it is told.
fn suspects(questions: &[Question], answers: &[Answer], known: &BTreeSet<Leak>) -> Vec<Question> {
    let of = |(member, tried): &Question| {
        let answer = answers.iter().find(|answer| answer.pod == member.name)?;
        let is_new = |address: &SocketAddr| {
            tried.contains(address) && !known.contains(&Leak { pod: member.name.clone(), address: *address })
        };
        let new: BTreeSet<_> = answer.reached.iter().copied().filter(is_new).collect();
        (!new.is_empty()).then(|| (member.clone(), new))
    };
    questions.iter().filter_map(of).collect()
}

/// Asks all at once. Who does not answer says nothing.
async fn ask_all(questions: &[Question]) -> Vec<Answer> {
    let answers = questions.iter().map(|(member, tried)| async move {
        match ask(member.address, tried).await {
            Ok(reached) => {
                PROBES.with_label_values(&["reached"]).inc_by(reached.len() as u64);
                PROBES.with_label_values(&["closed"]).inc_by(tried.len().saturating_sub(reached.len()) as u64);
                Some(Answer { pod: member.name.clone(), tried: tried.clone(), reached })
            }
            Err(error) => {
                PROBES.with_label_values(&["silent"]).inc_by(tried.len() as u64);
                debug!(pod = member.name, error = chain(&error), "a VM pod does not say what it reaches");
                None
            }
        }
    });
    join_all(answers).await.into_iter().flatten().collect()
}

/// What VM pods whose turn it is say of the ways to the others, by their names.
async fn ask_for_ways(members: &[Member], turn: usize) -> Vec<(String, Vec<Narrow>)> {
    // A lone one has no ways.
    let asked = plan::whose_turn(members, turn).filter(|_| members.len() > 1);
    let answers = asked.map(|(Member { name, address, .. }, _)| async move {
        let question = client::Question { address: *address, path: path_mtu::PATH, answer: ANSWER, timeout: TIMEOUT };
        match question.json().await {
            Ok(narrow) => Some((name.clone(), narrow)),
            // One of an earlier version knows nothing of its ways.
            Err(error) if error.status() == Some(404) => Some((name.clone(), Vec::new())),
            Err(error) => {
                debug!(pod = name, error = chain(&error), "a VM pod does not say how wide its ways are");
                None
            }
        }
    });
    join_all(answers).await.into_iter().flatten().collect()
}

/// Which of these addresses the VM pod at `address` reaches.
async fn ask(address: IpAddr, tried: &BTreeSet<SocketAddr>) -> Result<Vec<SocketAddr>, CallError> {
    let path = reach::question(tried.iter());
    client::Question { address, path: &path, answer: ANSWER, timeout: TIMEOUT }.json().await
}

impl Reconciler for IsolationOperator {
    const NAME: &'static str = "isolation";
    type Key = ClusterKey;
    type Error = Infallible;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Infallible> {
        let Some(target) = self.context.target(key).filter(|target| !target.is_deleting()) else {
            self.known().remove(key);
            return Ok(Outcome::AwaitChange);
        };
        if let Some(left) = target.paused(Timestamp::now()) {
            return Ok(Outcome::After(left));
        }
        let (members, all) = self.members(&target.identity);
        if members.is_empty() {
            return Ok(Outcome::AwaitChange);
        }
        // Every change of a guest's objects leads here: only that of its VM pods is a reason to ask before the time.
        let rest = self.known().get(key).and_then(|known| {
            let same = known.uid == target.identity.uid && known.members == members;
            PERIOD.checked_sub(known.at.elapsed()).filter(|_| same)
        });
        if let Some(rest) = rest {
            return Ok(Outcome::After(rest));
        }
        self.look(key, &target, members, &all).await;
        Ok(Outcome::After(PERIOD))
    }
}
