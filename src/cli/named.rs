//! A Cluster that a person names, and the management cluster that it is in.

use std::path::PathBuf;

use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Failure;
use crate::{api::Cluster, runtime::call};

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
        let api = Api::<Cluster>::namespaced(client.clone(), &namespace);
        let cluster = call("get", format!("Cluster {namespace}/{}", self.name), api.get(&self.name)).await?;
        Ok((client, cluster))
    }
}
