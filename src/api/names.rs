//! Names that Giantnetes gives: labels, annotations, finalizers, field managers, and the names of a guest's objects.

/// API group of every kind of ours.
pub const GROUP: &str = "giantnetes.io";

/// Label on every object that belongs to a guest; the value is the guest's id.
pub const CLUSTER_LABEL: &str = "giantnetes.io/cluster";
/// Label on VM pods and node objects: `control-plane` or `worker`.
pub const ROLE_LABEL: &str = "giantnetes.io/role";
/// Label on a worker's objects and on its Node inside the guest: the name of its pool.
pub const POOL_LABEL: &str = "giantnetes.io/pool";
/// Label on hosts: the zone that they are in.
pub const ZONE_LABEL: &str = "giantnetes.io/zone";
/// Label on VM pods and node objects: the node's name.
pub const NODE_LABEL: &str = "giantnetes.io/node";
/// Extended resource of hosts where a guest was seen to start on KVM; a VM pod that asks for it gets `/dev/kvm`.
pub const KVM_RESOURCE: &str = "giantnetes.io/kvm";
/// The standard label that says who made an object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Label of bindings inside guests that a ClusterAccess asks for.
pub const ACCESS_LABEL: &str = "giantnetes.io/access";
/// Value of [`MANAGED_BY_LABEL`] on objects of ours.
pub const MANAGER: &str = "giantnetes";

/// Annotation on every object of a guest: UID of the Cluster that owns it. Ownership is decided by this, never by a name.
pub const OWNER_UID_ANNOTATION: &str = "giantnetes.io/cluster-uid";
/// Annotation on the guest's namespace and its VM pods: `namespace/name` of its Cluster, for people and for Prometheus.
pub const OWNER_NAME_ANNOTATION: &str = "giantnetes.io/cluster-name";
/// Annotation on every object that we apply: hash of what was asked for.
pub const HASH_ANNOTATION: &str = "giantnetes.io/hash";
/// Annotation on key Secrets: hash of what is inside, so that an edit is seen.
pub const DATA_HASH_ANNOTATION: &str = "giantnetes.io/data-hash";
/// Annotation on key Secrets: when (RFC 3339) the controller renews what is inside.
pub const RENEW_AT_ANNOTATION: &str = "giantnetes.io/renew-at";
/// Annotation on a Secret with issued certificates: when (RFC 3339) the first of them ends.
pub const ENDS_AT_ANNOTATION: &str = "giantnetes.io/ends-at";
/// Prefix of annotations on the guest's namespace that record the SHA-256 of each root CA that was ever made.
/// A CA with a record is never made a second time.
pub const CA_ANNOTATION_PREFIX: &str = "giantnetes.io/ca-";

/// Type of a Secret beside a Cluster with keys of AWS.
pub const AWS_CREDENTIALS_TYPE: &str = "giantnetes.io/aws-credentials";
/// Annotation of a Cluster: logical ids of what its stacks may lose, with commas between them.
pub const AWS_GIVE_UP_ANNOTATION: &str = "giantnetes.io/aws-give-up";
/// Annotation of a Cluster: `true` leaves behind in the account what cannot be deleted.
pub const AWS_FORCE_DELETE_ANNOTATION: &str = "giantnetes.io/aws-force-delete";
/// Prefix of annotations on the guest's namespace that record the SHA-256 of each root CA that is to take a recorded one's place.
pub const NEXT_CA_ANNOTATION_PREFIX: &str = "giantnetes.io/next-ca-";
/// Annotation on the guest's namespace: the generation of its roots, a number, if it is not the first.
pub const GENERATION_ANNOTATION: &str = "giantnetes.io/authorities-generation";
/// Annotation on the guest's namespace: the rotation of its authorities that goes on: generation, stage, since when (RFC 3339), and
/// `alone` where a lone control-plane node carries it out.
pub const ROTATION_ANNOTATION: &str = "giantnetes.io/rotation";
/// Annotation on the Secret of a generation of roots: the `spec.pki.ca.rotate` that it was made for, if it is not 0.
pub const ROTATED_FOR_ANNOTATION: &str = "giantnetes.io/rotated-for";
/// Annotation on the Secret of a generation of roots: the `spec.pki.serviceAccountKey.rotate` that it was made for, if it is not 0.
pub const SERVICE_ACCOUNT_KEY_ROTATED_FOR_ANNOTATION: &str = "giantnetes.io/service-account-key-rotated-for";
/// Annotation on the Secret of a generation of roots: the `spec.pki.encryptionKey.rotate` that it was made for, if it is not 0.
pub const ENCRYPTION_KEY_ROTATED_FOR_ANNOTATION: &str = "giantnetes.io/encryption-key-rotated-for";
/// Annotation on a node's Secret while authorities are rotated, and on add-ons' pods inside the guest: the generation and the
/// phase that it was made for, such as `2.trust`.
pub const AUTHORITIES_ANNOTATION: &str = "giantnetes.io/authorities";
/// Type of Secrets that `giantnetes pki import` makes. Roots of a guest are taken from no other.
pub const ROOTS_TYPE: &str = "giantnetes.io/roots";
/// Annotation on the roots' Secret of a guest: how often its keys were exported.
pub const EXPORTS_ANNOTATION: &str = "giantnetes.io/pki-exports";
/// Annotation on a Secret of imported roots: `namespace/name` of the Cluster that they were exported from, for people.
pub const EXPORTED_FROM_ANNOTATION: &str = "giantnetes.io/exported-from";
/// Annotation on a Secret of imported roots: when (RFC 3339) they were exported, for people.
pub const EXPORTED_AT_ANNOTATION: &str = "giantnetes.io/exported-at";

