//! Clusters as the tests make and look at them, and waiting for what should become of them.

use std::{
    collections::BTreeMap,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use giantnetes::{
    api::{Cluster, NetworkClaim, names::CA_ANNOTATION_PREFIX},
    pki::roots,
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Node, PersistentVolumeClaim, Pod, Secret, Service},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{Config, Event, watcher},
    },
};
use serde_json::{Value, json};

pub const SECOND: Duration = Duration::from_secs(1);

/// Looks until `ready` says `Ok`, at most for `limit`. Answers its value and how long that took.
pub async fn eventually<T, F: Future<Output = Result<T>>>(
    limit: Duration,
    what: &str,
    mut ready: impl FnMut() -> F,
) -> Result<(T, Duration)> {
    let began = Instant::now();
    loop {
        match ready().await {
            Ok(value) => return Ok((value, began.elapsed())),
            Err(reason) if began.elapsed() >= limit => bail!("{what} did not come true within {limit:?}: {reason:#}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Everything that a controller manager may make or change.
#[derive(Clone)]
pub struct World {
    pub client: Client,
}

impl World {
    /// Makes a host, or makes it so, that nobody runs. A new one is tainted until a controller, of which there is none here, has
    /// seen it ready: `spec` says what its taints are.
    pub async fn host(&self, name: &str, spec: Value, status: Value) {
        let (nodes, params) = (Api::<Node>::all(self.client.clone()), PatchParams::default());
        let labels = json!({"kubernetes.io/hostname": name});
        let node = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap();
        match nodes.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => drop(made.unwrap()),
        }
        nodes.patch(name, &params, &Patch::Merge(json!({"spec": spec}))).await.unwrap();
        nodes.patch_status(name, &params, &Patch::Merge(json!({"status": status}))).await.unwrap();
    }

    pub fn clusters(&self, namespace: &str) -> Api<Cluster> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn namespace(&self, name: &str) -> Result<()> {
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        match Api::<Namespace>::all(self.client.clone()).create(&PostParams::default(), &namespace).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop).context("create a namespace"),
        }
    }

    pub async fn create(&self, namespace: &str, name: &str, spec: Value) -> Result<Cluster> {
        let cluster = serde_json::from_value(json!({
            "apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        }))?;
        Ok(self.clusters(namespace).create(&PostParams::default(), &cluster).await?)
    }

    pub async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        self.clusters(namespace).delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until everything of a Cluster is done that needs no provider.
    pub async fn converged(&self, limit: Duration, namespace: &str, name: &str) -> Result<Duration> {
        let (_, took) = eventually(limit, &format!("{namespace}/{name} to converge"), || async {
            let cluster = self.clusters(namespace).get(name).await?;
            is_converged(&cluster)
        })
        .await?;
        Ok(took)
    }

    /// Waits until there are `count` Clusters and all have converged. It watches: to list a thousand over and over would
    /// cost the server more than what is measured.
    pub async fn all_converged(&self, limit: Duration, count: usize) -> Result<Duration> {
        let began = Instant::now();
        let (mut late, mut listed, mut failure) = (BTreeMap::new(), false, None);
        let mut events = pin!(watcher(Api::<Cluster>::all(self.client.clone()), Config::default()).default_backoff());
        let all = async {
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Init) => (late, listed) = (BTreeMap::new(), false),
                    Ok(Event::InitDone) => listed = true,
                    Ok(Event::Apply(cluster) | Event::InitApply(cluster)) => {
                        late.insert((cluster.namespace(), cluster.name_any()), is_converged(&cluster).is_err());
                    }
                    Ok(Event::Delete(cluster)) => drop(late.remove(&(cluster.namespace(), cluster.name_any()))),
                    // It is repeated.
                    Err(error) => failure = Some(error),
                }
                if listed && late.len() == count && late.values().all(|late| !late) {
                    return;
                }
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            let names: Vec<_> = late.iter().filter(|(_, late)| **late).map(|(name, _)| name).collect();
            let there = late.len();
            bail!(
                "of {count} Clusters, {there} are there, and {names:?} did not converge within {limit:?}; watch: {failure:?}"
            );
        }
        Ok(began.elapsed())
    }

    pub async fn gone(&self, limit: Duration, namespace: &str, name: &str) -> Result<Duration> {
        let (_, took) = eventually(limit, &format!("{namespace}/{name} to be gone"), || async {
            let left = self.clusters(namespace).get_opt(name).await?;
            ensure!(left.is_none(), "{:?}", left.and_then(|cluster| cluster.status).and_then(|status| status.message));
            Ok(())
        })
        .await?;
        Ok(took)
    }

    /// Waits until a condition has this status and reason. Answers its message.
    pub async fn condition(
        &self,
        limit: Duration,
        (namespace, name): (&str, &str),
        (type_, status, reason): (&str, &str, &str),
    ) -> Result<(String, Duration)> {
        eventually(limit, &format!("{namespace}/{name}: {type_}={status} {reason}"), || async {
            let cluster = self.clusters(namespace).get(name).await?;
            let found = condition(&cluster, type_).with_context(|| format!("no condition {type_} yet"))?;
            ensure!(found.0 == status && found.1 == reason, "it is {found:?}");
            Ok(found.2)
        })
        .await
    }

    pub async fn claims(&self) -> Result<Vec<NetworkClaim>> {
        Ok(Api::<NetworkClaim>::all(self.client.clone()).list(&ListParams::default()).await?.items)
    }

    /// Kinds and metadata of everything that carries a guest's label, but for claims.
    pub async fn labelled(&self) -> Result<Vec<(String, ObjectMeta)>> {
        let all = [
            self.labelled_of::<Namespace>().await?,
            self.labelled_of::<Secret>().await?,
            self.labelled_of::<Service>().await?,
            self.labelled_of::<ConfigMap>().await?,
            self.labelled_of::<PersistentVolumeClaim>().await?,
            self.labelled_of::<Pod>().await?,
            self.labelled_of::<NetworkPolicy>().await?,
            self.labelled_of::<PodDisruptionBudget>().await?,
            self.labelled_of::<Ingress>().await?,
        ];
        Ok(all.into_iter().flatten().collect())
    }

    async fn labelled_of<K>(&self) -> Result<Vec<(String, ObjectMeta)>>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let ours = ListParams::default().labels("giantnetes.io/cluster");
        let found = Api::<K>::all(self.client.clone()).list_metadata(&ours).await?;
        Ok(found.items.into_iter().map(|object| (K::kind(&()).into_owned(), object.metadata)).collect())
    }

    /// What must not depend on how often a manager died: kinds and names of objects with a guest's label, which labels,
    /// annotations and finalizers they have, what Secrets hold, and claims.
    pub async fn inventory(&self) -> Result<Vec<String>> {
        let labelled = self.labelled().await?;
        let mut found: Vec<_> =
            labelled.iter().map(|(kind, meta)| format!("{kind} {} with {}", place(meta), marks(meta))).collect();
        let ours = ListParams::default().labels("giantnetes.io/cluster");
        for secret in Api::<Secret>::all(self.client.clone()).list(&ours).await? {
            let keys: Vec<_> = secret.data.iter().flat_map(BTreeMap::keys).map(String::as_str).collect();
            found.push(format!("Secret {} holds {}", place(&secret.metadata), keys.join(" ")));
        }
        for claim in self.claims().await? {
            let released = if claim.spec.released_at.is_some() { " (released)" } else { "" };
            found.push(format!("NetworkClaim {:?}{released}", claim.spec.kind));
        }
        found.sort();
        Ok(found)
    }

    /// Fingerprints of the roots of all guests, as their Secrets say, with the UID, by namespace and root.
    pub async fn roots(&self) -> Result<BTreeMap<String, String>> {
        let ours = ListParams::default().labels("giantnetes.io/cluster");
        let secrets = Api::<Secret>::all(self.client.clone()).list(&ours).await?;
        let of = |secret: &Secret| {
            let (uid, namespace) = (secret.uid().unwrap_or_default(), secret.namespace().unwrap_or_default());
            let roots = secret.annotations().clone().into_iter();
            let roots = roots.filter(|(name, _)| name.starts_with(CA_ANNOTATION_PREFIX));
            roots.map(move |(name, fingerprint)| (format!("{namespace} {name}"), format!("{fingerprint} {uid}")))
        };
        Ok(secrets.iter().filter(|secret| secret.name_any() == roots::SECRET).flat_map(of).collect())
    }

    /// Adds an annotation, as a user would edit an object.
    pub async fn annotate<K>(&self, api: &Api<K>, name: &str, key: &str, value: &str) -> Result<()>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }
}

