//! Roots of a new guest that were exported from another one: taken once from the Secret that its Cluster names.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{Api, api::ListParams};
use tracing::info;

use super::{
    escrow::{self, Flaw},
    reconcile::{Error, PkiOperator},
    roots::{self, Roots},
};
use crate::{api::names, cluster::Identity, context::Context, runtime::call};

/// Pause between two looks at a Secret that cannot be imported: a GET each, of few Clusters.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Why a guest cannot be made of the roots that its Cluster names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It is not there, or another sort of Secret. Which of both is not for everybody who may write a Cluster.
    #[error(
        "spec.pki.importFrom.secretName: there is no Secret {0} of type {type_}; `giantnetes pki import` makes it",
        type_ = names::ROOTS_TYPE
    )]
    Missing(String),
    /// It lacks something.
    #[error(
        "spec.pki.importFrom.secretName: Secret {0} lacks some of a guest's roots; make it by `giantnetes pki import`"
    )]
    Incomplete(String),
    /// Nobody can live by them.
    #[error("spec.pki.importFrom.secretName: of the roots in Secret {secret}, {flaw}")]
    Flawed {
        /// `namespace/name`.
        secret: String,
        /// What is wrong.
        flaw: Flaw,
    },
    /// A guest that is there lives by them. Whose it is is not for everybody who has its roots.
    #[error(
        "spec.pki.importFrom.secretName: another guest of this management cluster lives by the roots in Secret {0}; delete its \
         Cluster first, since certificates of the one would open the other"
    )]
    InUse(String),
    /// The same, found out later.
    #[error(
        "spec.pki.importFrom.secretName: another guest of this management cluster has the same roots; delete one of both Clusters, since \
         certificates of the one would open the other"
    )]
    Recorded,
}

/// Guests that this process took roots for, by fingerprints: what was recorded a moment ago the cache may not know yet.
#[derive(Debug, Default)]
pub(super) struct Importing(Mutex<HashMap<String, String>>);

impl Importing {
    /// Reserves roots for the Cluster with this UID, unless another one has them that `lives`.
    fn reserve(&self, fingerprints: &BTreeMap<String, String>, uid: &str, lives: impl Fn(&str) -> bool) -> bool {
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = |root| holders.get(root).is_some_and(|holder| holder != uid && lives(holder));
        let free = !fingerprints.values().any(held);
        if free {
            holders.extend(fingerprints.values().map(|root| (root.clone(), uid.to_owned())));
        }
        free
    }
}

impl PkiOperator {
    /// Takes roots from the Secret beside the Cluster. It is read and not changed; whoever made it may delete it afterwards.
    pub(super) async fn import_roots(&self, identity: &Identity, name: &str, now: Timestamp) -> Result<Roots, Error> {
        let (namespace, context) = (&identity.key.namespace, &self.context);
        let place = format!("{namespace}/{name}");
        let found = call("get", format!("Secret {place}"), self.keys.secrets(namespace).get_opt(name)).await?;
        let roots = read(found.as_ref(), &place, now)?;
        let fingerprints = roots.fingerprints();
        let lives = |uid: &str| is_there(context, uid);
        if is_recorded(context, identity, &fingerprints) || !self.importing.reserve(&fingerprints, &identity.uid, lives)
        {
            return Err(ImportError::InUse(place).into());
        }
        info!(secret = place, "roots are imported");
        Ok(roots)
    }

    /// Asks the server, before imported roots are recorded, whether another guest has them: a former leader may have taken them for one
    /// that no cache here knew. What both stored before they ask, one of them sees at least; where both do, neither goes on.
    pub(super) async fn are_nobody_elses(
        &self,
        identity: &Identity,
        fingerprints: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let (client, params) = (&self.context.client, ListParams::default().labels(names::CLUSTER_LABEL));
        let namespaces = Api::<Namespace>::all(client.clone());
        let secrets = Api::<Secret>::all(client.clone());
        let recorded = call("list", "namespaces of guests", namespaces.list_metadata(&params)).await?;
        // What is not recorded yet lies under this name.
        let params = params.fields(&format!("metadata.name={}", roots::SECRET));
        let stored = call("list", "Secrets of guests", secrets.list_metadata(&params)).await?;
        let metas = recorded.items.iter().map(|object| &object.metadata);
        let mut metas = metas.chain(stored.items.iter().map(|object| &object.metadata));
        match metas.any(|meta| has_one(identity, meta, fingerprints)) {
            true => Err(ImportError::Recorded.into()),
            false => Ok(()),
        }
    }
}

