//! Conditions of a Cluster: a closed list of types and reasons, and a merge that keeps transition times.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::jiff::Timestamp;

/// The condition as Kubernetes defines it.
pub type Condition = meta::Condition;

/// What a condition speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// The guest's API answers and a node is Ready.
    Available,
    /// Every other condition is good at this generation (what kstatus waits for).
    Ready,
    /// Work is going on.
    Progressing,
    /// Something that worked, or should work by itself, does not.
    Degraded,
    /// The guest has its VNI, Service and overlay.
    NetworkReady,
    /// The guest has its CAs and every certificate.
    PKIReady,
    /// The control plane's VMs run and its API answers.
    ControlPlaneReady,
    /// Every node of every pool is Ready.
    NodePoolsReady,
    /// No VM pod of the guest reaches what it must not.
    NetworkIsolated,
    /// The guest's own objects are in place.
    GuestReady,
    /// Nothing is done until `spec.pausedUntil`.
    Paused,
    /// The Cluster is being deleted; the message lists what is left.
    Deleting,
}

impl ConditionType {
    /// Every type.
    pub const ALL: [Self; 12] = [
        Self::Available,
        Self::Ready,
        Self::Progressing,
        Self::Degraded,
        Self::NetworkReady,
        Self::PKIReady,
        Self::ControlPlaneReady,
        Self::NodePoolsReady,
        Self::NetworkIsolated,
        Self::GuestReady,
        Self::Paused,
        Self::Deleting,
    ];

    /// Its status while nothing is to be done and nothing is wrong.
    pub fn at_rest(self) -> Status {
        match self {
            Self::Progressing | Self::Degraded | Self::Paused | Self::Deleting => Status::False,
            Self::Available
            | Self::Ready
            | Self::NetworkReady
            | Self::PKIReady
            | Self::ControlPlaneReady
            | Self::NodePoolsReady
            | Self::NetworkIsolated
            | Self::GuestReady => Status::True,
        }
    }

    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Available => "Available",
            Self::Ready => "Ready",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::NetworkReady => "NetworkReady",
            Self::PKIReady => "PKIReady",
            Self::ControlPlaneReady => "ControlPlaneReady",
            Self::NodePoolsReady => "NodePoolsReady",
            Self::NetworkIsolated => "NetworkIsolated",
            Self::GuestReady => "GuestReady",
            Self::Paused => "Paused",
            Self::Deleting => "Deleting",
        }
    }
}

/// Why a condition is as it is. A closed list: it is a label of metrics too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// All is as it should be.
    AsExpected,
    /// Something that this waits for is not there yet; the message names it.
    Waiting,
    /// The spec cannot be fulfilled; the message names the field.
    InvalidSpec,
    /// The Cluster is paused; the message says until when.
    Paused,
    /// No provider makes the guest's nodes; the message says why.
    ProviderPending,
    /// The requested VNI belongs to another Cluster.
    VNIInUse,
    /// The host name belongs to another Cluster.
    HostInUse,
    /// Nobody serves the Ingress of the guest's API; the message names the class.
    IngressClassNotFound,
    /// The gateway does not take the route to the guest's API; the message is its controller's.
    RouteNotAccepted,
    /// No VNI is free.
    VNIExhausted,
    /// An object of our name belongs to somebody else.
    ForeignObject,
    /// A root CA that this guest lives on is missing or not the recorded one; it is never made anew.
    CALost,
    /// The Secret that `spec.pki.importFrom` names is missing or holds no roots that a guest could live by; the message says what.
    ImportFailed,
    /// Every volume of etcd is gone, and with them the guest's objects; it is never formed anew.
    EtcdLost,
    /// Vault is sealed, does not answer or fails; the message says which, and of what.
    VaultUnavailable,
    /// Vault refuses; the message names the path.
    VaultDenied,
    /// Flannel's etcd is not set up, does not answer or fails; the message says which.
    FlannelUnavailable,
    /// Flannel's etcd refuses; the message names the call.
    FlannelDenied,
    /// A VM pod reaches what it must not; the message names the pair.
    NotIsolated,
    /// Packets as large as the overlay's do not pass whole between two VM pods; the message names the pair and both sizes.
    PathMTUTooSmall,
    /// No host takes a node; the message is the scheduler's.
    Unschedulable,
    /// The host of a node with a volume is dead, as far as can be told from here.
    HostDead,
    /// A host cannot get the image of a node; the message names it.
    ImageNotFound,
    /// A node's VM ends again and again; the message has its last words.
    VMFails,
    /// The Secret with AWS's credentials is missing, or AWS does not take them, any more or at all.
    AWSCredentialsRefused,
    /// AWS refuses; the message names the right that is missing.
    AWSDenied,
    /// AWS does not answer, fails or throttles.
    AWSUnavailable,
    /// A quota of the account is used up; the message says which.
    AWSQuotaExceeded,
    /// The region or zone does not have an instance type; the message names it.
    InstanceTypeUnavailable,
    /// A node's configuration is larger than EC2 takes; the message has its size.
    UserDataTooBig,
    /// A change would lose what holds data; the message lists what.
    ChangeBlocked,
    /// A stack could not be made, changed or deleted; the message has the event that it comes of.
    StackFailed,
    /// Somebody has changed what a stack made; the message lists what.
    StackDrifted,
    /// A call failed; it is repeated.
    Error,
    /// The Cluster is being deleted.
    Deleting,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 35] = [
        Self::AsExpected,
        Self::Waiting,
        Self::InvalidSpec,
        Self::Paused,
        Self::ProviderPending,
        Self::VNIInUse,
        Self::HostInUse,
        Self::IngressClassNotFound,
        Self::RouteNotAccepted,
        Self::VNIExhausted,
        Self::ForeignObject,
        Self::CALost,
        Self::ImportFailed,
        Self::EtcdLost,
        Self::VaultUnavailable,
        Self::VaultDenied,
        Self::FlannelUnavailable,
        Self::FlannelDenied,
        Self::NotIsolated,
        Self::PathMTUTooSmall,
        Self::Unschedulable,
        Self::HostDead,
        Self::ImageNotFound,
        Self::VMFails,
        Self::AWSCredentialsRefused,
        Self::AWSDenied,
        Self::AWSUnavailable,
        Self::AWSQuotaExceeded,
        Self::InstanceTypeUnavailable,
        Self::UserDataTooBig,
        Self::ChangeBlocked,
        Self::StackFailed,
        Self::StackDrifted,
        Self::Error,
        Self::Deleting,
    ];

    /// The word in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::AsExpected => "AsExpected",
            Self::Waiting => "Waiting",
            Self::InvalidSpec => "InvalidSpec",
            Self::Paused => "Paused",
            Self::ProviderPending => "ProviderPending",
            Self::VNIInUse => "VNIInUse",
            Self::HostInUse => "HostInUse",
            Self::IngressClassNotFound => "IngressClassNotFound",
            Self::RouteNotAccepted => "RouteNotAccepted",
            Self::VNIExhausted => "VNIExhausted",
            Self::ForeignObject => "ForeignObject",
            Self::CALost => "CALost",
            Self::ImportFailed => "ImportFailed",
            Self::EtcdLost => "EtcdLost",
            Self::VaultUnavailable => "VaultUnavailable",
            Self::VaultDenied => "VaultDenied",
            Self::FlannelUnavailable => "FlannelUnavailable",
            Self::FlannelDenied => "FlannelDenied",
            Self::NotIsolated => "NotIsolated",
            Self::PathMTUTooSmall => "PathMTUTooSmall",
            Self::Unschedulable => "Unschedulable",
            Self::HostDead => "HostDead",
            Self::ImageNotFound => "ImageNotFound",
            Self::VMFails => "VMFails",
            Self::AWSCredentialsRefused => "AWSCredentialsRefused",
            Self::AWSDenied => "AWSDenied",
            Self::AWSUnavailable => "AWSUnavailable",
            Self::AWSQuotaExceeded => "AWSQuotaExceeded",
            Self::InstanceTypeUnavailable => "InstanceTypeUnavailable",
            Self::UserDataTooBig => "UserDataTooBig",
            Self::ChangeBlocked => "ChangeBlocked",
            Self::StackFailed => "StackFailed",
            Self::StackDrifted => "StackDrifted",
            Self::Error => "Error",
            Self::Deleting => "Deleting",
        }
    }
}

