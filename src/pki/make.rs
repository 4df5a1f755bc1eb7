//! Effects of the pki operator: the roots, which a guest is given once.

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use tracing::info;

use super::{
    authority::{self, Kept},
    embedded,
    leaf::Authority,
    plan::World,
    reconcile::{Error, PkiOperator},
    roots::{self, Root, Roots},
    secrets::secret,
};
use crate::{
    api::PkiBackend,
    cluster::{Identity, Valid},
};

impl PkiOperator {
    /// Makes the roots, each with its key, where the spec wants it.
    pub(super) async fn make_roots(&self, cluster: &Valid, now: Timestamp) -> Result<Roots, Error> {
        Ok(Roots {
            kubernetes: self.make_authority(cluster, Authority::Kubernetes, now).await?,
            etcd: self.make_authority(cluster, Authority::Etcd, now).await?,
            front_proxy: self.make_authority(cluster, Authority::FrontProxy, now).await?,
            service_account: embedded::key_pair()?,
            encryption: embedded::encryption_config("key1")?,
            rotated_for: cluster.pki.rotate,
            keys_for: cluster.pki.keys,
        })
    }

    /// Stores the roots for the first time. Their Secret has one name, so of two makers one fails and takes the other's.
    pub(super) async fn store_roots(&self, identity: &Identity, world: &World, roots: &Roots) -> Result<(), Error> {
        let secret = Secret {
            immutable: Some(true),
            ..secret(identity, &identity.namespace, roots::SECRET, roots.annotations(), roots.data())
        };
        match self.keys.create(&secret).await {
            // Ours, if the cache lags behind or somebody took its labels; else it stands in the way.
            Err(Error::Call(error)) if error.status() == Some(409) => self.mark_roots(identity, world).await,
            Err(error) => Err(error),
            Ok(()) => {
                info!("roots stored");
                Ok(())
            }
        }
    }

    /// Puts roots that were imported where the spec wants them: with Vault, no key of an authority is stored here.
    pub(super) async fn bring_roots(&self, cluster: &Valid, roots: Roots) -> Result<Roots, Error> {
        if cluster.pki.backend != PkiBackend::Vault {
            return Ok(roots);
        }
        Ok(Roots {
            kubernetes: self.bring_authority(cluster, Authority::Kubernetes, &roots).await?,
            etcd: self.bring_authority(cluster, Authority::Etcd, &roots).await?,
            front_proxy: self.bring_authority(cluster, Authority::FrontProxy, &roots).await?,
            ..roots
        })
    }

    async fn bring_authority(&self, cluster: &Valid, of: Authority, roots: &Roots) -> Result<Kept, Error> {
        let (identity, pki) = (&cluster.identity, &cluster.pki);
        // What was imported has every key.
        let Kept::Here(pair) = roots.authority(of) else { return Ok(roots.authority(of).clone()) };
        let vault = authority::vault(&self.context)?;
        vault.bring(identity, of, pair, pki.ca_ttl, pki.exportable).await?;
        Ok(Kept::InVault { certificate: pair.certificate.clone(), mount: vault.mount(identity, of) })
    }

    async fn make_authority(&self, cluster: &Valid, of: Authority, now: Timestamp) -> Result<Kept, Error> {
        let (identity, ttl) = (&cluster.identity, cluster.pki.ca_ttl);
        if cluster.pki.backend == PkiBackend::Vault {
            let vault = authority::vault(&self.context)?;
            let certificate = match cluster.pki.exportable {
                true => vault.make_exportable(identity, of, now, ttl).await?,
                false => vault.make(identity, of, ttl).await?,
            };
            return Ok(Kept::InVault { certificate, mount: vault.mount(identity, of) });
        }
        Ok(Kept::Here(embedded::root(Root::Ca(of).name(), &identity.key.to_string(), now, ttl)?))
    }
}