/// Annotation of the claim on a volume of etcd that its member has yet to fill from the others.
pub const ETCD_JOINS_ANNOTATION: &str = "giantnetes.io/etcd-joins";

/// Annotation on a worker's ConfigMap and VM pod: its place on the overlay, a number. Kept as long as one of them is there.
pub const PLACE_ANNOTATION: &str = "giantnetes.io/place";

/// Annotation on a Cluster: when (RFC 3339) its user last asked to replace all its nodes.
pub const ROLL_ANNOTATION: &str = "giantnetes.io/roll";
/// Annotation on a VM pod: hash of what of the spec its node was made for. Another one makes the node outdated.
pub const NODE_WISH_ANNOTATION: &str = "giantnetes.io/node-wish";
/// Annotation on a VM pod: what no host could give it, so that it was made without (`kvm`, `own-host`).
pub const DOES_WITHOUT_ANNOTATION: &str = "giantnetes.io/does-without";
/// Annotation on a VM pod: since when (RFC 3339) its node is meant to be replaced or removed.
pub const LEAVING_SINCE_ANNOTATION: &str = "giantnetes.io/leaving-since";
/// Annotation on a VM pod: why its node is meant to be replaced or removed, for people.
pub const LEAVING_FOR_ANNOTATION: &str = "giantnetes.io/leaving-for";
/// Annotation on a worker's ConfigMap: the host that it was given up with. Another worker takes its part, and it never comes
/// back.
pub const LOST_ANNOTATION: &str = "giantnetes.io/lost-with";
/// Annotation on a Node inside a guest: it is we who cordoned it; the value is the UID of the VM pod that was to go.
pub const CORDONED_ANNOTATION: &str = "giantnetes.io/cordoned-for";

/// The finalizer on a Cluster; removed only when every trace of the guest was seen to be gone.
pub const CLUSTER_FINALIZER: &str = "giantnetes.io/cluster";

/// Prefix of the namespaces that guests live in.
pub const NAMESPACE_PREFIX: &str = "g8s-";

/// Name of the Service in front of a guest's API servers.
pub const MASTER_SERVICE: &str = "master";

/// Name of the Service whose load balancer leads to a guest's API from outside.
pub const BALANCED_SERVICE: &str = "api";

/// Name of the Service that leads to a guest's own ingress controller.
pub const INGRESS_SERVICE: &str = "ingress";

/// Ports of a guest's ingress controller: what they are for, the Service's, and the one of VM pods, which is the NodePort
/// inside the guest. Those up to 30085 an API server gives nobody who does not ask for them.
pub const INGRESS_PORTS: [(&str, u16, u16); 2] = [("http", 80, 30080), ("https", 443, 30081)];

/// Name of the headless Service that lists a guest's VM pods: how they find each other.
pub const NODES_SERVICE: &str = "nodes";

/// Name of the PodDisruptionBudget over a guest's VM pods.
pub const BUDGET: &str = "nodes";

/// TCP port of a guest's API: in the VM, on the VM pod and on the Service.
pub const API_PORT: u16 = 6443;

/// TCP port on which a VM pod's supervisor answers `/healthz`, `/readyz`, `/status` and `/metrics`.
pub const SUPERVISOR_PORT: u16 = 8080;

/// UDP port at which a VM pod's supervisor says to others of its guest how large a packet came.
pub const PATH_PORT: u16 = 8474;

/// Node label value and VM pod label value of control-plane nodes.
pub const ROLE_CONTROL_PLANE: &str = "control-plane";

/// VM pod label value of workers.
pub const ROLE_WORKER: &str = "worker";

/// TCP port of kubelets, in the VM.
pub const KUBELET_PORT: u16 = 10250;

/// Namespace of a guest.
pub fn guest_namespace(id: &str) -> String {
    format!("{NAMESPACE_PREFIX}{id}")
}

/// The Secret beside the Cluster that holds the administrator's kubeconfig (key `value`, the Cluster API convention).
pub fn kubeconfig_secret(cluster: &str) -> String {
    format!("{cluster}-kubeconfig")
}

/// The Secret beside a ClusterAccess that holds its user's kubeconfig (key `value`).
pub fn access_secret(access: &str) -> String {
    format!("{access}-access")
}

/// Label of VM pods whose overlay is another's than the supervisors': its backend.
pub const OVERLAY_LABEL: &str = "giantnetes.io/overlay";
/// The value of [`OVERLAY_LABEL`] for Flannel.
pub const OVERLAY_FLANNEL: &str = "Flannel";
/// What the chart labels the pods of Flannel's etcd with (`app.kubernetes.io/name`).
pub const FLANNEL_ETCD: &str = "giantnetes-flannel-etcd";
/// Port at which etcd serves its clients.
pub const ETCD_PORT: u16 = 2379;

/// Name of the `index`-th control-plane node.
pub fn master(index: u32) -> String {
    format!("master-{index}")
}

/// Which control-plane node has this name.
pub fn master_index(node: &str) -> Option<u32> {
    node.strip_prefix("master-")?.parse().ok()
}

/// Name of the `index`-th node of a pool.
pub fn worker(pool: &str, index: u32) -> String {
    format!("{pool}-{index}")
}

/// The Secret that is mounted into a node's VM: its keys and certificates.
pub fn node_secret(node: &str) -> String {
    format!("{node}-pki")
}

/// Whether a Secret of a guest has the name of such a one.
pub fn is_node_secret(name: &str) -> bool {
    name.ends_with("-pki")
}

/// The ConfigMap that holds a node's user data and its supervisor's configuration. It never holds a secret.
pub fn node_config_map(node: &str) -> String {
    format!("{node}-config")
}

/// The PersistentVolumeClaim of a control-plane node's etcd.
pub fn etcd_claim(node: &str) -> String {
    format!("{node}-etcd")
}
