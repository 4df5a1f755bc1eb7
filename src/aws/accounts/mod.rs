//! Accounts in regions: what all guests in one of them share. Its token buckets, and what is known of its stacks.
//!
//! ```text
//!  guest ─ Way ─► Accounts::enter ─► Session ─┬─► CloudFormation, as whom the guest's Secret says ──► AWS
//!  guest ─ Way ─► …                           └─► Account ◄── follow: DescribeStacks, one answer for all ── AWS
//! ```
//!
//! - `account`: an account in a region, and who looks at its stacks

mod account;
#[cfg(test)]
pub(in crate::aws) mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use aws_sdk_cloudformation::config::SharedHttpClient;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

pub use self::account::{Account, View};
use super::calls::{
    AwsError,
    caller::{Caller, Paces},
    cloudformation::CloudFormation,
    identity::{Keyring, Way},
    resources::Resources,
};
use crate::runtime::lease::Leadership;

/// How often is looked.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// At a change set that is being made, for the first time; then after as long as it has taken already.
    pub change_set: Duration,
    /// At an account's stacks, while something is being done to one of them.
    pub busy: Duration,
    /// At an account's stacks, while nothing is.
    pub idle: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        // CloudFormation takes seconds for a change set and minutes for a guest; a page of stacks has about a hundred.
        Self { change_set: Duration::from_secs(4), busy: Duration::from_secs(5), idle: Duration::from_secs(60) }
    }
}

/// Which account in which region. Stand-ins for AWS are places of their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    account: String,
    region: String,
    endpoint: Option<String>,
}

/// All accounts that guests are in.
#[derive(Debug)]
pub struct Accounts {
    http: SharedHttpClient,
    leadership: Option<Leadership>,
    intervals: Intervals,
    known: Mutex<BTreeMap<Place, Weak<Account>>>,
    /// Token buckets of STS, by access key id: whose account it is, is not known before.
    identities: Mutex<HashMap<String, Arc<Paces>>>,
}

/// A way into an account that was gone.
#[derive(Clone, Debug)]
pub struct Session {
    /// Calls, as whom the way says.
    pub cloudformation: Arc<CloudFormation>,
    /// Calls about what is beside the stacks.
    pub resources: Arc<Resources>,
    /// What is shared with others who are in the account.
    pub account: Arc<Account>,
}

impl Accounts {
    /// None is known yet. With `leadership` nothing is changed while this process does not lead.
    pub fn new(leadership: Option<Leadership>, intervals: Intervals) -> Self {
        // The cryptography that the whole process has.
        let tls = Provider::Rustls(CryptoMode::Ring);
        let http = aws_smithy_http_client::Builder::new().tls_provider(tls).build_https();
        Self::over(http, leadership, intervals)
    }

    fn over(http: SharedHttpClient, leadership: Option<Leadership>, intervals: Intervals) -> Self {
        Self { http, leadership, intervals, known: Mutex::default(), identities: Mutex::default() }
    }

    /// Goes a way, once for as long as its keys and role are the same: two calls at most. Whoever keeps the session is kept told of the account's
    /// stacks.
    ///
    /// # Errors
    /// If AWS does not take the keys, or the role may not be assumed.
    pub async fn enter(&self, way: &Way) -> Result<Session, AwsError> {
        let paces = {
            let mut identities = locked(&self.identities);
            // Those of keys that nobody has any more.
            identities.retain(|_, paces| Arc::strong_count(paces) > 1);
            identities.entry(way.keys.id.clone()).or_default().clone()
        };
        let keys = Arc::new(Keyring::new(way, self.http.clone(), Caller::new(paces, self.leadership.clone())));
        let account = keys.account().await?;
        let account = self.account(Place { account, region: way.region.clone(), endpoint: way.endpoint.clone() });
        let caller = Caller::new(account.paces(), self.leadership.clone());
        let place = (way.region.as_str(), way.endpoint.as_ref());
        let resources = Arc::new(Resources::new(place, keys.clone(), caller.clone()));
        let cloudformation = Arc::new(CloudFormation::new(keys, caller));
        account.join(&cloudformation);
        Ok(Session { cloudformation, resources, account })
    }

    /// The account at a place, which is followed from now on.
    fn account(&self, place: Place) -> Arc<Account> {
        let mut known = locked(&self.known);
        known.retain(|_, account| account.strong_count() > 0);
        if let Some(account) = known.get(&place).and_then(Weak::upgrade) {
            return account;
        }
        let account = Arc::new(Account::new(self.intervals));
        tokio::spawn(account::follow(Arc::downgrade(&account)));
        known.insert(place, Arc::downgrade(&account));
        account
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
