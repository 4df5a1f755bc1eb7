//! `giantnetes kubeconfig NAME`

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::Failure;
use crate::{api::names, runtime::call};

#[derive(Debug, clap::Args)]
pub(super) struct KubeconfigArgs {
    /// Name of the Cluster.
    name: String,
    /// Its namespace. Default: that of the current context.
    #[arg(long, short)]
    namespace: Option<String>,
}

pub(super) async fn kubeconfig(args: &KubeconfigArgs) -> Result<(), Failure> {
    let client = Client::try_default().await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let secret = names::kubeconfig_secret(&args.name);
    let found = call(
        "get",
        format!("Secret {namespace}/{secret}"),
        Api::<Secret>::namespaced(client, &namespace).get_opt(&secret),
    )
    .await?;
    let found = found.ok_or_else(|| {
        format!("Cluster {namespace}/{} has no kubeconfig yet: there is no Secret {secret}", args.name)
    })?;
    let value = found.data.and_then(|mut data| data.remove("value"));
    let value = value.ok_or_else(|| format!("Secret {namespace}/{secret} has no key `value`"))?;
    print!("{}", String::from_utf8(value.0)?);
    Ok(())
}
