//! A Cluster that a person names, and the management cluster that it is in.

use std::path::PathBuf;

use kube::{
    Api, Client, Config, ResourceExt as _,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Failure;
use crate::{
    api::Cluster,
    runtime::{CallError, call, chain},
};

/// What a person can do who was refused.
const RIGHTS: &str = "whoever runs the management cluster gives rights to Clusters by the chart's ClusterRoles \
                      <release>-cluster-admin and -viewer, and to a kubeconfig by a Role for its Secret";

/// The management cluster that is asked.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Where {
    /// Namespace of the Cluster. Default: that of the context.
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig. Default: the current one.
    #[arg(long)]
    context: Option<String>,
    /// The kubeconfig. Default: what KUBECONFIG names, or ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

impl Where {
    /// A client, and the namespace that is meant.
    pub(super) async fn connect(&self) -> Result<(Client, String), Failure> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = match &self.kubeconfig {
            Some(file) => Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &options).await?,
            None if self.context.is_some() => Config::from_kubeconfig(&options).await?,
            // In a pod: its service account.
            None => Config::infer().await?,
        };
        let client = Client::try_from(config)?;
        let namespace = self.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Ok((client, namespace))
    }
}

/// A Cluster, by its name.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Named {
    /// Name of the Cluster.
    pub name: String,
    #[command(flatten)]
    pub place: Where,
}

impl Named {
    /// A client, and the Cluster as it is now.
    pub(super) async fn get(&self) -> Result<(Client, Cluster), Failure> {
        let (client, namespace) = self.place.connect().await?;
        let cluster = self.look(&client, &namespace).await?;
        Ok((client, cluster))
    }

    /// The Cluster as it is now.
    pub(super) async fn look(&self, client: &Client, namespace: &str) -> Result<Cluster, Failure> {
        let api = Api::<Cluster>::namespaced(client.clone(), namespace);
        match call("get", format!("Cluster {namespace}/{}", self.name), api.get(&self.name)).await {
            Ok(cluster) => Ok(cluster),
            Err(error) if error.status() == Some(404) => Err(self.missing(client, namespace).await.into()),
            Err(error) => Err(with_cure(error)),
        }
    }

    /// What to say of a Cluster that is not there: where there is one of its name, as far as the caller may see that.
    async fn missing(&self, client: &Client, namespace: &str) -> String {
        let what = format!("there is no Cluster {} in namespace {namespace}", self.name);
        let named = ListParams::default().fields(&format!("metadata.name={}", self.name));
        match call("list", "Clusters", Api::<Cluster>::all(client.clone()).list_metadata(&named)).await {
            Ok(others) => match others.items.iter().filter_map(|other| other.namespace()).next() {
                Some(other) => format!("{what}, but in {other}: name it by `-n {other}`"),
                None => format!("{what}; `kubectl get clusters.giantnetes.io -A` lists all"),
            },
            Err(error) if error.status() == Some(404) => {
                format!(
                    "{what}, nor anywhere: this cluster has no kind Cluster: install the chart here, or choose another cluster by --context"
                )
            }
            Err(_) => format!("{what}; another namespace is named by `-n`"),
        }
    }
}

/// The error, and what helps a person who was refused.
pub(super) fn with_cure(error: CallError) -> Failure {
    if error.status() == Some(403) { format!("{}; {RIGHTS}", chain(&error)).into() } else { error.into() }
}
