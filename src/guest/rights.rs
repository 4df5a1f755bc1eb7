//! Binds the rights that ClusterAccesses ask for inside a guest, and unbinds what none asks for any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Instant,
};

use k8s_openapi::{
    api::{
        core::v1::Namespace,
        rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Resource, api::ListParams};
use serde::{Serialize, de::DeserializeOwned};
use tracing::{info, warn};

use super::reconcile::SEEN_FOR;
use crate::{
    access::rights::{AllBound, Bound, Place, Rights, place, places},
    api::{Reason, names},
    runtime::{
        CallError,
        apply::{self, Applied, Applier, ApplyError, Owner},
        call, chain,
    },
};

/// Rights that were looked for in a guest, and when.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    at: Instant,
    wishes: BTreeMap<String, Rights>,
}

impl Seen {
    pub(super) fn now(wishes: BTreeMap<String, Rights>) -> Self {
        Self { at: Instant::now(), wishes }
    }

    /// Whether there is nothing to look for: it was looked for these just now, or there are none, as before.
    pub(super) fn holds(&self, wishes: &BTreeMap<String, Rights>) -> bool {
        self.wishes == *wishes && (wishes.is_empty() || self.at.elapsed() < SEEN_FOR)
    }
}

/// Why a binding is not there, and of which sort that is.
type Problem = Option<(Reason, String)>;

/// A guest's API, and on whose behalf it is written to.
pub(super) struct Guest<'a> {
    pub(super) client: &'a Client,
    pub(super) applier: &'a Applier,
    pub(super) owner: Owner,
}

/// What a guest has.
struct World {
    bindings: BTreeMap<Place, ObjectMeta>,
    roles: BTreeSet<String>,
    namespaces: BTreeSet<String>,
}

