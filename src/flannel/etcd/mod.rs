//! A client of etcd's API, version 3, as far as it is needed: keys, users and roles, by single calls with a certificate.
//!
//! - [`api`]: the messages
//! - [`span`]: which keys a request is about
//! - [`wire`]: writes begin only while this process leads, and calls are counted
//! - [`error`]: what an answer means
//! - [`auth`]: users and roles as Flannel needs them
//!
//! One address is enough: the controller manager and flanneld are told that of a Service.

pub mod api;
pub mod auth;
mod error;
mod span;
#[cfg(test)]
mod tests;
mod wire;

use std::{future::ready, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable as _};
use secrecy::ExposeSecret as _;
use tokio::sync::RwLock;
use tonic::{
    Response, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use self::{
    api::{
        AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
        AuthRoleGrantPermissionRequest, AuthRoleListRequest, AuthStatusRequest, AuthUserAddRequest,
        AuthUserDeleteRequest, AuthUserGetRequest, AuthUserGrantRoleRequest, AuthUserListRequest, CompareResult,
        CompareTarget, Compared, DeleteRangeRequest, KeyValue, Operation, Permission, PutRequest, RangeRequest,
        RangeResponse, RequestOp, ResponseHeader, TxnRequest, UserAddOptions, auth_client::AuthClient,
        k_v_client::KVClient,
    },
    error::understand,
    wire::Guarded,
};
pub use self::{
    error::{EtcdError, Failure},
    span::Span,
};
use crate::{
    pki::embedded::Pair,
    runtime::{CallFailure, call_timeout, lease::Leadership},
};

/// Longest time to a connection, and as long once more for its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// So often is asked, during a call, whether the server is still there. etcd closes connections that ask more often than every
/// 5 s (`--grpc-keepalive-min-time`).
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// A server that does not answer to that is gone. With [`KEEP_ALIVE`] less than a call may take, so that the next one does not
/// wait on the same connection.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest answer in bytes. What a guest's flanneld writes is not trusted to be little.
const LONGEST_ANSWER: usize = 4 << 20;
/// How often a call is made that comes upon a change of users and roles, the first time included.
const TRIES: usize = 8;
/// The pause after the first such try; each one is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Where an etcd is, and who we are to it.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// URL of a member, or of a Service before them.
    pub endpoint: &'a str,
    /// The authority that signs its certificates (PEM).
    pub authority: &'a str,
    /// Our certificate, whose common name is the user, and its key.
    pub identity: &'a Pair,
}

/// A client of etcd. It connects when it is first asked something, and anew whenever its connection is gone.
#[derive(Clone)]
pub struct Client {
    endpoint: String,
    kv: KVClient<Guarded<Channel>>,
    auth: AuthClient<Guarded<Channel>>,
    /// Held alone by who changes users and roles, and together by who is about keys: etcd turns away every request for keys that
    /// is on its way when they change, and many guests that are made at once would keep everything else from being done.
    rights: Arc<RwLock<()>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// What must be so for a write to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare<'a> {
    /// The key is there.
    Exists(&'a str),
    /// It is not.
    Absent(&'a str),
    /// It was last written in this revision.
    ModRevision(&'a str, i64),
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Gives a key a value, and no etcd lease.
    Put {
        /// The key.
        key: &'a str,
        /// The value.
        value: &'a str,
    },
    /// Deletes keys.
    Delete(Span),
}

/// Keys as they were at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// The revision of all keys at that time.
    pub revision: i64,
    /// What there was, in the order of the keys.
    pub entries: Vec<KeyValue>,
}

/// Whether etcd asks for rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Whether it does.
    pub enabled: bool,
    /// Grows with every change of users and roles.
    pub revision: u64,
}

impl Client {
    /// A client of this etcd. With `leadership`, nothing is written but while this process leads, and calls are counted.
    ///
    /// # Errors
    /// If the URL or the certificates lead to no client.
    pub fn new(target: &Target<'_>, leadership: Option<Leadership>) -> Result<Self, EtcdError> {
        let endpoint = target.endpoint.to_owned();
        match connect(target) {
            Ok(channel) => Ok(Self::over(channel, endpoint, leadership)),
            Err(source) => Err(EtcdError::SetUp { endpoint, source }),
        }
    }

