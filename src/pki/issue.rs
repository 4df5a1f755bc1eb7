//! Effects of the pki operator: certificates of nodes and of the administrator, each in its Secret.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, jiff::Timestamp};
use secrecy::ExposeSecret as _;
use tracing::info;

use super::{
    embedded::{self, Pair},
    kubeconfig,
    leaf::{self, Authority, Leaf},
    plan::{Root, World, renew_at},
    reconcile::{Error, PkiOperator},
    secrets::{bytes, issued, secret},
    store::Place,
};
use crate::{api::names, cluster::Identity, node_config::paths, runtime::apply};

/// What issuing needs to know, whatever is issued.
#[derive(Clone, Copy)]
pub(super) struct Issue<'a> {
    pub identity: &'a Identity,
    pub world: &'a World,
    pub hash: &'a str,
    pub ttl: Duration,
    pub now: Timestamp,
}

/// Signs a certificate and puts it where a node looks for it. Answers when its authority ends.
fn sign_into(
    data: &mut BTreeMap<String, ByteString>,
    authority: &Pair,
    leaf: &Leaf,
    ttl: Duration,
    now: Timestamp,
) -> Result<Timestamp, Error> {
    let pair = embedded::sign(authority, leaf, now, ttl)?;
    data.insert(paths::certificate(leaf.name), bytes(&pair.certificate));
    data.insert(paths::key(leaf.name), bytes(pair.key.expose_secret()));
    Ok(embedded::expires(&authority.certificate)?)
}

struct Roots {
    pairs: BTreeMap<Root, Pair>,
}

impl Roots {
    fn pair(&self, root: Root, identity: &Identity) -> Result<&Pair, Error> {
        self.pairs.get(&root).ok_or_else(|| Error::Lost(format!("{}/{}", identity.namespace, root.secret())))
    }
}

impl PkiOperator {
    pub(super) async fn issue_master(&self, issue: Issue<'_>, node: &str, leaves: &[Leaf]) -> Result<(), Error> {
        let Issue { identity, world, hash, ttl, now } = issue;
        let place = self.keys.place(identity, &identity.namespace, &names::node_secret(node), hash, now).await?;
        let Place::Open(former) = place else { return Ok(()) };
        let roots = self.roots(identity, world).await?;
        let mut data = BTreeMap::new();
        for (file, root) in [
            (paths::CA, Root::Ca(Authority::Kubernetes)),
            (paths::ETCD_CA, Root::Ca(Authority::Etcd)),
            (paths::FRONT_PROXY_CA, Root::Ca(Authority::FrontProxy)),
            (paths::SERVICE_ACCOUNT_PUB, Root::ServiceAccount),
        ] {
            data.insert(file.to_owned(), bytes(&roots.pair(root, identity)?.certificate));
        }
        let service_account = roots.pair(Root::ServiceAccount, identity)?;
        data.insert(paths::SERVICE_ACCOUNT_KEY.into(), bytes(service_account.key.expose_secret()));
        let encryption = roots.pair(Root::Encryption, identity)?;
        data.insert(paths::ENCRYPTION.into(), bytes(encryption.key.expose_secret()));
        let mut roots_end = Timestamp::MAX;
        for leaf in leaves {
            roots_end =
                roots_end.min(sign_into(&mut data, roots.pair(Root::Ca(leaf.authority), identity)?, leaf, ttl, now)?);
        }
        let annotations = issued(hash, renew_at(now, ttl, roots_end));
        let secret = secret(identity, &identity.namespace, &names::node_secret(node), annotations, data);
        self.keys.store(former, secret).await?;
        info!(node, "certificates issued");
        Ok(())
    }

    /// What a worker needs and no more: no key of an authority or of service accounts, nothing of etcd.
    pub(super) async fn issue_worker(&self, issue: Issue<'_>, node: &str, leaves: &[Leaf]) -> Result<(), Error> {
        let Issue { identity, world, hash, ttl, now } = issue;
        let place = self.keys.place(identity, &identity.namespace, &names::node_secret(node), hash, now).await?;
        let Place::Open(former) = place else { return Ok(()) };
        let ca = self.root(identity, world, Root::Ca(Authority::Kubernetes)).await?;
        let mut data = BTreeMap::from([(paths::CA.to_owned(), bytes(&ca.certificate))]);
        let mut roots_end = Timestamp::MAX;
        for leaf in leaves {
            roots_end = roots_end.min(sign_into(&mut data, &ca, leaf, ttl, now)?);
        }
        let annotations = issued(hash, renew_at(now, ttl, roots_end));
        let mut secret = secret(identity, &identity.namespace, &names::node_secret(node), annotations, data);
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert(names::ROLE_LABEL.into(), names::ROLE_WORKER.into());
        labels.insert(names::NODE_LABEL.into(), node.into());
        self.keys.store(former, secret).await?;
        info!(node, "certificates issued");
        Ok(())
    }

    pub(super) async fn remove_worker(&self, identity: &Identity, node: &str) -> Result<(), Error> {
        let name = names::node_secret(node);
        if let Some(meta) = self.context.meta(&self.context.cache.secrets, &identity.namespace, &name)
            && identity.owner().owns(&meta)
        {
            apply::delete(&self.keys.secrets(&identity.namespace), &meta, None).await?;
            info!(node, "certificates removed");
        }
        Ok(())
    }

    pub(super) async fn issue_kubeconfig(&self, issue: Issue<'_>, endpoint: &str) -> Result<(), Error> {
        let Issue { identity, world, hash, ttl, now } = issue;
        let name = names::kubeconfig_secret(&identity.key.name);
        let place = self.keys.place(identity, &identity.key.namespace, &name, hash, now).await?;
        let Place::Open(former) = place else { return Ok(()) };
        let ca = self.root(identity, world, Root::Ca(Authority::Kubernetes)).await?;
        let client = embedded::sign(&ca, &leaf::administrator(), now, ttl)?;
        let text = kubeconfig::render(&identity.key.name, "administrator", endpoint, &ca.certificate, &client);
        let data = BTreeMap::from([("value".to_owned(), bytes(text.expose_secret()))]);
        let annotations = issued(hash, renew_at(now, ttl, embedded::expires(&ca.certificate)?));
        self.keys.store(former, secret(identity, &identity.key.namespace, &name, annotations, data)).await?;
        info!("kubeconfig issued");
        Ok(())
    }

    async fn roots(&self, identity: &Identity, world: &World) -> Result<Roots, Error> {
        let mut pairs = BTreeMap::new();
        for root in Root::ALL {
            pairs.insert(root, self.root(identity, world, root).await?);
        }
        Ok(Roots { pairs })
    }
}
