//! etcd's API, version 3.6: messages written after its `rpc.proto`, `kv.proto` and `auth.proto`, services written by `build.rs`.
//!
//! Fields that we neither send nor read are left out; protocol buffers skip what is not known.

/// What every answer begins with.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ResponseHeader {
    /// Revision of all keys. It grows with every write.
    #[prost(int64, tag = "3")]
    pub revision: i64,
}

/// A key with its value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Revision of its last write.
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    /// The value.
    #[prost(bytes = "vec", tag = "5")]
    pub value: Vec<u8>,
    /// The etcd lease that it goes with; 0: it stays.
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

/// Reads keys.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeRequest {
    /// The first key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The key after the last one. Empty: only the first key; one zero byte: all that follow.
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
    /// How many at most; 0: all.
    #[prost(int64, tag = "3")]
    pub limit: i64,
    /// Leaves the values out.
    #[prost(bool, tag = "8")]
    pub keys_only: bool,
    /// Leaves the keys out, too.
    #[prost(bool, tag = "9")]
    pub count_only: bool,
}

/// The keys.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeResponse {
    /// When that was so.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// The keys, in order.
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
    /// Whether the limit left any out.
    #[prost(bool, tag = "3")]
    pub more: bool,
    /// How many there are.
    #[prost(int64, tag = "4")]
    pub count: i64,
}

/// Writes a key, inside of a transaction.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// Deletes keys.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRangeRequest {
    /// As in [`RangeRequest`].
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// As in [`RangeRequest`].
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
}

/// How many it was.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct DeleteRangeResponse {
    /// How many it was.
    #[prost(int64, tag = "2")]
    pub deleted: i64,
}

/// A part of a transaction.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestOp {
    /// What it does.
    #[prost(oneof = "Operation", tags = "2, 3")]
    pub request: Option<Operation>,
}

/// What a part of a transaction does.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Operation {
    /// Writes a key.
    #[prost(message, tag = "2")]
    Put(PutRequest),
    /// Deletes keys.
    #[prost(message, tag = "3")]
    DeleteRange(DeleteRangeRequest),
}

/// What a key is compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum CompareTarget {
    /// How often it was written since it was created; 0: it is not there.
    Version = 0,
    /// Revision of its last write.
    Mod = 2,
}

/// How that compares with what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum CompareResult {
    /// It is equal.
    Equal = 0,
    /// It is greater.
    Greater = 1,
}

/// What must be so for a transaction to be done.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Compare {
    /// How.
    #[prost(enumeration = "CompareResult", tag = "1")]
    pub result: i32,
    /// By what.
    #[prost(enumeration = "CompareTarget", tag = "2")]
    pub target: i32,
    /// The key.
    #[prost(bytes = "vec", tag = "3")]
    pub key: Vec<u8>,
    /// With what.
    #[prost(oneof = "Compared", tags = "4, 6")]
    pub target_union: Option<Compared>,
}

/// What a key is compared with.
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum Compared {
    /// See [`CompareTarget::Version`].
    #[prost(int64, tag = "4")]
    Version(i64),
    /// See [`CompareTarget::Mod`].
    #[prost(int64, tag = "6")]
    ModRevision(i64),
}

/// Writes all or nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TxnRequest {
    /// What must be so.
    #[prost(message, repeated, tag = "1")]
    pub compare: Vec<Compare>,
    /// What is done then.
    #[prost(message, repeated, tag = "2")]
    pub success: Vec<RequestOp>,
}

/// Whether it was done.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct TxnResponse {
    /// When.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Whether what must be so was so.
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
}

/// From now on, nothing is done for whom has no right to it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthEnableRequest {}

/// It is so.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthEnableResponse {}

/// Whether rights are asked for.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthStatusRequest {}

/// The answer to it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthStatusResponse {
    /// Whether they are.
    #[prost(bool, tag = "2")]
    pub enabled: bool,
    /// Grows with every change of users and roles.
    #[prost(uint64, tag = "3")]
    pub auth_revision: u64,
}

/// How a user is made.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct UserAddOptions {
    /// Nobody comes in by a password, only by a certificate of that name.
    #[prost(bool, tag = "1")]
    pub no_password: bool,
}

/// Makes a user.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthUserAddRequest {
    /// The user.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How.
    #[prost(message, optional, tag = "3")]
    pub options: Option<UserAddOptions>,
}

/// It is so.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthUserAddResponse {}

/// Reads a user.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthUserGetRequest {
    /// The user.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// The user.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthUserGetResponse {
    /// Roles.
    #[prost(string, repeated, tag = "2")]
    pub roles: Vec<String>,
}

/// Reads all users.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthUserListRequest {}

/// All users.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthUserListResponse {
    /// Their names.
    #[prost(string, repeated, tag = "2")]
    pub users: Vec<String>,
}

/// Deletes a user.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthUserDeleteRequest {
    /// The user.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// It is so.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthUserDeleteResponse {}

/// Gives a user a role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthUserGrantRoleRequest {
    /// The user.
    #[prost(string, tag = "1")]
    pub user: String,
    /// The role.
    #[prost(string, tag = "2")]
    pub role: String,
}

/// It is so.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthUserGrantRoleResponse {}

/// Makes a role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthRoleAddRequest {
    /// The role.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// It is so.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthRoleAddResponse {}

/// Reads a role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthRoleGetRequest {
    /// The role.
    #[prost(string, tag = "1")]
    pub role: String,
}

/// The role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthRoleGetResponse {
    /// What it permits.
    #[prost(message, repeated, tag = "2")]
    pub perm: Vec<Permission>,
}

/// Reads all roles.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthRoleListRequest {}

/// All roles.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthRoleListResponse {
    /// Their names.
    #[prost(string, repeated, tag = "2")]
    pub roles: Vec<String>,
}

/// Deletes a role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthRoleDeleteRequest {
    /// The role.
    #[prost(string, tag = "1")]
    pub role: String,
}

/// It is so.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthRoleDeleteResponse {}

/// What may be done with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum PermissionType {
    /// Read them.
    Read = 0,
    /// Write and delete them.
    Write = 1,
    /// Both.
    Readwrite = 2,
}

/// What a role permits.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Permission {
    /// What.
    #[prost(enumeration = "PermissionType", tag = "1")]
    pub perm_type: i32,
    /// With which keys: as in [`RangeRequest`].
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
    /// As in [`RangeRequest`].
    #[prost(bytes = "vec", tag = "3")]
    pub range_end: Vec<u8>,
}

/// Lets a role permit more.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthRoleGrantPermissionRequest {
    /// The role.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What.
    #[prost(message, optional, tag = "2")]
    pub perm: Option<Permission>,
}

/// It is so.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AuthRoleGrantPermissionResponse {}

/// The service of keys: its client is ours, its server the tests'.
#[allow(missing_docs, clippy::pedantic, clippy::all)]
mod kv {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.KV.rs"));
}

/// The service of rights: its client is ours, its server the tests'.
#[allow(missing_docs, clippy::pedantic, clippy::all)]
mod auth {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.Auth.rs"));
}

pub use auth::{auth_client, auth_server};
pub use kv::{k_v_client, k_v_server};
