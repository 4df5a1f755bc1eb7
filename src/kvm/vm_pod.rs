//! What the cache keeps of a VM pod: a whole Pod costs some 80 kB of memory, this a few hundred bytes.

use jiff::Timestamp;
use k8s_openapi::{Metadata, NamespaceResourceScope, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::{
    api::{Reason, names},
    rollout::Leaving,
};

/// A VM that was started again so often does not come by itself, even if it runs at the moment. Once or twice is what a crash
/// of QEMU looks like.
const OFTEN: i32 = 3;

/// Words of the scheduler's, and what helps.
const CURES: [(&str, &str); 5] = [
    (
        "unbound immediate PersistentVolumeClaims",
        "if this lasts: a StorageClass must be the default, or be named by spec.etcd.storage.className",
    ),
    ("storageclass.storage.k8s.io", "spec.etcd.storage.className must name a StorageClass that is there"),
    ("Pod's node affinity", "the hosts of a zone carry its name as label giantnetes.io/zone"),
    ("Insufficient memory", "a host must have so much memory free: add one, or ask for a smaller machine"),
    ("Insufficient cpu", "a host must have so much CPU free: add one, or ask for a smaller machine"),
];
const IMAGE_CURE: &str = "the chart's settings.kubernetes.images must name it as the hosts' registry does";

/// What the scheduler says, and what helps.
fn with_cures(message: &str) -> String {
    let cures: Vec<_> = CURES.iter().filter(|(words, _)| message.contains(words)).map(|(_, cure)| *cure).collect();
    if cures.is_empty() { message.to_owned() } else { format!("{} ({})", message.trim_end(), cures.join("; ")) }
}

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
    pub pod_ip: Option<std::net::IpAddr>,
    /// That of its host, once it has one.
    #[serde(default, rename = "hostIP")]
    pub host_ip: Option<std::net::IpAddr>,
    /// Conditions, `Ready` and `PodScheduled` among them.
    #[serde(default)]
    pub conditions: Vec<VmPodCondition>,
    /// Its container with the VM.
    #[serde(default)]
    pub container_statuses: Vec<VmContainer>,
    /// The one that runs flanneld beside it, if the overlay is Flannel's: it starts first.
    #[serde(default)]
    pub init_container_statuses: Vec<VmContainer>,
}

/// The few fields of a container's status that we read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmContainer {
    /// Its image, as it was asked for.
    #[serde(default)]
    pub image: String,
    /// How it is.
    #[serde(default)]
    pub state: VmContainerState,
    /// How it was before its last start.
    #[serde(default)]
    pub last_state: VmContainerState,
    /// How often it was started again.
    #[serde(default)]
    pub restart_count: i32,
}

/// How a container is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VmContainerState {
    /// That it runs.
    pub running: Option<Running>,
    /// Why it does not run yet, or not at the moment.
    pub waiting: Option<Words>,
    /// How it ended.
    pub terminated: Option<Words>,
}

/// That a container runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Since when.
    pub started_at: Option<Timestamp>,
}

/// What kubelet says of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Words {
    /// For programs.
    #[serde(default)]
    pub reason: String,
    /// For people; of one that ended its last words, if it had any.
    #[serde(default)]
    pub message: String,
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

