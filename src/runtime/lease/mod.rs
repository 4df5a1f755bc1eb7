//! One leader among the replicas, by a Lease object.
//!
//! - [`plan`]: who may hold it, and for how long; pure
//! - [`leadership`]: what a write asks before it begins
//! - [`Elector`]: looks, takes, renews, releases
//!
//! Every write names the resourceVersion that was seen. The elector needs a client of its own, without retries: a
//! renewal that is repeated later than asked for would claim a time that has passed.

pub mod leadership;
pub mod plan;

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::leadership::Leadership;
use self::plan::{Move, Sighting, next_move};
use super::{CallError, call_within, chain};

/// Longest time that writes under way may take when leadership is given up; then the lease runs out by itself.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// Longest time that the release of a lease may take.
const RELEASE: Duration = Duration::from_secs(2);

/// Takes part in the election of a leader.
pub struct Elector {
    leases: Api<Lease>,
    name: String,
    me: String,
    length: Duration,
    leadership: Leadership,
    started: Instant,
    seen: Option<Sighting>,
    /// The lease as we wrote it last; `None` when it must be read first.
    held: Option<Lease>,
}

impl Elector {
    /// A candidate called `me`, which must be unique to this process, for the lease `name`.
    ///
    /// `length` is how long the holder may be silent before somebody else takes the lease: at least a second.
    pub fn new(leases: Api<Lease>, name: &str, me: &str, length: Duration) -> Self {
        Self {
            leases,
            name: name.into(),
            me: me.into(),
            length: length.max(Duration::from_secs(1)),
            leadership: Leadership::default(),
            started: Instant::now(),
            seen: None,
            held: None,
        }
    }

    /// Whether this process leads.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Takes part until `stop`; then waits for writes under way and releases the lease, if it is held.
    pub async fn run(mut self, stop: CancellationToken) {
        // While somebody else holds it, a release is seen at once.
        let changes = watcher::watch_object(self.leases.clone(), &self.name).default_backoff();
        let mut changes = std::pin::pin!(changes);
        while !stop.is_cancelled() {
            let pause = tokio::select! {
                () = stop.cancelled() => break,
                pause = self.step() => pause,
            };
            let is_candidate = !self.leadership.holds();
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                () = next_change(&mut changes), if is_candidate => {}
            }
        }
        self.release().await;
    }

    /// One look or write. Answers the pause before the next.
    async fn step(&mut self) -> Duration {
        let pause = plan::renew_every(self.length);
        if self.held.is_none()
            && let Err(error) = self.look().await
        {
            debug!(error = chain(&error), "the lease cannot be read");
            return pause / 2;
        }
        match next_move(&self.me, self.seen.as_ref(), self.started.elapsed()) {
            Move::Wait(left) => {
                // Somebody else holds it, whatever we believed: even if it was taken before its time.
                self.leadership.set(None);
                self.held = None;
                left.min(self.length)
            }
            Move::Take | Move::Renew => match self.write().await {
                Ok(()) => pause,
                Err(error) => {
                    debug!(error = chain(&error), "the lease cannot be written");
                    // Whether it was written is unknown: the next step looks.
                    self.held = None;
                    pause / 4
                }
            },
        }
    }

    /// How long a call may take: a second at least, where that leaves time for another one.
    fn patience(&self) -> Duration {
        plan::renew_every(self.length).max(Duration::from_secs(1).min(self.length / 3))
    }

    async fn look(&mut self) -> Result<(), CallError> {
        let request = self.leases.get_opt(&self.name);
        let lease = call_within(self.patience(), "get", format!("Lease {}", self.name), request).await?;
        let seen = lease.as_ref().map(|lease| self.sighting(lease));
        self.seen = seen.map(|seen| seen.follow(self.seen.as_ref()));
        self.held = lease;
        Ok(())
    }

    fn sighting(&self, lease: &Lease) -> Sighting {
        let spec = lease.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
        Sighting {
            holder: spec.and_then(|spec| spec.holder_identity.clone()),
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
            length: seconds.map_or(self.length, Duration::from_secs),
            since: self.started.elapsed(),
        }
    }

    /// Writes our name into the lease that was seen, or makes it.
    async fn write(&mut self) -> Result<(), CallError> {
        let sent = Instant::now();
        let desired = self.desired(Some(self.me.clone()));
        let was_holder = self.seen.as_ref().is_some_and(|seen| seen.holder.as_ref() == Some(&self.me));
        let written = self.put(desired, self.patience()).await?;
        let until = self.started + plan::valid_until(sent - self.started, self.length);
        self.seen = Some(self.sighting(&written));
        self.held = Some(written);
        self.leadership.set(Some(until));
        if !was_holder {
            info!(lease = self.name, me = self.me, "leading");
        }
        Ok(())
    }

    async fn put(&self, desired: Lease, limit: Duration) -> Result<Lease, CallError> {
        let object = format!("Lease {}", self.name);
        let params = PostParams::default();
        if desired.metadata.resource_version.is_some() {
            call_within(limit, "replace", object, self.leases.replace(&self.name, &params, &desired)).await
        } else {
            call_within(limit, "create", object, self.leases.create(&params, &desired)).await
        }
    }

    fn desired(&self, holder: Option<String>) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let old = self.held.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_new_holder = holder.is_some() && holder != old.holder_identity;
        let transitions = old.lease_transitions.unwrap_or_default();
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: self.held.as_ref().and_then(|lease| lease.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                lease_transitions: Some(if is_new_holder { transitions.saturating_add(1) } else { transitions }),
                acquire_time: if is_new_holder { now.clone() } else { old.acquire_time },
                renew_time: now,
                lease_duration_seconds: Some(i32::try_from(self.length.as_secs()).unwrap_or(i32::MAX)),
                holder_identity: holder,
                ..LeaseSpec::default()
            }),
        }
    }

    async fn release(&mut self) {
        let led = self.leadership.holds();
        self.leadership.set(None);
        if !led {
            return;
        }
        if !self.leadership.idle(LAST_WRITES).await {
            warn!(lease = self.name, "a write is still under way: the lease is not released, it runs out");
            return;
        }
        match tokio::time::timeout(RELEASE, self.let_go()).await {
            Ok(Ok(())) => info!(lease = self.name, "released"),
            Ok(Err(error)) => warn!(error = chain(&error), "the lease is not released, it runs out"),
            Err(_) => warn!(lease = self.name, "the lease is not released in time, it runs out"),
        }
    }

    /// Takes our name out of the lease. The last renewal may have been cut off, and whether the server did it is unknown: what
    /// we hold is then older than what is there, and is read again.
    async fn let_go(&mut self) -> Result<(), CallError> {
        loop {
            if self.held.is_none() {
                self.look().await?;
            }
            if self.seen.as_ref().is_none_or(|seen| seen.holder.as_ref() != Some(&self.me)) {
                return Ok(());
            }
            match self.put(self.desired(None), RELEASE).await {
                Err(error) if error.status() == Some(409) => self.held = None,
                other => return other.map(drop),
            }
        }
    }
}

/// Waits for the next sight of the lease. A watch that ended says nothing any more, and the candidate looks by itself.
async fn next_change<T>(changes: &mut (impl Stream<Item = T> + Unpin)) {
    if changes.next().await.is_none() {
        std::future::pending::<()>().await;
    }
}
