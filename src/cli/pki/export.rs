//! `giantnetes pki export NAME`: the roots of a guest, sealed.
//!
//! An export that no event accounts for must not happen: the event comes first, then the count that Prometheus is told of, and
//! only then does anything leave this process. Keys are never written down but sealed. Those of authorities in Vault come from there,
//! by the token of whoever exports.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::{authentication::v1::SelfSubjectReview, core::v1::Secret, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    super::{Failure, named::Named},
    officer::Officer,
};
use crate::{
    api::{Cluster, names},
    cluster::Identity,
    pki::{
        escrow::{self, Bundle, exports, seal},
        roots::{self, Roots},
    },
    runtime::{CallError, call, chain},
};

/// The event's reason.
const REASON: &str = "PKIExport";
/// Who says it.
const REPORTER: &str = "giantnetes-cli";
/// Attempts to count while others change the Secret.
const ATTEMPTS: u32 = 5;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ExportArgs {
    #[command(flatten)]
    cluster: Named,
    /// Public key of age (age1…) of somebody who is to open it; up to ten times.
    #[arg(long = "recipient", required = true, value_name = "AGE KEY")]
    recipients: Vec<String>,
    /// The file. Default: standard output. One that is there is not overwritten.
    #[arg(long, short)]
    output: Option<PathBuf>,
    #[command(flatten)]
    officer: Officer,
}

pub(super) async fn export(args: &ExportArgs) -> Result<(), Failure> {
    let recipients = seal::recipients(&args.recipients)?;
    if let Some(output) = &args.output {
        // Before anything is told of it.
        if output.try_exists()? {
            return Err(format!("{} is there already, and is not overwritten", output.display()).into());
        }
    }
    let (client, cluster) = args.cluster.get().await?;
    let (identity, now) = (Identity::of(&cluster), Timestamp::now());
    let place = cluster.status.as_ref().and_then(|status| status.vault.as_ref());
    if let Some(place) = place.filter(|_| !cluster.has_exportable_keys()) {
        return Err(in_vault(&identity, &place.to_string()).into());
    }
    let secret = secret_of(&cluster)?;
    let roots = roots_of(&client, &cluster, &secret, &identity).await?;
    let roots = match place {
        Some(place) => args.officer.take_out(place, roots).await?,
        None => roots,
    };
    whole(&roots, now).map_err(|problem| format!("the roots of Cluster {}: {problem}", identity.key))?;
    let bundle = Bundle { cluster: identity.key.to_string(), exported_at: now, roots };
    let sealed = seal::seal(&bundle.write()?, &recipients)?;
    say(&client, &cluster, &args.recipients, now).await.map_err(|error| nothing_left(&identity, &secret, &error))?;
    count(&client, &identity, &secret)
        .await
        .map_err(|error| format!("{}; its event is there, though", nothing_left(&identity, &secret, &error)))?;
    match &args.output {
        Some(output) => write(output, &sealed),
        None => Ok(std::io::stdout().write_all(sealed.as_bytes())?),
    }
}

/// Why keys in Vault are not to be had, and what to do.
fn in_vault(identity: &Identity, place: &str) -> String {
    format!(
        "the authorities of Cluster {} are in Vault ({place}) and not spec.pki.exportable, so their keys never leave it: nothing can be \
         exported. Keep snapshots of that Vault instead, and restore it where the guest is to be brought back",
        identity.key
    )
}

fn nothing_left(identity: &Identity, secret: &str, error: &CallError) -> String {
    format!("{}; nothing was exported{}", chain(error), rights(identity, secret, error))
}

/// What a person needs who was refused.
fn rights(identity: &Identity, secret: &str, error: &CallError) -> String {
    if error.status() != Some(403) {
        return String::new();
    }
    format!(
        ". To export takes the rights to get and patch Secret {}/{secret}, and to create events.events.k8s.io in namespace {}",
        identity.namespace, identity.key.namespace
    )
}

