//! Make an object so, and write nothing when it is so already.
//!
//! New objects are created with POST and updates carry the UID that was observed, so a foreign object of the same name
//! is refused, never merged into (server-side apply alone would do that). Whose an object is, is decided by an
//! annotation that holds the owner's UID.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{CallError, call};

/// Whose objects are applied: written into the annotation `annotation` of each, and compared before every update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Annotation that holds the owner's UID.
    pub annotation: &'static str,
    /// The owner's UID.
    pub uid: String,
}

/// What applying an object did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was not there.
    Created,
    /// It differed.
    Updated,
    /// It was so already; nothing was written.
    Unchanged,
    /// It is being deleted; it is made anew when it is gone.
    Terminating,
}

/// Why an object could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// An object of this name belongs to somebody else. It is left alone.
    #[error("{object} exists and is not ours; delete or rename it")]
    Foreign {
        /// `kind namespace/name`
        object: String,
    },
    /// The object cannot be written as JSON.
    #[error("encode {object}")]
    Encode {
        /// `kind namespace/name`
        object: String,
        /// The encoder's error.
        #[source]
        source: serde_json::Error,
    },
}

impl ApplyError {
    /// Whether the server takes no object like this one: it has no such kind, gives no right to it, or finds fault with it.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Call(error) if matches!(error.status(), Some(400 | 403 | 404 | 422)))
    }
}

/// resourceVersions, by UID, at which objects were last seen to be as asked for. Saves the read, not the rule. Clones
/// share it; whoever watches objects go owes it a [`Memory::forget`] for each.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Remembered>>);

#[derive(Debug, Default)]
struct Remembered {
    verified: HashMap<String, String>,
    /// UIDs of what was made a moment ago and may not be in the cache yet, by `kind namespace/name`.
    made: HashMap<String, (String, Instant)>,
    /// When objects went, by UID: of one that was deleted at once, the watch may tell before the answer to its creation.
    gone: HashMap<String, Instant>,
}

/// How long a cache may lag behind what was made. Later, the server is asked.
const CACHE_LAG: Duration = Duration::from_secs(5);
/// How long an answer to a creation may lag behind the watch: longer than calls take.
const ANSWER_LAG: Duration = Duration::from_secs(30);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that an object is as asked for at this resourceVersion.
    pub fn remember(&self, meta: &ObjectMeta) {
        if let (Some(uid), Some(version)) = (&meta.uid, &meta.resource_version) {
            self.lock().verified.insert(uid.clone(), version.clone());
        }
    }

    /// Whether an object was seen to be as asked for at this resourceVersion.
    pub fn is_verified(&self, meta: &ObjectMeta) -> bool {
        meta.uid.as_ref().and_then(|uid| self.lock().verified.get(uid).cloned()) == meta.resource_version
    }

    fn remember_made(&self, name: &str, meta: &ObjectMeta) {
        let uid = meta.uid.clone().unwrap_or_default();
        let mut remembered = self.lock();
        remembered.made.retain(|_, (_, at)| at.elapsed() < CACHE_LAG);
        if !remembered.gone.contains_key(&uid) {
            remembered.made.insert(name.to_owned(), (uid, Instant::now()));
        }
    }

    /// Whether the object was made a moment ago; the cache will have it soon.
    fn was_just_made(&self, name: &str) -> bool {
        let mut remembered = self.lock();
        let recent = remembered.made.get(name).is_some_and(|(_, at)| at.elapsed() < CACHE_LAG);
        if !recent {
            remembered.made.remove(name);
        }
        recent
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, meta: &ObjectMeta) {
        if let Some(uid) = &meta.uid {
            let mut remembered = self.lock();
            remembered.verified.remove(uid);
            remembered.made.retain(|_, (made, _)| made != uid);
            remembered.gone.retain(|_, at| at.elapsed() < ANSWER_LAG);
            remembered.gone.insert(uid.clone(), Instant::now());
        }
    }
}

/// Applies objects under one field manager.
#[derive(Clone, Debug)]
pub struct Applier {
    manager: &'static str,
    hash_annotation: &'static str,
    memory: Memory,
}

impl Applier {
    /// An applier whose field manager is `manager`; `hash_annotation` receives a hash of what was asked for.
    pub fn new(manager: &'static str, hash_annotation: &'static str, memory: &Memory) -> Self {
        Self { manager, hash_annotation, memory: memory.clone() }
    }

    /// Makes `desired` so. `cached` is the metadata of the object as the cache has it, if it has it.
    ///
    /// # Errors
    /// [`ApplyError`]
    pub async fn ensure<K>(
        &self,
        api: &Api<K>,
        owner: &Owner,
        desired: &K,
        cached: Option<&ObjectMeta>,
    ) -> Result<Applied, ApplyError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
    {
        self.ensure_exactly(api, owner, desired, cached, &[]).await
    }

