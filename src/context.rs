//! What every micro-operator is given: the cache, the reports of the others, a client and the settings.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Secret, Service},
        networking::v1::{Ingress, IngressClass, NetworkPolicy},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Client, Resource, ResourceExt as _,
    api::PartialObjectMeta,
    runtime::reflector::{self, Lookup, Store},
};

use crate::{
    access::{self, AccessKey, plan::rights_of, rights::Rights},
    api::{Cluster, ClusterAccess, NetworkClaim, OverlayBackend, VaultPlace, names},
    cluster::{
        ClusterKey, Identity, Reports, Valid, Violation,
        valid::{AwsCredentials, NodePool},
    },
    flannel::server::FlannelEtcd,
    kvm::{
        self,
        host::{Host, HostState},
        plan::Known,
        vm_pod::VmPod,
    },
    network::{
        places::Place,
        tls_route::{self, TLSRoute},
        underlay::{self, Underlay},
    },
    pki::{escrow::exports::Exports, vault::Vault},
    runtime::{
        apply::Memory,
        cache::{self, Change, Index, Watches},
        events::Events,
        lease::Leadership,
    },
    settings::Settings,
};

mod queues;
mod wake;

pub use queues::Queues;
pub use wake::Wake;
use wake::guest_of;

/// One watch per kind; of most kinds the metadata is enough.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each field is the store of the kind that its type names")]
pub struct Cache {
    pub clusters: Store<Cluster>,
    pub claims: Store<NetworkClaim>,
    pub accesses: Store<ClusterAccess>,
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    pub services: Store<Service>,
    pub secrets: Store<PartialObjectMeta<Secret>>,
    pub config_maps: Store<PartialObjectMeta<ConfigMap>>,
    pub ingresses: Store<Ingress>,
    pub ingress_classes: Store<PartialObjectMeta<IngressClass>>,
    /// None where the operator has named no gateway: then their kind need not be there.
    pub tls_routes: Store<TLSRoute>,
    pub policies: Store<PartialObjectMeta<NetworkPolicy>>,
    pub volume_claims: Store<PartialObjectMeta<PersistentVolumeClaim>>,
    pub budgets: Store<PartialObjectMeta<PodDisruptionBudget>>,
    pub pods: Store<VmPod>,
    pub hosts: Store<Host>,
    /// ClusterAccesses by the Cluster (`namespace/name`) that they lead to.
    pub accesses_by_cluster: Index,
    /// Claims by the Cluster (`namespace/name`) that holds them.
    pub claims_by_cluster: Index,
    /// Secrets by namespace.
    pub secrets_by_namespace: Index,
    /// VM pods by namespace.
    pub pods_by_namespace: Index,
    /// ConfigMaps by namespace.
    pub config_maps_by_namespace: Index,
}

/// Wakes the guests that have VM pods on a host when there is news of it; a host says more often that nothing has changed.
fn follow_hosts(wake: &Wake, pods_by_host: &Index) -> impl Fn(&Host, Change) + Send + 'static {
    let (wake, pods_by_host) = (wake.clone(), pods_by_host.clone());
    let known: Mutex<HashMap<String, HostState>> = Mutex::default();
    move |host, change| {
        let (name, state) = (host.metadata.name.clone().unwrap_or_default(), host.state());
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match change {
            Change::Is => known.insert(name.clone(), state),
            Change::Gone => known.remove(&name),
        };
        if change == Change::Is && before == Some(state) {
            return;
        }
        drop(known);
        let pods = pods_by_host.names(&name);
        let guests: BTreeSet<_> = pods.iter().filter_map(|pod| Some(pod.split_once('/')?.0)).collect();
        guests.into_iter().for_each(|id| wake.guest(id));
    }
}

/// What carries a guest's label.
const OURS: Option<&str> = Some(names::CLUSTER_LABEL);

