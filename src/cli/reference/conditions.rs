//! What the reference says of types and reasons of conditions.

use super::{Table, code};
use crate::api::{ConditionType, Reason};

/// The types.
pub(super) fn types() -> Table {
    let row = |type_: &ConditionType| vec![code(&type_.name()), code(&type_.at_rest().name()), holds(*type_).into()];
    Table { head: &["Type", "At rest", "Holds when"], rows: ConditionType::ALL.iter().map(row).collect() }
}

/// The reasons.
pub(super) fn reasons() -> Table {
    let row = |reason: &Reason| [code(&reason.name())].into_iter().chain(told(*reason).map(Into::into)).collect();
    Table { head: &["Reason", "Means", "What to do"], rows: Reason::ALL.iter().map(row).collect() }
}

/// The reasons, as a list in a sentence.
pub(super) fn reason_names() -> String {
    Reason::ALL.iter().map(|reason| code(&reason.name())).collect::<Vec<_>>().join(", ")
}

fn holds(type_: ConditionType) -> &'static str {
    match type_ {
        ConditionType::Available => "the guest's API answers and a node is Ready",
        ConditionType::Ready => "every other condition is good at this generation",
        ConditionType::Progressing => "work is going on; the message names the node that is being replaced",
        ConditionType::Degraded => "something that should work by itself does not; the message names object and cause",
        ConditionType::NetworkReady
        | ConditionType::PKIReady
        | ConditionType::ControlPlaneReady
        | ConditionType::NodePoolsReady
        | ConditionType::GuestReady => "the part has nothing left to do",
        ConditionType::NetworkIsolated => {
            "no VM pod of the guest reaches what its NetworkPolicy closes: the management cluster's API, other \
             hosts' kubelets, cloud metadata, VM pods of other guests. Tried every 30 s, from the first VM pod on; \
             the message names the pair. Unknown if no VM pod says it, which those of an earlier version cannot"
        }
        ConditionType::Paused => "nothing is done until `spec.pausedUntil`",
        ConditionType::Deleting => "the Cluster is being deleted; the message lists what is left",
    }
}

