//! Applies a control plane's add-ons inside its guest, each once.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::ConfigMap,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use tracing::info;

use super::{
    addons::{self, AddOn, Bundle, Deed, Record},
    client,
    reconcile::{Error, MANAGER},
};
use crate::{
    cluster::{ClusterKey, Valid},
    kvm::vm_pod::VmPod,
    runtime::{CallError, apply::delete_as, call, call_within},
};

/// How many objects of add-ons are on their way at a time. An API server merges all schemas anew after each definition that
/// comes, at most once a second: many at once cost it less than one after the other.
const AT_A_TIME: usize = 8;
/// How long one of them may take: an emulated API server that is busy with the others answers late, but asked again it would
/// be busier still.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// What was applied of bundles of which not all was: a guest that starts on a slow machine answers some call too late, and the
/// others need not be made again for it.
#[derive(Default)]
pub(super) struct Setup(Mutex<HashMap<ClusterKey, Applied>>);

/// Places in a bundle.
#[derive(Debug, Default, PartialEq, Eq)]
struct Applied {
    /// What is going to be recorded when all are.
    of: Record,
    places: HashSet<usize>,
}

impl Setup {
    /// Applies the add-ons of a control plane's VM image, once for each time that one comes up with others.
    pub(super) async fn add_ons(
        &self,
        client: &Client,
        valid: &Valid,
        pod: &VmPod,
        address: IpAddr,
    ) -> Result<(), Error> {
        let key = &valid.identity.key;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let records = Api::<ConfigMap>::namespaced(client.clone(), addons::NAMESPACE);
        let record = call("get", format!("the guest's ConfigMap {}", addons::RECORD), records.get_opt(addons::RECORD));
        let record = Record::read(record.await.map_err(Error::AddOns)?.as_ref());
        if record.pod == uid && record.options == addons::options(valid) {
            return Ok(());
        }
        let name = pod.metadata.name.clone().unwrap_or_default();
        let manifests = client::manifests(address).await;
        let manifests = manifests.map_err(|source| Error::Manifests { pod: name, address, source })?;
        let bundle = Bundle::new(&manifests, valid)?;
        let done = Record { pod: uid, bundle: bundle.hash.clone(), options: bundle.options.clone() };
        self.begin(key, &done);
        let due = bundle.due(&record)?.into_iter().filter(|(place, ..)| !self.is_applied(key, *place));
        let due: Vec<_> = due.collect();
        if !due.is_empty() {
            info!(cluster = %key, objects = due.len(), "setting up add-ons");
        }
        if ![&done.options, addons::CHANGING].contains(&record.options.as_str()) {
            write(&records, Record { options: addons::CHANGING.into(), ..record }).await?;
        }
        let deeds = stream::iter(due).map(async |(place, deed, AddOn { resource, object, .. })| {
            carry_out(client.clone(), deed, resource, object).await.map(|()| self.note(key, place))
        });
        // One that fails ends no other that is under way.
        let results: Vec<_> = deeds.buffer_unordered(AT_A_TIME).collect().await;
        results.into_iter().collect::<Result<(), _>>().map_err(Error::AddOns)?;
        write(&records, done).await?;
        self.forget(key);
        Ok(())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ClusterKey, Applied>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was applied of another bundle, in another VM pod, or for another wish.
    fn begin(&self, key: &ClusterKey, of: &Record) {
        let mut all = self.all();
        if all.get(key).is_none_or(|applied| applied.of != *of) {
            all.insert(key.clone(), Applied { of: of.clone(), places: HashSet::new() });
        }
    }

    fn is_applied(&self, key: &ClusterKey, place: usize) -> bool {
        self.all().get(key).is_some_and(|applied| applied.places.contains(&place))
    }

    fn note(&self, key: &ClusterKey, place: usize) {
        if let Some(applied) = self.all().get_mut(key) {
            applied.places.insert(place);
        }
    }

    /// Forgets a guest.
    pub(super) fn forget(&self, key: &ClusterKey) {
        self.all().remove(key);
    }
}

async fn carry_out(client: Client, deed: Deed, resource: ApiResource, object: DynamicObject) -> Result<(), CallError> {
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let name = object.name_any();
    let what = format!("the guest's {} {name}", resource.kind);
    match deed {
        Deed::Apply => {
            let params = PatchParams::apply(MANAGER).force();
            call_within(APPLY_TIMEOUT, "apply", what, api.patch(&name, &params, &Patch::Apply(object))).await.map(drop)
        }
        Deed::Remove => {
            let there = call("get", what.clone(), api.get_metadata_opt(&name)).await?;
            // What somebody else has put in its place stays.
            match there.filter(|there| there.labels().contains_key(addons::OPTIONAL_LABEL)) {
                Some(there) => delete_as(what, &api, &there.metadata, None).await,
                None => Ok(()),
            }
        }
    }
}

async fn write(records: &Api<ConfigMap>, record: Record) -> Result<(), Error> {
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(record.write());
    let what = format!("the guest's ConfigMap {}", addons::RECORD);
    call("apply", what, records.patch(addons::RECORD, &params, &patch)).await.map(drop).map_err(Error::AddOns)
}

/// What of the add-ons does not serve yet, in a guest with so many nodes that were given up and are silent.
pub(super) async fn unready_add_on(client: &Client, silent: usize) -> Result<Option<String>, Error> {
    let params = ListParams::default().labels(addons::SELECTOR);
    let sets = Api::<DaemonSet>::namespaced(client.clone(), addons::NAMESPACE);
    let sets = call("list", "the guest's DaemonSets", sets.list(&params)).await.map_err(Error::AddOns)?;
    let deployments = Api::<Deployment>::namespaced(client.clone(), addons::NAMESPACE);
    let deployments =
        call("list", "the guest's Deployments", deployments.list(&params)).await.map_err(Error::AddOns)?;
    Ok(addons::unready(&sets.items, &deployments.items, silent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_applied_is_not_applied_again_but_in_another_vm_or_of_another_bundle() {
        let (setup, key) = (Setup::default(), ClusterKey { namespace: "a".into(), name: "demo".into() });
        setup.note(&key, 1);
        assert!(!setup.is_applied(&key, 1), "nothing has begun");
        let of = |pod: &str, bundle: &str, options: &str| Record {
            pod: pod.into(),
            bundle: bundle.into(),
            options: options.into(),
        };
        setup.begin(&key, &of("vm", "bundle", ""));
        setup.note(&key, 1);
        setup.begin(&key, &of("vm", "bundle", ""));
        assert!(setup.is_applied(&key, 1) && !setup.is_applied(&key, 2));
        for next in [of("vm", "newer", ""), of("other", "newer", ""), of("other", "newer", "more")] {
            setup.note(&key, 1);
            setup.begin(&key, &next);
            assert!(!setup.is_applied(&key, 1), "{next:?}");
        }
        setup.note(&key, 1);
        setup.forget(&key);
        setup.begin(&key, &of("other", "newer", "more"));
        assert!(!setup.is_applied(&key, 1), "it was forgotten");
    }
}
