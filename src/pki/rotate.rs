//! Effects of a rotation of authorities: the roots that come, their records, and what VM pods say of the nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use futures::{StreamExt as _, future::join_all, stream};
use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use tracing::{debug, info};

use super::{
    Going, RotationFacts,
    authority::Kept,
    embedded,
    keys::{self, Subject},
    leaf::Authority,
    plan::{Plan, SecretMeta, World, is_before},
    reconcile::{Error, PkiOperator, lost, read_roots},
    roots::{self, Root, Roots},
    rotate_keys,
    rotation::{Both, Mark, Phase, Stage},
    secrets::secret,
    turnover::{Observed, Record, Rotating, overlap},
};
use crate::{
    api::{RotationStatus, names},
    cluster::{Identity, Report, Valid},
    kvm::vm_pod::VmPod,
    node_config::paths,
    runtime::{apply, call, chain},
    supervisor::{client::Question, consumers},
};

/// Pause between two looks while nodes go on, and while users have time.
const PERIOD: Duration = Duration::from_secs(5);
const OVERLAP_PERIOD: Duration = Duration::from_secs(60);
/// VM pods that are asked at a time, how long one may take (longer than it takes itself), and bytes that its answer may have.
const AT_A_TIME: usize = 128;
const TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER: usize = 16 << 10;
/// How long workers are asked in one look. Who was not asked by then is waited for, as one that does not answer is.
const WORKERS_TIME: Duration = Duration::from_secs(40);

/// When a rotation is looked at again.
pub(super) fn pause(rotating: &Rotating, now: Timestamp) -> Duration {
    if rotating.decision.stage != Stage::Overlap {
        return PERIOD;
    }
    let left = rotating.until.map(|until| Duration::try_from(until.duration_since(now)).unwrap_or_default());
    left.unwrap_or(PERIOD).clamp(PERIOD, OVERLAP_PERIOD)
}

/// What there is to tell of rotations, if there was one or is one.
pub(super) fn facts(cluster: &Valid, world: &World, plan: &Plan) -> Option<RotationFacts> {
    let (carried_out, keys_for) =
        world.roots().map_or_else(Default::default, |roots| (roots.rotated_for, roots.keys_for));
    let generation = world.generation();
    let going = plan.rotating.as_ref();
    let is_first = generation == 1 && carried_out == 0 && keys_for == keys::Wishes::default();
    if going.is_none() && is_first && world.next_records.is_empty() {
        return None;
    }
    let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let stage = going.map(|rotating| rotating.record.as_ref().map_or(rotating.decision.stage, |record| record.stage));
    // It goes on when both generations are seen again, whatever else is known of it: nobody is to take it for over.
    let stands = going.is_none() && !world.next_records.is_empty();
    let noted = world.rotation.as_ref().filter(|record| record.generation == generation + 1);
    let stage = stage.or_else(|| stands.then(|| noted.map_or(Stage::Trust, |record| record.stage)));
    let lacks = || {
        format!("Secrets {} and {} to be as recorded", roots::secret_of(generation), roots::secret_of(generation + 1))
    };
    let status = RotationStatus {
        carried_out: number(carried_out),
        service_account_key_carried_out: number(keys_for.service_account),
        encryption_key_carried_out: number(keys_for.encryption),
        generation: number(generation + u32::from(going.is_some() || stands)),
        subject: stage.map(|_| world.rotated().name().to_owned()),
        queued: queued(cluster, world, going),
        stage: stage.map(|stage| world.rotated().stage(stage).to_owned()),
        since: going.and_then(|rotating| Some(rotating.record.as_ref()?.since.to_string())),
        // It is counted from when the overlap began: what is at another stage began later, and users have no time any more.
        until: going
            .filter(|rotating| stage == Some(Stage::Overlap) && rotating.subject != Subject::EncryptionKey)
            .and_then(|rotating| Some(rotating.until?.to_string())),
        waits_for: going.map_or_else(|| stands.then(lacks), |rotating| rotating.decision.waits.clone()),
    };
    let going = going.map(|rotating| {
        let forgets = rotating.low == Phase::Drop;
        let old = &rotating.both.old.certificates;
        let former = [Authority::Kubernetes, Authority::FrontProxy].into_iter().filter_map(|of| old.get(&of));
        let kept_out = former.filter(|_| forgets).cloned().collect();
        Going {
            mark: rotating.mark(),
            subject: rotating.subject,
            rewrites: rewrites(world, rotating),
            last: rotating.last(),
            kept_out,
            turning: rotating.decision.turning.clone(),
            is_known: rotating.is_known,
        }
    });
    Some(RotationFacts { status, going })
}

