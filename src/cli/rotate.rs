//! `giantnetes rotate ca NAME`

use std::time::Duration;

use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Failure, named::Named};
use crate::{
    api::{Cluster, RotationStatus},
    runtime::call,
};

/// Pause between two looks of who waits.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Rotate {
    /// Put new certificate authorities in the place of a guest cluster's.
    Ca(CaArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct CaArgs {
    #[command(flatten)]
    cluster: Named,
    /// Wait until the former ones are gone, and say what is going on.
    #[arg(long)]
    wait: bool,
}

/// Asks for it, and returns or waits: the controller manager does it.
pub(super) async fn rotate(what: &Rotate) -> Result<(), Failure> {
    let Rotate::Ca(args) = what;
    let (client, namespace) = args.cluster.place.connect().await?;
    let name = args.cluster.name.as_str();
    let api = Api::<Cluster>::namespaced(client, &namespace);
    let object = format!("Cluster {namespace}/{name}");
    let cluster = call("get", object.clone(), api.get(name)).await?;
    let asked = next(&cluster)?;
    let patch = json!({
        // Two who ask at once ask for one rotation each: the second one sees what the first one wrote.
        "metadata": {"resourceVersion": cluster.resource_version()},
        "spec": {"pki": {"ca": {"rotate": asked}}},
    });
    call("patch", object.clone(), api.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await?;
    println!(
        "{object}: its authorities will be rotated (spec.pki.ca.rotate: {asked}); status.rotation tells how far that is"
    );
    if args.wait {
        wait(&api, name, &object, asked).await?;
    }
    Ok(())
}

/// The wish for one more. Where an earlier one got lost (a restored spec), what was carried out counts.
fn next(cluster: &Cluster) -> Result<i32, Failure> {
    if cluster.is_kept_in_vault() {
        return Err("authorities that are in Vault (spec.pki.backend) are not rotated yet".into());
    }
    let rotation = cluster.status.as_ref().and_then(|status| status.rotation.as_ref());
    let before = cluster.rotations_asked().max(rotation.map_or(0, |rotation| rotation.carried_out));
    before.checked_add(1).ok_or_else(|| "spec.pki.ca.rotate cannot be raised any more".into())
}

async fn wait(api: &Api<Cluster>, name: &str, object: &str, asked: i32) -> Result<(), Failure> {
    let mut said = String::new();
    loop {
        let cluster = call("get", object.to_owned(), api.get(name)).await?;
        let rotation = cluster.status.and_then(|status| status.rotation).unwrap_or_default();
        let word = word(&rotation, asked);
        if word != said {
            println!("{object}: {word}");
            said = word;
        }
        if is_done(&rotation, asked) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A rotation that was asked for later than another begins after it.
fn is_done(rotation: &RotationStatus, asked: i32) -> bool {
    rotation.carried_out >= asked && rotation.stage.is_none()
}

fn word(rotation: &RotationStatus, asked: i32) -> String {
    rotation.going_on().unwrap_or_else(|| match is_done(rotation, asked) {
        true => format!("generation {} of its authorities is in place", rotation.generation),
        false => "it has not begun yet".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told_what_goes_on_and_when_it_is_done() {
        let status = |carried_out, stage: Option<&str>| RotationStatus {
            carried_out,
            generation: 2,
            stage: stage.map(Into::into),
            waits_for: stage.map(|_| "master-0: etcd to be well".into()),
            ..RotationStatus::default()
        };
        assert_eq!(word(&RotationStatus::default(), 1), "it has not begun yet");
        let trust = status(0, Some("Trust"));
        assert_eq!(word(&trust, 1), "generation 2: Trust, waits for master-0: etcd to be well");
        assert!(!is_done(&trust, 1) && !is_done(&status(1, None), 2) && !is_done(&status(1, Some("Drop")), 1));
        assert_eq!(word(&status(1, None), 1), "generation 2 of its authorities is in place");
        let until = RotationStatus { until: Some("tomorrow".into()), waits_for: None, ..status(0, Some("Overlap")) };
        assert_eq!(word(&until, 1), "generation 2: Overlap, users have time until tomorrow");
    }

    #[test]
    fn a_wish_is_one_more_than_the_last() {
        let next = |pki: serde_json::Value, carried_out: i32| {
            let mut cluster = crate::testing::cluster(json!({"pki": pki}));
            let rotation = json!({"rotation": {"carriedOut": carried_out, "generation": 1}});
            cluster.status = serde_json::from_value(rotation).unwrap();
            next(&cluster).map_err(|failure| failure.to_string())
        };
        assert_eq!([next(json!({}), 0), next(json!({"ca": {"rotate": 3}}), 3)], [Ok(1), Ok(4)]);
        // Or it would be taken for the one that was carried out.
        assert_eq!(next(json!({}), 2), Ok(3));
        assert!(next(json!({"ca": {"rotate": i32::MAX}}), 0).is_err());
        let refused = next(json!({"backend": "Vault"}), 0).unwrap_err();
        assert!(refused.contains("in Vault"), "{refused}");
    }
}
