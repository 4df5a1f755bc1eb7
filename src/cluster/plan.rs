//! The guest's namespace, and the status that follows from the reports. Pure.

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};

use super::{ClusterKey, Identity, Report, Valid, Violation, reports::ClusterReports, valid::Version};
use crate::{
    api::{AwsStatus, ClusterStatus, Condition, ConditionType, Conditions, Reason, Status, names},
    kvm::PoolFacts,
    network::addresses::Fabric,
    pki::PkiFacts,
};

/// The namespace that a guest's objects live in.
pub fn namespace(identity: &Identity) -> Namespace {
    let mut labels = identity.labels();
    // VM pods need a character device of the host and NET_ADMIN, which the lower levels forbid. Nobody but us makes pods here.
    for mode in ["enforce", "audit", "warn"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), "privileged".into());
    }
    let ClusterKey { namespace, name } = &identity.key;
    Namespace {
        metadata: ObjectMeta {
            name: Some(identity.namespace.clone()),
            labels: Some(labels),
            annotations: Some([(names::OWNER_NAME_ANNOTATION.to_owned(), format!("{namespace}/{name}"))].into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

/// What of a deleted Cluster is still there, in the order in which it goes. Empty: the finalizer may go.
pub fn left_over(reports: &ClusterReports, on_aws: bool, namespace_is_gone: bool) -> Vec<&'static str> {
    fn gone<T>(report: Option<&Report<T>>) -> bool {
        report.is_some_and(Report::is_gone)
    }
    [
        (gone(reports.kvm.as_ref()), if on_aws { "stacks" } else { "VM pods" }),
        (namespace_is_gone, "namespace"),
        // Whose prefix and user in Flannel's etcd go right before it.
        (gone(reports.network.as_ref()), if on_aws { "network" } else { "VNI claim" }),
        (gone(reports.pki.as_ref()), "kubeconfig Secret and authorities"),
    ]
    .into_iter()
    .filter_map(|(is_gone, what)| (!is_gone).then_some(what))
    .collect()
}

/// What a status is made of.
#[derive(Debug)]
pub struct Observed<'a> {
    /// What the guest is called.
    pub identity: &'a Identity,
    /// Generation of the spec.
    pub generation: i64,
    /// The status as it is.
    pub old: &'a ClusterStatus,
    /// The checked spec.
    pub valid: &'a Result<Valid, Vec<Violation>>,
    /// What the micro-operators said.
    pub reports: &'a ClusterReports,
    /// If the Cluster is being deleted: what is left.
    pub deleting: Option<Vec<&'static str>>,
    /// UID of the guest's namespace, if it is there.
    pub namespace_uid: Option<String>,
    /// What failed in this reconciler itself.
    pub failure: Option<(Reason, String)>,
}

/// The status that follows.
pub fn status(observed: &Observed, now: Timestamp) -> ClusterStatus {
    let Observed { identity, generation, old, reports, .. } = observed;
    let conditions = conditions(observed, now);
    let version = version(observed);
    let network = reports.network.as_ref().and_then(Report::facts);
    let kvm = reports.kvm.as_ref().and_then(Report::facts);
    let pki = reports.pki.as_ref().and_then(Report::facts);
    ClusterStatus {
        observed_generation: Some(*generation),
        id: Some(identity.id.clone()),
        namespace_uid: old.namespace_uid.clone().or_else(|| observed.namespace_uid.clone()),
        image: version.map(|version| version.image.clone()).or_else(|| old.image.clone()),
        image_entry: version.map_or_else(
            || old.image_entry.clone(),
            |version| Some(version.entry.clone()).filter(|entry| *entry != version.name),
        ),
        rolled_at: version.and_then(|version| version.roll.clone()).or_else(|| old.rolled_at.clone()),
        provider: Some(provider(observed).into()),
        version: version.map(|version| version.name.clone()).or_else(|| old.version.clone()),
        vni: network
            .and_then(|facts| facts.inside)
            .map(|inside| i32::try_from(inside.vni).unwrap_or(i32::MAX))
            .or(old.vni),
        endpoint: network.and_then(|facts| facts.endpoint.clone()).or_else(|| old.endpoint.clone()),
        ingress: network.map_or_else(|| old.ingress.clone(), |facts| facts.ingress.clone()),
        aws: aws(observed),
        vault: old.vault.clone().or_else(|| pki.and_then(|facts| facts.vault.clone())),
        rotation: pki.map_or_else(
            || old.rotation.clone(),
            |facts| facts.rotation.as_ref().map(|rotation| rotation.status.clone()),
        ),
        etcd_formed: old
            .etcd_formed
            .filter(|formed| *formed)
            .or_else(|| kvm.filter(|facts| facts.ready > 0).map(|_| true)),
        certificates_renew_at: pki
            .and_then(|facts| facts.renew_at.clone())
            .or_else(|| old.certificates_renew_at.clone()),
        certificates_end_at: pki.map_or_else(|| old.certificates_end_at.clone(), |facts| facts.end_at.clone()),
        control_plane: kvm
            .map(|facts| format!("{}/{}", facts.ready, facts.wanted))
            .or_else(|| old.control_plane.clone()),
        nodes: reports.nodes().map(|nodes| nodes.to_string()).or_else(|| old.nodes.clone()),
        phase: Some(phase(observed, &conditions).into()),
        message: message(&conditions),
        conditions,
    }
}

fn provider(observed: &Observed) -> &'static str {
    match observed.valid {
        Ok(Valid { aws: Some(_), .. }) => "aws",
        // Of what cannot be read it is what it was.
        Err(_) if observed.old.provider.as_deref() == Some("aws") => "aws",
        _ => "kvm",
    }
}