/// What is asked for and waits until what is rotated now is.
fn queued(cluster: &Valid, world: &World, going: Option<&Rotating>) -> Vec<String> {
    let Some(going) = going else { return Vec::new() };
    // What goes on was asked for, and is not carried out yet.
    let others = keys::asked(cluster, world.roots()).into_iter().filter(|subject| *subject != going.subject);
    others.map(|subject| subject.name().to_owned()).collect()
}

/// What is to be stored anew inside the guest, once all of its API servers encrypt with the new key.
fn rewrites(world: &World, rotating: &Rotating) -> Vec<String> {
    let stored = world.observed.as_ref().and_then(|observed| observed.keys.stored.as_ref());
    let due = rotating.subject == Subject::EncryptionKey && rotating.decision.stage >= Stage::Overlap;
    stored.filter(|_| due).map(|stored| stored.named.clone()).unwrap_or_default()
}

impl Rotating {
    /// The control-plane node that is to start etcd and its API server anew now.
    pub(super) fn turns(&self) -> Option<&str> {
        self.decision.turning.as_deref().filter(|node| self.decision.enter.contains_key(*node))
    }
}

impl PkiOperator {
    /// Looks at the nodes, if there are two generations of roots.
    pub(super) async fn observe_rotation(
        &self,
        cluster: &Valid,
        mut world: World,
        now: Timestamp,
    ) -> Result<World, Error> {
        let next = world.generation() + 1;
        if world.next_records.is_empty() || !world.secrets.contains_key(&roots::secret_of(next)) {
            return Ok(world);
        }
        self.recover_marks(cluster, &mut world).await?;
        let subject = world.rotated();
        let users_have_time = world
            .rotation
            .as_ref()
            .and_then(|record| record.users_until(next, overlap(cluster, subject), now))
            .is_some();
        // All were seen before the overlap began, and will be after it.
        if world.paused || users_have_time {
            return Ok(world);
        }
        let identity = &cluster.identity;
        let (both, keys) = match self.roots(identity, &world).await {
            Ok(roots) if subject == Subject::Authorities => (roots.told()?.unwrap_or_default(), None),
            Ok(roots) => (Both::default(), Some(roots)),
            // Which is told as what it is, by the plan.
            Err(Error::Lost(_)) => return Ok(world),
            Err(error) => return Err(error),
        };
        let pods = self.context.vm_pods(identity);
        let ours: Vec<_> = pods.iter().filter(|pod| identity.owner().owns(&pod.metadata)).collect();
        let running = ours.iter().filter(|pod| pod.started_at().is_some() && !pod.is_finished());
        let running: BTreeSet<_> = running.map(|pod| pod.node().to_owned()).collect();
        let asked = ours
            .iter()
            .filter(|pod| running.contains(pod.node()) && !pod.is_going() && !world.lost.contains(pod.node()))
            .filter(|pod| subject == Subject::Authorities || !pod.is_worker())
            .filter_map(|pod| Some((pod.node().to_owned(), pod.status.pod_ip?)));
        let asked: Vec<_> = asked.collect();
        let reports = self.context.reports.of(identity);
        // First, so that what is seen of nodes is later than what is seen of what they stored.
        let keys = match keys {
            Some(roots) => rotate_keys::look(&world, &roots, subject, &asked, reports.guest.as_ref()).await?,
            None => keys::decide::Seen::default(),
        };
        let answers = all_answers(asked.into_iter(), WORKERS_TIME, ask).await;
        let published = reports.guest.as_ref().and_then(Report::facts).and_then(|facts| facts.published.clone());
        let changes = reports.kvm.as_ref().and_then(Report::facts).is_some_and(|facts| facts.changing);
        let away = |pod: &&&std::sync::Arc<VmPod>| !pod.is_worker() && (pod.leaving().is_some() || pod.is_going());
        let away = ours.iter().find(away).map(|pod| format!("control-plane node {} to be replaced", pod.node()));
        let busy = away.or_else(|| changes.then(|| "the control plane to be replaced".to_owned()));
        world.observed = Some(Observed { both, answers, running, published, busy, keys });
        Ok(world)
    }

