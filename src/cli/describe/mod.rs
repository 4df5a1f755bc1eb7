//! `giantnetes describe NAME`: a Cluster with all that belongs to it, drawn for a person.
//!
//! - [`observe`]: what the management cluster has of it, as far as the caller may read it
//! - [`tree`]: what is drawn of that; pure
//! - [`draw`]: lines and branches; pure

mod draw;
pub(super) mod observe;
#[cfg(test)]
mod tests;
mod tree;

use std::path::PathBuf;

use k8s_openapi::jiff::Timestamp;
use kube::Client;

use super::{Failure, named::Named};
use crate::{api::Cluster, settings::Settings};

#[derive(Debug, clap::Args)]
pub(super) struct DescribeArgs {
    #[command(flatten)]
    cluster: Named,
    /// The operator's settings: the chart's values as the controller manager gets them. With them it is also said which nodes
    /// are not as the Cluster now asks for.
    #[arg(long, env = "GIANTNETES_SETTINGS")]
    settings: Option<PathBuf>,
}

pub(super) async fn describe(args: &DescribeArgs) -> Result<(), Failure> {
    let settings = args.settings.as_deref().map(Settings::read).transpose()?;
    let (client, cluster) = args.cluster.get().await?;
    print!("{}", drawn(&client, cluster, settings.as_ref()).await);
    Ok(())
}

/// The tree of a Cluster as it is now.
pub(super) async fn drawn(client: &Client, cluster: Cluster, settings: Option<&Settings>) -> String {
    let observed = observe::observe(client, cluster, settings).await;
    draw::draw(&tree::tree(&observed, Timestamp::now()))
}
