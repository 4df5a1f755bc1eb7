//! `giantnetes pki import`: a Secret of the roots in a bundle, for a new Cluster to live by.

use std::{
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use kube::{Api, api::PostParams};
use secrecy::SecretString;

use super::super::{Failure, named::Where};
use crate::{
    api::names,
    pki::escrow::{self, Bundle, seal},
    runtime::call,
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ImportArgs {
    /// The bundle.
    #[arg(long)]
    file: PathBuf,
    /// File with the private key of age that opens it, as age-keygen writes it.
    #[arg(long, value_name = "KEY FILE")]
    identity: PathBuf,
    /// Name of the Secret, in the namespace of the Cluster that is to live by it. One that is there is not changed.
    #[arg(long)]
    secret: String,
    #[command(flatten)]
    place: Where,
}

pub(super) async fn import(args: &ImportArgs) -> Result<(), Failure> {
    let bundle = opened(&args.file, &args.identity, Timestamp::now())?;
    let (client, namespace) = args.place.connect().await?;
    let object = format!("Secret {namespace}/{}", args.secret);
    let api = Api::<Secret>::namespaced(client, &namespace);
    let made = call("create", &object, api.create(&PostParams::default(), &secret(&bundle, &args.secret))).await;
    if let Err(error) = made {
        return Err(match error.status() {
            Some(409) => format!("{object} is there already, and is not changed; name another, or delete it").into(),
            _ => error.into(),
        });
    }
    println!(
        "{object}: the roots of Cluster {}, exported at {}. A new Cluster in namespace {namespace} lives by them with \
         spec.pki.importFrom.secretName: {}; delete the Secret when that one's condition PKIReady is True",
        bundle.cluster, bundle.exported_at, args.secret
    );
    Ok(())
}

/// The bundle in a file, if these identities open it and a guest can live by what is in it.
fn opened(file: &Path, identity: &Path, now: Timestamp) -> Result<Bundle, Failure> {
    let unread = |path: &Path, error| format!("read {}: {error}", path.display());
    let keys: SecretString = fs::read_to_string(identity).map_err(|error| unread(identity, error))?.into();
    let keys = seal::identities(&keys).map_err(|error| format!("{}: {error}", identity.display()))?;
    let sealed = fs::read(file).map_err(|error| unread(file, error))?;
    let text = seal::open(&sealed, &keys).map_err(|error| format!("{}: {error}", file.display()))?;
    let bundle = Bundle::read(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    let roots = escrow::check(&bundle.roots, now).map_err(|flaw| format!("{}: {flaw}", file.display()))?;
    Ok(Bundle { roots, ..bundle })
}

/// Without a guest's label: it is nobody's yet, and the controller manager looks at it when a Cluster names it.
fn secret(bundle: &Bundle, name: &str) -> Secret {
    let annotations = [
        (names::EXPORTED_FROM_ANNOTATION, bundle.cluster.clone()),
        (names::EXPORTED_AT_ANNOTATION, bundle.exported_at.to_string()),
    ];
    Secret {
        metadata: ObjectMeta {
            name: Some(name.into()),
            annotations: Some(annotations.map(|(key, value)| (key.to_owned(), value)).into()),
            ..ObjectMeta::default()
        },
        type_: Some(names::ROOTS_TYPE.into()),
        immutable: Some(true),
        data: Some(bundle.roots.data()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use age::x25519::Identity;
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::{
        pki::roots::Roots,
        testing::{NOW, roots},
    };

    #[test]
    fn a_bundle_becomes_a_secret_that_holds_what_was_exported() {
        let folder = std::env::temp_dir().join(format!("giantnetes-escrow-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (identity, other) = (Identity::generate(), Identity::generate());
        let exported = Bundle { cluster: "team-a/demo".into(), exported_at: NOW, roots: roots() };
        let sealed = seal::seal(&exported.write().unwrap(), &[identity.to_public()]).unwrap();
        let put = |name: &str, text: &str| {
            fs::write(folder.join(name), text).unwrap();
            folder.join(name)
        };
        let (key, wrong) = (identity.to_string(), other.to_string());
        let (key, wrong) = (put("key", key.expose_secret()), put("wrong", wrong.expose_secret()));
        let file = put("bundle", &sealed);

        let made = secret(&opened(&file, &key, NOW).unwrap(), "kept");
        assert_eq!(Roots::of(&made).unwrap().fingerprints(), exported.roots.fingerprints());
        assert_eq!((made.type_.as_deref(), made.immutable), (Some("giantnetes.io/roots"), Some(true)));
        assert!(made.metadata.labels.is_none());

        let refused = |file: &Path, key: &Path, now| opened(file, key, now).unwrap_err().to_string();
        assert!(refused(&file, &wrong, NOW).contains("sealed for other recipients"));
        assert!(refused(&put("cut", &sealed[..sealed.len() / 2]), &key, NOW).contains("damaged, cut off"));
        assert!(refused(&file, &key, Timestamp::MAX).contains("expired"));
        assert!(refused(&folder.join("none"), &key, NOW).contains("read "));
        let other = seal::seal(&"{}".to_owned().into(), &[identity.to_public()]).unwrap();
        assert!(refused(&put("other", &other), &key, NOW).contains("no roots of a guest"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
