//! What the management cluster has of a Cluster. Reads only; what the caller may not read is left out, and said.

use std::{collections::BTreeSet, fmt::Debug};

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolumeClaim, Pod},
    events::v1::Event,
};
use kube::{Api, Client, Resource, api::ListParams};
use serde::de::DeserializeOwned;

use crate::{
    api::{Cluster, NetworkClaim},
    cli::plan,
    cluster::Identity,
    runtime::{call, chain},
    settings::Settings,
};

/// What was asked for, or why it could not be had.
pub(in crate::cli) type Seen<T> = Result<T, String>;

/// A Cluster and what belongs to it.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// The object.
    pub cluster: Cluster,
    /// Its VM pods.
    pub pods: Seen<Vec<Pod>>,
    /// Volumes of its nodes.
    pub volumes: Seen<Vec<PersistentVolumeClaim>>,
    /// VNIs and host names that it holds.
    pub claims: Seen<Vec<NetworkClaim>>,
    /// Hosts, with their zones.
    pub hosts: Seen<Vec<Node>>,
    /// Events about it.
    pub events: Seen<Vec<Event>>,
    /// Nodes that are not as the Cluster now asks for. `None`: nobody asked.
    pub outdated: Option<Seen<BTreeSet<String>>>,
}

/// Looks at everything that belongs to a Cluster.
pub(super) async fn observe(client: &Client, cluster: Cluster, settings: Option<&Settings>) -> Observed {
    let identity = Identity::of(&cluster);
    let guest = identity.namespace.as_str();
    let ours = ListParams::default().labels(&identity.selector());
    let about = ListParams::default().fields(&format!("regarding.uid={}", identity.uid));
    let any = ListParams::default();
    let (pods, volumes, events) = (
        Api::namespaced(client.clone(), guest),
        Api::namespaced(client.clone(), guest),
        Api::namespaced(client.clone(), &identity.key.namespace),
    );
    let (claims, hosts) = (Api::<NetworkClaim>::all(client.clone()), Api::all(client.clone()));
    let (pods, volumes, events, claims, hosts) = tokio::join!(
        list(format!("VM pods of {guest}"), &pods, &ours),
        list(format!("PersistentVolumeClaims of {guest}"), &volumes, &ours),
        list(format!("Events of {}", identity.key.namespace), &events, &about),
        list("NetworkClaims".into(), &claims, &any),
        list("hosts".into(), &hosts, &any),
    );
    let held = claims.map(|mut claims| {
        claims.retain(|claim| claim.spec.cluster_ref.uid == identity.uid);
        claims
    });
    let outdated = match settings {
        Some(settings) => Some(plan::outdated(&cluster, settings).await.map_err(|error| chain(error.as_ref()))),
        None => None,
    };
    Observed { cluster, pods, volumes, claims: held, hosts, events, outdated }
}

/// Lists objects.
pub(in crate::cli) async fn list<K>(what: String, api: &Api<K>, params: &ListParams) -> Seen<Vec<K>>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    call("list", what, api.list(params)).await.map(|list| list.items).map_err(|error| chain(&error))
}