/// The roots in a Secret, if a guest can live by them, encoded as those that are made here are.
fn read(found: Option<&Secret>, place: &str, now: Timestamp) -> Result<Roots, ImportError> {
    let ours = found.filter(|secret| secret.type_.as_deref() == Some(names::ROOTS_TYPE));
    let secret = ours.ok_or_else(|| ImportError::Missing(place.to_owned()))?;
    let roots = Roots::of(secret).ok_or_else(|| ImportError::Incomplete(place.to_owned()))?;
    escrow::check(&roots, now).map_err(|flaw| ImportError::Flawed { secret: place.to_owned(), flaw })
}

/// Whether another guest has one of these roots: its namespace records it; or its Secret of roots says so, of which the former
/// leader had not come to make a record.
fn is_recorded(context: &Context, identity: &Identity, fingerprints: &BTreeMap<String, String>) -> bool {
    let has_one = |meta: &ObjectMeta| has_one(identity, meta, fingerprints);
    context.cache.namespaces.state().iter().any(|namespace| has_one(&namespace.metadata))
        || context.cache.secrets.state().iter().any(|secret| has_one(&secret.metadata))
}

/// Whether an object of another guest says that it has one of these roots.
fn has_one(identity: &Identity, meta: &ObjectMeta, fingerprints: &BTreeMap<String, String>) -> bool {
    let said = roots::fingerprints(meta.annotations.as_ref());
    !identity.owner().owns(meta) && said.iter().any(|(root, record)| fingerprints.get(root) == Some(record))
}

/// Whether there is a Cluster with this UID.
fn is_there(context: &Context, uid: &str) -> bool {
    context.cache.clusters.state().iter().any(|cluster| cluster.metadata.uid.as_deref() == Some(uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pki::secrets::bytes,
        testing::{NOW, roots},
    };

    fn kept() -> Secret {
        Secret { type_: Some(names::ROOTS_TYPE.into()), data: Some(roots().data()), ..Secret::default() }
    }

    fn read(found: Option<&Secret>) -> Result<Roots, ImportError> {
        super::read(found, "a/kept", NOW)
    }

    #[test]
    fn a_secret_of_another_type_is_as_good_as_none() {
        let kept = kept();
        assert!(read(Some(&kept)).unwrap().data() == kept.data.clone().unwrap());
        let missing = read(None).unwrap_err();
        for other in [None, Some("Opaque".to_owned()), Some("giantnetes.io/roots2".to_owned())] {
            assert_eq!(read(Some(&Secret { type_: other, ..kept.clone() })).unwrap_err(), missing);
        }
        assert!(missing.to_string().contains("spec.pki.importFrom.secretName: there is no Secret a/kept of type"));
    }

    #[test]
    fn a_secret_that_somebody_changed_is_refused() {
        let with = |key: &str, value: &str| {
            let mut secret = kept();
            secret.data.as_mut().unwrap().insert(key.into(), bytes(value));
            read(Some(&secret)).unwrap_err()
        };
        let lacks = with("etcd.key", "");
        assert_eq!(lacks, ImportError::Incomplete("a/kept".into()));
        let other = roots().etcd.pair().unwrap().certificate.clone();
        assert_eq!(
            with("etcd.crt", &other),
            ImportError::Flawed { secret: "a/kept".into(), flaw: Flaw::OtherKey("etcd") }
        );
        let elsewhere = with("etcd.vault-mount", "guests/a/etcd");
        assert!(elsewhere.to_string().contains("is in Vault"), "{elsewhere}");
    }

    #[test]
    fn roots_have_one_guest_at_a_time() {
        let (importing, fingerprints) = (Importing::default(), roots().fingerprints());
        let reserve = |uid, lives| importing.reserve(&fingerprints, uid, |_| lives);
        assert!(reserve("one", true) && reserve("one", true) && !reserve("two", true));
        // One root is enough.
        let mut other = roots().fingerprints();
        let etcd = fingerprints.iter().find(|(root, _)| root.ends_with("etcd")).unwrap();
        other.insert(etcd.0.clone(), etcd.1.clone());
        assert!(!importing.reserve(&other, "two", |_| true));
        assert!(reserve("two", false) && !reserve("one", true));
    }
}
