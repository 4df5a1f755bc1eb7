//! `giantnetes kubeconfig NAME`: the administrator's, or that of a user whom a ClusterAccess lets in.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};

use super::{
    Failure,
    named::{Named, with_cure},
};
use crate::{
    api::{AccessRights, AccessedCluster, ClusterAccess, ClusterAccessSpec, Reason, names},
    runtime::{apply::hash, call},
};

/// How long a controller manager that runs needs at most, and a person waits.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct KubeconfigArgs {
    #[command(flatten)]
    cluster: Named,
    /// A user of the guest, instead of its administrator. A ClusterAccess is made, and renewed for as long as it is there.
    #[arg(long)]
    user: Option<String>,
    /// A group of the user; may be given several times.
    #[arg(long = "group", requires = "user")]
    groups: Vec<String>,
    /// Lifetime of the user's certificate, such as 8h.
    #[arg(long, requires = "user")]
    ttl: Option<String>,
    /// A ClusterRole of the guest whose rights the user gets, such as view, edit or cluster-admin: in the whole guest, unless
    /// namespaces are named, or were before.
    #[arg(long, requires = "user")]
    cluster_role: Option<String>,
    /// A namespace of the guest to which these rights are limited; may be given several times.
    #[arg(long = "in", value_name = "NAMESPACE", requires = "cluster_role")]
    namespaces: Vec<String>,
}

pub(super) async fn kubeconfig(args: &KubeconfigArgs) -> Result<(), Failure> {
    let (client, namespace) = args.cluster.place.connect().await?;
    let secret = match &args.user {
        None => names::kubeconfig_secret(&args.cluster.name),
        Some(user) => let_in(&client, &namespace, args, user).await?,
    };
    let secrets = Api::<Secret>::namespaced(client.clone(), &namespace);
    let found =
        call("get", format!("Secret {namespace}/{secret}"), secrets.get_opt(&secret)).await.map_err(with_cure)?;
    let Some(found) = found else {
        let cluster = args.cluster.look(&client, &namespace).await?;
        let told =
            cluster.status.and_then(|status| status.message).unwrap_or_else(|| "nothing is said of it yet".into());
        return Err(format!("Cluster {namespace}/{} has no kubeconfig yet: {told}", args.cluster.name).into());
    };
    let value = found.data.and_then(|mut data| data.remove("value"));
    let value = value.ok_or_else(|| format!("Secret {namespace}/{secret} has no key `value`"))?;
    print!("{}", String::from_utf8(value.0)?);
    Ok(())
}

/// Makes the user's ClusterAccess, or changes it, and waits for its kubeconfig. Answers the Secret's name.
async fn let_in(client: &Client, namespace: &str, args: &KubeconfigArgs, user: &str) -> Result<String, Failure> {
    let name = access_name(&args.cluster.name, user);
    let api = Api::<ClusterAccess>::namespaced(client.clone(), namespace);
    let object = format!("ClusterAccess {namespace}/{name}");
    let before = call("get", &object, api.get_opt(&name)).await?;
    let access = ClusterAccess::new(&name, wish(args, user, before.map(|access| access.spec)));
    let params = PatchParams::apply("giantnetes.cli").force();
    let mut made = call("apply", &object, api.patch(&name, &params, &Patch::Apply(&access))).await?;
    let (began, mut said) = (Instant::now(), String::new());
    loop {
        let message = match verdict(&made) {
            Some(Ok(secret)) => return Ok(secret),
            Some(Err((reason, message))) if reason == Reason::Waiting.name() => message,
            Some(Err((_, message))) => return Err(format!("{object}: {message}").into()),
            None => "waits for the controller manager".into(),
        };
        if began.elapsed() > PATIENCE {
            return Err(format!("{object}: {message}; it is kept, and `kubectl get gca` tells when it is ready").into());
        }
        if message != said {
            eprintln!("{object}: {message}");
            said = message;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        made = call("get", &object, api.get(&name)).await?;
    }
}

/// What is asked for: what was asked for before, but for what is said now.
fn wish(args: &KubeconfigArgs, user: &str, before: Option<ClusterAccessSpec>) -> ClusterAccessSpec {
    let mut spec = before.unwrap_or_else(|| ClusterAccessSpec {
        cluster_ref: AccessedCluster { name: args.cluster.name.clone() },
        user: user.to_owned(),
        groups: Vec::new(),
        ttl: None,
        rights: None,
    });
    if !args.groups.is_empty() {
        spec.groups.clone_from(&args.groups);
    }
    spec.ttl = args.ttl.clone().or(spec.ttl);
    if let Some(cluster_role) = args.cluster_role.clone() {
        let named = (!args.namespaces.is_empty()).then(|| args.namespaces.clone());
        let namespaces = named.or(spec.rights.and_then(|rights| rights.namespaces));
        spec.rights = Some(AccessRights { cluster_role, namespaces });
    }
    spec
}

/// What the controller manager says of the ClusterAccess as it is now: its Secret, or reason and message.
fn verdict(access: &ClusterAccess) -> Option<Result<String, (String, String)>> {
    let condition = access.told()?;
    match access.status.as_ref().and_then(|status| status.secret.as_ref()) {
        Some(secret) if condition.status == "True" => Some(Ok(secret.clone())),
        _ => Some(Err((condition.reason.clone(), condition.message.clone()))),
    }
}

/// A name of its own for every user of every Cluster: readable where the user's can be part of it.
fn access_name(cluster: &str, user: &str) -> String {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = user.bytes().all(inner) && !user.starts_with('-') && !user.ends_with('-') && !user.is_empty();
    // `a` + `b-c` and `a-b` + `c` are two: a dot is in no Cluster's name.
    if label { format!("{cluster}.{user}") } else { format!("{cluster}.user-{}", hash(&user.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays_as_it_was() {
        let args = |role: Option<&str>, namespaces: &[&str]| KubeconfigArgs {
            cluster: Named { name: "demo".into(), ..Named::default() },
            user: Some("alice".into()),
            groups: vec![],
            ttl: None,
            cluster_role: role.map(Into::into),
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
        };
        let first = wish(&args(Some("view"), &["shop"]), "alice", None);
        let rights = |spec: &ClusterAccessSpec| {
            let rights = spec.rights.clone().unwrap();
            (rights.cluster_role, rights.namespaces)
        };
        let shop = Some(vec!["shop".to_owned()]);
        assert_eq!(rights(&first), ("view".into(), shop.clone()));
        assert_eq!(wish(&args(None, &[]), "alice", Some(first.clone())), first);
        // A right in one namespace does not become one everywhere because it is another.
        assert_eq!(rights(&wish(&args(Some("edit"), &[]), "alice", Some(first))), ("edit".into(), shop));
        assert_eq!(rights(&wish(&args(Some("edit"), &[]), "alice", None)), ("edit".into(), None));
    }

    #[test]
    fn two_users_never_share_a_name() {
        assert_eq!(access_name("demo", "alice"), "demo.alice");
        let odd = access_name("demo", "alice@example.com");
        assert!(odd.starts_with("demo.user-") && odd != access_name("demo", "alice@example.org"), "{odd}");
        assert_ne!(access_name("a", "b-c"), access_name("a-b", "c"));
    }
}
