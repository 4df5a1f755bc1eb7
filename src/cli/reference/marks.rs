//! What the reference says of labels and annotations.

use super::{Table, code};
use crate::{
    api::names,
    guest::{addons, dress},
    kvm::pod,
};

/// A label or an annotation, or several that belong together.
struct Mark {
    keys: &'static [&'static str],
    /// What carries it.
    on: &'static str,
    says: &'static str,
    /// Who may set it.
    by: &'static str,
}

/// The labels.
pub(super) fn labels() -> Table {
    Table { head: &["Label", "On", "Says", "Set by"], rows: LABELS.iter().map(Mark::row).collect() }
}

/// The annotations.
pub(super) fn annotations() -> Table {
    Table { head: &["Annotation", "On", "Says", "Set by"], rows: ANNOTATIONS.iter().map(Mark::row).collect() }
}

impl Mark {
    fn row(&self) -> Vec<String> {
        let keys: Vec<_> = self.keys.iter().map(code).collect();
        vec![keys.join(", "), self.on.into(), self.says.into(), self.by.into()]
    }
}

const LABELS: &[Mark] = &[
    Mark { keys: &[names::ZONE_LABEL], on: "hosts", says: "the zone that a host is in", by: "operator" },
    Mark {
        keys: &[names::CLUSTER_LABEL],
        on: "every object of a guest in the management cluster: its namespace and what is there, NetworkClaims, \
             kubeconfigs",
        says: "the guest's id",
        by: "manager",
    },
    Mark {
        keys: &[names::ROLE_LABEL],
        on: "VM pods; ConfigMaps and Secrets of workers",
        says: "`control-plane` or `worker`",
        by: "manager",
    },
    Mark { keys: &[names::NODE_LABEL], on: "the same", says: "the node's name", by: "manager" },
    Mark {
        keys: &[names::POOL_LABEL],
        on: "VM pods and ConfigMaps of workers, their Nodes inside the guest",
        says: "the pool's name",
        by: "manager; inside, kubelet",
    },
    Mark { keys: &[names::OVERLAY_LABEL], on: "VM pods whose overlay is Flannel's", says: "`Flannel`", by: "manager" },
    Mark {
        keys: &[names::ACCESS_LABEL],
        on: "bindings inside a guest that a ClusterAccess asks for",
        says: "`true`",
        by: "manager",
    },
    Mark { keys: &["giantnetes.io/addon"], on: "add-ons inside a guest", says: "`true`", by: "manager" },
    Mark {
        keys: &[addons::OPTIONAL_LABEL],
        on: "add-ons that only guests have which ask for them",
        says: "`ingress-controller`",
        by: "manager",
    },
    Mark {
        keys: &[names::MANAGED_BY_LABEL],
        on: "what the manager makes, add-ons apart",
        says: "`giantnetes`",
        by: "manager",
    },
];