    /// Reads the phase of nodes whose Secrets do not say it from what they hold: somebody may have taken the annotation, and a node
    /// never goes back.
    async fn recover_marks(&self, cluster: &Valid, world: &mut World) -> Result<(), Error> {
        let api = self.keys.secrets(&cluster.identity.namespace);
        for node in unmarked(cluster, world) {
            let name = names::node_secret(&node);
            let Some(seen) = world.secrets.get_mut(&name) else { continue };
            let found = call("get", format!("Secret {name}"), api.get_opt(&name)).await?;
            let held = found.as_ref().and_then(|secret| secret.data.as_ref()?.get(paths::MARK));
            let mark = held.and_then(|text| std::str::from_utf8(&text.0).ok()?.parse::<Mark>().ok());
            // Issued again where it is, which writes it down for all who do not look into it.
            if let Some(mark) = mark {
                (seen.mark, seen.hash) = (Some(mark), None);
            }
        }
        Ok(())
    }

    /// Whether no node of the control plane is on its way out, as the server knows it: another operator may have begun a moment ago.
    pub(super) async fn may_turn(&self, identity: &Identity, node: &str) -> Result<bool, Error> {
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &identity.namespace);
        let params = ListParams::default().labels(&identity.selector());
        let live = call("list", "VM pods", api.list_metadata(&params)).await?;
        let is_master =
            |meta: &ObjectMeta| meta.name.as_deref().is_some_and(|name| names::master_index(name).is_some());
        let leaves = |meta: &ObjectMeta| {
            let marked = meta.annotations.as_ref().is_some_and(|all| all.contains_key(names::LEAVING_SINCE_ANNOTATION));
            is_master(meta) && (marked || meta.deletion_timestamp.is_some())
        };
        let may = !live.items.iter().any(|pod| leaves(&pod.metadata));
        if may {
            info!(node, "its etcd and its API server are to be started anew");
        }
        Ok(may)
    }

    /// Makes the roots that are to take the recorded ones' place. Their Secret has one name, so they are made once.
    pub(super) async fn make_next(
        &self,
        cluster: &Valid,
        world: &World,
        generation: u32,
        subject: Subject,
        now: Timestamp,
    ) -> Result<(), Error> {
        let identity = &cluster.identity;
        let (_, current) = self.recorded(identity, world.generation(), &world.records).await?;
        let meta = SecretMeta { rotated_for: current.rotated_for, keys_for: current.keys_for, ..SecretMeta::default() };
        if !keys::asked(cluster, Some(&meta)).contains(&subject) {
            // Somebody took what the Secret says of it; what it holds counts.
            return self.mark_roots(identity, world).await;
        }
        let owner = identity.key.to_string();
        let make = |of| -> Result<Kept, Error> {
            let name = name_of_next(of, &owner, generation, current.authority(of).certificate());
            Ok(Kept::Here(embedded::root(&name, &owner, now, cluster.pki.ca_ttl)?))
        };
        let made = match subject {
            Subject::Authorities => Roots {
                kubernetes: make(Authority::Kubernetes)?,
                etcd: make(Authority::Etcd)?,
                front_proxy: make(Authority::FrontProxy)?,
                rotated_for: cluster.pki.rotate,
                ..current.clone()
            },
            subject => rotate_keys::next_roots(&current, subject, cluster.pki.keys, generation)?,
        };
        let name = roots::secret_of(generation);
        let secret = Secret {
            immutable: Some(true),
            ..secret(identity, &identity.namespace, &name, made.annotations(), made.data())
        };
        match self.keys.create(&secret).await {
            // The cache lags behind, or it is somebody else's.
            Err(Error::Call(error)) if error.status() == Some(409) => {
                let api = self.keys.secrets(&identity.namespace);
                let live = call("get", format!("Secret {name}"), api.get_metadata_opt(&name)).await?;
                let ours = live.is_some_and(|live| identity.owner().owns(&live.metadata));
                if ours { Ok(()) } else { Err(Error::Foreign(format!("{}/{name}", identity.namespace))) }
            }
            Err(error) => Err(error),
            Ok(()) => {
                info!(generation, subject = subject.name(), "other roots made, as it was wished");
                Ok(())
            }
        }
    }

    /// Records them, before anything is made with them.
    pub(super) async fn record_next(&self, identity: &Identity, generation: u32) -> Result<(), Error> {
        let found = read_roots(&self.keys.secrets(&identity.namespace), generation).await?;
        let (_, kept) = found.ok_or_else(|| lost(identity, generation))?;
        let all = kept.fingerprints();
        let record = |root: Root| Some((root.next_record(), json!(all.get(&root.record())?)));
        self.note(identity, Root::ALL.into_iter().filter_map(record).collect()).await
    }

    /// Writes down what a rotation is at.
    pub(super) async fn note_stage(&self, identity: &Identity, record: &Record) -> Result<(), Error> {
        info!(generation = record.generation, stage = record.stage.name(), "rotation of authorities");
        self.note(identity, json!({names::ROTATION_ANNOTATION: record.write()})).await
    }

    /// Records them instead of the former ones: in one write, so that there are never none. What is noted stays: it says that the former
    /// ones are to go, which they do when all have seen this.
    pub(super) async fn adopt(
        &self,
        identity: &Identity,
        world: &World,
        generation: u32,
        now: Timestamp,
    ) -> Result<(), Error> {
        let (_, kept) = self.recorded(identity, generation, &world.next_records).await?;
        let mut annotations: serde_json::Map<String, Value> =
            kept.fingerprints().into_iter().map(|(name, value)| (name, json!(value))).collect();
        annotations.extend(Root::ALL.into_iter().map(|root| (root.next_record(), Value::Null)));
        annotations.insert(names::GENERATION_ANNOTATION.into(), json!(generation.to_string()));
        let over = Record { generation, stage: Stage::Drop, since: now, alone: false };
        annotations.insert(names::ROTATION_ANNOTATION.into(), json!(over.write()));
        info!(generation, subject = world.rotated().name(), "the former ones are needed no more");
        self.note(identity, annotations.into()).await
    }

    /// Deletes former roots, and with them the keys of their authorities; then nothing speaks of the rotation any more.
    pub(super) async fn remove_roots(&self, identity: &Identity, generation: u32) -> Result<(), Error> {
        discard(&self.keys.secrets(&identity.namespace), identity, generation).await?;
        self.note(identity, json!({names::ROTATION_ANNOTATION: Value::Null})).await
    }
}

