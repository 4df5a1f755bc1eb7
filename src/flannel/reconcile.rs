//! Effects of the flannel operator: a guest's user, certificate and leases in Flannel's etcd.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tracing::info;

use super::{
    certificates::{self, OF_GUEST},
    etcd::{Change, Client, Compare, EtcdError, Span, auth},
    install::of_etcd,
    lease,
    plan::{self, Found, Member, Write},
    server::Access,
};
use crate::{
    api::Reason,
    cluster::{Blames, ClusterKey, Identity, Report, Valid},
    context::{Context, Target},
    network::addresses::Fabric,
    pki::{
        self, embedded,
        plan::{pause, renew_at},
        secrets::{bytes, issued, secret},
        store::{KeyStore, Place},
    },
    runtime::{apply::hash, chain, operator::Reconciler, queue::Outcome},
    supervisor::flannel::files,
};

const MANAGER: &str = "giantnetes.flannel";
/// Pause before what is waited for is looked at again, where no watch tells.
const SOON: Duration = Duration::from_secs(2);
/// How long what is in etcd need not be looked at again, if there is no news.
const PERIOD: Duration = Duration::from_secs(600);

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest's certificate.
    #[error("issue the guest's certificate for Flannel's etcd")]
    Certificate(#[source] pki::reconcile::Error),
    /// etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
}

impl Blames for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Certificate(error) => error.reason(),
            Self::Etcd(error) => of_etcd(error),
        }
    }
}

type Answer = (Report<()>, Outcome);

/// The flannel operator.
pub struct FlannelOperator {
    context: Context,
    keys: KeyStore,
    /// When a guest's user and role were last seen to be right, by its id, and of which etcd ([`super::server::FlannelEtcd::generation`]).
    admitted: Mutex<HashMap<String, (Instant, u64)>>,
}

impl FlannelOperator {
    /// A flannel operator.
    pub fn new(context: Context) -> Self {
        Self { keys: KeyStore::new(context.clone(), MANAGER), context, admitted: Mutex::default() }
    }

    async fn look(&self, target: &Target, now: Timestamp) -> Result<Answer, Error> {
        if target.is_deleting() {
            return self.remove(&target.identity).await;
        }
        let facts = self.known(&target.identity);
        let waiting = |what: &str| Ok((Report::Waiting { what: what.to_owned(), facts }, Outcome::AwaitChange));
        let Some(valid) = target.workable().filter(|valid| valid.ranges.overlay.fabric == Fabric::Routed) else {
            return waiting("a valid and protected Cluster");
        };
        let Some(etcd) = &self.context.flannel else { return waiting("a valid and protected Cluster") };
        if self.context.namespace(&valid.identity).is_none() {
            return waiting("the namespace");
        }
        let reports = self.context.reports.of(&valid.identity);
        let inside = reports.network.as_ref().and_then(Report::facts).and_then(|facts| facts.inside);
        let Some(vni) = inside.map(|inside| inside.vni) else {
            return waiting("a VNI");
        };
        match etcd.access() {
            Ok(access) => self.serve(valid, vni, &access, etcd.generation(), now).await,
            Err(obstacle) => Ok((obstacle.report(facts), Outcome::After(SOON))),
        }
    }

    /// That a guest's VM pods find what they need outlives this process: the Secret says so, which is made after the rest.
    fn known(&self, identity: &Identity) -> Option<()> {
        let secret = self.context.meta(&self.context.cache.secrets, &identity.namespace, OF_GUEST)?;
        identity.owner().owns(&secret).then_some(())
    }