    fn over(channel: Channel, endpoint: String, leadership: Option<Leadership>) -> Self {
        let wire = Guarded { inner: channel, leadership };
        let kv = KVClient::new(wire.clone()).max_decoding_message_size(LONGEST_ANSWER);
        let auth = AuthClient::new(wire).max_decoding_message_size(LONGEST_ANSWER);
        Self { endpoint, kv, auth, rights: Arc::default() }
    }

    /// Reads keys with their values.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn read(&self, span: &Span) -> Result<Read, EtcdError> {
        let answer = self.range(span, RangeRequest::default()).await?;
        Ok(Read { revision: revision(answer.header), entries: answer.kvs })
    }

    /// The first `limit` of these keys, and whether there are more.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn keys(&self, span: &Span, limit: u16) -> Result<(Vec<Vec<u8>>, bool), EtcdError> {
        let request = RangeRequest { limit: limit.into(), keys_only: true, ..RangeRequest::default() };
        let answer = self.range(span, request).await?;
        Ok((answer.kvs.into_iter().map(|entry| entry.key).collect(), answer.more))
    }

    /// How many of these keys there are.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn count(&self, span: &Span) -> Result<u64, EtcdError> {
        let answer = self.range(span, RangeRequest { count_only: true, ..RangeRequest::default() }).await?;
        Ok(answer.count.unsigned_abs())
    }

    async fn range(&self, span: &Span, request: RangeRequest) -> Result<RangeResponse, EtcdError> {
        let request = RangeRequest { key: span.key.clone(), range_end: span.end.clone(), ..request };
        let send = |mut kv: KVClient<_>, request| async move { kv.range(request).await };
        self.ask(&self.kv, self.rights.read(), "Range", span, request, send).await
    }

    /// Writes all of this in one revision, which is answered, or nothing, if something is not as it must be.
    ///
    /// # Errors
    /// [`EtcdError`]; see [`EtcdError::is_guard`].
    pub async fn write(&self, guards: &[Compare<'_>], changes: &[Change<'_>]) -> Result<i64, EtcdError> {
        let request = TxnRequest {
            compare: guards.iter().map(compare).collect(),
            success: changes.iter().map(operation).collect(),
        };
        let first = match changes.first() {
            Some(Change::Put { key, .. }) => Span::key(key),
            Some(Change::Delete(span)) => span.clone(),
            None => {
                return Err(self.failed("Txn", &"of nothing", Failure::Refused("there is nothing to write".into())));
            }
        };
        let send = |mut kv: KVClient<_>, request| async move { kv.txn(request).await };
        let answer = self.ask(&self.kv, self.rights.read(), "Txn", &first, request, send).await?;
        if answer.succeeded { Ok(revision(answer.header)) } else { Err(self.failed("Txn", &first, Failure::Guard)) }
    }

    /// Deletes keys. Answers how many it were.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn delete(&self, span: &Span) -> Result<u64, EtcdError> {
        let request = DeleteRangeRequest { key: span.key.clone(), range_end: span.end.clone() };
        let send = |mut kv: KVClient<_>, request| async move { kv.delete_range(request).await };
        Ok(self.ask(&self.kv, self.rights.read(), "DeleteRange", span, request, send).await?.deleted.unsigned_abs())
    }

    /// Whether etcd asks for rights.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn auth_status(&self) -> Result<Rights, EtcdError> {
        let send = |mut auth: AuthClient<_>, request| async move { auth.auth_status(request).await };
        let answer = self.ask(&self.auth, ready(()), "AuthStatus", &"", AuthStatusRequest {}, send).await?;
        Ok(Rights { enabled: answer.enabled, revision: answer.auth_revision })
    }

    /// Lets etcd ask for rights from now on.
    ///
    /// # Errors
    /// [`EtcdError`], also while there is no user `root` with the role `root`.
    pub async fn auth_enable(&self) -> Result<(), EtcdError> {
        let send = |mut auth: AuthClient<_>, request| async move { auth.auth_enable(request).await };
        self.ask(&self.auth, self.rights.write(), "AuthEnable", &"", AuthEnableRequest {}, send).await.map(drop)
    }

    /// Makes a user who comes in by a certificate alone. It may be there already.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn user_add(&self, user: &str) -> Result<(), EtcdError> {
        let options = Some(UserAddOptions { no_password: true });
        let request = AuthUserAddRequest { name: user.to_owned(), options };
        let send = |mut auth: AuthClient<_>, request| async move { auth.user_add(request).await };
        unless(EtcdError::is_there, self.ask(&self.auth, self.rights.write(), "UserAdd", &user, request, send).await)
    }

    /// A user's roles. None: there is no such user.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn user_get(&self, user: &str) -> Result<Option<Vec<String>>, EtcdError> {
        let request = AuthUserGetRequest { name: user.to_owned() };
        let send = |mut auth: AuthClient<_>, request| async move { auth.user_get(request).await };
        let answer = self.ask(&self.auth, ready(()), "UserGet", &user, request, send).await;
        Ok(if_there(answer)?.map(|answer| answer.roles))
    }

    /// The names of all users.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn user_list(&self) -> Result<Vec<String>, EtcdError> {
        let send = |mut auth: AuthClient<_>, request| async move { auth.user_list(request).await };
        Ok(self.ask(&self.auth, ready(()), "UserList", &"", AuthUserListRequest {}, send).await?.users)
    }

    /// Deletes a user. It may be gone already.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn user_delete(&self, user: &str) -> Result<(), EtcdError> {
        let request = AuthUserDeleteRequest { name: user.to_owned() };
        let send = |mut auth: AuthClient<_>, request| async move { auth.user_delete(request).await };
        unless(
            EtcdError::is_not_there,
            self.ask(&self.auth, self.rights.write(), "UserDelete", &user, request, send).await,
        )
    }

    /// Gives a user a role. It may have it already.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn user_grant_role(&self, user: &str, role: &str) -> Result<(), EtcdError> {
        let request = AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
        let send = |mut auth: AuthClient<_>, request| async move { auth.user_grant_role(request).await };
        self.ask(&self.auth, self.rights.write(), "UserGrantRole", &user, request, send).await.map(drop)
    }

    /// Makes a role that permits nothing. It may be there already.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn role_add(&self, role: &str) -> Result<(), EtcdError> {
        let request = AuthRoleAddRequest { name: role.to_owned() };
        let send = |mut auth: AuthClient<_>, request| async move { auth.role_add(request).await };
        unless(EtcdError::is_there, self.ask(&self.auth, self.rights.write(), "RoleAdd", &role, request, send).await)
    }

    /// What a role permits. None: there is no such role.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn role_get(&self, role: &str) -> Result<Option<Vec<Permission>>, EtcdError> {
        let request = AuthRoleGetRequest { role: role.to_owned() };
        let send = |mut auth: AuthClient<_>, request| async move { auth.role_get(request).await };
        let answer = self.ask(&self.auth, ready(()), "RoleGet", &role, request, send).await;
        Ok(if_there(answer)?.map(|answer| answer.perm))
    }

    /// The names of all roles.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn role_list(&self) -> Result<Vec<String>, EtcdError> {
        let send = |mut auth: AuthClient<_>, request| async move { auth.role_list(request).await };
        Ok(self.ask(&self.auth, ready(()), "RoleList", &"", AuthRoleListRequest {}, send).await?.roles)
    }

    /// Deletes a role, and takes it from all users. It may be gone already.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn role_delete(&self, role: &str) -> Result<(), EtcdError> {
        let request = AuthRoleDeleteRequest { role: role.to_owned() };
        let send = |mut auth: AuthClient<_>, request| async move { auth.role_delete(request).await };
        unless(
            EtcdError::is_not_there,
            self.ask(&self.auth, self.rights.write(), "RoleDelete", &role, request, send).await,
        )
    }

    /// Lets a role permit this, too.
    ///
    /// # Errors
    /// [`EtcdError`]
    pub async fn role_grant_permission(&self, role: &str, permission: Permission) -> Result<(), EtcdError> {
        let request = AuthRoleGrantPermissionRequest { name: role.to_owned(), perm: Some(permission) };
        let send = |mut auth: AuthClient<_>, request| async move { auth.role_grant_permission(request).await };
        self.ask(&self.auth, self.rights.write(), "RoleGrantPermission", &role, request, send).await.map(drop)
    }

    /// Makes a call when it is its turn, within the time that calls may take; anew, if etcd judged it by rights of before, as it
    /// does whenever users or roles change meanwhile. It has done nothing then.
    async fn ask<C: Clone, G, R: Clone, T, F>(
        &self,
        client: &C,
        turn: impl Future<Output = G>,
        call: &'static str,
        object: &(impl std::fmt::Display + ?Sized),
        request: R,
        send: impl Fn(C, R) -> F,
    ) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let once = || async { send(client.clone(), request.clone()).await.map_err(|status| understand(&status)) };
        let pauses = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_times(TRIES - 1);
        let tries = async {
            let _turn = turn.await;
            once.retry(pauses).when(|failure| matches!(failure, Failure::Stale)).await
        };
        let limit = call_timeout();
        match tokio::time::timeout(limit, tries).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(failure)) => Err(self.failed(call, object, failure)),
            Err(_) => Err(self.failed(call, object, Failure::Call(CallFailure::TimedOut(limit)))),
        }
    }

    fn failed(&self, call: &'static str, object: &(impl std::fmt::Display + ?Sized), source: Failure) -> EtcdError {
        EtcdError::Failed { endpoint: self.endpoint.clone(), call, object: object.to_string(), source }
    }
}