impl VmContainer {
    /// What keeps it from running, if that is not only a matter of time. `what` is what people call what runs in it.
    fn hindrance(&self, what: &str) -> Option<(Reason, String)> {
        let lasting = |why: &&Words| !matches!(why.reason.as_str(), "" | "ContainerCreating" | "PodInitializing");
        match (self.state.waiting.as_ref().filter(lasting), &self.last_state.terminated) {
            (Some(why), _) if why.reason.contains("Image") => {
                // The same cause is told in two ways by turns, and one contains the other.
                let cause = why.message.rsplit_once("ErrImagePull: ").map_or(why.message.as_str(), |(_, cause)| cause);
                let message = format!("its host cannot get the image {}: {cause} ({IMAGE_CURE})", self.image);
                Some((Reason::ImageNotFound, message))
            }
            (waiting, Some(ended)) if waiting.is_some() || self.restart_count >= OFTEN => {
                let last = ended.message.lines().rfind(|line| !line.trim().is_empty());
                let last = last.unwrap_or(&ended.reason).trim();
                Some((Reason::VMFails, format!("its {what} ends again and again: {last}")))
            }
            (Some(Words { reason, message }), _) => {
                Some((Reason::VMFails, format!("its container does not start: {reason}: {message}")))
            }
            (None, _) => None,
        }
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

    /// When its VM was started, if one runs.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.status.container_statuses.first()?.state.running.as_ref()?.started_at
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

    /// What keeps it from running that nobody but a person can mend.
    pub fn obstacle(&self) -> Option<Reason> {
        if let Some(condition) = self.unscheduled() {
            // A volume that is not there yet comes by itself, as a rule.
            return (!condition.message.contains("PersistentVolumeClaim")).then_some(Reason::Unschedulable);
        }
        self.hindrance().map(|(reason, _)| reason)
    }

    fn unscheduled(&self) -> Option<&VmPodCondition> {
        self.condition("PodScheduled").filter(|condition| condition.status == "False")
    }

    /// What keeps the container from running, if that is not only a matter of time.
    fn hindrance(&self) -> Option<(Reason, String)> {
        let beside = self.status.init_container_statuses.first().filter(|beside| beside.state.running.is_none());
        let vm = || self.status.container_statuses.first()?.hindrance("VM");
        beside.and_then(|beside| beside.hindrance("flanneld")).or_else(vm)
    }

    /// Whether hosts were passed over because they offer no KVM.
    pub fn lacks_kvm(&self) -> bool {
        self.unscheduled().is_some_and(|condition| condition.message.contains(names::KVM_RESOURCE))
    }

    /// Whether hosts were passed over because other control-plane nodes of its guest are there already.
    pub fn lacks_own_host(&self) -> bool {
        self.unscheduled().is_some_and(|condition| condition.message.contains("topology spread constraints"))
    }

    /// Its address, if it answers.
    pub fn answering_at(&self) -> Option<std::net::IpAddr> {
        self.status.pod_ip.filter(|_| self.is_ready())
    }

    /// Why it does not run, in words.
    pub fn trouble(&self) -> String {
        match self.unscheduled() {
            Some(condition) => with_cures(&condition.message),
            None if self.is_finished() => format!("it ended: {} {}", self.status.phase, self.status.reason),
            None if let Some((_, why)) = self.hindrance() => why,
            None if self.status.phase == "Running" && self.is_worker() => "the guest's kubelet to answer".into(),
            None if self.status.phase == "Running" => "the guest's API to answer".into(),
            None => "its container to start".into(),
        }
    }

    fn condition(&self, type_: &str) -> Option<&VmPodCondition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> VmPod {
        serde_json::from_value(json!({"metadata": {"name": "master-0"}, "status": status})).unwrap()
    }

    fn container(phase: &str, status: Value) -> VmPod {
        let mut status = status;
        status["image"] = json!("giantnetes/vm:v1");
        pod(
            json!({"phase": phase, "conditions": [{"type": "PodScheduled", "status": "True"}], "containerStatuses": [status]}),
        )
    }

    fn waiting(reason: &str, message: &str) -> Value {
        json!({"state": {"waiting": {"reason": reason, "message": message}}})
    }

    #[test]
    fn what_just_takes_its_time_is_no_obstacle() {
        let unbound = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.";
        let unbound = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": unbound}]});
        let running = container("Running", json!({"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}));
        // QEMU was killed once and runs again.
        let again =
            json!({"state": {"running": {}}, "lastState": {"terminated": {"reason": "Error"}}, "restartCount": 2});
        let new = pod(json!({"phase": "Pending"}));
        let creating = container("Pending", waiting("ContainerCreating", ""));
        for pod in [new, creating, running, container("Running", again), pod(unbound)] {
            assert_eq!(pod.obstacle(), None, "{pod:?}");
        }
    }

    #[test]
    fn a_node_that_no_host_takes_has_the_scheduler_s_words() {
        let message = "0/3 nodes are available: 3 Insufficient memory.";
        let pod = pod(json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": message}]}));
        assert_eq!(pod.obstacle(), Some(Reason::Unschedulable));
        let cure = "a host must have so much memory free: add one, or ask for a smaller machine";
        assert_eq!(pod.trouble(), format!("{message} ({cure})"));
        assert!(!pod.lacks_kvm());
    }

    #[test]
    fn what_helps_is_said_of_each_cause_and_of_nothing_else() {
        let said = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector.";
        let said = with_cures(said);
        assert!(said.contains("giantnetes.io/zone; a host must have so much CPU free"), "{said}");
        for unknown in
            ["3 node(s) had untolerated taint(s).", "3 node(s) didn't match PersistentVolume's node affinity."]
        {
            assert_eq!(with_cures(unknown), unknown);
        }
    }

    #[test]
    fn an_image_that_cannot_be_had_is_named_and_its_cause_said_in_one_way() {
        let cause = "rpc error: code = NotFound desc = giantnetes/vm:v1: not found";
        let said = [
            waiting("ErrImagePull", cause),
            waiting("ImagePullBackOff", &format!("Back-off pulling image \"giantnetes/vm:v1\": ErrImagePull: {cause}")),
        ];
        for status in said {
            let pod = container("Pending", status);
            assert_eq!(pod.obstacle(), Some(Reason::ImageNotFound));
            let said = format!("its host cannot get the image giantnetes/vm:v1: {cause} ({IMAGE_CURE})");
            assert_eq!(pod.trouble(), said);
        }
        let never = container("Pending", waiting("ErrImageNeverPull", "it is not present with pull policy of Never"));
        assert_eq!(never.obstacle(), Some(Reason::ImageNotFound));
    }

    #[test]
    fn a_vm_that_ends_again_and_again_has_its_last_words() {
        let mut status = waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container=vm pod=master-0_g8s-x");
        let words = "2026-01-01 INFO network is set up\ngiantnetes: choose the accelerator: there is no /dev/kvm\n";
        status["lastState"] = json!({"terminated": {"reason": "Error", "exitCode": 1, "message": words}});
        let pod = container("Running", status.clone());
        assert_eq!(pod.obstacle(), Some(Reason::VMFails));
        let last = "giantnetes: choose the accelerator: there is no /dev/kvm";
        assert_eq!(pod.trouble(), format!("its VM ends again and again: {last}"));
        // It is said as long as that goes on, not by turns with what it waits for.
        let again = json!({"state": {"running": {}}, "lastState": status["lastState"], "restartCount": OFTEN});
        assert_eq!(container("Running", again).trouble(), pod.trouble());
        status["lastState"]["terminated"].as_object_mut().unwrap().remove("message");
        assert_eq!(container("Running", status).trouble(), "its VM ends again and again: Error");
        let never = container("Pending", waiting("CreateContainerError", "no such device"));
        assert_eq!(never.trouble(), "its container does not start: CreateContainerError: no such device");
    }
}
