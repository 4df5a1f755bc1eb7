//! Add-ons: what of a usable cluster runs in a guest's pods (Calico, CoreDNS, if asked for an ingress controller). Pure.
//!
//! Their manifests come with the VM image of the control plane, since they name container images that its node disk has. They
//! are applied when that image comes up for the first time, and not again: what users then change of them is theirs. What is
//! optional is applied, too, when a user asks for it, and goes when nobody does any more.

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::ConfigMap,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    ResourceExt as _,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    api::names,
    cluster::Valid,
    network::addresses::{self, Fabric},
};

/// Namespace of all add-ons.
pub const NAMESPACE: &str = "kube-system";
/// Selects the objects of add-ons.
pub const SELECTOR: &str = "giantnetes.io/addon=true";
/// Name of the ConfigMap that says what was applied.
pub const RECORD: &str = "giantnetes-addons";
const POD_KEY: &str = "vm-pod";
const BUNDLE_KEY: &str = "bundle";
const OPTIONS_KEY: &str = "options";
/// Label of objects that only guests have which ask for them; its value names what for.
pub const OPTIONAL_LABEL: &str = "giantnetes.io/optional";

/// What the ConfigMap [`RECORD`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// UID of the control-plane VM pod whose manifests were looked at last.
    pub pod: String,
    /// Hash of the manifests that were applied last.
    pub bundle: String,
    /// What optional parts were made for, as [`options`] says it.
    pub options: String,
}

impl Record {
    /// What a ConfigMap says; nothing, if there is none.
    pub fn read(map: Option<&ConfigMap>) -> Self {
        let value = |key: &str| map.and_then(|map| map.data.as_ref()?.get(key).cloned()).unwrap_or_default();
        Self { pod: value(POD_KEY), bundle: value(BUNDLE_KEY), options: value(OPTIONS_KEY) }
    }

    /// The ConfigMap that says it.
    pub fn write(&self) -> ConfigMap {
        let data = [(POD_KEY, &self.pod), (BUNDLE_KEY, &self.bundle), (OPTIONS_KEY, &self.options)];
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(RECORD.into()),
                namespace: Some(NAMESPACE.into()),
                labels: Some([(names::MANAGED_BY_LABEL.to_owned(), names::MANAGER.to_owned())].into()),
                ..ObjectMeta::default()
            },
            data: Some(data.map(|(key, value)| (key.to_owned(), value.clone())).into()),
            ..ConfigMap::default()
        }
    }
}

/// Instead of [`options`], while one wish gives way to another: equal to none, so that a wish that is taken back half-way is not
/// taken for one that was never there.
pub const CHANGING: &str = "changing";

/// What a Cluster asks for of the optional parts: empty, if nothing.
pub fn options(cluster: &Valid) -> String {
    let controller = cluster.ingress_controller.as_ref();
    controller.map(|controller| format!("ingress-controller={}", controller.replicas)).unwrap_or_default()
}

/// The manifests of all add-ons, for one guest.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The objects, with what they need to be applied.
    objects: Vec<AddOn>,
    /// Hash of all of them, as the VM image has them.
    pub hash: String,
    /// [`options`]
    pub options: String,
}

/// An object of an add-on.
#[derive(Clone, Debug)]
pub struct AddOn {
    /// What is needed to apply it.
    pub resource: ApiResource,
    /// The object.
    pub object: DynamicObject,
    /// Whether only guests have it which ask for it.
    pub optional: bool,
}

/// What is to be done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Apply it.
    Apply,
    /// Remove it.
    Remove,
}

/// Why manifests cannot be used. They are part of the VM image: another one is needed.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// No YAML.
    #[error("parse the add-ons of the VM image")]
    Parse(#[source] Box<serde_saphyr::Error>),
    /// Another image is needed, and by itself none comes.
    #[error(
        "the VM image of the control plane carries no ingress controller: `giantnetes roll` replaces the nodes by ones of the catalogue's image"
    )]
    NoIngressController,
    /// A document is no object.
    #[error("document {0} of the VM image's add-ons is no Kubernetes object")]
    Shape(usize),
}