/// The Secret of the roots that the guest lives by, as its status has it. While they are rotated it lives by two.
fn secret_of(cluster: &Cluster) -> Result<String, String> {
    let rotation = cluster.status.as_ref().and_then(|status| status.rotation.as_ref());
    if rotation.is_some_and(|rotation| rotation.stage.is_some()) {
        return Err(format!(
            "authorities or keys of Cluster {}/{} are being rotated, and none of those that it has now will do for it alone; export \
             when status.rotation.stage is gone",
            cluster.namespace().unwrap_or_default(),
            cluster.name_any()
        ));
    }
    let generation = rotation.and_then(|rotation| u32::try_from(rotation.generation).ok());
    Ok(roots::secret_of(generation.unwrap_or(1)))
}

/// The guest's roots, if they are those that it lives by.
async fn roots_of(client: &Client, cluster: &Cluster, name: &str, identity: &Identity) -> Result<Roots, Failure> {
    let object = format!("Secret {}/{name}", identity.namespace);
    let api = Api::<Secret>::namespaced(client.clone(), &identity.namespace);
    let found = call("get", &object, api.get_opt(name)).await;
    let found = found.map_err(|error| format!("{}{}", chain(&error), rights(identity, name, &error)))?;
    let Some(secret) = found else {
        let told = cluster.status.as_ref().and_then(|status| status.message.clone());
        let told = told.unwrap_or_else(|| "nothing is said of it yet".into());
        return Err(format!("Cluster {} has no keys to export, for there is no {object}: {told}", identity.key).into());
    };
    judged(&secret, identity).map_err(|problem| format!("{object}: {problem}").into())
}

/// What a Secret holds, if that is recorded of it.
fn judged(secret: &Secret, identity: &Identity) -> Result<Roots, String> {
    let roots = Roots::of(secret).filter(|_| identity.owner().owns(&secret.metadata));
    let roots = roots.ok_or("it does not hold the roots of this Cluster")?;
    if !roots::agree(&roots.fingerprints(), &roots::fingerprints(Some(secret.annotations()))) {
        return Err("it does not hold what is recorded of it".into());
    }
    Ok(roots)
}

/// Whether they could be imported again.
fn whole(roots: &Roots, now: Timestamp) -> Result<(), String> {
    let problem = |flaw| format!("{flaw}, so nothing could be made of an export");
    escrow::check(roots, now).map(drop).map_err(problem)
}

/// Tells of the export, beside the Cluster.
async fn say(client: &Client, cluster: &Cluster, recipients: &[String], now: Timestamp) -> Result<(), CallError> {
    let (namespace, who) = (cluster.namespace().unwrap_or_default(), me(client).await);
    let event = event(cluster, &who, recipients, now);
    let api = Api::<Event>::namespaced(client.clone(), &namespace);
    let object = format!("Event {REASON} about Cluster {namespace}/{}", cluster.name_any());
    call("create", object, api.create(&PostParams::default(), &event)).await.map(drop)
}

/// Name of who exports, as the server knows it. Its audit log has it in any case.
async fn me(client: &Client) -> String {
    let api = Api::<SelfSubjectReview>::all(client.clone());
    let (params, asked) = (PostParams::default(), SelfSubjectReview::default());
    let review = call("create", "SelfSubjectReview", api.create(&params, &asked)).await;
    let user = review.ok().and_then(|review| review.status?.user_info?.username);
    user.unwrap_or_else(|| "somebody whom the server does not name".into())
}

fn event(cluster: &Cluster, who: &str, recipients: &[String], now: Timestamp) -> Event {
    // The server takes notes of 1024 bytes: recipients have 62 each.
    let who: String = who.chars().filter(|c| !c.is_control()).take(100).collect();
    let note = format!("all keys of the guest cluster were exported by {who}, sealed for {}", recipients.join(", "));
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", cluster.name_any())),
            namespace: cluster.namespace(),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".into()),
        reason: Some(REASON.into()),
        action: Some("Export".into()),
        note: Some(note),
        event_time: Some(MicroTime(now)),
        regarding: Some(cluster.object_ref(&())),
        reporting_controller: Some(REPORTER.into()),
        reporting_instance: Some(REPORTER.into()),
        ..Event::default()
    }
}

