//! `giantnetes node-agent`

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::node_agent::{self, config::Config};

#[derive(Debug, clap::Args)]
pub(super) struct NodeAgentArgs {
    /// The agent's configuration.
    #[arg(long)]
    config: PathBuf,
    /// End as soon as every certificate is there.
    #[arg(long)]
    once: bool,
    /// Have what is the machine's own, write into this file what it is, and end.
    #[arg(long, conflicts_with = "once")]
    machine: Option<PathBuf>,
}

pub(super) async fn run(args: NodeAgentArgs) -> Result<(), Failure> {
    let NodeAgentArgs { config: path, once, machine } = args;
    let failed = |error: Failure| format!("read {}: {error}", path.display());
    let text = tokio::fs::read_to_string(&path).await.map_err(|error| failed(error.into()))?;
    let config: Config = serde_saphyr::from_str(&text).map_err(|error| failed(error.into()))?;
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    match machine {
        Some(facts) => Ok(node_agent::ready(config, &facts, stop).await?),
        None => Ok(node_agent::run(config, once, stop).await?),
    }
}
