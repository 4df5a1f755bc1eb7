//! The objects of a guest in the order in which they are made, from the same plans that the reconcilers use.

use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt as _, api::ApiResource};
use serde::Serialize;
use serde_json::{Value, json};

use super::Failure;
use crate::{
    api::names,
    cluster::{self, Valid, valid::Exposure},
    guest,
    kvm::plan::{self as kvm, NodeObjects, Surroundings, control_plane_node, worker_node},
    network::{
        claims::{self, VniChoice},
        exposure, guest_ingress,
        places::{self, Place, Places},
        plan as network, policies, tls_route,
    },
    pki::{
        plan::{self as pki, World},
        roots::{self, Root},
    },
    settings::Settings,
};

/// One object that is made.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The micro-operator that makes it.
    pub part: &'static str,
    /// What it is.
    pub object: Object,
    /// What for.
    pub purpose: &'static str,
    /// What must be there before.
    pub waits_for: Vec<String>,
    /// The object, or of Secrets what they shall hold: keys are random.
    pub body: Value,
    /// Whether a change of it replaces this node.
    pub rolls: Option<String>,
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub resource: ApiResource,
    pub namespace: Option<String>,
    pub name: String,
    /// Whether it lies elsewhere than in the management cluster: in the guest's own API, or in AWS.
    pub in_guest: bool,
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, name) = (&self.resource.kind, &self.name);
        match &self.namespace {
            Some(namespace) => write!(f, "{kind} {namespace}/{name}"),
            None => write!(f, "{kind} {name}"),
        }
    }
}

/// What is known of the management cluster, or assumed.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// The VNI that the guest has or gets.
    pub vni: u32,
    /// UID of the guest's namespace.
    pub namespace_uid: String,
    /// URL of the guest's API.
    pub endpoint: String,
    /// Address of the guest's API inside the management cluster.
    pub api_address: IpAddr,
    /// Whether etcd was seen to hold the guest's objects.
    pub etcd_formed: bool,
    /// Workers that are there.
    pub workers: Vec<kvm::Known>,
}

impl Known {
    /// The places that are written down.
    pub(super) fn places(&self) -> impl Iterator<Item = (String, Place)> {
        self.workers.iter().filter_map(|worker| Some((worker.node.clone(), worker.place?)))
    }

    /// The places that all workers get.
    fn all_places(&self, valid: &Valid) -> Places {
        let workers = kvm::workers(valid, &self.workers);
        places::plan(workers.iter().map(|(_, node)| node.as_str()), self.places(), places::room(valid))
    }

    /// What is assumed if nothing exists.
    pub(super) fn nothing(valid: &Valid) -> Result<Self, Failure> {
        match claims::choose_vni(&valid.identity, valid.requested_vni, None, |_| None) {
            VniChoice::Claim(vni) | VniChoice::Held(vni) => Ok(Self {
                vni,
                namespace_uid: "<uid of the namespace>".into(),
                endpoint: format!("https://<address of Service {}>:6443", endpoint_service(valid)),
                api_address: Ipv4Addr::UNSPECIFIED.into(),
                etcd_formed: false,
                workers: Vec::new(),
            }),
            VniChoice::InUse(..) | VniChoice::Exhausted => Err("no VNI can be claimed".into()),
        }
    }
}

/// The Service whose address people reach the guest's API at.
fn endpoint_service(valid: &Valid) -> &'static str {
    match valid.exposure {
        Exposure::LoadBalancer { .. } => names::BALANCED_SERVICE,
        Exposure::None | Exposure::Ingress { .. } | Exposure::TLSRoute { .. } => names::MASTER_SERVICE,
    }
}