impl Cache {
    /// Starts all watches. What is gone is forgotten in `memory` and `events`, too.
    pub fn start(watches: &Watches, wake: &Wake, memory: &Memory, events: &Events, settings: &Settings) -> Self {
        let claims_by_cluster = Index::default();
        let (secrets_by_namespace, pods_by_namespace) = (Index::default(), Index::default());
        // Wakes the guest's operators for an object of theirs.
        let follow = |index: Option<&Index>| {
            let (wake, memory, index) = (wake.clone(), memory.clone(), index.cloned());
            move |meta: &ObjectMeta, change: Change| {
                if let (Some(index), Some(namespace), Some(name)) = (&index, &meta.namespace, &meta.name) {
                    index.note(namespace, name, change);
                }
                if change == Change::Gone {
                    memory.forget(meta);
                }
                wake.labelled(meta);
            }
        };
        let clusters = {
            let (wake, events) = (wake.clone(), events.clone());
            watches.objects("clusters", None, move |cluster: &Cluster, change| {
                if change == Change::Gone {
                    events.forget(cluster.metadata.uid.as_deref().unwrap_or_default());
                }
                wake.changed(cluster, change);
            })
        };
        let claims = {
            let (wake, index) = (wake.clone(), claims_by_cluster.clone());
            watches.objects("networkclaims", None, move |claim: &NetworkClaim, change| {
                let key = ClusterKey::of_ref(&claim.spec.cluster_ref);
                index.note(&key.to_string(), &claim.name_any(), change);
                wake.cluster(&key);
            })
        };
        let accesses = {
            let wake = wake.clone();
            // A status that is written changes no rights, and no guest need be looked at for it.
            let known: Mutex<HashMap<AccessKey, Rights>> = Mutex::default();
            watches.objects("clusteraccesses", None, move |object: &ClusterAccess, change| {
                let (key, cluster) = (AccessKey::of(object), access::cluster_of(object));
                wake.accesses_by_cluster.note(&cluster.to_string(), &key.name, change);
                let asked = (change == Change::Is).then(|| rights_of(object)).flatten();
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                let before = match &asked {
                    Some(rights) => known.insert(key.clone(), rights.clone()),
                    None => known.remove(&key),
                };
                if before != asked {
                    wake.rights(cluster);
                }
                wake.access(key);
            })
        };
        let config_maps_by_namespace = Index::default();
        let (service, namespace, volume_claim, policy) = (follow(None), follow(None), follow(None), follow(None));
        let config_map = follow(Some(&config_maps_by_namespace));
        let (ingress, budget, route) = (follow(None), follow(None), follow(None));
        let tls_routes = match settings.exposure.gateway {
            Some(_) => watches.objects(tls_route::WATCH, OURS, move |o: &TLSRoute, change| route(&o.metadata, change)),
            None => reflector::store().0,
        };
        let pods_by_host = Index::default();
        let hosts = watches.objects("nodes", None, follow_hosts(wake, &pods_by_host));
        let ingress_classes = {
            let wake = wake.clone();
            // There are few, and they hardly ever change.
            watches.metadata("ingressclasses", None, move |_, _| wake.all_networks())
        };
        let (secret, pod) = (follow(Some(&secrets_by_namespace)), follow(Some(&pods_by_namespace)));
        let exports = Exports::start();
        Self {
            clusters,
            claims,
            accesses,
            services: watches.objects("services", OURS, move |s: &Service, change| service(&s.metadata, change)),
            pods: watches.objects("pods", OURS, move |p: &VmPod, change| {
                if let (Some(host), Some(id)) = (p.host(), guest_of(&p.metadata)) {
                    pods_by_host.note(host, &format!("{id}/{}", p.node()), change);
                }
                pod(&p.metadata, change);
            }),
            hosts,
            budgets: watches.metadata("poddisruptionbudgets", OURS, move |o, change| budget(&o.metadata, change)),
            namespaces: watches.metadata("namespaces", OURS, move |object, change| namespace(&object.metadata, change)),
            secrets: watches.metadata("secrets", OURS, move |object, change| {
                exports.note(&object.metadata, change);
                secret(&object.metadata, change);
            }),
            config_maps: watches.metadata("configmaps", OURS, move |o, change| config_map(&o.metadata, change)),
            ingresses: watches.objects("ingresses", OURS, move |o: &Ingress, change| ingress(&o.metadata, change)),
            ingress_classes,
            tls_routes,
            policies: watches.metadata("networkpolicies", OURS, move |o, change| policy(&o.metadata, change)),
            volume_claims: watches
                .metadata("persistentvolumeclaims", OURS, move |o, change| volume_claim(&o.metadata, change)),
            accesses_by_cluster: wake.accesses_by_cluster.clone(),
            claims_by_cluster,
            secrets_by_namespace,
            pods_by_namespace,
            config_maps_by_namespace,
        }
    }

    /// Wakes all for everything that is known, as a new leader must.
    pub fn resync(&self, wake: &Wake) {
        for cluster in self.clusters.state() {
            wake.cluster(&ClusterKey::of(&cluster));
        }
        for access in self.accesses.state() {
            wake.access(AccessKey::of(&access));
        }
        // Claims outlive their Clusters.
        for claim in self.claims.state() {
            wake.cluster(&ClusterKey::of_ref(&claim.spec.cluster_ref));
        }
    }
}

