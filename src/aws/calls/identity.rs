//! Whom AWS takes us for: the keys of a user, or a role that they may assume.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_credential_types::provider::{SharedCredentialsProvider, error::CredentialsError, future};
use aws_sdk_cloudformation::config::{
    BehaviorVersion, Credentials, IdentityCache, ProvideCredentials, Region, SharedHttpClient,
};
use aws_smithy_types::{retry::RetryConfig, timeout::TimeoutConfig};
use aws_types::SdkConfig;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{sync::Mutex, time::Instant};

use super::{
    caller::{Caller, Operation},
    failure::{AwsError, Failure},
    pace::Family,
};

/// How long before they end the credentials of a role are got anew: a call that has them lasts no longer.
const MARGIN: Duration = Duration::from_secs(300);

static ASSUME_ROLE: Operation =
    Operation { service: "sts", name: "AssumeRole", action: "sts:AssumeRole", family: Family::Identity, writes: false };
static GET_CALLER_IDENTITY: Operation = Operation {
    service: "sts",
    name: "GetCallerIdentity",
    action: "sts:GetCallerIdentity",
    family: Family::Identity,
    writes: false,
};

/// Keys of a user.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Access key id. It is no secret.
    pub id: String,
    /// Secret access key.
    pub secret: SecretString,
    /// Session token, of keys that are for a while.
    pub session: Option<SecretString>,
}

/// A role to assume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its ARN.
    pub arn: String,
    /// What its trust policy may ask for, so that nobody makes us assume somebody else's role.
    pub external_id: Option<String>,
    /// Name of the session, in which CloudTrail shows what was done: of the guest.
    pub session: String,
}

/// The way to an account in a region.
#[derive(Clone, Debug)]
pub struct Way {
    /// Region, such as `eu-central-1`.
    pub region: String,
    /// URL of what answers in AWS's place. None: AWS.
    pub endpoint: Option<String>,
    /// Whose keys.
    pub keys: Keys,
    /// The role that they assume. None: they are used as they are.
    pub role: Option<Role>,
}

/// What the SDK signs with: looked up at every call, got by [`Keyring::ready`] before.
#[derive(Clone, Default)]
struct Held(Arc<RwLock<Option<Credentials>>>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

impl Held {
    fn put(&self, credentials: Credentials) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(credentials);
    }
}

impl ProvideCredentials for Held {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        future::ProvideCredentials::ready(held.ok_or_else(|| CredentialsError::not_loaded("no role was assumed yet")))
    }
}

/// Credentials of a [`Way`], good for a while.
#[derive(Debug)]
pub(in crate::aws) struct Keyring {
    caller: Caller,
    /// As the user whose keys they are.
    sts: aws_sdk_sts::Client,
    /// As whom they may be.
    config: SdkConfig,
    role: Option<Role>,
    held: Held,
    /// Held while a role is assumed, so that many who need it do so once: when it is time for that again.
    until: Mutex<Option<Instant>>,
}

impl Keyring {
    pub(in crate::aws) fn new(way: &Way, http: SharedHttpClient, caller: Caller) -> Self {
        let Keys { id, secret, session } = &way.keys;
        let session = session.as_ref().map(|session| session.expose_secret().to_owned());
        let keys = Credentials::new(id, secret.expose_secret(), session, None, "giantnetes");
        let held = Held::default();
        if way.role.is_none() {
            held.put(keys.clone());
        }
        let as_user = config(way, http.clone(), SharedCredentialsProvider::new(keys));
        let config = config(way, http, SharedCredentialsProvider::new(held.clone()));
        let sts = aws_sdk_sts::Client::new(&as_user);
        Self { caller, sts, config, role: way.role.clone(), held, until: Mutex::default() }
    }

    /// A client of CloudFormation that signs with what is held here.
    pub(super) fn cloudformation(&self) -> aws_sdk_cloudformation::Client {
        aws_sdk_cloudformation::Client::new(&self.config)
    }

    /// What is held here, to sign with.
    pub(super) fn held(&self) -> Option<Credentials> {
        self.held.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sees to it that there are credentials that do not end during the next call.
    pub(super) async fn ready(&self) -> Result<(), AwsError> {
        let Some(role) = &self.role else { return Ok(()) };
        let mut until = self.until.lock().await;
        if until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        *until = Some(self.assume(role).await?);
        Ok(())
    }

    /// Gives up what AWS says has expired. Whether there may be something better.
    pub(super) async fn forget(&self) -> bool {
        *self.until.lock().await = None;
        self.role.is_some()
    }

    /// Assumes the role: when it is time to do so again.
    async fn assume(&self, role: &Role) -> Result<Instant, AwsError> {
        let Role { arn, external_id, session } = role;
        let send = || {
            let request = self.sts.assume_role().role_arn(arn).role_session_name(session);
            request.set_external_id(external_id.clone()).send()
        };
        let answer = self.caller.call(&ASSUME_ROLE, arn, send).await?;
        let lacks = |what| AwsError { action: ASSUME_ROLE.action, object: arn.clone(), source: Failure::Answer(what) };
        let got = answer.credentials.ok_or_else(|| lacks("credentials"))?;
        let ends = std::time::SystemTime::try_from(got.expiration).map_err(|_| lacks("time of expiration"))?;
        let left = ends.duration_since(std::time::SystemTime::now()).unwrap_or_default();
        let session = Some(got.session_token);
        self.held.put(Credentials::new(got.access_key_id, got.secret_access_key, session, Some(ends), "giantnetes"));
        // Of a short life half of it, or every call would begin with this one.
        Ok(Instant::now() + left.saturating_sub(MARGIN).max(left / 2))
    }

    /// The account that the credentials are of. Everybody may ask for that.
    pub(in crate::aws) async fn account(&self) -> Result<String, AwsError> {
        self.ready().await?;
        let sts = aws_sdk_sts::Client::new(&self.config);
        let answer = self.caller.call(&GET_CALLER_IDENTITY, "", || sts.get_caller_identity().send()).await?;
        let lacks = || AwsError {
            action: GET_CALLER_IDENTITY.action,
            object: String::new(),
            source: Failure::Answer("account"),
        };
        answer.account.ok_or_else(lacks)
    }
}

/// How all of the SDK's clients are set up: they repeat nothing, and wait as long as [`Caller`] does.
fn config(way: &Way, http: SharedHttpClient, credentials: SharedCredentialsProvider) -> SdkConfig {
    let mut config = SdkConfig::builder()
        // How the SDK behaves where it was changed over time. A newer one is a change that somebody looks at.
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(way.region.clone()))
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .identity_cache(IdentityCache::no_cache())
        .http_client(http)
        .credentials_provider(credentials);
    config.set_endpoint_url(way.endpoint.clone());
    config.build()
}