/// Deletes former roots by their name, not as the cache has them: without their labels nobody would find them any more, and their keys
/// would stay.
async fn discard(api: &Api<Secret>, identity: &Identity, generation: u32) -> Result<(), Error> {
    let name = roots::secret_of(generation);
    let found = call("get", format!("Secret {name}"), api.get_metadata_opt(&name)).await?;
    // They may have lost their mark, too.
    let owner = identity.owner();
    let is_ours = |meta: &ObjectMeta| {
        let marked = meta.annotations.as_ref().and_then(|all| all.get(owner.annotation));
        marked.is_none_or(|uid| *uid == owner.uid)
    };
    if let Some(found) = found.filter(|found| is_ours(&found.metadata)) {
        apply::delete(api, &found.metadata, None).await?;
        info!(generation, "former roots removed");
    }
    Ok(())
}

/// Nodes whose Secrets do not say their phase, and are not what they were before they had one.
pub(super) fn unmarked(cluster: &Valid, world: &World) -> Vec<String> {
    let next = world.generation() + 1;
    let masters = (0..cluster.control_plane.replicas).map(names::master);
    // Where keys are rotated, workers have no phase.
    let have_part = world.rotated() == Subject::Authorities;
    let workers = world.workers.iter().chain(world.leaving()).filter(|_| have_part).cloned();
    masters
        .chain(workers)
        .filter(|node| {
            let secret = world.secrets.get(&names::node_secret(node));
            let unmarked = secret.filter(|secret| secret.mark.is_none_or(|mark| mark.generation != next));
            unmarked.is_some_and(|secret| !is_before(cluster, world, node, secret))
        })
        .collect()
}

