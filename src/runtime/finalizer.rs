//! Add and remove a finalizer without losing anybody else's.

use std::fmt::Debug;

use kube::{
    Api, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{CallError, call};

/// Adds `finalizer` as the field manager `manager`, unless it is there. Returns whether a write was needed: then the watch brings the changed
/// object, as it does if that is another by now.
///
/// The write names the object's UID and resourceVersion, so it never hits a namesake or undoes somebody else's change.
///
/// # Errors
/// [`CallError`]; a conflict (409) means that the object changed and the caller should look again.
pub async fn add<K>(api: &Api<K>, object: &K, finalizer: &str, manager: &str) -> Result<bool, CallError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    if object.finalizers().iter().any(|f| f == finalizer) {
        return Ok(false);
    }
    // The cache may lag behind our own write, and a look costs the server less than a refused write.
    let name = object.name_any();
    let live = call("get", name.clone(), api.get_metadata_opt(&name)).await?;
    if live.is_none_or(|live| live.metadata.resource_version != object.meta().resource_version) {
        return Ok(true);
    }
    let mut finalizers = object.finalizers().to_vec();
    finalizers.push(finalizer.to_owned());
    write(api, object, finalizers, manager).await?;
    Ok(true)
}

/// Removes `finalizer` if it is there. An object that is gone already counts as done.
///
/// # Errors
/// As [`add`].
pub async fn remove<K>(api: &Api<K>, object: &K, finalizer: &str, manager: &str) -> Result<(), CallError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    if !object.finalizers().iter().any(|f| f == finalizer) {
        return Ok(());
    }
    let finalizers = object.finalizers().iter().filter(|f| *f != finalizer).cloned().collect();
    match write(api, object, finalizers, manager).await {
        Err(error) if error.status() == Some(404) => Ok(()),
        other => other,
    }
}

async fn write<K>(api: &Api<K>, object: &K, finalizers: Vec<String>, manager: &str) -> Result<(), CallError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let patch = json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "finalizers": finalizers,
    }});
    let name = object.name_any();
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    call("patch finalizers of", name.clone(), api.patch(&name, &params, &Patch::Merge(patch))).await?;
    Ok(())
}