const ANNOTATIONS: &[Mark] = &[
    Mark {
        keys: &["giantnetes.io/allowed-zones", "giantnetes.io/allowed-groups"],
        on: "Namespaces of tenants",
        says: "what they [may use](api.md#what-a-namespace-may-use)",
        by: "operator",
    },
    Mark {
        keys: &[names::ROLL_ANNOTATION],
        on: "Clusters",
        says: "when its user last asked for all nodes to be replaced",
        by: "user, by `giantnetes roll`",
    },
    Mark {
        keys: &[names::OWNER_UID_ANNOTATION],
        on: "every object of a guest but NetworkClaims, bindings inside it, too",
        says: "UID of the Cluster: whose the object is",
        by: "manager",
    },
    Mark {
        keys: &[names::OWNER_NAME_ANNOTATION],
        on: "the guest's namespace",
        says: "`namespace/name` of the Cluster, for people",
        by: "manager",
    },
    Mark {
        keys: &[names::CA_ANNOTATION_PREFIX],
        on: "Secrets `roots-<generation>`, the guest's namespace",
        says: "a root each (`kubernetes`, `etcd`, `front-proxy`, `service-account`, `encryption`): fingerprints of \
               its roots, and the record of them: roots that are recorded are never made again",
        by: "manager",
    },
    Mark {
        keys: &[names::NEXT_CA_ANNOTATION_PREFIX],
        on: "the guest's namespace, in a [rotation](api.md#rotation-of-authorities)",
        says: "a root each: fingerprints of the roots that are to take their place",
        by: "manager",
    },
    Mark {
        keys: &[names::GENERATION_ANNOTATION],
        on: "the guest's namespace, after a rotation",
        says: "generation of the recorded roots",
        by: "manager",
    },
    Mark {
        keys: &[names::ROTATION_ANNOTATION],
        on: "the guest's namespace, in a rotation",
        says: "generation that comes, stage, since when",
        by: "manager",
    },
    Mark {
        keys: &[names::ROTATED_FOR_ANNOTATION],
        on: "Secrets `roots-<generation>`",
        says: "the `spec.pki.ca.rotate` that they were made for",
        by: "manager",
    },
    Mark {
        keys: &[names::SERVICE_ACCOUNT_KEY_ROTATED_FOR_ANNOTATION, names::ENCRYPTION_KEY_ROTATED_FOR_ANNOTATION],
        on: "Secrets `roots-<generation>`",
        says: "the `spec.pki.serviceAccountKey.rotate` and `spec.pki.encryptionKey.rotate` that they were made for",
        by: "manager",
    },
    Mark {
        keys: &[names::AUTHORITIES_ANNOTATION],
        on: "in a rotation: Secrets of nodes; pods of add-ons inside the guest",
        says: "generation and phase that it was made for, such as `2.trust`",
        by: "manager",
    },
    Mark {
        keys: &[names::EXPORTS_ANNOTATION],
        on: "Secret `roots-<generation>`",
        says: "how often the guest's keys were exported",
        by: "`giantnetes pki export`",
    },
    Mark {
        keys: &[names::EXPORTED_FROM_ANNOTATION, names::EXPORTED_AT_ANNOTATION],
        on: "Secrets of type `giantnetes.io/roots`",
        says: "the Cluster that the roots were exported from, and when, for people",
        by: "`giantnetes pki import`",
    },
    Mark {
        keys: &[names::HASH_ANNOTATION],
        on: "objects that are applied, Secrets that are issued",
        says: "hash of what was asked for",
        by: "manager",
    },
    Mark {
        keys: &[names::DATA_HASH_ANNOTATION],
        on: "Secrets",
        says: "hash of what is inside, so that an edit is seen",
        by: "manager",
    },
    Mark {
        keys: &[names::RENEW_AT_ANNOTATION],
        on: "Secrets of nodes, kubeconfigs",
        says: "when what is inside is renewed",
        by: "manager",
    },
    Mark {
        keys: &[names::ENDS_AT_ANNOTATION],
        on: "Secrets of nodes, kubeconfigs",
        says: "when the first certificate inside ends",
        by: "manager",
    },
    Mark {
        keys: &[names::ETCD_JOINS_ANNOTATION],
        on: "PersistentVolumeClaims `master-<n>-etcd`",
        says: "the member has yet to get its data from the others",
        by: "manager",
    },
    Mark {
        keys: &[names::PLACE_ANNOTATION],
        on: "ConfigMaps and VM pods of workers",
        says: "the place on the overlay",
        by: "manager",
    },
    Mark {
        keys: &[names::NODE_WISH_ANNOTATION, pod::NODE_HASH_ANNOTATION],
        on: "VM pods",
        says: "hashes of what of the spec, and of all that is rendered, the node was made for",
        by: "manager",
    },
    Mark {
        keys: &[names::DOES_WITHOUT_ANNOTATION],
        on: "VM pods",
        says: "what no host could give it when it was made: `kvm`, `own-host` (a host without another control-plane \
               node of its guest)",
        by: "manager",
    },
    Mark {
        keys: &[names::LEAVING_SINCE_ANNOTATION, names::LEAVING_FOR_ANNOTATION],
        on: "VM pods",
        says: "since when and why the node is to be replaced or removed",
        by: "manager",
    },
    Mark {
        keys: &[names::LOST_ANNOTATION],
        on: "ConfigMaps of workers",
        says: "the dead host that the worker was given up with",
        by: "manager",
    },
    Mark {
        keys: &[names::CORDONED_ANNOTATION],
        on: "Nodes inside a guest",
        says: "UID of the VM pod that is to go: it was not a user who cordoned the Node",
        by: "manager",
    },
    Mark {
        keys: &[dress::DRESS_ANNOTATION],
        on: "Nodes of workers inside a guest",
        says: "labels and taints that the pool gave",
        by: "manager",
    },
];