fn connect(target: &Target<'_>) -> Result<Channel, tonic::transport::Error> {
    let Pair { certificate, key } = target.identity;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(target.authority))
        .identity(Identity::from_pem(certificate, key.expose_secret()))
        .timeout(CONNECT_TIMEOUT);
    let endpoint = Endpoint::from_shared(target.endpoint.to_owned())?
        .tls_config(tls)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    Ok(endpoint.connect_lazy())
}

/// What a call comes to that may fail so.
fn unless<T>(harmless: impl Fn(&EtcdError) -> bool, answer: Result<T, EtcdError>) -> Result<(), EtcdError> {
    match answer {
        Err(error) if !harmless(&error) => Err(error),
        _ => Ok(()),
    }
}

fn if_there<T>(answer: Result<T, EtcdError>) -> Result<Option<T>, EtcdError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_not_there() => Ok(None),
        Err(error) => Err(error),
    }
}

/// etcd never leaves it out.
fn revision(header: Option<ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

fn compare(guard: &Compare<'_>) -> api::Compare {
    let (key, target, result, with) = match *guard {
        Compare::Exists(key) => (key, CompareTarget::Version, CompareResult::Greater, Compared::Version(0)),
        Compare::Absent(key) => (key, CompareTarget::Version, CompareResult::Equal, Compared::Version(0)),
        Compare::ModRevision(key, at) => (key, CompareTarget::Mod, CompareResult::Equal, Compared::ModRevision(at)),
    };
    api::Compare { result: result.into(), target: target.into(), key: key.into(), target_union: Some(with) }
}

fn operation(change: &Change<'_>) -> RequestOp {
    let operation = match change {
        Change::Put { key, value } => Operation::Put(PutRequest { key: (*key).into(), value: (*value).into() }),
        Change::Delete(Span { key, end }) => {
            Operation::DeleteRange(DeleteRangeRequest { key: key.clone(), range_end: end.clone() })
        }
    };
    RequestOp { request: Some(operation) }
}
