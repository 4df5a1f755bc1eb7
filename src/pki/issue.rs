//! Effects of the pki operator: certificates of nodes and of the administrator, each in its Secret.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, jiff::Timestamp};
use secrecy::ExposeSecret as _;
use tokio::sync::OnceCell;
use tracing::info;

use super::{
    authority::{self, Kept},
    embedded, kubeconfig,
    leaf::{self, Leaf},
    plan::{World, renew_at},
    reconcile::{Error, PkiOperator},
    roots::Roots,
    secrets::{bytes, issued, secret},
    store::Place,
};
use crate::{
    api::{PkiBackend, names},
    cluster::{Identity, Valid},
    node_config::paths,
    runtime::apply,
};

/// Who the kubeconfig beside the Cluster is for.
const ADMINISTRATOR: &str = "administrator";

/// What issuing needs to know, whatever is issued.
#[derive(Clone, Copy)]
pub(super) struct Issue<'a> {
    pub identity: &'a Identity,
    pub world: &'a World,
    /// The guest's roots, once a step has read them.
    pub roots: &'a OnceCell<Roots>,
    pub hash: &'a str,
    pub ttl: Duration,
    pub now: Timestamp,
}

/// When the first of several certificates ends, and the first of their authorities.
#[derive(Clone, Copy)]
struct Ends {
    leaves: Timestamp,
    roots: Timestamp,
}

impl Ends {
    const NEVER: Self = Self { leaves: Timestamp::MAX, roots: Timestamp::MAX };

    fn first(self, other: Self) -> Self {
        Self { leaves: self.leaves.min(other.leaves), roots: self.roots.min(other.roots) }
    }
}

impl PkiOperator {
    pub(super) async fn issue_master(&self, issue: Issue<'_>, node: &str, leaves: &[Leaf]) -> Result<(), Error> {
        let Issue { identity, hash, ttl, now, .. } = issue;
        let place = self.keys.place(identity, &identity.namespace, &names::node_secret(node), hash, now).await?;
        let Place::Open(former) = place else { return Ok(()) };
        let roots = self.roots_for(issue).await?;
        let mut data = BTreeMap::new();
        for (file, content) in [
            (paths::CA, roots.kubernetes.certificate()),
            (paths::ETCD_CA, roots.etcd.certificate()),
            (paths::FRONT_PROXY_CA, roots.front_proxy.certificate()),
            (paths::SERVICE_ACCOUNT_PUB, &roots.service_account.certificate),
            (paths::SERVICE_ACCOUNT_KEY, roots.service_account.key.expose_secret()),
            (paths::ENCRYPTION, roots.encryption.expose_secret()),
        ] {
            data.insert(file.to_owned(), bytes(content));
        }
        let mut ends = Ends::NEVER;
        for leaf in leaves {
            let authority = roots.authority(leaf.authority);
            ends = ends.first(self.sign_into(&mut data, authority, node, leaf, ttl, now).await?);
        }
        let annotations = issued(hash, renew_at(now, ttl, ends.roots), ends.leaves);
        let secret = secret(identity, &identity.namespace, &names::node_secret(node), annotations, data);
        self.keys.store(former, secret).await?;
        authority::stored(&self.context, identity, node);
        info!(node, "certificates issued");
        Ok(())
    }

    /// What a worker needs and no more: no key of an authority or of service accounts, nothing of etcd.
    pub(super) async fn issue_worker(&self, issue: Issue<'_>, node: &str, leaves: &[Leaf]) -> Result<(), Error> {
        let Issue { identity, hash, ttl, now, .. } = issue;
        let place = self.keys.place(identity, &identity.namespace, &names::node_secret(node), hash, now).await?;
        let Place::Open(former) = place else { return Ok(()) };
        let ca = &self.roots_for(issue).await?.kubernetes;
        let mut data = BTreeMap::from([(paths::CA.to_owned(), bytes(ca.certificate()))]);
        let mut ends = Ends::NEVER;
        for leaf in leaves {
            ends = ends.first(self.sign_into(&mut data, ca, node, leaf, ttl, now).await?);
        }
        let annotations = issued(hash, renew_at(now, ttl, ends.roots), ends.leaves);
        let mut secret = secret(identity, &identity.namespace, &names::node_secret(node), annotations, data);
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert(names::ROLE_LABEL.into(), names::ROLE_WORKER.into());
        labels.insert(names::NODE_LABEL.into(), node.into());
        self.keys.store(former, secret).await?;
        authority::stored(&self.context, identity, node);
        info!(node, "certificates issued");
        Ok(())
    }

    pub(super) async fn remove_worker(&self, cluster: &Valid, world: &World, node: &str) -> Result<(), Error> {
        let (identity, name) = (&cluster.identity, names::node_secret(node));
        if let Some(meta) = self.context.meta(&self.context.cache.secrets, &identity.namespace, &name)
            && identity.owner().owns(&meta)
        {
            if cluster.pki.backend == PkiBackend::Vault {
                let ca = self.roots(identity, world).await?.kubernetes;
                // Before the Secret, which brings us back here until it is gone.
                authority::forget(&self.context, &ca, node, &leaf::OF_WORKER).await?;
            }
            apply::delete(&self.keys.secrets(&identity.namespace), &meta, None).await?;
            info!(node, "certificates removed");
        }
        Ok(())
    }

    pub(super) async fn issue_kubeconfig(&self, issue: Issue<'_>, endpoint: &str) -> Result<(), Error> {
        let Issue { identity, hash, ttl, now, .. } = issue;
        let name = names::kubeconfig_secret(&identity.key.name);
        let place = self.keys.place(identity, &identity.key.namespace, &name, hash, now).await?;
        let Place::Open(former) = place else { return Ok(()) };
        let ca = &self.roots_for(issue).await?.kubernetes;
        let client = authority::sign(&self.context, ca, ADMINISTRATOR, &leaf::administrator(), now, ttl).await?;
        let text = kubeconfig::render(&identity.key.name, ADMINISTRATOR, endpoint, ca.certificate(), &client);
        let data = BTreeMap::from([("value".to_owned(), bytes(text.expose_secret()))]);
        let ends = embedded::expires(&client.certificate)?;
        let annotations = issued(hash, renew_at(now, ttl, embedded::expires(ca.certificate())?), ends);
        self.keys.store(former, secret(identity, &identity.key.namespace, &name, annotations, data)).await?;
        authority::stored(&self.context, identity, ADMINISTRATOR);
        info!("kubeconfig issued");
        Ok(())
    }

    async fn roots_for<'a>(&self, issue: Issue<'a>) -> Result<&'a Roots, Error> {
        issue.roots.get_or_try_init(|| self.roots(issue.identity, issue.world)).await
    }

    /// Signs a certificate of a node and puts it where the node looks for it.
    async fn sign_into(
        &self,
        data: &mut BTreeMap<String, ByteString>,
        authority: &Kept,
        node: &str,
        leaf: &Leaf,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Ends, Error> {
        let pair = authority::sign(&self.context, authority, node, leaf, now, ttl).await?;
        data.insert(paths::certificate(leaf.name), bytes(&pair.certificate));
        data.insert(paths::key(leaf.name), bytes(pair.key.expose_secret()));
        Ok(Ends { leaves: embedded::expires(&pair.certificate)?, roots: embedded::expires(authority.certificate())? })
    }
}