/// Name of an authority that comes: of its generation, and another one than the former's, since both are told apart by it. Imported
/// ones are of the generation that they were exported in.
fn name_of_next(of: Authority, owner: &str, generation: u32, former: &str) -> String {
    let name = |generation| format!("{}-{generation}", Root::Ca(of).name());
    let is_formers = embedded::is_root_named(former, &name(generation), owner);
    if is_formers { format!("{}-next", name(generation)) } else { name(generation) }
}

/// What VM pods say, anew at every look: what was said before says nothing of what was written since. Those of the control plane are
/// asked last, and together: whether one of them may turn depends on whether the others are well now.
pub(super) async fn all_answers<F, T>(
    asked: impl Iterator<Item = (String, IpAddr)>,
    workers_time: Duration,
    ask: impl Fn(String, IpAddr) -> F,
) -> BTreeMap<String, T>
where
    F: Future<Output = Option<(String, T)>>,
{
    let (masters, workers): (Vec<_>, Vec<_>) = asked.partition(|(node, _)| names::master_index(node).is_some());
    let of = |(node, address)| ask(node, address);
    let answers = stream::iter(workers).map(of).buffer_unordered(AT_A_TIME).filter_map(std::future::ready);
    let mut answers: BTreeMap<_, _> = answers.take_until(tokio::time::sleep(workers_time)).collect().await;
    answers.extend(join_all(masters.into_iter().map(of)).await.into_iter().flatten());
    answers
}

