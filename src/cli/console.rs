//! `giantnetes console NAME [NODE]`: what a node wrote to its serial console.
//!
//! Nobody can log in there: a node has no password. What it says of a boot that fails is all the more worth reading.

use std::io::Write as _;

use futures::{AsyncBufReadExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::LogParams};

use super::{Failure, events::printable, named::Named, progress::patiently};
use crate::{api::names, cluster::Identity, kvm::pod::CONTAINER, runtime::call, supervisor::vm::CONSOLE_PREFIX};

#[derive(Debug, clap::Args)]
pub(super) struct ConsoleArgs {
    #[command(flatten)]
    cluster: Named,
    /// The node, such as master-0 or default-1.
    #[arg(default_value_t = names::master(0))]
    node: String,
    /// Go on with what it writes from now on.
    #[arg(long, short)]
    follow: bool,
    /// The console of the VM before this one, if it was started anew.
    #[arg(long, short)]
    previous: bool,
}

pub(super) async fn console(args: &ConsoleArgs) -> Result<(), Failure> {
    let (client, cluster) = patiently("console", args.cluster.get()).await?;
    let identity = Identity::of(&cluster);
    let pods = Api::<Pod>::namespaced(client, &identity.namespace);
    let params = LogParams {
        container: Some(CONTAINER.into()),
        follow: args.follow,
        previous: args.previous,
        ..LogParams::default()
    };
    let object = format!("the console of node {}, VM pod {}/{}", args.node, identity.namespace, args.node);
    let mut lines = patiently("console", call("read", object, pods.log_stream(&args.node, &params))).await?.lines();
    while let Some(line) = lines.next().await {
        // The supervisor's own log is in the same stream.
        if let Some(line) = line?.strip_prefix(CONSOLE_PREFIX) {
            writeln!(std::io::stdout(), "{}", printable(line))?;
        }
    }
    Ok(())
}
