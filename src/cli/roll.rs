//! `giantnetes roll NAME`

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Failure, named::Named};
use crate::{
    api::{Cluster, names},
    runtime::call,
};

#[derive(Debug, clap::Args)]
pub(super) struct RollArgs {
    #[command(flatten)]
    cluster: Named,
}

/// Asks for it and returns: the controller manager replaces the nodes, one at a time.
pub(super) async fn roll(args: &RollArgs) -> Result<(), Failure> {
    let (client, namespace) = args.cluster.place.connect().await?;
    let name = args.cluster.name.as_str();
    let asked = Timestamp::now();
    let patch = json!({"metadata": {"annotations": {names::ROLL_ANNOTATION: format!("{asked:.0}")}}});
    let api = Api::<Cluster>::namespaced(client, &namespace);
    let object = format!("Cluster {namespace}/{name}");
    let params = PatchParams::default();
    call("patch", object.clone(), api.patch_metadata(name, &params, &Patch::Merge(patch))).await?;
    println!("{object}: all nodes will be replaced, one at a time; `kubectl get gcl` tells how far that is");
    Ok(())
}