impl Bundle {
    /// Fills in what the manifests leave open, and parses them.
    ///
    /// # Errors
    /// [`BundleError`]
    pub fn new(manifests: &str, cluster: &Valid) -> Result<Self, BundleError> {
        let text = fill_in(manifests, cluster);
        let hash = Sha256::digest(&text).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let mut documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).map_err(|error| BundleError::Parse(Box::new(error)))?;
        for document in &mut documents {
            if document["kind"] == "CustomResourceDefinition" {
                without_descriptions(&mut document["spec"]["versions"]);
            }
        }
        let objects = documents.into_iter().enumerate().map(|(place, value)| object(place, value));
        let mut objects = objects.collect::<Result<Vec<_>, _>>()?;
        if let Some(controller) = &cluster.ingress_controller {
            let scaled = objects.iter_mut().filter(|add_on| add_on.optional && add_on.resource.kind == "Deployment");
            scaled.for_each(|add_on| add_on.object.data["spec"]["replicas"] = controller.replicas.into());
        }
        Ok(Self { objects, hash, options: options(cluster) })
    }

    /// What is to be done in a guest of which `record` says what was, with the places of the objects in the bundle.
    ///
    /// # Errors
    /// [`BundleError::NoIngressController`], if one is asked for, or is to go, of which the image knows nothing.
    pub fn due(self, record: &Record) -> Result<Vec<(usize, Deed, AddOn)>, BundleError> {
        let (renewed, asked) = (record.bundle != self.hash, record.options != self.options);
        let wanted = !self.options.is_empty();
        if (wanted || asked) && !self.objects.iter().any(|add_on| add_on.optional) {
            return Err(BundleError::NoIngressController);
        }
        let deed = |add_on: &AddOn| match add_on.optional {
            false => renewed.then_some(Deed::Apply),
            true if wanted => (renewed || asked).then_some(Deed::Apply),
            true => asked.then_some(Deed::Remove),
        };
        let all = self.objects.into_iter().enumerate();
        Ok(all.filter_map(|(place, add_on)| Some((place, deed(&add_on)?, add_on))).collect())
    }
}