/// What is recorded of a guest on AWS. The stacks are the aws operator's to write; its image is pinned as the version is.
fn aws(observed: &Observed) -> Option<AwsStatus> {
    let kept = observed.old.aws.clone();
    let wanted = observed.valid.as_ref().ok().and_then(|valid| valid.aws.as_ref());
    match wanted.filter(|_| version(observed).is_some()) {
        Some(wanted) => Some(AwsStatus { image: Some(wanted.image.clone()), ..kept.unwrap_or_default() }),
        None => kept,
    }
}

/// The version to pin: the wanted one at the first look, and later what the control plane runs, so that the next minor can be
/// asked for only when it has arrived at this one. None: what was pinned stays.
fn version<'a>(observed: &'a Observed) -> Option<&'a Version> {
    let wanted = observed.valid.as_ref().ok().map(|valid| &valid.version);
    match &observed.reports.kvm {
        _ if observed.old.version.is_none() => wanted,
        // No provider: nothing runs anything.
        Some(Report::Pending { .. }) => wanted,
        report => report.as_ref().and_then(Report::facts)?.runs.as_ref(),
    }
}

/// The status of a Cluster with which nothing is done until `until`: what was said before, and that. Its certificates are
/// renewed, which pki tells of.
pub fn paused_status(
    old: &ClusterStatus,
    generation: i64,
    until: Timestamp,
    pki: Option<&PkiFacts>,
    now: Timestamp,
) -> ClusterStatus {
    let mut conditions = Conditions::new(&old.conditions, generation, now);
    let message = format!("nothing but renewing certificates is done until {until}");
    conditions.set(ConditionType::Paused, Status::True, Reason::Paused, message.clone());
    let paused = conditions.finish();
    let others = old.conditions.iter().filter(|condition| condition.type_ != ConditionType::Paused.name());
    let mut conditions: Vec<_> = others.cloned().chain(paused).collect();
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    ClusterStatus {
        observed_generation: Some(generation),
        phase: Some("Paused".into()),
        message: Some(message),
        conditions,
        certificates_renew_at: pki.map_or_else(|| old.certificates_renew_at.clone(), |facts| facts.renew_at.clone()),
        certificates_end_at: pki.map_or_else(|| old.certificates_end_at.clone(), |facts| facts.end_at.clone()),
        ..old.clone()
    }
}