    async fn serve(
        &self,
        valid: &Valid,
        vni: u32,
        access: &Access,
        generation: u64,
        now: Timestamp,
    ) -> Result<Answer, Error> {
        let identity = &valid.identity;
        let found = read(&access.client, &identity.id).await?;
        self.admit(identity, &access.client, generation).await?;
        let renew_at = self.certify(valid, access, now).await.map_err(Error::Certificate)?;
        let pods = self.context.vm_pods(identity);
        let ours = pods.iter().map(Arc::as_ref).filter(|pod| identity.owner().owns(&pod.metadata));
        let (members, strange) = plan::members(valid, ours, &self.context.places(identity));
        let found = match lease_to(&access.client, (&identity.id, valid.ranges.overlay.net, vni), &members, found).await
        {
            Err(error) if error.is_guard() => {
                // flanneld has written meanwhile: it is looked at again.
                let what = "the leases, which flanneld writes as well".to_owned();
                return Ok((Report::Waiting { what, facts: Some(()) }, Outcome::After(SOON)));
            }
            found => found?,
        };
        let later = Outcome::After(pause(Some(renew_at), now).min(PERIOD));
        if let Some(pod) = strange {
            let message = format!(
                "VM pod {pod} has an IPv6 address, by which Flannel carries no overlay; ask for backend Native"
            );
            let report = Report::Failed { reason: Reason::FlannelUnavailable, message, facts: Some(()) };
            return Ok((report, later));
        }
        Ok(match plan::untaken(&identity.id, &members, &found).first() {
            None => (Report::Ready(()), later),
            Some(pod) => {
                let what = format!("flanneld of VM pod {pod} to take its subnet");
                (Report::Waiting { what, facts: Some(()) }, Outcome::After(SOON))
            }
        })
    }

    /// Gives the guest its user and role, if they were not seen a while ago, in this etcd.
    async fn admit(&self, identity: &Identity, client: &Client, generation: u64) -> Result<(), Error> {
        let lock = || self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |(seen, of): &(Instant, u64)| seen.elapsed() < PERIOD && *of == generation;
        if lock().get(&identity.id).is_some_and(is_fresh) {
            return Ok(());
        }
        auth::ensure_guest(client, &identity.id).await?;
        lock().insert(identity.id.clone(), (Instant::now(), generation));
        Ok(())
    }

    /// Has the guest's Secret hold a certificate of its user, and where etcd is. Answers when that is renewed.
    async fn certify(
        &self,
        valid: &Valid,
        access: &Access,
        now: Timestamp,
    ) -> Result<Timestamp, pki::reconcile::Error> {
        let (identity, leaf, ttl) = (&valid.identity, certificates::guest(&valid.identity.id), valid.pki.leaf_ttl);
        let authority = access.authority.certificate.as_str();
        let wish = hash(&serde_json::json!([leaf, ttl.as_secs(), authority, access.endpoint]));
        let cached = self.context.meta(&self.context.cache.secrets, &identity.namespace, OF_GUEST);
        if let Some(meta) = cached.filter(|meta| identity.owner().owns(meta)) {
            let seen = self.keys.seen(&meta).await?;
            if let Some(at) = seen.renew_at.filter(|_| !pki::plan::is_due(Some(&seen), &wish, now)) {
                return Ok(at);
            }
        }
        let renews = renew_at(now, ttl, embedded::expires(authority)?);
        let former = match self.keys.place(identity, &identity.namespace, OF_GUEST, &wish, now).await? {
            Place::Issued(_) => return Ok(renews),
            Place::Open(former) => former,
        };
        let pair = embedded::sign(&access.authority, &leaf, now, ttl)?;
        let ends_at = embedded::expires(&pair.certificate)?;
        let data = [
            (files::AUTHORITY, authority),
            (files::CERTIFICATE, pair.certificate.as_str()),
            (files::KEY, pair.key.expose_secret()),
            (files::ENDPOINT, access.endpoint.as_str()),
        ];
        let data: BTreeMap<_, _> = data.map(|(name, text)| (name.to_owned(), bytes(text))).into();
        let annotations = issued(&wish, renews, ends_at);
        self.keys.store(former, secret(identity, &identity.namespace, OF_GUEST, annotations, data)).await?;
        Ok(renews)
    }

    /// Renews the guest's certificate, if it has one and Flannel's etcd is set up.
    async fn renew(&self, target: &Target, now: Timestamp) -> Result<Outcome, pki::reconcile::Error> {
        let has_one = self.known(&target.identity).is_some() && !target.is_deleting();
        let etcd = self.context.flannel.as_ref();
        let (Some(valid), Some(etcd)) = (target.workable().filter(|_| has_one), etcd) else {
            return Ok(Outcome::AwaitChange);
        };
        let Ok(access) = etcd.access() else { return Ok(Outcome::After(SOON)) };
        Ok(Outcome::After(pause(Some(self.certify(valid, &access, now).await?), now)))
    }

