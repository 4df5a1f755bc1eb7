//! Secrets that are issued: stored, looked at again after others touched them, and issued once though a cache lags behind.

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use kube::{Api, api::PostParams};

use super::{
    plan::{self, SecretMeta},
    reconcile::Error,
    secrets::{is_intact, secret_meta},
};
use crate::{cluster::Identity, context::Context, runtime::call};

/// What stands where a Secret is to be stored.
pub(crate) enum Place {
    /// What is to be issued: somebody issued it a moment ago.
    Issued(ObjectMeta),
    /// Nothing, or what it takes the place of.
    Open(Option<ObjectMeta>),
}

/// The Secrets of one operator.
pub struct KeyStore {
    context: Context,
    /// Its field manager.
    manager: &'static str,
}

impl KeyStore {
    /// The Secrets of the operator with this field manager.
    pub fn new(context: Context, manager: &'static str) -> Self {
        Self { context, manager }
    }

    /// What is known of a Secret; without a hash, so that it is issued anew, if somebody changed what is inside.
    pub(crate) async fn seen(&self, meta: &ObjectMeta) -> Result<SecretMeta, Error> {
        let mut seen = secret_meta(meta);
        // A root has none, and is not issued anew.
        if seen.hash.is_some() && !self.verify(meta).await? {
            seen.hash = None;
        }
        Ok(seen)
    }

    /// Whether a Secret holds what was issued; it is read if it changed.
    async fn verify(&self, meta: &ObjectMeta) -> Result<bool, Error> {
        if self.context.memory.is_verified(meta) {
            return Ok(true);
        }
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let live = call("get", format!("Secret {name}"), self.secrets(namespace).get_opt(name)).await?;
        // One that is gone is told by the watch.
        let intact = live.as_ref().is_none_or(is_intact);
        if let Some(live) = live.filter(|_| intact) {
            self.context.memory.remember(&live.metadata);
        }
        Ok(intact)
    }

    /// Asks the server what stands where a Secret is to be stored: the cache may lag behind what was issued a moment ago.
    pub(crate) async fn place(
        &self,
        identity: &Identity,
        namespace: &str,
        name: &str,
        hash: &str,
        now: Timestamp,
    ) -> Result<Place, Error> {
        let live = call("get", format!("Secret {name}"), self.secrets(namespace).get_metadata_opt(name)).await?;
        let Some(meta) = live.map(|live| live.metadata) else { return Ok(Place::Open(None)) };
        if !identity.owner().owns(&meta) {
            return Err(Error::Foreign(format!("{namespace}/{name}")));
        }
        // Without its labels the cache does not know it; and its content is looked at again after every change.
        let labels = meta.labels.clone().unwrap_or_default();
        let labelled = identity.labels().iter().all(|(key, value)| labels.get(key) == Some(value));
        let fulfilled = labelled && !plan::is_due(Some(&secret_meta(&meta)), hash, now) && self.verify(&meta).await?;
        Ok(if fulfilled { Place::Issued(meta) } else { Place::Open(Some(meta)) })
    }

    /// Stores a Secret that is made anew whenever it is issued: creates it, or replaces exactly the one that was observed.
    pub(crate) async fn store(&self, former: Option<ObjectMeta>, mut secret: Secret) -> Result<(), Error> {
        let Some(former) = former else { return self.create(&secret).await };
        let (namespace, name) =
            (secret.metadata.namespace.clone().unwrap_or_default(), secret.metadata.name.clone().unwrap_or_default());
        secret.metadata.uid = former.uid;
        secret.metadata.resource_version = former.resource_version;
        let replace = self.secrets(&namespace);
        let made = call("replace", format!("Secret {name}"), replace.replace(&name, &self.post(), &secret)).await?;
        self.context.memory.remember(&made.metadata);
        Ok(())
    }

    pub(super) async fn create(&self, secret: &Secret) -> Result<(), Error> {
        let meta = &secret.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let object = format!("Secret {namespace}/{}", meta.name.clone().unwrap_or_default());
        let made = call("create", object, self.secrets(&namespace).create(&self.post(), secret)).await?;
        self.context.memory.remember(&made.metadata);
        Ok(())
    }

    pub(crate) fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    pub(super) fn post(&self) -> PostParams {
        PostParams { field_manager: Some(self.manager.into()), ..PostParams::default() }
    }
}
