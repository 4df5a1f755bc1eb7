//! An object as a watch reads it: one that is not of the expected shape spoils neither its list nor its watch.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, core::ObjectMeta as KubeMeta};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// An object, or what is known of one that cannot be read.
#[derive(Clone, Debug)]
pub(super) struct Entry<K> {
    pub meta: ObjectMeta,
    /// The object without its managed fields, or why it is none.
    pub object: Result<K, String>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Entry<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            // Who wrote which field is of no use to a reconciler and is half of an object's size.
            meta.remove("managedFields");
        }
        // An object without readable metadata would have no name: the server stores none.
        let meta = ObjectMeta::deserialize(&value["metadata"]).map_err(serde::de::Error::custom)?;
        Ok(Self { meta, object: K::deserialize(value).map_err(|error| error.to_string()) })
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Entry<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &KubeMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut KubeMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_malformed_object_keeps_its_name() {
        let entry: Entry<ConfigMap> =
            serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n"}, "data": 5})).unwrap();
        assert_eq!(entry.meta.name.as_deref(), Some("a"));
        assert!(entry.object.unwrap_err().contains("expected a map"));
    }

    #[test]
    fn managed_fields_are_dropped() {
        let entry: Entry<ConfigMap> =
            serde_json::from_value(json!({"metadata": {"name": "a", "managedFields": [{"manager": "m"}]}})).unwrap();
        assert_eq!(entry.object.unwrap().metadata.managed_fields, None);
    }
}
