//! Binds the rights that ClusterAccesses ask for inside a guest, and unbinds what none asks for any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Instant,
};

use k8s_openapi::{
    api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Resource, ResourceExt as _, api::ListParams};
use serde::{Serialize, de::DeserializeOwned};
use tracing::info;

use super::reconcile::{Error, SEEN_FOR};
use crate::{
    access::rights::{AllBound, Bound, Rights, is_wanted},
    api::{Reason, names},
    runtime::{
        CallError,
        apply::{self, Applier, ApplyError, Owner},
        call,
    },
};

/// What was bound in a guest, and when that was seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    at: Instant,
    wishes: BTreeMap<String, Rights>,
    pub(super) bound: Arc<AllBound>,
}

impl Seen {
    /// Whether there is nothing to look for: these wishes were seen to be fulfilled just now, or there are none, as before.
    pub(super) fn holds(&self, wishes: &BTreeMap<String, Rights>) -> bool {
        let fulfilled = self.bound.values().all(|bound| bound.problem.is_none());
        self.wishes == *wishes && (wishes.is_empty() || (fulfilled && self.at.elapsed() < SEEN_FOR))
    }
}

/// A guest's API, and on whose behalf it is written to.
pub(super) struct Guest<'a> {
    pub(super) client: &'a Client,
    pub(super) applier: &'a Applier,
    pub(super) owner: Owner,
}

impl Guest<'_> {
    /// Binds what `wishes` ask for, by ClusterAccess, and unbinds the rest.
    pub(super) async fn bind(&self, wishes: BTreeMap<String, Rights>) -> Result<Seen, Error> {
        let everywhere = Api::<ClusterRoleBinding>::all(self.client.clone());
        let somewhere = Api::<RoleBinding>::all(self.client.clone());
        let there = (labelled(&everywhere).await?, labelled(&somewhere).await?);
        // First what is to end.
        for binding in there.0.iter().chain(&there.1) {
            self.unbind(&wishes, binding).await?;
        }
        let missing = self.missing_roles(&wishes).await?;
        let mut bound = AllBound::new();
        for (access, rights) in &wishes {
            let problem = if missing.contains(&rights.cluster_role) {
                Some((Reason::Waiting, format!("waits for ClusterRole {} of the guest", rights.cluster_role)))
            } else {
                self.bind_one(access, rights, &there).await?
            };
            bound.insert(access.clone(), Bound { rights: rights.clone(), problem });
        }
        Ok(Seen { at: Instant::now(), wishes, bound: Arc::new(bound) })
    }

    async fn unbind(&self, wishes: &BTreeMap<String, Rights>, binding: &ObjectMeta) -> Result<(), Error> {
        let name = binding.name.as_deref().unwrap_or_default();
        if !self.owner.owns(binding) || is_wanted(wishes, binding.namespace.as_deref(), name) {
            return Ok(());
        }
        let client = self.client.clone();
        info!(binding = name, namespace = binding.namespace, "rights end");
        match &binding.namespace {
            None => apply::delete(&Api::<ClusterRoleBinding>::all(client), binding, None).await,
            Some(namespace) => apply::delete(&Api::<RoleBinding>::namespaced(client, namespace), binding, None).await,
        }
        .map_err(Error::Access)
    }

    /// ClusterRoles that the guest does not have. A binding to one would be accepted, and give nothing.
    async fn missing_roles(&self, wishes: &BTreeMap<String, Rights>) -> Result<BTreeSet<String>, Error> {
        let api = Api::<ClusterRole>::all(self.client.clone());
        let mut missing = BTreeSet::new();
        for role in wishes.values().map(|rights| &rights.cluster_role).collect::<BTreeSet<_>>() {
            let found = call("get", format!("the guest's ClusterRole {role}"), api.get_metadata_opt(role));
            if found.await.map_err(Error::Access)?.is_none() {
                missing.insert(role.clone());
            }
        }
        Ok(missing)
    }

    /// Answers what stands against it.
    async fn bind_one(
        &self,
        access: &str,
        rights: &Rights,
        there: &(Vec<ObjectMeta>, Vec<ObjectMeta>),
    ) -> Result<Option<(Reason, String)>, Error> {
        if let Some(binding) = rights.everywhere(access) {
            return self.ensure(&Api::all(self.client.clone()), &binding, &there.0).await;
        }
        let mut problem = None;
        for binding in rights.in_namespaces(access) {
            let api = Api::namespaced(self.client.clone(), &binding.namespace().unwrap_or_default());
            // What does not work in one namespace may in the next.
            problem = problem.or(self.ensure(&api, &binding, &there.1).await?);
        }
        Ok(problem)
    }

    async fn ensure<K>(
        &self,
        api: &Api<K>,
        binding: &K,
        there: &[ObjectMeta],
    ) -> Result<Option<(Reason, String)>, Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
    {
        let is_it = |meta: &&ObjectMeta| meta.name == binding.meta().name && meta.namespace == binding.meta().namespace;
        match self.applier.ensure(api, &self.owner, binding, there.iter().find(is_it)).await {
            Ok(_) => Ok(None),
            Err(error @ ApplyError::Foreign { .. }) => Ok(Some((Reason::ForeignObject, error.to_string()))),
            // What may be missing of a binding's place is its namespace alone.
            Err(ApplyError::Call(error)) if error.status() == Some(404) => {
                let namespace = binding.namespace().unwrap_or_default();
                Ok(Some((Reason::Waiting, format!("waits for namespace {namespace} of the guest"))))
            }
            Err(error) => Err(Error::Rights(error)),
        }
    }
}

async fn labelled<K>(api: &Api<K>) -> Result<Vec<ObjectMeta>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let params = ListParams::default().labels(names::ACCESS_LABEL);
    let found: Result<_, CallError> =
        call("list", format!("the guest's {}", K::plural(&())), api.list_metadata(&params)).await;
    Ok(found.map_err(Error::Access)?.items.into_iter().map(|object| object.metadata).collect())
}