fn conditions(observed: &Observed, now: Timestamp) -> Vec<Condition> {
    let Observed { generation, old, valid, reports, deleting, failure, .. } = observed;
    let mut conditions = Conditions::new(&old.conditions, *generation, now);
    if let Some(left) = deleting {
        let why = match &reports.kvm {
            Some(Report::Failed { message, .. }) => format!("; {message}"),
            _ => String::new(),
        };
        let message = format!("still there: {}{why}", left.join(", "));
        conditions.set(ConditionType::Deleting, Status::True, Reason::Deleting, message);
    }
    let ClusterReports { network: _, flannel: _, pki, kvm, pools, isolation: _, ways: _, guest, bound: _ } = reports;
    let parts = [
        (ConditionType::NetworkReady, judge_network(observed)),
        (ConditionType::PKIReady, judge(pki.as_ref())),
        (ConditionType::ControlPlaneReady, judge(kvm.as_ref())),
        (ConditionType::NodePoolsReady, judge_pools(pools.as_ref())),
        (ConditionType::GuestReady, judge(guest.as_ref())),
    ];
    let mut trouble = failure.clone();
    if let Err(violations) = valid {
        let list: Vec<_> = violations.iter().map(ToString::to_string).collect();
        trouble = Some((Reason::InvalidSpec, list.join("; ")));
    }
    if let Some((status, reason, message)) = isolation(observed) {
        conditions.set(ConditionType::NetworkIsolated, status, reason, message.clone());
        if status == Status::False {
            trouble =
                trouble.or_else(|| Some((reason, format!("{}: {message}", ConditionType::NetworkIsolated.name()))));
        }
    }
    let mut waiting: Option<(Reason, String)> = None;
    for (type_, (status, reason, message)) in &parts {
        conditions.set(*type_, *status, *reason, message.clone());
        match reason {
            Reason::AsExpected | Reason::Deleting => {}
            Reason::Waiting | Reason::ProviderPending => {
                waiting = waiting.or_else(|| Some((*reason, format!("{}: {message}", type_.name()))))
            }
            _ => trouble = trouble.or_else(|| Some((*reason, format!("{}: {message}", type_.name())))),
        }
    }
    // A control plane that has to be replaced, or waits for that, answers nevertheless.
    let answers = kvm.as_ref().and_then(Report::facts).is_some_and(|facts| facts.ready > 0);
    let available = answers && reports.nodes().is_some_and(|nodes| nodes.ready > 0);
    conditions.set(ConditionType::Available, available.into(), reason_of(available), "");
    let (ready, reason, message) = match (&trouble, &waiting) {
        _ if deleting.is_some() => (Status::False, Reason::Deleting, "the Cluster is being deleted".to_owned()),
        (Some((reason, message)), _) => (Status::False, *reason, message.clone()),
        (None, Some((reason, message))) => (Status::False, *reason, message.clone()),
        (None, None) => (Status::True, Reason::AsExpected, String::new()),
    };
    conditions.set(ConditionType::Ready, ready, reason, message.clone());
    let goes_on = waiting.is_some_and(|(reason, _)| reason == Reason::Waiting) || deleting.is_some();
    let progressing = trouble.is_none() && goes_on;
    conditions.set(
        ConditionType::Progressing,
        progressing.into(),
        reason,
        if progressing { message } else { String::new() },
    );
    let (degraded, reason, message) =
        trouble.map_or((Status::False, Reason::AsExpected, String::new()), |(r, m)| (Status::True, r, m));
    conditions.set(ConditionType::Degraded, degraded, reason, message);
    conditions.finish()
}

/// Whether the guest is kept apart. After a start what was said stands until its VM pods have tried again; before the first of
/// them could, nothing is said. Nobody waits for one that does not say it.
fn isolation(observed: &Observed) -> Option<(Status, Reason, String)> {
    if let Some(report) = &observed.reports.isolation {
        return Some(match judge(Some(report)) {
            (Status::False, Reason::Waiting, message) => (Status::Unknown, Reason::Waiting, message),
            verdict => verdict,
        });
    }
    let name = ConditionType::NetworkIsolated.name();
    let before = observed.old.conditions.iter().find(|condition| condition.type_ == name)?;
    let of =
        [(Status::True, Reason::AsExpected), (Status::False, Reason::NotIsolated), (Status::Unknown, Reason::Waiting)];
    let (status, reason) = of.into_iter().find(|(status, _)| status.name() == before.status)?;
    Some((status, reason, before.message.clone()))
}