impl Guest<'_> {
    /// Binds what `wishes` ask for, by ClusterAccess, and unbinds the rest. What the guest refuses is a problem of that one
    /// ClusterAccess alone.
    ///
    /// # Errors
    /// If the guest does not answer, or does not tell what it has.
    pub(super) async fn bind(&self, wishes: &BTreeMap<String, Rights>) -> Result<AllBound, CallError> {
        let world = self.observe(wishes).await?;
        // First what is to end.
        let wanted: BTreeSet<_> = wishes.iter().flat_map(|(access, rights)| places(access, rights)).collect();
        for (place, binding) in world.bindings.iter().filter(|(place, _)| !wanted.contains(place)) {
            self.unbind(place, binding).await?;
        }
        let mut bound = AllBound::new();
        for (access, rights) in wishes {
            let problem = self.bind_one(access, rights, &world).await?;
            bound.insert(access.clone(), Bound { rights: rights.clone(), problem });
        }
        Ok(bound)
    }

    async fn observe(&self, wishes: &BTreeMap<String, Rights>) -> Result<World, CallError> {
        let client = || self.client.clone();
        let ours = ListParams::default().labels(names::ACCESS_LABEL);
        let mut bindings = listed(&Api::<ClusterRoleBinding>::all(client()), &ours).await?;
        bindings.extend(listed(&Api::<RoleBinding>::all(client()), &ours).await?);
        bindings.retain(|binding| self.owner.owns(binding));
        let mut roles = BTreeSet::new();
        // There are many, and few of them are asked for.
        for role in wishes.values().map(|rights| &rights.cluster_role).collect::<BTreeSet<_>>() {
            let object = format!("the guest's ClusterRole {role}");
            if call("get", object, Api::<ClusterRole>::all(client()).get_metadata_opt(role)).await?.is_some() {
                roles.insert(role.clone());
            }
        }
        let mut namespaces = BTreeSet::new();
        if wishes.values().any(|rights| !rights.namespaces.is_empty()) {
            let all = listed(&Api::<Namespace>::all(client()), &ListParams::default()).await?;
            let kept = all.into_iter().filter(|namespace| namespace.deletion_timestamp.is_none());
            namespaces.extend(kept.filter_map(|namespace| namespace.name));
        }
        Ok(World { bindings: bindings.into_iter().map(|meta| (place(&meta), meta)).collect(), roles, namespaces })
    }

    async fn unbind(&self, (namespace, name): &Place, binding: &ObjectMeta) -> Result<(), CallError> {
        let client = self.client.clone();
        info!(binding = name, namespace, "rights end");
        self.applier.forget(binding);
        let deleted = match namespace {
            None => apply::delete(&Api::<ClusterRoleBinding>::all(client), binding, None).await,
            Some(namespace) => apply::delete(&Api::<RoleBinding>::namespaced(client, namespace), binding, None).await,
        };
        match deleted {
            // Others are to end nevertheless; the next look tries this one again.
            Err(error) if error.status().is_some() => {
                warn!(binding = name, namespace, error = chain(&error), "rights cannot be ended; it is repeated");
                Ok(())
            }
            other => other,
        }
    }

    async fn bind_one(&self, access: &str, rights: &Rights, world: &World) -> Result<Problem, CallError> {
        if !world.roles.contains(&rights.cluster_role) {
            // A binding to it would be accepted, and give nothing.
            return Ok(waits(format!("ClusterRole {} of the guest", rights.cluster_role)));
        }
        if let Some(binding) = rights.everywhere(access) {
            return self.ensure(&Api::all(self.client.clone()), &binding, world).await;
        }
        let mut problem = None;
        for binding in rights.in_namespaces(access) {
            let namespace = binding.metadata.namespace.clone().unwrap_or_default();
            let there = if world.namespaces.contains(&namespace) {
                self.ensure(&Api::namespaced(self.client.clone(), &namespace), &binding, world).await?
            } else {
                waits(format!("namespace {namespace} of the guest"))
            };
            // What does not work in one namespace may in the next.
            problem = problem.or(there);
        }
        Ok(problem)
    }

    async fn ensure<K>(&self, api: &Api<K>, binding: &K, world: &World) -> Result<Problem, CallError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
    {
        let there = world.bindings.get(&place(binding.meta()));
        match self.applier.ensure(api, &self.owner, binding, there).await {
            Ok(Applied::Created | Applied::Updated) => Ok(None),
            Ok(Applied::Unchanged) if there.is_some() => Ok(None),
            Ok(_) => Ok(waits(format!("{} to be made anew", apply::describe(binding)))),
            Err(error @ ApplyError::Foreign { .. }) => Ok(Some((Reason::ForeignObject, error.to_string()))),
            Err(ApplyError::Call(error)) if error.status().is_none() => Err(error),
            Err(error) => Ok(Some((Reason::Error, chain(&error)))),
        }
    }
}

fn waits(what: String) -> Problem {
    Some((Reason::Waiting, format!("waits for {what}")))
}

async fn listed<K>(api: &Api<K>, params: &ListParams) -> Result<Vec<ObjectMeta>, CallError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let found = call("list", format!("the guest's {}", K::plural(&())), api.list_metadata(params)).await?;
    Ok(found.items.into_iter().map(|object| object.metadata).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_holds_for_the_same_wishes_and_not_for_long() {
        let rights =
            |role: &str| Rights { user: "alice".into(), cluster_role: role.into(), namespaces: BTreeSet::new() };
        let wishes = |role: &str| BTreeMap::from([("a".to_owned(), rights(role))]);
        let mut seen = Seen::now(wishes("view"));
        assert!(seen.holds(&wishes("view")) && !seen.holds(&wishes("edit")) && !seen.holds(&BTreeMap::new()));
        seen.at = Instant::now().checked_sub(SEEN_FOR).unwrap();
        assert!(!seen.holds(&wishes("view")), "nobody would put back what the guest's users take away");
        seen.wishes.clear();
        assert!(seen.holds(&BTreeMap::new()));
    }
}
