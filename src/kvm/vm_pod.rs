//! What the cache keeps of a VM pod: a whole Pod costs some 80 kB of memory, this a few hundred bytes.

use k8s_openapi::{Metadata, NamespaceResourceScope, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::{api::names, rollout::Leaving};

/// A Pod with the few fields that we read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VmPod {
    /// As in any object.
    pub metadata: ObjectMeta,
    /// See [`VmPodSpec`].
    #[serde(default)]
    pub spec: VmPodSpec,
    /// See [`VmPodStatus`].
    #[serde(default)]
    pub status: VmPodStatus,
}

/// The few fields of a Pod's spec that we read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmPodSpec {
    /// The host that it is on, once it has one.
    #[serde(default)]
    pub node_name: Option<String>,
}

/// The few fields of a Pod's status that we read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmPodStatus {
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    #[serde(default)]
    pub phase: String,
    /// Why it is in this phase, when kubelet says so (`Evicted` and the like).
    #[serde(default)]
    pub reason: String,
    /// Its address, once it has one.
    #[serde(default, rename = "podIP")]
    pub pod_ip: Option<String>,
    /// Conditions, `Ready` and `PodScheduled` among them.
    #[serde(default)]
    pub conditions: Vec<VmPodCondition>,
}

/// A condition of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VmPodCondition {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// For people.
    #[serde(default)]
    pub message: String,
}

impl Resource for VmPod {
    const API_VERSION: &'static str = "v1";
    const GROUP: &'static str = "";
    const KIND: &'static str = "Pod";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "pods";
    type Scope = NamespaceResourceScope;
}

impl Metadata for VmPod {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl VmPod {
    /// Whether its node belongs to a pool.
    pub fn is_worker(&self) -> bool {
        let role = self.metadata.labels.as_ref().and_then(|labels| labels.get(names::ROLE_LABEL));
        role.is_some_and(|role| role == names::ROLE_WORKER)
    }

    /// Whether the guest's API answers; of a worker, its kubelet.
    pub fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|condition| condition.status == "True")
    }

    /// Its name, which is that of its node.
    pub fn node(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The host that it is on, once it has one.
    pub fn host(&self) -> Option<&str> {
        self.spec.node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// Whether a VM may be running in it.
    pub fn runs(&self) -> bool {
        !matches!(self.status.phase.as_str(), "" | "Pending") && !self.is_finished()
    }

    /// Whether it is being deleted.
    pub fn is_going(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// The intent to replace or remove it, if it is written down. What nobody can read is no intent.
    pub fn leaving(&self) -> Option<Leaving> {
        let annotations = self.metadata.annotations.as_ref()?;
        let since = annotations.get(names::LEAVING_SINCE_ANNOTATION)?.parse().ok()?;
        let why = annotations.get(names::LEAVING_FOR_ANNOTATION).cloned().unwrap_or_default();
        Some(Leaving { since, why })
    }

    /// The hash of what of the spec its node was made for.
    pub fn wish(&self) -> Option<&String> {
        self.metadata.annotations.as_ref()?.get(names::NODE_WISH_ANNOTATION)
    }

    /// Whether kubelet has given up on it: such a pod never runs again.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether the scheduler finds no host for it.
    pub fn is_unschedulable(&self) -> bool {
        self.condition("PodScheduled").is_some_and(|condition| condition.status == "False")
    }

    /// Why it does not run, in words.
    pub fn trouble(&self) -> String {
        let scheduled = self.condition("PodScheduled").filter(|condition| condition.status == "False");
        match scheduled {
            Some(condition) => condition.message.clone(),
            None if self.is_finished() => format!("it ended: {} {}", self.status.phase, self.status.reason),
            None if self.status.phase == "Running" && self.is_worker() => "the guest's kubelet to answer".into(),
            None if self.status.phase == "Running" => "the guest's API to answer".into(),
            None => "its container to start".into(),
        }
    }

    fn condition(&self, type_: &str) -> Option<&VmPodCondition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }
}