/// What a VM pod says of its node's authorities, by the node's name.
async fn ask(node: String, address: IpAddr) -> Option<(String, consumers::Answer)> {
    let question = Question { address, path: consumers::PATH, answer: ANSWER, timeout: TIMEOUT };
    match question.json().await {
        Ok(answer) => Some((node, answer)),
        Err(error) => {
            debug!(node, error = chain(&error), "a VM pod does not say what its components trust");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[test]
    fn an_authority_that_comes_has_a_name_of_its_own() {
        let of = Authority::Etcd;
        let made =
            |name: &str| embedded::root(name, "a/b", Timestamp::now(), Duration::from_secs(3600)).unwrap().certificate;
        assert_eq!(name_of_next(of, "a/b", 2, &made("etcd")), "etcd-2");
        // One that was exported after a rotation, and imported.
        assert_eq!(name_of_next(of, "a/b", 2, &made("etcd-2")), "etcd-2-next");
        assert_eq!(name_of_next(of, "a/b", 2, &made("etcd-2-next")), "etcd-2");
        assert_eq!(name_of_next(of, "a/c", 2, &made("etcd-2")), "etcd-2", "the owner is in it");
    }

    #[tokio::test]
    async fn former_roots_are_deleted_whatever_their_labels_say() {
        use kube::client::Body;
        use tower::{BoxError, service_fn};

        let asked: std::sync::Arc<Mutex<Vec<String>>> = Default::default();
        let there: std::sync::Arc<Mutex<Value>> = Default::default();
        let (all, found) = (asked.clone(), there.clone());
        let client = kube::Client::new(
            service_fn(move |request: http::Request<Body>| {
                let (all, found) = (all.clone(), found.lock().unwrap().to_string());
                async move {
                    let line = format!("{} {}", request.method(), request.uri().path());
                    let body = request.into_body().collect_bytes().await?;
                    all.lock().unwrap().push(format!("{line} {}", String::from_utf8_lossy(&body)));
                    let gone =
                        r#"{"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 200}"#;
                    let answer = if line.starts_with("GET") { found } else { gone.to_owned() };
                    Ok::<_, BoxError>(http::Response::new(Body::from(answer.into_bytes())))
                }
            }),
            "g8s-x",
        );
        let api = Api::<Secret>::namespaced(client, "g8s-x");
        let identity = &crate::testing::valid(json!({})).identity;
        let asked = || std::mem::take(&mut *asked.lock().unwrap());
        for (uid, deleted) in [(Some(identity.owner().uid), true), (None, true), (Some("another".to_owned()), false)] {
            let annotations = uid.map(|uid| json!({identity.owner().annotation: uid})).unwrap_or_default();
            *there.lock().unwrap() = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"name": "roots-1", "uid": "one", "annotations": annotations}});
            discard(&api, identity, 1).await.unwrap();
            let all = asked();
            assert_eq!((all.len(), all[0].starts_with("GET ")), (1 + usize::from(deleted), true), "{all:?}");
            if deleted {
                assert!(all[1].starts_with("DELETE /api/v1/namespaces/g8s-x/secrets/roots-1 "), "{all:?}");
                assert!(all[1].contains(r#""uid":"one""#), "a namesake would go: {all:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn workers_that_take_their_time_are_all_heard() {
        let workers = (0..500).map(|n| (format!("a-{n}"), IpAddr::from([10, 0, 0, 1])));
        let ask = async |node: String, _| {
            sleep(Duration::from_secs(5)).await;
            Some((node, ()))
        };
        assert_eq!(all_answers(workers, WORKERS_TIME, ask).await.len(), 500);
    }

    #[test]
    fn a_rotation_whose_roots_are_not_seen_is_told_to_go_on() {
        let record = |generation| Record { generation, stage: Stage::Serve, since: Timestamp::UNIX_EPOCH, alone: true };
        let cluster = crate::testing::valid(json!({}));
        let mut world = World { rotation: Some(record(2)), ..World::default() };
        let told = |world: &World| {
            facts(&cluster, world, &Plan { lost: true, ..Plan::default() }).map(|facts| (facts.status, facts.going))
        };
        assert_eq!(told(&world), None, "nothing is recorded of it");
        world.next_records = [(Root::Ca(Authority::Etcd).record(), String::new())].into();
        let (status, going) = told(&world).unwrap();
        assert_eq!((status.generation, status.stage.as_deref(), going), (2, Some("Serve"), None));
        assert!(status.waits_for.as_ref().is_some_and(|waits| waits.contains("roots-1 and roots-2")), "{status:?}");
        world.rotation = Some(record(1));
        assert_eq!(told(&world).unwrap().0.stage.as_deref(), Some("Trust"), "that one is over");
    }

    #[tokio::test(start_paused = true)]
    async fn the_control_plane_is_asked_last_and_silent_workers_take_a_bounded_time() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let masters = ["master-0", "master-1", "master-2"].map(|node| (node.to_owned(), address));
        let workers = (0..500).map(|n| (format!("a-{n}"), address));
        let (began, asked_at) = (Instant::now(), Mutex::new(BTreeMap::new()));
        let ask = |node: String, _| {
            asked_at.lock().unwrap().insert(node.clone(), began.elapsed());
            async move {
                let silent = !node.starts_with('m') && node != "a-0";
                sleep(if silent { TIMEOUT } else { Duration::from_secs(1) }).await;
                (!silent).then_some((node, ()))
            }
        };
        let answers = all_answers(masters.into_iter().chain(workers), WORKERS_TIME, ask).await;
        assert_eq!(answers.into_keys().collect::<Vec<_>>(), ["a-0", "master-0", "master-1", "master-2"]);
        assert!(began.elapsed() <= WORKERS_TIME + TIMEOUT, "{:?}", began.elapsed());
        let asked_at = asked_at.into_inner().unwrap();
        let last = asked_at.iter().filter(|(node, _)| node.starts_with('a')).map(|(_, at)| *at).max().unwrap();
        let of_masters: Vec<_> = asked_at.iter().filter(|(node, _)| node.starts_with('m')).map(|(_, at)| *at).collect();
        assert!(of_masters.iter().all(|at| *at >= last && *at == of_masters[0]), "{of_masters:?} {last:?}");
    }
}