fn reason_of(holds: bool) -> Reason {
    if holds { Reason::AsExpected } else { Reason::Waiting }
}

fn judge<T>(report: Option<&Report<T>>) -> (Status, Reason, String) {
    match report {
        None => (Status::Unknown, Reason::Waiting, "not looked at yet".into()),
        Some(Report::Ready(_)) => (Status::True, Reason::AsExpected, String::new()),
        Some(Report::Waiting { what, .. }) => (Status::False, Reason::Waiting, format!("waits for {what}")),
        Some(Report::Failed { reason, message, .. }) => (Status::False, *reason, message.clone()),
        Some(Report::Pending { reason, message }) => (Status::False, *reason, message.clone()),
        Some(Report::Gone) => (Status::False, Reason::Deleting, "gone".into()),
    }
}

/// What is to be said of the network, if the overlay is Flannel's of that, and of the ways between VM pods: first what somebody
/// must mend.
fn judge_network(observed: &Observed) -> (Status, Reason, String) {
    let ClusterReports { network, flannel, .. } = observed.reports;
    let network = judge(network.as_ref());
    let asked = observed.valid.as_ref().is_ok_and(|valid| valid.ranges.overlay.fabric == Fabric::Routed);
    let network = if asked || flannel.is_some() { both(network, judge(flannel.as_ref())) } else { network };
    match ways(observed) {
        Some(ways) => both(network, ways),
        None => network,
    }
}

/// Whether packets of full size pass between VM pods. After a start what was said stands until these have said something.
fn ways(observed: &Observed) -> Option<(Status, Reason, String)> {
    if observed.deleting.is_some() {
        return None;
    }
    if let Some(report) = &observed.reports.ways {
        return Some(judge(Some(report)));
    }
    let (type_, reason) = (ConditionType::NetworkReady.name(), Reason::PathMTUTooSmall);
    let before = observed.old.conditions.iter().find(|said| said.type_ == type_ && said.reason == reason.name())?;
    Some((Status::False, reason, before.message.clone()))
}

fn both(first: (Status, Reason, String), second: (Status, Reason, String)) -> (Status, Reason, String) {
    let takes_its_time = |reason| matches!(reason, Reason::AsExpected | Reason::Waiting | Reason::Deleting);
    let second_is_worse = takes_its_time(first.1) && !takes_its_time(second.1);
    if first.0 == Status::True || second_is_worse { second } else { first }
}

/// With the count of workers, since a pool may be half there.
fn judge_pools(report: Option<&Report<PoolFacts>>) -> (Status, Reason, String) {
    let (status, reason, message) = judge(report);
    let message = match report.and_then(Report::facts) {
        Some(facts) if facts.wanted == 0 && status == Status::True => "no node pools".into(),
        Some(facts) if status == Status::False => {
            format!("{}/{} workers are ready; {message}", facts.ready, facts.wanted)
        }
        _ => message,
    };
    (status, reason, message)
}

fn phase(observed: &Observed, conditions: &[Condition]) -> &'static str {
    let holds = |type_: ConditionType| {
        conditions.iter().any(|condition| condition.type_ == type_.name() && condition.status == "True")
    };
    if observed.deleting.is_some() {
        "Deleting"
    } else if holds(ConditionType::Degraded) {
        "Degraded"
    } else if holds(ConditionType::Ready) {
        "Ready"
    } else if is_updating(observed) {
        "Updating"
    } else if observed.reports == &ClusterReports::default() {
        "Pending"
    } else {
        "Provisioning"
    }
}