/// A condition's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not known.
    Unknown,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::True, Self::False, Self::Unknown];

    /// The word in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A list of conditions under construction.
#[derive(Debug)]
pub struct Conditions<'a> {
    old: &'a [Condition],
    new: Vec<Condition>,
    generation: i64,
    now: Timestamp,
}

impl<'a> Conditions<'a> {
    /// Starts a list for `generation`; `old` is what the object says now.
    pub fn new(old: &'a [Condition], generation: i64, now: Timestamp) -> Self {
        Self { old, new: Vec::new(), generation, now }
    }

    /// Adds a condition; its transition time moves only if its status changed.
    pub fn set(&mut self, type_: ConditionType, status: Status, reason: Reason, message: impl Into<String>) {
        let before = self.old.iter().find(|c| c.type_ == type_.name() && c.status == status.name());
        self.new.push(Condition {
            type_: type_.name().into(),
            status: status.name().into(),
            reason: reason.name().into(),
            message: message.into(),
            observed_generation: Some(self.generation),
            last_transition_time: before.map_or(meta::Time(self.now), |c| c.last_transition_time.clone()),
        });
    }

    /// The finished list, in a stable order.
    pub fn finish(mut self) -> Vec<Condition> {
        self.new.sort_by(|a, b| a.type_.cmp(&b.type_));
        self.new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documents are made of these lists, and metrics have a series for each.
    #[test]
    fn no_type_and_no_reason_is_missing_from_its_list() {
        let source = include_str!("conditions.rs");
        let variants = |name: &str| -> Vec<String> {
            let (_, rest) = source.split_once(&format!("pub enum {name} {{\n")).unwrap();
            let lines = rest.split("\n}").next().unwrap().lines().map(str::trim);
            lines.filter(|line| !line.starts_with("///")).map(|line| line.trim_end_matches(',').to_owned()).collect()
        };
        assert_eq!(variants("ConditionType"), ConditionType::ALL.map(ConditionType::name));
        assert_eq!(variants("Reason"), Reason::ALL.map(Reason::name));
        assert_eq!(variants("Status"), Status::ALL.map(Status::name));
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let (t0, t1) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let mut first = Conditions::new(&[], 1, t0);
        first.set(ConditionType::Ready, Status::False, Reason::Waiting, "a");
        first.set(ConditionType::Available, Status::False, Reason::Waiting, "a");
        let old = first.finish();

        let mut second = Conditions::new(&old, 2, t1);
        second.set(ConditionType::Ready, Status::False, Reason::Error, "b");
        second.set(ConditionType::Available, Status::True, Reason::AsExpected, "");
        let new = second.finish();

        assert_eq!((new[0].type_.as_str(), new[0].last_transition_time.0), ("Available", t1));
        assert_eq!((new[1].type_.as_str(), new[1].last_transition_time.0), ("Ready", t0));
        assert_eq!((new[1].message.as_str(), new[1].observed_generation), ("b", Some(2)));
    }
}