/// What a reason means, and what is to be done.
fn told(reason: Reason) -> [&'static str; 2] {
    match reason {
        Reason::AsExpected => ["nothing is to be done, and nothing is wrong", ""],
        Reason::Waiting => {
            ["something is not there yet; the message names it", "wait; if it lasts, `giantnetes describe`"]
        }
        Reason::InvalidSpec => [
            "the spec, or what the settings make of it, cannot be fulfilled; the message names the field",
            "change that field; a stored object may be older than a rule",
        ],
        Reason::Paused => {
            ["nothing but renewing certificates is done until `spec.pausedUntil`", "take that away to go on at once"]
        }
        Reason::ProviderPending => ["`settings.kvm.enabled` is false, so nobody makes the nodes", "switch it on"],
        Reason::VNIInUse => [
            "the VNI that was asked for is another Cluster's, or rests after one",
            "wait for its rest to end, or make the Cluster anew with another VNI",
        ],
        Reason::VNIExhausted => {
            ["all 8999 VNIs are taken or rest", "delete Clusters, or shorten `settings.network.quarantine`"]
        }
        Reason::HostInUse => [
            "the host name is another Cluster's, or rests after one; the guest is made all the same",
            "name another, or wait for its rest to end",
        ],
        Reason::RouteNotAccepted => [
            "the operator's gateway does not take the TLSRoute of the guest's API; the guest is made all the same",
            "do what the message says: it is the gateway's controller's, or the API server's where the Gateway API \
             is not there; users are led there when it does",
        ],
        Reason::IngressClassNotFound => [
            "no IngressClass of that name is there, or none is the default; the guest is made all the same",
            "name one, or install its ingress controller",
        ],
        Reason::ForeignObject => [
            "an object of that name, or a PKI mount in Vault, is somebody else's; it is left alone",
            "delete or rename it",
        ],
        Reason::NotIsolated => {
            ["a VM pod reaches what it must not", "[see which, and close it](runbooks/GiantnetesClusterNotIsolated.md)"]
        }
        Reason::PathMTUTooSmall => [
            "packets as large as the overlay's do not pass whole between two VM pods; the message names them, and \
             both sizes",
            "have the hosts' network carry what pods' interfaces promise, or ask for the `network.overlay.mtu` that \
             the message names",
        ],
        Reason::CALost => [
            "a root that the guest was built on is missing or exchanged, or its namespace was deleted",
            "[restore it](runbooks/GiantnetesClusterRootLost.md)",
        ],
        Reason::ImportFailed => [
            "a new guest cannot live by the Secret that `spec.pki.importFrom` names; the message says why",
            "make the Secret by `giantnetes pki import`; or delete the Cluster, and make one without",
        ],
        Reason::EtcdLost => [
            "no volume holds what the guest's etcd knew",
            "[restore the volumes](api.md#several-control-plane-nodes), or delete the Cluster",
        ],
        Reason::VaultUnavailable => [
            "Vault is sealed, silent or broken, or the settings name none, or another one than before",
            "bring it back; set `settings.vault` as it was",
        ],
        Reason::FlannelUnavailable => [
            "Flannel's etcd is not set up yet, silent or broken, or a VM pod has no IPv4 address",
            "see what the message says, and [the page of its alert](runbooks/GiantnetesFlannelEtcdDown.md); guests \
             that run go on",
        ],
        Reason::FlannelDenied => [
            "Flannel's etcd refuses; the message names the call",
            "restore Secret `giantnetes-flannel-etcd-authorities`; or delete it and \
             `giantnetes-flannel-etcd-server`, and then etcd's Pods: they wait for those that the manager makes",
        ],
        Reason::VaultDenied => {
            ["Vault refuses; the message names the path", "give the role the [policy](vault.md#set-up)"]
        }
        Reason::Unschedulable => [
            "no host takes a node; the message is the scheduler's",
            "make room, label hosts with the zone, or ask for less",
        ],
        Reason::HostDead => [
            "the host of a control-plane node is silent for longer than `settings.kvm.hostTimeout`, while others \
             are well",
            "bring it back; if it is off for certain, taint its Node with `node.kubernetes.io/out-of-service`",
        ],
        Reason::ImageNotFound => ["a host cannot get the VM image", "put the image where hosts find it"],
        Reason::VMFails => [
            "a VM pod's container does not start, or ends again and again; the message has its last words",
            "look at the VM pod's log, or `giantnetes console NAME NODE --previous`",
        ],
        Reason::AWSCredentialsRefused => [
            "the Secret with AWS's keys is missing, or AWS does not take what it holds",
            "[put good keys into it](aws.md#what-you-see)",
        ],
        Reason::AWSDenied => {
            ["AWS refuses; the message names the right that is missing", "give it to the user or role"]
        }
        Reason::AWSUnavailable => ["AWS does not answer, fails or throttles", "wait"],
        Reason::AWSQuotaExceeded => [
            "a quota of the account is used up; the message says which",
            "have it raised, or remove what is not needed",
        ],
        Reason::InstanceTypeUnavailable => {
            ["a zone does not have an instance type", "ask for another, or for other zones"]
        }
        Reason::UserDataTooBig => {
            ["a node's configuration is larger than EC2 takes", "shorten flags, policies or labels"]
        }
        Reason::ChangeBlocked => [
            "a change of a stack would lose what holds data; the message lists it",
            "take it back, or [give it up](aws.md#what-you-see)",
        ],
        Reason::StackFailed => [
            "a stack could not be made, changed or deleted; the message has the event that it comes of",
            "do what that asks for; it is tried again",
        ],
        Reason::StackDrifted => ["somebody changed what a stack made; the message lists what", "change it back"],
        Reason::Error => [
            "a call failed; it is repeated, after pauses that become longer",
            "if it lasts, look at what the message names and at the manager's log",
        ],
        Reason::Deleting => ["the Cluster is being deleted; the message lists what is left", ""],
    }
}