/// Every step for a Cluster.
pub(super) fn of(valid: &Valid, settings: &Settings, known: &Known) -> Result<Vec<Step>, Failure> {
    let identity = &valid.identity;
    let namespace = format!("namespace {}", identity.namespace);
    #[cfg(feature = "aws")]
    if let Some(aws) = &valid.aws {
        let mut steps = vec![step("cluster", "the guest's namespace", &cluster::plan::namespace(identity), &[])?];
        steps.extend(pki_steps(valid, &namespace, known));
        steps.extend(super::stacks::of(valid, aws, settings)?);
        return Ok(steps);
    }
    let mut steps = vec![
        step("cluster", "the guest's namespace", &cluster::plan::namespace(identity), &[])?,
        step("network", "the VNI", &claims::claim(identity, known.vni), &[])?,
        step("network", "what reaches the guest", &policies::policy(valid, settings), &[&namespace])?,
        step("network", "the Service in front of the API", &network::master_service(valid), &[&namespace])?,
    ];
    let mut needs = vec![namespace.as_str()];
    if let Some(host) = valid.exposure.host() {
        steps.push(step("network", "the host name", &claims::host_claim(identity, host.as_str()), &[])?);
        needs.push("the host name");
    }
    let way = "the way to the API from outside";
    match &valid.exposure {
        Exposure::Ingress { host, class } => {
            let class = exposure::named_class(class.as_deref(), &settings.exposure);
            let ingress = exposure::ingress(identity, host, class, &settings.exposure);
            steps.push(step("network", way, &ingress, &needs)?);
        }
        Exposure::TLSRoute { host, gateway: Some(gateway) } => {
            steps.push(step("network", way, &tls_route::route(identity, host, gateway), &needs)?);
        }
        Exposure::LoadBalancer { host } => {
            let service = exposure::balanced_service(valid, host.as_ref(), &settings.exposure);
            steps.push(step("network", "the load balancer in front of the API", &service, &needs)?);
        }
        Exposure::TLSRoute { gateway: None, .. } | Exposure::None => {}
    }
    if let Some(controller) = &valid.ingress_controller {
        let service = guest_ingress::service(
            valid,
            controller,
            valid.pools.iter().any(|pool| pool.replicas > 0),
            &settings.exposure,
        );
        steps.push(step("network", "the Service in front of the guest's ingress controller", &service, &[&namespace])?);
    }
    if valid.has_peers() {
        let purpose = "the Service by which nodes find each other";
        steps.push(step("network", purpose, &network::nodes_service(valid), &[&namespace])?);
    }
    steps.extend(pki_steps(valid, &namespace, known));
    let around = Surroundings {
        vni: known.vni,
        api_address: known.api_address,
        namespace_uid: &known.namespace_uid,
        etcd_formed: known.etcd_formed,
        settings,
    };
    let mut needs = vec!["the VNI", "the certificates"];
    if !settings.kvm.enabled {
        needs.push("the KVM provider, which is off in the operator's settings");
    }
    let budget = kvm::budget(valid, kvm::workers(valid, &known.workers).len());
    steps.push(step("kvm", "what refuses evictions of VMs", &budget, &["the VNI"])?);
    for index in 0..valid.control_plane.replicas {
        let NodeObjects { claim, config, pod } = control_plane_node(valid, index, around)?;
        if let Some(claim) = claim {
            steps.push(step("kvm", "etcd's volume", &claim, &needs)?);
        }
        steps.push(step("kvm", "the node's configuration", &config, &needs)?);
        steps.push(Step { rolls: Some(names::master(index)), ..step("kvm", "the node", &pod, &needs)? });
    }
    let places = known.all_places(valid);
    for (pool, node) in kvm::workers(valid, &known.workers) {
        let Some(place) = places.given.get(&node) else { continue };
        let NodeObjects { config, pod, .. } = worker_node(valid, pool, &node, *place, around)?;
        // Its certificates are for the place that the configuration names.
        let first: Vec<_> = needs.iter().filter(|need| **need != "the certificates").copied().collect();
        steps.push(step("kvm", "the worker's configuration", &config, &first)?);
        steps.push(Step { rolls: Some(node), ..step("kvm", "the worker", &pod, &needs)? });
    }
    let rights = "rights, inside the guest";
    let roles = guest::plan::roles().map(|role| step("guest", rights, &role, &["the control plane"]));
    let bindings = guest::plan::bindings().map(|binding| step("guest", rights, &binding, &["the control plane"]));
    for step in roles.into_iter().chain(bindings) {
        let mut step = step?;
        step.object.in_guest = true;
        steps.push(step);
    }
    Ok(steps)
}