    /// As [`Applier::ensure`], but at the JSON pointers `exact` nothing may be beside what is desired: what others added there,
    /// or what was desired when the object was made and is no more, is taken away, which an apply alone would leave.
    ///
    /// # Errors
    /// [`ApplyError`]
    pub async fn ensure_exactly<K>(
        &self,
        api: &Api<K>,
        owner: &Owner,
        desired: &K,
        cached: Option<&ObjectMeta>,
        exact: &[&str],
    ) -> Result<Applied, ApplyError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
    {
        let name = describe(desired);
        let (desired, hash) = self.complete(owner, desired, &name)?;
        let live = match cached {
            None if self.memory.was_just_made(&name) => return Ok(Applied::Unchanged),
            None => match call("create", &name, api.create(&self.post(), &typed::<K>(&desired, &name)?)).await {
                Ok(made) => {
                    self.memory.remember(made.meta());
                    self.memory.remember_made(&name, made.meta());
                    return Ok(Applied::Created);
                }
                Err(error) if error.status() == Some(409) => {
                    call("get", &name, api.get(&desired_name(&desired))).await?
                }
                Err(error) => return Err(error.into()),
            },
            Some(meta) => {
                owner.check(meta, &name)?;
                if meta.deletion_timestamp.is_some() {
                    return Ok(Applied::Terminating);
                }
                if annotation(meta, self.hash_annotation) == Some(&hash) && self.memory.is_verified(meta) {
                    return Ok(Applied::Unchanged);
                }
                match call("get", &name, api.get_opt(&desired_name(&desired))).await? {
                    Some(live) => live,
                    // The cache lags behind a deletion; the watch will say so and call us again.
                    None => return Ok(Applied::Terminating),
                }
            }
        };
        owner.check(live.meta(), &name)?;
        if live.meta().deletion_timestamp.is_some() {
            return Ok(Applied::Terminating);
        }
        let seen = serde_json::to_value(&live).map_err(|source| ApplyError::Encode { object: name.clone(), source })?;
        let changed: Vec<_> = exact.iter().filter(|path| seen.pointer(path) != desired.pointer(path)).collect();
        if changed.is_empty() && contains(&seen, &desired) {
            self.memory.remember(live.meta());
            return Ok(Applied::Unchanged);
        }
        if !changed.is_empty() {
            let mut whole = seen;
            for path in changed {
                match (whole.pointer_mut(path), desired.pointer(path)) {
                    (Some(place), Some(value)) => *place = value.clone(),
                    (Some(_), None) => remove(&mut whole, path),
                    (None, _) => {}
                }
            }
            // Carries the UID and resourceVersion that were read.
            let made =
                call("replace", &name, api.replace(&live.name_any(), &self.post(), &typed(&whole, &name)?)).await?;
            let seen =
                serde_json::to_value(&made).map_err(|source| ApplyError::Encode { object: name.clone(), source })?;
            if contains(&seen, &desired) {
                self.memory.remember(made.meta());
                return Ok(Applied::Updated);
            }
        }
        let mut patch = desired;
        // Server-side apply refuses (409) when the UID is not that of the object it meets.
        patch["metadata"]["uid"] = live.uid().into();
        let params = PatchParams::apply(self.manager).force();
        let made = call("apply", &name, api.patch(&live.name_any(), &params, &Patch::Apply(&patch))).await?;
        self.memory.remember(made.meta());
        Ok(Applied::Updated)
    }

    /// Forgets an object that was deleted where no watch tells.
    pub fn forget(&self, meta: &ObjectMeta) {
        self.memory.forget(meta);
    }

    fn post(&self) -> PostParams {
        PostParams { field_manager: Some(self.manager.into()), ..PostParams::default() }
    }

    /// The desired object as JSON, with the owner's UID and a hash in its annotations.
    fn complete<K>(&self, owner: &Owner, desired: &K, name: &str) -> Result<(Value, String), ApplyError>
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let mut value =
            serde_json::to_value(desired).map_err(|source| ApplyError::Encode { object: name.to_owned(), source })?;
        value["apiVersion"] = K::api_version(&()).into();
        value["kind"] = K::kind(&()).into();
        let hash = hash(&value);
        let annotations = &mut value["metadata"]["annotations"];
        annotations[owner.annotation] = owner.uid.clone().into();
        annotations[self.hash_annotation] = hash.clone().into();
        Ok((value, hash))
    }
}

impl Owner {
    /// Whether an object belongs to this owner.
    pub fn owns(&self, meta: &ObjectMeta) -> bool {
        annotation(meta, self.annotation) == Some(&self.uid)
    }

    fn check(&self, meta: &ObjectMeta, object: &str) -> Result<(), ApplyError> {
        if self.owns(meta) { Ok(()) } else { Err(ApplyError::Foreign { object: object.to_owned() }) }
    }
}

/// Deletes the object with exactly this UID. One that is gone, or has another UID by now, counts as done.
///
/// # Errors
/// [`CallError`]
pub async fn delete<K>(api: &Api<K>, meta: &ObjectMeta, grace: Option<u32>) -> Result<(), CallError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let what = format!("{} {}", K::kind(&()), meta.name.as_deref().unwrap_or_default());
    delete_as(what, api, meta, grace).await
}