/// Whether nodes are being replaced or removed. It lasts until all is ready again.
fn is_updating(observed: &Observed) -> bool {
    let ClusterReports { kvm, pools, .. } = observed.reports;
    kvm.as_ref().and_then(Report::facts).is_some_and(|facts| facts.changing)
        || pools.as_ref().and_then(Report::facts).is_some_and(|facts| facts.changing)
        || observed.old.phase.as_deref() == Some("Updating")
}

fn message(conditions: &[Condition]) -> Option<String> {
    let of = |type_: ConditionType| conditions.iter().find(|condition| condition.type_ == type_.name());
    let speaking = of(ConditionType::Deleting).or_else(|| of(ConditionType::Ready))?;
    (!speaking.message.is_empty()).then(|| speaking.message.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::NodeCounts,
        guest::GuestFacts,
        kvm::KvmFacts,
        network::{Inside, NetworkFacts},
        testing::valid,
    };

    fn good() -> ClusterReports {
        ClusterReports {
            network: Some(Report::Ready(NetworkFacts {
                inside: Some(Inside { vni: 1234, api_address: [10, 0, 0, 1].into() }),
                endpoint: Some("https://10.0.0.1:6443".into()),
                ingress: None,
            })),
            flannel: None,
            pki: Some(Report::Ready(PkiFacts {
                renew_at: Some("2026-01-01T00:00:00Z".into()),
                end_at: Some("2026-02-01T00:00:00Z".into()),
                vault: None,
                rotation: None,
            })),
            kvm: Some(Report::Ready(KvmFacts { ready: 1, wanted: 1, ..KvmFacts::default() })),
            pools: Some(Report::Ready(PoolFacts::default())),
            guest: Some(Report::Ready(GuestFacts {
                nodes: NodeCounts { ready: 1, total: 1 },
                ..GuestFacts::default()
            })),
            isolation: Some(Report::Ready(())),
            ways: Some(Report::Ready(())),
            bound: None,
        }
    }

    fn status_of(reports: &ClusterReports, deleting: Option<Vec<&'static str>>) -> ClusterStatus {
        let checked = valid(json!({}));
        let identity = checked.identity.clone();
        let observed = Observed {
            identity: &identity,
            generation: 3,
            old: &ClusterStatus::default(),
            valid: &Ok(checked),
            reports,
            deleting,
            namespace_uid: None,
            failure: None,
        };
        status(&observed, Timestamp::UNIX_EPOCH)
    }

    fn condition<'a>(status: &'a ClusterStatus, type_: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
    }

    #[test]
    fn ready_needs_every_part() {
        let ready = status_of(&good(), None);
        assert_eq!(ready.phase.as_deref(), Some("Ready"));
        assert_eq!(condition(&ready, "Ready").observed_generation, Some(3));
        assert_eq!((ready.control_plane.as_deref(), ready.nodes.as_deref()), (Some("1/1"), Some("1/1")));
        assert_eq!(ready.endpoint.as_deref(), Some("https://10.0.0.1:6443"));
        assert_eq!(ready.etcd_formed, Some(true));
        type Spoil = fn(&mut ClusterReports);
        let spoilers: [Spoil; 5] = [
            |r| r.pools = Some(Report::waiting("x")),
            |r| r.network = Some(Report::waiting("x")),
            |r| r.pki = Some(Report::waiting("x")),
            |r| r.kvm = Some(Report::waiting("x")),
            |r| r.guest = None,
        ];
        for spoil in spoilers {
            let mut reports = good();
            spoil(&mut reports);
            let status = status_of(&reports, None);
            assert_eq!(condition(&status, "Ready").status, "False");
            assert_eq!(status.phase.as_deref(), Some("Provisioning"));
            assert!(status.message.is_some());
        }
    }

    #[test]
    fn node_pools_say_how_many_are_ready_and_what_is_missing() {
        let of = |report| {
            let status = status_of(&ClusterReports { pools: Some(report), ..good() }, None);
            let pools = condition(&status, "NodePoolsReady");
            (pools.status.clone(), pools.message.clone(), condition(&status, "Available").status.clone())
        };
        let yes = || "True".to_owned();
        assert_eq!(of(Report::Ready(PoolFacts::default())), (yes(), "no node pools".into(), yes()));
        assert_eq!(
            of(Report::Ready(PoolFacts { ready: 2, wanted: 2, changing: false })),
            (yes(), String::new(), yes())
        );
        let facts = Some(PoolFacts { ready: 1, wanted: 2, changing: false });
        let waiting = Report::Waiting { what: "VM pod a-1: no host".into(), facts };
        let message = "1/2 workers are ready; waits for VM pod a-1: no host".to_owned();
        // The guest is there without them.
        assert_eq!(of(waiting), ("False".into(), message, yes()));
    }

    #[test]
    fn nodes_that_are_replaced_make_it_an_update_until_all_is_ready() {
        let facts = KvmFacts { ready: 1, wanted: 1, changing: true, runs: None };
        let what = "node master-0: being replaced (it is outdated)".to_owned();
        let changing = Some(Report::Waiting { what: what.clone(), facts: Some(facts) });
        let updating = status_of(&ClusterReports { kvm: changing, ..good() }, None);
        assert_eq!(updating.phase.as_deref(), Some("Updating"));
        let progressing = condition(&updating, "Progressing");
        assert!(progressing.status == "True" && progressing.message.contains(&what), "{progressing:?}");
        assert_eq!(condition(&updating, "Available").status, "True");
        let reports = ClusterReports { pools: Some(Report::waiting("VM pod a-0 to start")), ..good() };
        assert_eq!(succeeding(&updating, &reports, json!({})).phase.as_deref(), Some("Updating"));
        assert_eq!(succeeding(&updating, &good(), json!({})).phase.as_deref(), Some("Ready"));
    }

    fn succeeding(old: &ClusterStatus, reports: &ClusterReports, spec: serde_json::Value) -> ClusterStatus {
        let mut cluster = crate::testing::cluster(spec);
        cluster.status = Some(old.clone());
        let mut settings = crate::testing::settings();
        settings.kubernetes.images.insert("v1.36.4".into(), "new".into());
        let checked = Valid::new(&cluster, &settings).unwrap();
        let identity = checked.identity.clone();
        let observed = Observed {
            identity: &identity,
            generation: 4,
            old,
            valid: &Ok(checked),
            reports,
            deleting: None,
            namespace_uid: None,
            failure: None,
        };
        status(&observed, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn the_pinned_version_follows_the_control_plane() {
        let pinned = |status: &ClusterStatus| (status.version.clone().unwrap(), status.image.clone().unwrap());
        let first = status_of(&good(), None);
        let next = json!({"kubernetes": {"version": "v1.36.4"}});
        // Reported for the version before, or while it is replaced.
        let old = succeeding(&first, &good(), next.clone());
        assert_eq!(pinned(&old), pinned(&first));
        let runs = |version: Version| {
            let facts = KvmFacts { runs: Some(version), ..KvmFacts::default() };
            ClusterReports { kvm: Some(Report::Ready(facts)), ..good() }
        };
        let version = |name: &str, image: &str| Version {
            name: name.into(),
            image: image.into(),
            entry: name.into(),
            roll: None,
        };
        let new = succeeding(&old, &runs(version("v1.36.4", "new")), next.clone());
        assert_eq!((pinned(&new), new.image_entry.clone()), (("v1.36.4".into(), "new".into()), None));
        let debug = Version { entry: "debug".into(), roll: Some("now".into()), ..version("v1.36.4", "other") };
        let new = succeeding(&new, &runs(debug), next);
        assert_eq!((new.image_entry.as_deref(), new.rolled_at.as_deref()), (Some("debug"), Some("now")));
    }

    #[cfg(feature = "aws")]
    #[test]
    fn what_is_recorded_of_stacks_is_in_every_status_that_follows() {
        let checked = crate::testing::on_aws(json!({}));
        let record = crate::api::StackRecord { attempt: 2, goal: "present/a".into(), id: None };
        let aws = AwsStatus { image: Some("ami-00000000000000001".into()), stacks: [("g8s-a".into(), record)].into() };
        let old = ClusterStatus { version: Some("v1.36.3".into()), aws: Some(aws.clone()), ..ClusterStatus::default() };
        let of = |valid: Result<Valid, Vec<Violation>>, runs: bool| {
            let runs = runs.then(|| checked.version.clone());
            let kvm = Some(Report::Ready(KvmFacts { runs, ..KvmFacts::default() }));
            let reports = ClusterReports { kvm, ..ClusterReports::default() };
            let observed = Observed {
                identity: &checked.identity,
                generation: 1,
                old: &old,
                valid: &valid,
                reports: &reports,
                deleting: None,
                namespace_uid: None,
                failure: None,
            };
            status(&observed, Timestamp::UNIX_EPOCH)
        };
        // Its image is pinned, as its version is, when that has arrived.
        assert_eq!(of(Ok(checked.clone()), false).aws.as_ref(), Some(&aws));
        let arrived = of(Ok(checked.clone()), true);
        assert_eq!(arrived.provider.as_deref(), Some("aws"));
        let arrived = arrived.aws.unwrap();
        assert_eq!((arrived.image.as_deref(), arrived.stacks), (Some("ami-0123456789abcdef0"), aws.stacks.clone()));
        assert_eq!(of(Err(vec![Violation::new("spec", "x")]), true).aws.as_ref(), Some(&aws));
    }

    #[test]
    fn a_failure_is_degraded_and_names_its_cause() {
        let mut reports = good();
        reports.pki = Some(Report::failed(Reason::CALost, "roots-1 is missing", None));
        let status = status_of(&reports, None);
        let degraded = condition(&status, "Degraded");
        assert_eq!((degraded.status.as_str(), degraded.reason.as_str()), ("True", "CALost"));
        assert_eq!(status.message.as_deref(), Some("PKIReady: roots-1 is missing"));
        // The guest still answers.
        assert_eq!(condition(&status, "Available").status, "True");
    }

    #[test]
    fn a_leak_is_degraded_stands_until_it_is_seen_closed_and_nobody_waits_for_the_first_try() {
        let untried = status_of(&ClusterReports { isolation: None, ..good() }, None);
        assert_eq!(untried.phase.as_deref(), Some("Ready"));
        assert!(!untried.conditions.iter().any(|condition| condition.type_ == "NetworkIsolated"));
        let leak = Report::failed(Reason::NotIsolated, "VM pod a reaches b", None);
        let leaking = status_of(&ClusterReports { isolation: Some(leak), ..good() }, None);
        assert_eq!(leaking.phase.as_deref(), Some("Degraded"));
        assert_eq!(leaking.message.as_deref(), Some("NetworkIsolated: VM pod a reaches b"));
        // The control plane answers nevertheless.
        assert_eq!(condition(&leaking, "Available").status, "True");
        // Who does not say it keeps nobody waiting.
        let silent = status_of(&ClusterReports { isolation: Some(Report::waiting("x")), ..good() }, None);
        assert_eq!(
            (silent.phase.as_deref(), condition(&silent, "NetworkIsolated").status.as_str()),
            (Some("Ready"), "Unknown")
        );
        let restarted = succeeding(&leaking, &ClusterReports { isolation: None, ..good() }, json!({}));
        assert_eq!(restarted.phase.as_deref(), Some("Degraded"));
        assert_eq!(restarted.message, leaking.message);
        let closed = succeeding(&restarted, &good(), json!({}));
        assert_eq!((closed.phase.as_deref(), closed.message.as_deref()), (Some("Ready"), None));
        assert_eq!(condition(&closed, "NetworkIsolated").status, "True");
    }

    #[test]
    fn a_way_that_is_too_narrow_is_degraded_and_stands_until_it_is_seen_to_be_wide() {
        let narrow = Report::failed(Reason::PathMTUTooSmall, "from VM pod a to b", None);
        let told = status_of(&ClusterReports { ways: Some(narrow), ..good() }, None);
        assert_eq!(told.phase.as_deref(), Some("Degraded"));
        assert_eq!(told.message.as_deref(), Some("NetworkReady: from VM pod a to b"));
        let restarted = succeeding(&told, &ClusterReports { ways: None, ..good() }, json!({}));
        assert_eq!(restarted.message, told.message);
        let wide = succeeding(&restarted, &good(), json!({}));
        assert_eq!((wide.phase.as_deref(), condition(&wide, "NetworkReady").status.as_str()), (Some("Ready"), "True"));
        // Who was never asked keeps nobody waiting.
        let unasked = status_of(&ClusterReports { ways: None, ..good() }, None);
        assert_eq!(condition(&unasked, "NetworkReady").status, "True");
    }

    #[test]
    fn a_pause_leaves_what_was_said_before() {
        let before = status_of(&good(), None);
        let paused = paused_status(&before, 4, Timestamp::UNIX_EPOCH, None, Timestamp::UNIX_EPOCH);
        assert_eq!(condition(&paused, "Ready"), condition(&before, "Ready"));
        assert_eq!(condition(&paused, "Paused").status, "True");
        assert_eq!(paused.phase.as_deref(), Some("Paused"));
        assert_eq!(paused_status(&paused, 4, Timestamp::UNIX_EPOCH, None, Timestamp::UNIX_EPOCH), paused);
        let pki = PkiFacts { renew_at: Some("2026-03-01T00:00:00Z".into()), end_at: None, vault: None, rotation: None };
        let renewed = paused_status(&paused, 4, Timestamp::UNIX_EPOCH, Some(&pki), Timestamp::UNIX_EPOCH);
        assert_eq!(renewed.certificates_renew_at, pki.renew_at);
    }

    #[test]
    fn of_network_and_flannel_the_worse_is_said() {
        let mut checked = valid(json!({}));
        let said = |checked: &Valid, network: Report<NetworkFacts>, flannel: Option<Report<()>>| {
            let reports = ClusterReports { network: Some(network), flannel, ..good() };
            let observed = Observed {
                identity: &checked.identity.clone(),
                generation: 1,
                old: &ClusterStatus::default(),
                valid: &Ok(checked.clone()),
                reports: &reports,
                deleting: None,
                namespace_uid: None,
                failure: None,
            };
            judge_network(&observed).1
        };
        let network = || good().network.unwrap();
        let failed = || Some(Report::failed(Reason::FlannelDenied, "x", None));
        assert_eq!(said(&checked, network(), None), Reason::AsExpected);
        checked.ranges.overlay.fabric = Fabric::Routed;
        assert_eq!(said(&checked, network(), None), Reason::Waiting, "nobody has looked yet");
        assert_eq!(said(&checked, network(), Some(Report::Ready(()))), Reason::AsExpected);
        assert_eq!(said(&checked, network(), failed()), Reason::FlannelDenied);
        assert_eq!(said(&checked, Report::waiting("a VNI"), failed()), Reason::FlannelDenied);
        assert_eq!(said(&checked, Report::Gone, failed()), Reason::FlannelDenied);
        let in_use = || Report::failed(Reason::VNIInUse, "x", None);
        assert_eq!(said(&checked, in_use(), failed()), Reason::VNIInUse);
        assert_eq!(said(&checked, in_use(), Some(Report::waiting("flanneld"))), Reason::VNIInUse);
    }

    #[test]
    fn the_finalizer_goes_only_when_everything_was_seen_gone() {
        let all_gone = ClusterReports {
            network: Some(Report::Gone),
            flannel: None,
            pki: Some(Report::Gone),
            kvm: Some(Report::Gone),
            pools: Some(Report::Gone),
            guest: None,
            isolation: None,
            ways: None,
            bound: None,
        };
        assert!(left_over(&all_gone, false, true).is_empty());
        assert_eq!(left_over(&all_gone, false, false), ["namespace"]);
        assert_eq!(left_over(&ClusterReports::default(), false, true).len(), 3);
        let status = status_of(&all_gone, Some(vec!["namespace"]));
        assert_eq!(
            (status.phase.as_deref(), status.message.as_deref()),
            (Some("Deleting"), Some("still there: namespace"))
        );
    }
}
