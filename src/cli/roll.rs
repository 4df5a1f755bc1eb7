//! `giantnetes roll NAME`

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::Failure;
use crate::{
    api::{Cluster, names},
    runtime::call,
};

#[derive(Debug, clap::Args)]
pub(super) struct RollArgs {
    /// Name of the Cluster.
    name: String,
    /// Its namespace. Default: that of the current context.
    #[arg(long, short)]
    namespace: Option<String>,
}

/// Asks for it and returns: the controller manager replaces the nodes, one at a time.
pub(super) async fn roll(args: &RollArgs) -> Result<(), Failure> {
    let client = Client::try_default().await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let asked = Timestamp::now();
    let patch = json!({"metadata": {"annotations": {names::ROLL_ANNOTATION: format!("{asked:.0}")}}});
    let api = Api::<Cluster>::namespaced(client, &namespace);
    let object = format!("Cluster {namespace}/{}", args.name);
    let params = PatchParams::default();
    call("patch", object.clone(), api.patch_metadata(&args.name, &params, &Patch::Merge(patch))).await?;
    println!("{object}: all nodes will be replaced, one at a time; `kubectl get gcl` tells how far that is");
    Ok(())
}