/// [`delete`] of an object of any kind, which is called `what` in messages.
///
/// # Errors
/// [`CallError`]
pub async fn delete_as<K>(what: String, api: &Api<K>, meta: &ObjectMeta, grace: Option<u32>) -> Result<(), CallError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let name = meta.name.clone().unwrap_or_default();
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: None }),
        grace_period_seconds: grace,
        ..DeleteParams::default()
    };
    match call("delete", what, api.delete(&name, &params)).await {
        Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// Deletes those objects that match `labels`, belong to `owner`, and whose names `keep` does not want. Answers the names of
/// those that the server itself still has: empty means that they are gone.
///
/// # Errors
/// [`CallError`]
pub async fn prune<K>(
    api: &Api<K>,
    labels: &str,
    owner: &Owner,
    grace: Option<u32>,
    keep: impl Fn(&str) -> bool,
) -> Result<Vec<String>, CallError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let params = ListParams::default().labels(labels);
    let found = call("list", format!("{} {labels}", K::plural(&())), api.list_metadata(&params)).await?;
    let mut left = Vec::new();
    for object in found.items {
        let name = object.metadata.name.clone().unwrap_or_default();
        if !owner.owns(&object.metadata) || keep(&name) {
            continue;
        }
        if object.metadata.deletion_timestamp.is_none() {
            delete(api, &object.metadata, grace).await?;
        }
        left.push(name);
    }
    Ok(left)
}

/// `kind namespace/name` of an object, for messages.
pub fn describe<K: Resource<DynamicType = ()>>(object: &K) -> String {
    let kind = K::kind(&());
    let name = object.name_any();
    match object.namespace() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// SHA-256 over the JSON of a value, in hexadecimal, shortened to 16 characters: enough to tell two wishes apart.
pub fn hash(value: &Value) -> String {
    let digest = Sha256::digest(value.to_string().as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a String> {
    meta.annotations.as_ref().and_then(|annotations| annotations.get(key))
}

fn typed<K: DeserializeOwned>(value: &Value, object: &str) -> Result<K, ApplyError> {
    K::deserialize(value).map_err(|source| ApplyError::Encode { object: object.to_owned(), source })
}

fn desired_name(desired: &Value) -> String {
    desired["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// Whether everything that `desired` says is so in `live`; what the server or others added beside it does not count.
fn contains(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired.iter().all(|(key, wanted)| match live.get(key) {
            Some(value) => contains(value, wanted),
            None => is_empty(wanted),
        }),
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len() && live.iter().zip(desired).all(|(l, d)| contains(l, d))
        }
        (live, desired) => live == desired,
    }
}

/// Takes away what is at a JSON pointer.
fn remove(whole: &mut Value, path: &str) {
    let Some((parent, key)) = path.rsplit_once('/') else { return };
    if let Some(Value::Object(fields)) = whole.pointer_mut(parent) {
        fields.remove(&key.replace("~1", "/").replace("~0", "~"));
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        // `false` is left out by the server where it is the default.
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn additions_of_others_are_no_difference_and_changes_are() {
        let desired = json!({"spec": {"ports": [{"port": 1}], "selector": {"a": "b"}, "nothing": {}}});
        let live =
            json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "selector": {"a": "b"}, "clusterIP": "x"}});
        assert!(contains(&live, &desired));
        for (path, value) in [
            ("/spec/ports", json!([{"port": 2}])),
            ("/spec/ports", json!([])),
            ("/spec/ports", json!([{"port": 1}, {"port": 3}])),
            ("/spec/selector/a", json!("c")),
        ] {
            let mut changed = live.clone();
            *changed.pointer_mut(path).unwrap() = value;
            assert!(!contains(&changed, &desired), "{path}");
        }
        assert!(!contains(&json!({"spec": {}}), &desired));
    }

    #[test]
    fn what_is_at_a_pointer_is_removed_and_nothing_else() {
        let mut whole = json!({"a": {"x.io/y~z": 1, "b": 2}});
        remove(&mut whole, "/a/x.io~1y~0z");
        remove(&mut whole, "/a/c/d");
        assert_eq!(whole, json!({"a": {"b": 2}}));
    }

    #[test]
    fn what_went_before_its_creation_was_answered_is_not_waited_for() {
        let memory = Memory::default();
        let meta = |uid: &str| ObjectMeta { uid: Some(uid.to_owned()), ..ObjectMeta::default() };
        memory.remember_made("Service a/b", &meta("1"));
        assert!(memory.was_just_made("Service a/b"));
        memory.forget(&meta("1"));
        assert!(!memory.was_just_made("Service a/b"));
        memory.forget(&meta("2"));
        memory.remember_made("Service a/b", &meta("2"));
        assert!(!memory.was_just_made("Service a/b"), "nobody would make it again");
    }

    #[test]
    fn ownership_is_by_uid() {
        let owner = Owner { annotation: "x/uid", uid: "1".into() };
        let meta = |uid: &str| ObjectMeta {
            annotations: Some([("x/uid".to_owned(), uid.to_owned())].into()),
            ..ObjectMeta::default()
        };
        assert!(owner.owns(&meta("1")));
        assert!(!owner.owns(&meta("2")));
        assert!(!owner.owns(&ObjectMeta::default()));
    }
}
