//! `giantnetes support-bundle NAME`: what a person needs who is to say what is wrong with a Cluster, in one file. Secrets are
//! listed by name and never read, and what looks like a key or token is left out of everything else ([`strip`]).

mod strip;

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Event, Node, PersistentVolumeClaim, Pod, Secret, Service},
        networking::v1::{Ingress, NetworkPolicy},
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, LogParams},
    core::{ClusterResourceScope, NamespaceResourceScope},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Failure,
    describe::{
        self,
        observe::{Seen, list},
    },
    events,
    named::Named,
    progress::patiently,
};
use crate::{
    api::{Cluster, ClusterAccess, NetworkClaim},
    cluster::Identity,
    runtime::{call, chain},
};

/// Lines that are taken of each log.
const LOG_LINES: i64 = 5000;

#[derive(Debug, clap::Args)]
pub(super) struct SupportBundleArgs {
    #[command(flatten)]
    cluster: Named,
    /// The file. Default: NAME-support.tar.gz. One that is there is not overwritten.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Namespace of the controller manager, whose logs are taken, too; they name other Clusters.
    #[arg(long, default_value = "giantnetes-system")]
    system_namespace: String,
}

pub(super) async fn support_bundle(args: &SupportBundleArgs) -> Result<(), Failure> {
    let (client, cluster) = patiently("support-bundle", args.cluster.get()).await?;
    let output = args.output.clone().unwrap_or_else(|| format!("{}-support.tar.gz", cluster.name_any()).into());
    let mut bundle = Bundle::create(&output, &cluster.name_any())?;
    let collected = collect(&client, cluster, &args.system_namespace, &mut bundle).await;
    let finished = collected.and_then(|()| bundle.finish());
    let left_out = finished.inspect_err(|_| drop(std::fs::remove_file(&output)))?;
    println!("{}: {left_out}", output.display());
    Ok(())
}

async fn collect(client: &Client, cluster: Cluster, system: &str, bundle: &mut Bundle) -> Result<(), Failure> {
    let identity = Identity::of(&cluster);
    let (guest, beside) = (identity.namespace.as_str(), identity.key.namespace.as_str());
    bundle.add("version.txt", &format!("giantnetes {}\n", env!("CARGO_PKG_VERSION")))?;
    bundle.objects("cluster.yaml", Ok(vec![cluster.clone()]))?;
    match events::of_cluster(client, &identity).await {
        Ok((events, refused)) => {
            let now = Timestamp::now();
            let lines: String = events.iter().map(|event| events::line(event, now) + "\n").collect();
            bundle.add("events.txt", &lines)?;
            if let Some(error) = refused {
                bundle.left_out("events of its VM pods", &chain(&error));
            }
        }
        Err(error) => bundle.left_out("events", &chain(&error)),
    }
    bundle.add("tree.txt", &describe::drawn(client, cluster, None).await)?;
    let accesses = namespaced::<ClusterAccess>(client, beside).await;
    let to_it = |access: &ClusterAccess| access.spec.cluster_ref.name == identity.key.name;
    let accesses = accesses.map(|all| all.into_iter().filter(to_it).collect());
    bundle.objects("accesses.yaml", accesses)?;
    let claims = global::<NetworkClaim>(client).await;
    let ours = claims.map(|all| all.into_iter().filter(|claim| claim.spec.cluster_ref.uid == identity.uid).collect());
    bundle.objects("claims.yaml", ours)?;
    bundle.objects("hosts.yaml", global::<Node>(client).await)?;

    bundle.objects("guest/pods.yaml", namespaced::<Pod>(client, guest).await)?;
    bundle.objects("guest/services.yaml", namespaced::<Service>(client, guest).await)?;
    bundle.objects("guest/config-maps.yaml", namespaced::<ConfigMap>(client, guest).await)?;
    bundle.objects("guest/volumes.yaml", namespaced::<PersistentVolumeClaim>(client, guest).await)?;
    bundle.objects("guest/ingresses.yaml", namespaced::<Ingress>(client, guest).await)?;
    bundle.objects("guest/network-policies.yaml", namespaced::<NetworkPolicy>(client, guest).await)?;
    bundle.objects("guest/disruption-budgets.yaml", namespaced::<PodDisruptionBudget>(client, guest).await)?;
    bundle.objects("guest/events.yaml", namespaced::<Event>(client, guest).await)?;
    // By their names alone: what they hold is asked of nobody.
    let api = Api::<Secret>::namespaced(client.clone(), guest);
    let secrets = call("list", format!("names of Secrets of {guest}"), api.list_metadata(&ListParams::default())).await;
    bundle.objects("guest/secrets.yaml", secrets.map(|list| list.items).map_err(|error| chain(&error)))?;
    logs(client, guest, "guest", bundle).await?;
    logs(client, system, "manager", bundle).await
}