/// What every micro-operator is given. Clones share it.
#[derive(Clone)]
pub struct Context {
    /// Client of the management cluster.
    pub client: Client,
    /// The operator's settings.
    pub settings: Arc<Settings>,
    /// What is known of the management cluster.
    pub cache: Cache,
    /// What the other micro-operators said.
    pub reports: Reports,
    /// What was verified of applied objects.
    pub memory: Memory,
    /// Events for people.
    pub events: Events,
    /// Whether this process may write; clients of guests ask it, too.
    pub leadership: Leadership,
    /// Addresses of the management cluster that this process was started with.
    pub underlay: Arc<Underlay>,
    /// The Vault of this installation, if it has one.
    pub vault: Option<Arc<Vault>>,
    /// Flannel's etcd of this installation, if it has one.
    pub flannel: Option<Arc<FlannelEtcd>>,
}

/// A Cluster as a micro-operator looks at it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The object.
    pub cluster: Arc<Cluster>,
    /// What the guest is called.
    pub identity: Identity,
    /// The checked spec.
    pub valid: Result<Valid, Vec<Violation>>,
}

impl Target {
    /// Whether the user has deleted the Cluster.
    pub fn is_deleting(&self) -> bool {
        self.cluster.metadata.deletion_timestamp.is_some()
    }

    /// Where the guest's authorities are, if that is recorded to be in Vault.
    pub fn vault(&self) -> Option<&VaultPlace> {
        self.cluster.status.as_ref()?.vault.as_ref()
    }

    /// Whether it is recorded that etcd has held the guest's objects.
    pub fn has_formed_etcd(&self) -> bool {
        self.cluster.status.as_ref().is_some_and(|status| status.etcd_formed == Some(true))
    }

    /// Whether its overlay is Flannel's.
    pub fn asks_for_flannel(&self) -> bool {
        // As it was written: of a spec that became invalid everything has to go nevertheless.
        self.cluster.spec.network.overlay.backend == OverlayBackend::Flannel
    }

    /// Whether its nodes are on AWS.
    pub fn is_on_aws(&self) -> bool {
        // As it was written: of a spec that became invalid everything has to go nevertheless.
        self.cluster.spec.provider.aws.is_some()
    }

    /// The region and the credentials that its spec names, if its nodes are on AWS; also of a spec that became invalid.
    pub fn aws_account(&self) -> Option<(String, AwsCredentials)> {
        let aws = self.cluster.spec.provider.aws.as_ref()?;
        Some((aws.region.clone(), (&aws.credentials).into()))
    }

    /// How long nothing but renewing certificates is to be done at `now`, deletion included.
    pub fn paused(&self, now: Timestamp) -> Option<Duration> {
        // As it was written: a spec that became invalid is paused nevertheless.
        let until: Timestamp = self.cluster.spec.paused_until.as_deref()?.parse().ok()?;
        let left = Duration::try_from(until.duration_since(now)).ok()?;
        (!left.is_zero()).then_some(left)
    }

    /// The checked spec, if work may begin: the finalizer must be there before anything that it protects.
    pub fn workable(&self) -> Option<&Valid> {
        let protected = self.cluster.finalizers().iter().any(|name| name == names::CLUSTER_FINALIZER);
        self.valid.as_ref().ok().filter(|_| protected)
    }
}

impl Context {
    /// The Cluster with this key, if there is one.
    pub fn target(&self, key: &ClusterKey) -> Option<Target> {
        let cluster = cache::get(&self.cache.clusters, Some(&key.namespace), &key.name)?;
        let identity = Identity::of(&cluster);
        let valid = Valid::new(&cluster, &self.settings).and_then(|valid| match self.clash(&cluster, &valid) {
            None => Ok(valid),
            Some(problem) => Err(vec![Violation::new("spec.network.overlay.cidr", problem)]),
        });
        Some(Target { cluster, identity, valid })
    }

    /// What is wrong with the overlay of a guest that is not made yet, as far as what is seen of the management cluster tells.
    fn clash(&self, cluster: &Cluster, valid: &Valid) -> Option<String> {
        let overlay = valid.ranges.overlay.net;
        let seen = || {
            let mut seen = Underlay::default();
            let mut hosts = self.cache.hosts.state();
            hosts.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
            hosts.iter().for_each(|host| host.note(&mut seen));
            let mut pods: Vec<_> = self.cache.pods.state().iter().filter_map(|pod| pod.status.pod_ip).collect();
            pods.sort_unstable();
            // Whose they are is nobody else's business.
            pods.into_iter().for_each(|address| seen.add_address(address, "the address of a VM pod"));
            seen.clash(overlay).or_else(|| self.underlay.clash(overlay))
        };
        // On AWS there is none.
        (cluster.spec.provider.aws.is_none() && underlay::judges(cluster)).then(seen)?
    }