fn fill_in(manifests: &str, cluster: &Valid) -> String {
    let ranges = &cluster.ranges;
    let values = [
        ("{{POD_CIDR}}", ranges.pods.to_string()),
        ("{{DNS_ADDRESS}}", addresses::dns(ranges.services).to_string()),
        // Between networks of one node each nobody knows the way to pods: Calico carries their packets in packets of the nodes'.
        ("{{POOL_VXLAN}}", if ranges.overlay.fabric == Fabric::Routed { "Always" } else { "Never" }.to_owned()),
        // 0: Calico takes the overlay's, less what that takes.
        ("{{POD_MTU}}", cluster.mtu.pods.unwrap_or(0).to_string()),
    ];
    values.iter().fold(manifests.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// Takes the prose out of schemas. It is most of their text, and an API server merges all schemas anew with each definition
/// that comes: work that a small emulated node is better spared.
fn without_descriptions(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            // A property of that name is an object, prose is a text.
            fields.retain(|name, value| !(name == "description" && value.is_string()));
            fields.values_mut().for_each(without_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(without_descriptions),
        _ => {}
    }
}

fn object(place: usize, value: Value) -> Result<AddOn, BundleError> {
    let shape = BundleError::Shape(place + 1);
    let Ok(object) = serde_json::from_value::<DynamicObject>(value) else { return Err(shape) };
    let kind = object.types.as_ref().and_then(|types| GroupVersionKind::try_from(types).ok());
    let Some(kind) = kind.filter(|_| object.metadata.name.is_some()) else { return Err(shape) };
    // Plural names follow the rule for every kind that add-ons have.
    let optional = object.labels().contains_key(OPTIONAL_LABEL);
    Ok(AddOn { resource: ApiResource::from_gvk(&kind), object, optional })
}

/// The first workload that does not serve yet, in words. On `silent` nodes, which were given up, no DaemonSet has a pod that
/// could be ready, although its controller wants one there for as long as their Nodes are there.
pub fn unready(daemon_sets: &[DaemonSet], deployments: &[Deployment], silent: usize) -> Option<String> {
    let silent = i32::try_from(silent).unwrap_or(i32::MAX);
    let daemon_set = |set: &DaemonSet| {
        let status = set.status.clone().unwrap_or_default();
        let wanted = status.desired_number_scheduled.saturating_sub(silent);
        let current = status.observed_generation >= set.metadata.generation
            && status.updated_number_scheduled.unwrap_or(0) >= wanted;
        (current && wanted > 0, status.number_ready, wanted, set.name_any())
    };
    let deployment = |deployment: &Deployment| {
        let status = deployment.status.clone().unwrap_or_default();
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let current = status.observed_generation >= deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) >= wanted;
        (current, status.ready_replicas.unwrap_or(0), wanted, deployment.name_any())
    };
    let all = daemon_sets.iter().map(daemon_set).chain(deployments.iter().map(deployment));
    let late = all.into_iter().find(|(current, ready, wanted, _)| !current || ready < wanted);
    late.map(|(_, ready, wanted, name)| format!("add-on {name} ({ready}/{wanted} pods ready)"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::valid;

    const MANIFESTS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: kube-system}
data: {pods: '{{POD_CIDR}}', dns: '{{DNS_ADDRESS}}', mtu: '{{POD_MTU}}'}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ippools.crd.projectcalico.org}
spec:
  versions: [{schema: {openAPIV3Schema: {description: prose, properties: {description: {type: string}}}}}]
";

    #[test]
    fn manifests_are_filled_in_for_the_guest() {
        let spec = json!({"kubernetes": {"podCIDR": "10.8.0.0/16", "serviceCIDR": "10.9.0.0/16"}});
        let bundle = Bundle::new(MANIFESTS, &valid(spec)).unwrap();
        let [map, definition] = &bundle.objects[..] else { panic!("{bundle:?}") };
        let plurals = [map, definition].map(|add_on| add_on.resource.plural.as_str());
        assert_eq!(plurals, ["configmaps", "customresourcedefinitions"]);
        assert_eq!(map.object.data["data"], json!({"pods": "10.8.0.0/16", "dns": "10.9.0.10", "mtu": "0"}));
        let schema = json!({"properties": {"description": {"type": "string"}}});
        assert_eq!(definition.object.data["spec"]["versions"][0]["schema"]["openAPIV3Schema"], schema);
        assert_ne!(bundle.hash, Bundle::new(MANIFESTS, &valid(json!({}))).unwrap().hash);
    }

    #[test]
    fn what_is_optional_comes_when_it_is_asked_for_and_goes_with_the_wish() {
        let optional = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: extra, labels: {giantnetes.io/optional: x}}\n\
            spec: {replicas: 1}\n";
        let (manifests, with) = (format!("{MANIFESTS}{optional}"), |replicas: i32| {
            valid(json!({"ingressController": {"enabled": true, "replicas": replicas}}))
        });
        let without = valid(json!({}));
        let mut record = Record::default();
        // Answers what was done with which object, and how many pods the optional one was to have.
        let mut next = |cluster: &Valid, text: &str| {
            let bundle = Bundle::new(text, cluster).unwrap();
            let now = Record { pod: "vm".into(), bundle: bundle.hash.clone(), options: bundle.options.clone() };
            let due = bundle.due(&std::mem::replace(&mut record, now)).unwrap();
            let replicas = due.iter().find_map(|(.., add_on)| add_on.object.data["spec"]["replicas"].as_i64());
            (due.into_iter().map(|(place, deed, _)| (place, deed)).collect::<Vec<_>>(), replicas)
        };
        use Deed::{Apply, Remove};
        assert_eq!(next(&without, &manifests), (vec![(0, Apply), (1, Apply)], None));
        assert_eq!(next(&without, &manifests), (vec![], None));
        assert_eq!(next(&with(2), &manifests), (vec![(2, Apply)], Some(2)));
        assert_eq!(next(&with(2), &manifests), (vec![], None));
        assert_eq!(next(&with(3), &manifests), (vec![(2, Apply)], Some(3)));
        // Another VM image has others.
        let newer = manifests.replace("name: a,", "name: b,");
        assert_eq!(next(&with(3), &newer), (vec![(0, Apply), (1, Apply), (2, Apply)], Some(3)));
        assert_eq!(next(&without, &newer), (vec![(2, Remove)], Some(1)));
        assert_eq!(next(&without, &newer), (vec![], None));
        // A wish that gave way half-way is carried out, whatever it is.
        let half =
            Record { pod: "vm".into(), bundle: Bundle::new(&newer, &without).unwrap().hash, options: CHANGING.into() };
        for (cluster, deed) in [(&without, Remove), (&with(1), Apply)] {
            let due = Bundle::new(&newer, cluster).unwrap().due(&half).unwrap();
            assert!(matches!(&due[..], [(2, found, _)] if *found == deed), "{due:?}");
        }
        // An image of before knows nothing of it.
        let of_before = |cluster: &Valid, record: &Record| Bundle::new(MANIFESTS, cluster).unwrap().due(record);
        assert!(of_before(&without, &Record::default()).is_ok());
        assert!(matches!(of_before(&with(1), &Record::default()), Err(BundleError::NoIngressController)));
        assert!(matches!(of_before(&without, &half), Err(BundleError::NoIngressController)));
    }

    #[test]
    fn what_is_no_manifest_is_an_error_and_no_panic() {
        let error = |text: &str| Bundle::new(text, &valid(json!({}))).unwrap_err().to_string();
        assert!(error("a: [").contains("parse"));
        assert!(error("kind: ConfigMap").contains("document 1"));
        assert!(error(&format!("{MANIFESTS}---\napiVersion: v1\nkind: Secret\n")).contains("document 3"));
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let record = Record { pod: "uid".into(), bundle: "hash".into(), options: "more".into() };
        assert_eq!(Record::read(Some(&record.write())), record);
        assert_eq!(Record::read(None), Record::default());
    }

    #[test]
    fn an_addon_is_ready_when_all_of_its_current_pods_are() {
        let set = |ready: i32, generation: i64| -> DaemonSet {
            serde_json::from_value(json!({"metadata": {"name": "calico-node", "generation": 1}, "status": {
                "observedGeneration": generation, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2,
                "numberReady": ready, "currentNumberScheduled": 2, "numberMisscheduled": 0,
            }}))
            .unwrap()
        };
        let dns = |ready: i32, updated: i32| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {"name": "coredns", "generation": 1}, "spec": {"selector": {}, "template": {}},
                "status": {"observedGeneration": 1, "readyReplicas": ready, "updatedReplicas": updated},
            }))
            .unwrap()
        };
        assert_eq!(unready(&[set(2, 1)], &[], 0), None);
        assert_eq!(unready(&[set(1, 1)], &[], 0).unwrap(), "add-on calico-node (1/2 pods ready)");
        assert!(unready(&[set(2, 0)], &[], 0).is_some());
        assert_eq!(unready(&[set(2, 1)], &[dns(1, 1)], 0), None);
        assert_eq!(unready(&[set(2, 1)], &[dns(0, 1)], 0).unwrap(), "add-on coredns (0/1 pods ready)");
        assert!(unready(&[set(2, 1)], &[dns(1, 0)], 0).is_some(), "the pod that is ready is of a former version");
        // One of both nodes is silent and given up.
        assert_eq!(unready(&[set(1, 1)], &[], 1), None);
        assert_eq!(unready(&[set(0, 1)], &[], 1).unwrap(), "add-on calico-node (0/1 pods ready)");
    }
}