/// Counts the export at the roots' Secret: there it stays for as long as the guest does.
async fn count(client: &Client, identity: &Identity, name: &str) -> Result<(), CallError> {
    let api = Api::<Secret>::namespaced(client.clone(), &identity.namespace);
    let object = format!("Secret {}/{name}", identity.namespace);
    let mut left = ATTEMPTS;
    loop {
        let meta = call("get", &object, api.get_metadata(name)).await?.metadata;
        let count = exports::written_down(&meta).saturating_add(1);
        let patch = Patch::Merge(json!({"metadata": {
            // Of two that count at a time one is refused.
            "uid": meta.uid, "resourceVersion": meta.resource_version,
            "annotations": {names::EXPORTS_ANNOTATION: count.to_string()},
        }}));
        match call("patch", &object, api.patch_metadata(name, &PatchParams::default(), &patch)).await {
            Err(error) if error.status() == Some(409) && left > 1 => left -= 1,
            other => return other.map(drop),
        }
    }
}

/// Writes the bundle into a new file, for its owner alone.
fn write(output: &Path, sealed: &str) -> Result<(), Failure> {
    let problem = |error: std::io::Error| {
        format!("write {}: {error}; the event tells of an export all the same", output.display())
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(output).map_err(problem)?;
    let written = file.write_all(sealed.as_bytes()).and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(std::fs::remove_file(output))).map_err(problem)?;
    println!("{}", output.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pki::authority::Kept,
        testing::{NOW, cluster, roots},
    };

    fn stored(roots: &Roots, identity: &Identity) -> Secret {
        let data = roots.data();
        crate::pki::secrets::secret(identity, &identity.namespace, roots::SECRET, roots.fingerprints(), data)
    }

    #[test]
    fn the_roots_that_count_are_exported_and_none_while_they_are_rotated() {
        let with = |rotation: serde_json::Value| {
            let mut cluster = cluster(json!({}));
            cluster.status = serde_json::from_value(json!({"rotation": rotation})).unwrap();
            secret_of(&cluster)
        };
        assert_eq!(secret_of(&cluster(json!({}))).as_deref(), Ok("roots-1"));
        assert_eq!(with(json!({"carriedOut": 5, "generation": 3})).as_deref(), Ok("roots-3"));
        let going = with(json!({"carriedOut": 5, "generation": 4, "stage": "Trust"})).unwrap_err();
        assert!(going.contains("are being rotated"), "{going}");
    }

    #[test]
    fn what_a_guest_lives_by_is_exported_and_nothing_else() {
        let (roots, identity) = (roots(), Identity::of(&cluster(json!({}))));
        let secret = stored(&roots, &identity);
        assert!(judged(&secret, &identity).unwrap().data() == roots.data());
        let refused = |secret: &Secret| judged(secret, &identity).unwrap_err();
        let exchanged = Secret { data: Some(crate::testing::roots().data()), ..secret.clone() };
        assert!(refused(&exchanged).contains("recorded"));
        assert!(refused(&Secret { data: None, ..secret.clone() }).contains("does not hold the roots"));
        let mut foreign = secret.clone();
        foreign.metadata.annotations.as_mut().unwrap().remove(names::OWNER_UID_ANNOTATION);
        assert!(refused(&foreign).contains("does not hold the roots"));
        let end = NOW + crate::cluster::valid::DEFAULT_CA_TTL;
        assert!(whole(&roots, NOW).is_ok() && whole(&roots, end).unwrap_err().contains("expired"));
    }

    #[test]
    fn what_is_in_vault_is_refused_with_why_and_what_to_do() {
        let identity = Identity::of(&cluster(json!({})));
        let refused = in_vault(&identity, "guests/x of a Vault");
        for word in ["guests/x", "not spec.pki.exportable", "never leave it", "snapshots of that Vault"] {
            assert!(refused.contains(word), "{refused}");
        }
        // Of one that could be exported, what is not here has to be fetched first.
        let mut roots = roots();
        roots.etcd = Kept::InVault { certificate: roots.etcd.certificate().into(), mount: "guests/x/etcd".into() };
        assert!(whole(&roots, NOW).unwrap_err().contains("in Vault, and not among them"));
    }

    #[test]
    fn the_longest_note_is_one_that_the_server_takes() {
        let cluster = cluster(json!({}));
        let recipients = vec!["a".repeat(62); seal::MOST_RECIPIENTS];
        let event = event(&cluster, &"ü".repeat(500), &recipients, NOW);
        let note = event.note.unwrap();
        assert!(note.len() <= 1024 && note.ends_with(&recipients[0]), "{}", note.len());
        assert_eq!(event.regarding.unwrap().uid, cluster.metadata.uid);
    }
}