    /// Whether every operator has said something of a Cluster since this process leads.
    pub fn has_heard_all(&self, target: &Target) -> bool {
        let reports = self.reports.of(&target.identity);
        reports.are_complete() && (reports.flannel.is_some() || !target.asks_for_flannel())
    }

    /// The guest's namespace, if it is there, ours, not going, and the very one that is pinned.
    pub fn namespace(&self, identity: &Identity) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        let found = cache::get(&self.cache.namespaces, None, &identity.namespace)?;
        let meta = &found.metadata;
        let pinned = identity.namespace_uid.is_some() && identity.namespace_uid == meta.uid;
        let usable = pinned && identity.owner().owns(meta) && meta.deletion_timestamp.is_none();
        usable.then_some(found)
    }

    /// Metadata of an object of the guest's namespace, if the cache has it.
    pub fn meta<K>(&self, store: &Store<K>, namespace: &str, name: &str) -> Option<ObjectMeta>
    where
        K: Lookup<DynamicType = ()> + Resource<DynamicType = ()> + Clone + 'static,
    {
        cache::get(store, Some(namespace), name).map(|object| object.meta().clone())
    }

    /// The guest's Service in front of its API.
    pub fn master_service(&self, identity: &Identity) -> Option<Arc<Service>> {
        cache::get(&self.cache.services, Some(&identity.namespace), names::MASTER_SERVICE)
    }

    /// Metadata of the Secrets of a namespace that carry a guest's label.
    pub fn secrets(&self, namespace: &str) -> Vec<Arc<PartialObjectMeta<Secret>>> {
        let names = self.cache.secrets_by_namespace.names(namespace);
        names.iter().filter_map(|name| cache::get(&self.cache.secrets, Some(namespace), name)).collect()
    }

    /// Rights inside a guest that ClusterAccesses ask for, by their names; not those of ones that are being deleted.
    pub fn rights(&self, cluster: &ClusterKey) -> BTreeMap<String, Rights> {
        let names = self.cache.accesses_by_cluster.names(&cluster.to_string());
        let found = names.iter().filter_map(|name| cache::get(&self.cache.accesses, Some(&cluster.namespace), name));
        let kept = found.filter(|access| access.metadata.deletion_timestamp.is_none());
        kept.filter_map(|access| Some((access.name_any(), rights_of(&access)?))).collect()
    }

    /// Metadata of the guest's ConfigMaps.
    pub fn config_maps(&self, identity: &Identity) -> Vec<Arc<PartialObjectMeta<ConfigMap>>> {
        let namespace = identity.namespace.as_str();
        let names = self.cache.config_maps_by_namespace.names(namespace);
        names.iter().filter_map(|name| cache::get(&self.cache.config_maps, Some(namespace), name)).collect()
    }

    /// How the host of a VM pod is, if it has one that is known.
    pub fn host_of(&self, pod: &VmPod) -> Option<HostState> {
        cache::get(&self.cache.hosts, None, pod.host()?).map(|host| host.state())
    }

    /// Workers that something of is there: their VM pods first, since what those say is what runs, then their ConfigMaps.
    pub fn known_workers(&self, identity: &Identity) -> Vec<Known> {
        let (owner, pods, maps) = (identity.owner(), self.vm_pods(identity), self.config_maps(identity));
        let metas = pods.iter().map(|pod| &pod.metadata).chain(maps.iter().map(|map| &map.metadata));
        metas.filter(|meta| owner.owns(meta)).filter_map(Known::of).collect()
    }

    /// The workers that there should be, with their pools: the same for everybody, since it follows from what is written down.
    pub fn workers<'a>(&self, valid: &'a Valid) -> Vec<(&'a NodePool, String)> {
        match &valid.aws {
            // Those are called by their instances, which come and go by themselves.
            Some(_) => Vec::new(),
            None => kvm::plan::workers(valid, &self.known_workers(&valid.identity)),
        }
    }

    /// Places on the overlay that are written down in ConfigMaps of the guest, by worker.
    pub fn places(&self, identity: &Identity) -> BTreeMap<String, Place> {
        let maps = self.config_maps(identity);
        let ours = maps.iter().map(|map| &map.metadata).filter(|meta| identity.owner().owns(meta));
        ours.filter_map(|meta| Some((meta.labels.as_ref()?.get(names::NODE_LABEL)?.clone(), Place::of(meta)?)))
            .collect()
    }

    /// The guest's VM pods.
    pub fn vm_pods(&self, identity: &Identity) -> Vec<Arc<VmPod>> {
        let names = self.cache.pods_by_namespace.names(&identity.namespace);
        names.iter().filter_map(|name| cache::get(&self.cache.pods, Some(&identity.namespace), name)).collect()
    }
}