    /// Removes all of the guest from etcd, after the last VM pod that has its certificate.
    async fn remove(&self, identity: &Identity) -> Result<Answer, Error> {
        if !self.context.reports.of(identity).kvm.is_some_and(|report| report.is_gone()) {
            return Ok((Report::waiting("the VM pods to be gone"), Outcome::AwaitChange));
        }
        let Some(etcd) = &self.context.flannel else {
            // It went with everything that was in it.
            return Ok((Report::Gone, Outcome::AwaitChange));
        };
        let access = match etcd.access() {
            Ok(access) => access,
            Err(obstacle) => return Ok((obstacle.report(None), Outcome::After(SOON))),
        };
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner).remove(&identity.id);
        let left = auth::remove_guest(&access.client, &identity.id).await?;
        if left.is_empty() {
            return Ok((Report::Gone, Outcome::AwaitChange));
        }
        Ok((Report::waiting(format!("{} to be gone from Flannel's etcd", left.join(", "))), Outcome::After(SOON)))
    }
}

/// Brings the keys of the guest with this id about, all at once. Answers what is there then.
///
/// # Errors
/// [`EtcdError`]; a guard's, if they are not those that were found any more.
pub async fn lease_to(
    client: &Client,
    (id, network, vni): (&str, Ipv4Net, u32),
    members: &[Member],
    found: Found,
) -> Result<Found, EtcdError> {
    let writes = plan::writes(id, network, vni, members, &found);
    if writes.is_empty() {
        return Ok(found);
    }
    // For what was read, and under a prefix that nobody removed meanwhile.
    let config = lease::config_key(id);
    let has_config = found.values.contains_key(&config);
    let mut guards = vec![if has_config { Compare::Exists(&config) } else { Compare::Absent(&config) }];
    let mut changes = Vec::new();
    for write in &writes {
        let (Write::Put(key, _) | Write::Delete(key)) = write;
        guards.push(match found.values.get(key) {
            Some((_, written)) => Compare::ModRevision(key, *written),
            None => Compare::Absent(key),
        });
        changes.push(match write {
            Write::Put(key, value) => Change::Put { key, value },
            Write::Delete(key) => Change::Delete(Span::key(key)),
        });
    }
    client.write(&guards, &changes).await?;
    info!(keys = writes.len(), "leases are written");
    read(client, id).await
}

/// What there is of the guest with this id.
///
/// # Errors
/// [`EtcdError`]
pub async fn read(client: &Client, id: &str) -> Result<Found, EtcdError> {
    let mut found = Found::default();
    for entry in client.read(&Span::prefix(&lease::prefix(id))).await?.entries {
        // Nobody but this operator and flanneld writes there, and neither writes other keys.
        let Ok(key) = String::from_utf8(entry.key) else { continue };
        if entry.lease != 0 {
            found.taken.insert(key.clone());
        }
        found.values.insert(key, (entry.value, entry.mod_revision));
    }
    Ok(found)
}

impl Reconciler for FlannelOperator {
    const NAME: &'static str = "flannel";
    type Key = ClusterKey;
    type Error = Error;

    async fn reconcile(&self, key: &ClusterKey) -> Result<Outcome, Error> {
        let target = self.context.target(key).filter(Target::asks_for_flannel);
        let Some(target) = target else { return Ok(Outcome::AwaitChange) };
        let now = Timestamp::now();
        if let Some(left) = target.paused(now) {
            let renewal = self.renew(&target, now).await.map_err(Error::Certificate)?;
            return Ok(Outcome::After(left).or_sooner(renewal));
        }
        if self.context.flannel.as_ref().is_some_and(|etcd| etcd.access().is_err_and(|obstacle| obstacle.is_unseen())) {
            // After a start: what was reported before it still stands in the status.
            return Ok(Outcome::After(SOON));
        }
        let look = self.look(&target, now).await;
        if let Err(error) = &look
            && let facts @ Some(()) = self.known(&target.identity)
        {
            // What was made stays made, and others go on with it.
            let report = Report::Failed { reason: error.reason(), message: chain(error), facts };
            self.context.reports.update(&target.identity, |reports| reports.flannel = Some(report));
        }
        self.context.reports.conclude(&target.identity, |reports| &mut reports.flannel, look)
    }
}
