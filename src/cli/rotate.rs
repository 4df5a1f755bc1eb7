//! `giantnetes rotate ca NAME`, and of the keys of service-account tokens and of encryption at rest.

use std::time::Duration;

use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Failure, named::Named};
use crate::{
    api::{Cluster, RotationStatus},
    pki::keys::Subject,
    runtime::call,
};

/// Pause between two looks of who waits.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Rotate {
    /// Put new certificate authorities in the place of a guest cluster's.
    Ca(RotateArgs),
    /// Put a new key in the place of the one that signs a guest cluster's service-account tokens.
    ServiceAccountKey(RotateArgs),
    /// Put a new key in the place of the one that a guest cluster's Secrets are encrypted with, and have them stored anew.
    EncryptionKey(RotateArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    cluster: Named,
    /// Wait until the former ones are gone, and say what is going on.
    #[arg(long)]
    wait: bool,
}

/// Asks for it, and returns or waits: the controller manager does it.
pub(super) async fn rotate(what: &Rotate) -> Result<(), Failure> {
    let (args, what) = match what {
        Rotate::Ca(args) => (args, Subject::Authorities),
        Rotate::ServiceAccountKey(args) => (args, Subject::ServiceAccountKey),
        Rotate::EncryptionKey(args) => (args, Subject::EncryptionKey),
    };
    let place = place(what);
    let (client, namespace) = args.cluster.place.connect().await?;
    let name = args.cluster.name.as_str();
    let api = Api::<Cluster>::namespaced(client, &namespace);
    let object = format!("Cluster {namespace}/{name}");
    let cluster = call("get", object.clone(), api.get(name)).await?;
    let asked = next(&cluster, what)?;
    let patch = json!({
        // Two who ask at once ask for one rotation each: the second one sees what the first one wrote.
        "metadata": {"resourceVersion": cluster.resource_version()},
        "spec": {"pki": {place: {"rotate": asked}}},
    });
    call("patch", object.clone(), api.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await?;
    println!(
        "{object}: {} will be rotated (spec.pki.{place}.rotate: {asked}); status.rotation tells how far that is",
        noun(what)
    );
    if args.wait {
        wait(&api, name, &object, what, asked).await?;
    }
    Ok(())
}

/// Where in `spec.pki` the wish stands.
fn place(what: Subject) -> &'static str {
    match what {
        Subject::Authorities => "ca",
        Subject::ServiceAccountKey => "serviceAccountKey",
        Subject::EncryptionKey => "encryptionKey",
    }
}

/// The wish for one more. Where an earlier one got lost (a restored spec), what was carried out counts.
fn next(cluster: &Cluster, what: Subject) -> Result<i32, Failure> {
    if what == Subject::Authorities && cluster.is_kept_in_vault() {
        return Err("authorities that are in Vault (spec.pki.backend) are not rotated yet".into());
    }
    let place = place(what);
    let asked = cluster.rotations_asked().into_iter().find(|(of, _)| *of == place).map_or(0, |(_, count)| count);
    let rotation = cluster.status.as_ref().and_then(|status| status.rotation.as_ref());
    let before = asked.max(rotation.map_or(0, |rotation| carried_out(rotation, what)));
    before.checked_add(1).ok_or_else(|| format!("spec.pki.{place}.rotate cannot be raised any more").into())
}

fn noun(what: Subject) -> &'static str {
    match what {
        Subject::Authorities => "its authorities",
        Subject::ServiceAccountKey => "its service-account key",
        Subject::EncryptionKey => "its encryption key",
    }
}