async fn namespaced<K>(client: &Client, namespace: &str) -> Seen<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    listed(Api::<K>::namespaced(client.clone(), namespace), &format!("{} of {namespace}", K::plural(&()))).await
}

async fn global<K>(client: &Client) -> Seen<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    listed(Api::<K>::all(client.clone()), &K::plural(&())).await
}

async fn listed<K>(api: Api<K>, what: &str) -> Seen<Vec<K>>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    eprintln!("{what}");
    list(what.to_owned(), &api, &ListParams::default()).await
}

/// The logs of a namespace's pods, and of what ran in them before.
async fn logs(client: &Client, namespace: &str, folder: &str, bundle: &mut Bundle) -> Result<(), Failure> {
    let pods = match namespaced::<Pod>(client, namespace).await {
        Ok(pods) => pods,
        Err(error) => {
            bundle.left_out(&format!("logs of {namespace}"), &error);
            return Ok(());
        }
    };
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    for pod in &pods {
        let name = pod.name_any();
        let beside = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let beside = beside.map(|of| (Some(of.name.clone()), false, format!("{folder}/logs/{name}.{}.log", of.name)));
        let of_vm = [
            (None, false, format!("{folder}/logs/{name}.log")),
            (None, true, format!("{folder}/logs/{name}.previous.log")),
        ];
        for (container, previous, file) in beside.chain(of_vm) {
            let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            if previous && statuses.map(|status| status.restart_count).sum::<i32>() == 0 {
                continue;
            }
            let object = format!("the log of pod {namespace}/{name}");
            eprintln!("{object}");
            let params = LogParams {
                container,
                previous,
                tail_lines: Some(LOG_LINES),
                timestamps: true,
                ..LogParams::default()
            };
            match call("read", &object, api.logs(&name, &params)).await {
                Ok(text) => bundle.add(&file, &text)?,
                Err(error) => bundle.left_out(&object, &chain(&error)),
            }
        }
    }
    Ok(())
}

/// The file that is made.
struct Bundle {
    archive: tar::Builder<GzEncoder<std::fs::File>>,
    /// The folder that all of it is in.
    root: String,
    files: usize,
    left_out: Vec<String>,
}

impl Bundle {
    /// Begins a file that only its owner reads.
    fn create(path: &Path, cluster: &str) -> Result<Self, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| format!("write {}: {error}; --output names another file", path.display()))?;
        let archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        Ok(Self { archive, root: format!("{cluster}-support"), files: 0, left_out: Vec::new() })
    }

    fn add(&mut self, name: &str, content: &str) -> Result<(), Failure> {
        let content = strip::text(content);
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(content.len())?);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(Timestamp::now().as_second()).unwrap_or_default());
        self.archive.append_data(&mut header, format!("{}/{name}", self.root), content.as_bytes())?;
        self.files += 1;
        Ok(())
    }

    /// Adds objects as YAML, or why they are not there.
    fn objects<K: Serialize>(&mut self, name: &str, objects: Seen<Vec<K>>) -> Result<(), Failure> {
        let objects = match objects {
            Ok(objects) => objects,
            Err(error) => {
                self.left_out(name, &error);
                return Ok(());
            }
        };
        let mut text = String::new();
        for object in &objects {
            let mut value: Value = serde_json::to_value(object)?;
            strip::object(&mut value);
            text.push_str("---\n");
            text.push_str(&serde_saphyr::to_string(&value)?);
        }
        self.add(name, &text)
    }

    fn left_out(&mut self, what: &str, why: &str) {
        self.left_out.push(format!("{what}: {why}"));
    }

    /// Writes the rest, and answers what there is to say of it.
    fn finish(mut self) -> Result<String, Failure> {
        let left_out = std::mem::take(&mut self.left_out);
        if !left_out.is_empty() {
            self.add("left-out.txt", &(left_out.join("\n") + "\n"))?;
        }
        let said = match left_out.len() {
            0 => format!("{} files", self.files),
            some => format!("{} files; {some} could not be had, left-out.txt says why", self.files),
        };
        self.archive.into_inner()?.finish()?;
        Ok(said)
    }
}