fn step<K>(part: &'static str, purpose: &'static str, object: &K, waits_for: &[&str]) -> Result<Step, Failure>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    Ok(Step {
        part,
        object: Object {
            resource: ApiResource::erase::<K>(&()),
            namespace: object.namespace(),
            name: object.name_any(),
            in_guest: false,
        },
        purpose,
        waits_for: waits_for.iter().map(|what| (*what).to_owned()).collect(),
        body: serde_json::to_value(object)?,
        rolls: None,
    })
}

/// The steps of pki as if each were carried out at once.
fn pki_steps(valid: &Valid, namespace: &str, known: &Known) -> Vec<Step> {
    let mut world = World {
        namespace: true,
        endpoint: Some(known.endpoint.clone()),
        workers: match valid.aws {
            Some(_) => Vec::new(),
            None => kvm::workers(valid, &known.workers).into_iter().map(|(_, node)| node).collect(),
        },
        places: known.all_places(valid).given,
        ..World::default()
    };
    let first = pki::plan(valid, &world, Timestamp::UNIX_EPOCH).steps;
    world.records = Root::ALL.into_iter().map(|root| (root.record(), "made".into())).collect();
    let secret = pki::SecretMeta { fingerprints: world.records.clone(), ..pki::SecretMeta::default() };
    world.secrets.insert(roots::SECRET.into(), secret);
    let leaves = pki::plan(valid, &world, Timestamp::UNIX_EPOCH).steps;
    first.iter().chain(&leaves).filter_map(|wish| pki_step(valid, wish, namespace)).collect()
}

fn pki_step(valid: &Valid, wish: &pki::Step, namespace: &str) -> Option<Step> {
    let guest = &valid.identity.namespace;
    let (place, name) = secret_of(valid, wish)?;
    let (purpose, waits_for) = match wish {
        pki::Step::MakeRoots | pki::Step::RecordRoots => ("the roots, made once", vec![namespace.to_owned()]),
        pki::Step::MakeNext { .. } => ("the roots that take the others' place", vec!["the roots".into()]),
        pki::Step::RecordNext { .. }
        | pki::Step::NoteStage { .. }
        | pki::Step::Adopt { .. }
        | pki::Step::RemoveRoots { .. } => return None,
        pki::Step::ImportRoots { secret } => {
            let imported = format!("Secret {}/{secret}", valid.identity.key.namespace);
            ("the roots, imported once", vec![namespace.to_owned(), imported])
        }
        pki::Step::IssueNode { worker: true, node, .. } => {
            let place = format!("the place in ConfigMap {guest}/{}", names::node_config_map(node));
            ("the worker's certificates", vec!["the roots".into(), place])
        }
        pki::Step::IssueNode { .. } => ("the node's certificates", vec!["the roots".into()]),
        pki::Step::RemoveWorker { .. } => return None,
        pki::Step::IssueKubeconfig { .. } => (
            "the administrator's kubeconfig",
            vec!["the roots".into(), format!("the address of Service {guest}/{}", endpoint_service(valid))],
        ),
    };
    Some(Step {
        part: "pki",
        object: Object {
            resource: ApiResource::erase::<k8s_openapi::api::core::v1::Secret>(&()),
            namespace: Some(place),
            name,
            in_guest: false,
        },
        purpose,
        waits_for,
        body: json!(wish),
        rolls: None,
    })
}

/// Namespace and name of the Secret that a step of pki makes, if it makes one.
pub(super) fn secret_of(valid: &Valid, wish: &pki::Step) -> Option<(String, String)> {
    let identity = &valid.identity;
    match wish {
        pki::Step::MakeRoots | pki::Step::ImportRoots { .. } => {
            Some((identity.namespace.clone(), roots::SECRET.to_owned()))
        }
        pki::Step::MakeNext { generation, .. } => Some((identity.namespace.clone(), roots::secret_of(*generation))),
        pki::Step::RecordRoots
        | pki::Step::RecordNext { .. }
        | pki::Step::NoteStage { .. }
        | pki::Step::Adopt { .. }
        | pki::Step::RemoveRoots { .. }
        | pki::Step::RemoveWorker { .. } => None,
        pki::Step::IssueNode { node, .. } => Some((identity.namespace.clone(), names::node_secret(node))),
        pki::Step::IssueKubeconfig { .. } => {
            Some((identity.key.namespace.clone(), names::kubeconfig_secret(&identity.key.name)))
        }
    }
}