async fn wait(api: &Api<Cluster>, name: &str, object: &str, what: Subject, asked: i32) -> Result<(), Failure> {
    let mut said = String::new();
    loop {
        let cluster = call("get", object.to_owned(), api.get(name)).await?;
        let rotation = cluster.status.and_then(|status| status.rotation).unwrap_or_default();
        let word = word(&rotation, what, asked);
        if word != said {
            println!("{object}: {word}");
            said = word;
        }
        if is_done(&rotation, what, asked) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The wish that was carried out last.
fn carried_out(rotation: &RotationStatus, what: Subject) -> i32 {
    match what {
        Subject::Authorities => rotation.carried_out,
        Subject::ServiceAccountKey => rotation.service_account_key_carried_out,
        Subject::EncryptionKey => rotation.encryption_key_carried_out,
    }
}

/// A rotation that was asked for later than another begins after it.
fn is_done(rotation: &RotationStatus, what: Subject, asked: i32) -> bool {
    // Something else may be rotated since.
    carried_out(rotation, what) >= asked
        && (rotation.stage.is_none() || rotation.subject.as_deref() != Some(what.name()))
}

fn word(rotation: &RotationStatus, what: Subject, asked: i32) -> String {
    if is_done(rotation, what, asked) {
        let what = match what {
            Subject::Authorities => "authorities were",
            Subject::ServiceAccountKey => "the service-account key was",
            Subject::EncryptionKey => "the encryption key was",
        };
        return format!("{what} rotated; generation {} is in place", rotation.generation);
    }
    rotation.going_on().unwrap_or_else(|| "it has not begun yet".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: Subject = Subject::Authorities;

    #[test]
    fn who_waits_is_told_what_goes_on_and_when_it_is_done() {
        let status = |carried_out, stage: Option<&str>| RotationStatus {
            carried_out,
            generation: 2,
            subject: stage.map(|_| CA.name().into()),
            stage: stage.map(Into::into),
            waits_for: stage.map(|_| "master-0: etcd to be well".into()),
            ..RotationStatus::default()
        };
        assert_eq!(word(&RotationStatus::default(), CA, 1), "it has not begun yet");
        let trust = status(0, Some("Trust"));
        assert_eq!(word(&trust, CA, 1), "generation 2 of CA: Trust, waits for master-0: etcd to be well");
        assert!(
            !is_done(&trust, CA, 1) && !is_done(&status(1, None), CA, 2) && !is_done(&status(1, Some("Drop")), CA, 1)
        );
        assert_eq!(word(&status(1, None), CA, 1), "authorities were rotated; generation 2 is in place");
        let until = RotationStatus { until: Some("tomorrow".into()), waits_for: None, ..status(0, Some("Overlap")) };
        assert_eq!(word(&until, CA, 1), "generation 2 of CA: Overlap, users have time until tomorrow");
    }

    #[test]
    fn who_waits_for_a_key_is_told_what_goes_first_and_not_kept_by_what_comes_after() {
        let key = Subject::EncryptionKey;
        let going = |subject: Subject, carried_out| RotationStatus {
            encryption_key_carried_out: carried_out,
            generation: 3,
            subject: Some(subject.name().into()),
            stage: Some("Trust".into()),
            queued: if carried_out == 0 { vec![key.name().into()] } else { Vec::new() },
            ..RotationStatus::default()
        };
        let first = going(Subject::ServiceAccountKey, 0);
        assert_eq!(word(&first, key, 1), "generation 3 of ServiceAccountKey: Trust; then EncryptionKey");
        assert!(!is_done(&first, key, 1));
        assert!(is_done(&going(Subject::ServiceAccountKey, 1), key, 1), "another one is waited for");
        assert!(!is_done(&going(key, 1), key, 1));
    }

    #[test]
    fn a_wish_is_one_more_than_the_last() {
        let next = |what: Subject, pki: serde_json::Value, carried_out: i32| {
            let mut cluster = crate::testing::cluster(json!({"pki": pki}));
            let rotation = json!({"rotation": {"carriedOut": carried_out, "generation": 1}});
            cluster.status = serde_json::from_value(rotation).unwrap();
            next(&cluster, what).map_err(|failure| failure.to_string())
        };
        let (ca, encryption) = (Subject::Authorities, Subject::EncryptionKey);
        assert_eq!([next(ca, json!({}), 0), next(ca, json!({"ca": {"rotate": 3}}), 3)], [Ok(1), Ok(4)]);
        // Or it would be taken for the one that was carried out.
        assert_eq!([next(ca, json!({}), 2), next(encryption, json!({}), 2)], [Ok(3), Ok(1)]);
        let refused = next(encryption, json!({"encryptionKey": {"rotate": i32::MAX}}), 0).unwrap_err();
        assert!(refused.contains("spec.pki.encryptionKey.rotate"), "{refused}");
        let refused = next(ca, json!({"backend": "Vault"}), 0).unwrap_err();
        assert!(refused.contains("in Vault"), "{refused}");
    }
}