/// `g8s-<id>` differs from run to run: a name says which of the guest's namespaces it is.
fn place(meta: &ObjectMeta) -> String {
    let generic = |text: &String| if text.starts_with("g8s-") { "g8s".to_owned() } else { text.clone() };
    let namespace = meta.namespace.as_ref().map(generic);
    let name = meta.name.as_ref().map(generic).unwrap_or_default();
    namespace.map_or(name.clone(), |namespace| format!("{namespace}/{name}"))
}

/// Names of an object's labels and annotations, and its finalizers.
fn marks(meta: &ObjectMeta) -> String {
    let names = [&meta.labels, &meta.annotations].into_iter().flatten().flat_map(BTreeMap::keys);
    names.chain(meta.finalizers.iter().flatten()).map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// Status, reason and message of a condition.
pub fn condition(cluster: &Cluster, type_: &str) -> Option<(String, String, String)> {
    let conditions = &cluster.status.as_ref()?.conditions;
    let found = conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((found.status.clone(), found.reason.clone(), found.message.clone()))
}

fn is_converged(cluster: &Cluster) -> Result<()> {
    for (type_, status, reason) in [
        ("NetworkReady", "True", "AsExpected"),
        ("PKIReady", "True", "AsExpected"),
        ("ControlPlaneReady", "False", "ProviderPending"),
    ] {
        let found = condition(cluster, type_).with_context(|| format!("no condition {type_} yet"))?;
        ensure!((found.0.as_str(), found.1.as_str()) == (status, reason), "{type_} is {found:?}");
    }
    Ok(())
}
