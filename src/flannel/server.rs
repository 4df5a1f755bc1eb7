//! Flannel's etcd of this installation: who leads there, as far as it is set up.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::etcd::Client;
use crate::{api::Reason, cluster::Report, pki::embedded::Pair, settings::FlannelSettings};

/// What a guest's operator needs of an etcd that is set up.
#[derive(Clone, Debug)]
pub struct Access {
    /// URL at which VM pods reach it.
    pub endpoint: String,
    /// Signs clients' certificates, and is by whom they know etcd.
    pub authority: Pair,
    /// A client that may do everything.
    pub client: Client,
}

/// Why nothing can be done with it at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Of which sort, if it does not come by itself.
    pub reason: Option<Reason>,
    /// What is the matter.
    pub what: String,
}

impl Obstacle {
    fn unseen() -> Self {
        Self { reason: None, what: "Flannel's etcd to be set up".into() }
    }

    /// Whether nobody has looked yet.
    pub fn is_unseen(&self) -> bool {
        self.reason.is_none()
    }

    /// As what a guest's operator has to say.
    pub fn report<T>(self, facts: Option<T>) -> Report<T> {
        Report::held_up(self.reason, self.what, facts)
    }
}

/// Flannel's etcd.
pub struct FlannelEtcd {
    /// Where it is.
    pub settings: FlannelSettings,
    state: Mutex<Result<Arc<Access>, Obstacle>>,
    /// How often it was found without rights: so often it was new, or had lost what it had.
    generation: AtomicU64,
}

impl fmt::Debug for FlannelEtcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlannelEtcd").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl FlannelEtcd {
    /// One that nobody has looked at yet.
    pub fn new(settings: FlannelSettings) -> Self {
        Self { settings, state: Mutex::new(Err(Obstacle::unseen())), generation: AtomicU64::default() }
    }

    /// How often it was found without rights: what was made there before has to be looked at again.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// It was found without rights.
    pub(super) fn is_another(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// What was known of it is of the time when this process led before.
    pub(super) fn forget(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Err(Obstacle::unseen());
    }

    /// What leads there.
    ///
    /// # Errors
    /// [`Obstacle`], while it is not set up or does not answer.
    pub fn access(&self) -> Result<Arc<Access>, Obstacle> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a look at it came to.
    pub(super) fn note(&self, state: Result<Access, Obstacle>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state.map(Arc::new);
    }
}
