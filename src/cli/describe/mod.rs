//! `giantnetes describe NAME`: a Cluster with all that belongs to it, drawn for a person.
//!
//! - [`observe`]: what the management cluster has of it, as far as the caller may read it
//! - [`tree`]: what is drawn of that; pure
//! - [`draw`]: lines and branches; pure

mod draw;
mod observe;
#[cfg(test)]
mod tests;
mod tree;

use std::path::PathBuf;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};

use super::Failure;
use crate::{api::Cluster, runtime::call, settings::Settings};

#[derive(Debug, clap::Args)]
pub(super) struct DescribeArgs {
    /// Name of the Cluster.
    name: String,
    /// Its namespace. Default: that of the current context.
    #[arg(long, short)]
    namespace: Option<String>,
    /// The operator's settings: the chart's values as the controller manager gets them. With them it is also said which nodes
    /// are not as the Cluster now asks for.
    #[arg(long, env = "GIANTNETES_SETTINGS")]
    settings: Option<PathBuf>,
}

pub(super) async fn describe(args: &DescribeArgs) -> Result<(), Failure> {
    let settings = args.settings.as_deref().map(Settings::read).transpose()?;
    let client = Client::try_default().await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let api = Api::<Cluster>::namespaced(client.clone(), &namespace);
    let cluster = call("get", format!("Cluster {namespace}/{}", args.name), api.get(&args.name)).await?;
    let observed = observe::observe(&client, cluster, settings.as_ref()).await;
    print!("{}", draw::draw(&tree::tree(&observed, Timestamp::now())));
    Ok(())
}
