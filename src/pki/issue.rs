//! Effects of the pki operator: certificates of nodes and of the administrator, each in its Secret.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use secrecy::ExposeSecret as _;
use tokio::sync::OnceCell;
use tracing::info;

use super::{
    authority::{self, Kept},
    embedded,
    generations::{Generations, Standing},
    keys::{self, Subject},
    kubeconfig,
    leaf::{self, Authority, Leaf},
    plan::{World, renew_at},
    reconcile::{Error, PkiOperator},
    rotation::Phase,
    secrets::{bytes, issued, secret, secret_meta},
    store::Place,
};
use crate::{
    api::{PkiBackend, names},
    cluster::{Identity, Valid},
    node_config::paths,
    runtime::{apply, call},
};

/// Who the kubeconfig beside the Cluster is for.
const ADMINISTRATOR: &str = "administrator";

/// What issuing needs to know, whatever is issued.
#[derive(Clone, Copy)]
pub(super) struct Issue<'a> {
    pub identity: &'a Identity,
    pub world: &'a World,
    /// The guest's roots, once a step has read them.
    pub roots: &'a OnceCell<Generations>,
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

/// Whether a node is further in a rotation than the cache has it, as after a change of leaders: it never goes back, and the watch
/// brings what is there.
fn is_ahead(former: Option<&ObjectMeta>, world: &World, standing: Option<Standing>) -> bool {
    let Some(mark) = former.and_then(|meta| secret_meta(meta).mark) else { return false };
    match standing.map(|standing| standing.mark) {
        Some(ours) => {
            // One that takes the former encryption key up again fits all others, whoever else has gone on.
            let back = standing.is_some_and(|standing| standing.subject == Subject::EncryptionKey)
                && (mark.phase, ours.phase) == (Phase::Drop, Phase::Reissue);
            let is_later = mark.phase > ours.phase && !back;
            mark.generation > ours.generation || (mark.generation == ours.generation && is_later)
        }
        None => mark.generation > world.generation(),
    }
}

/// What is replaced by what is issued to a node. None: it is issued, and says for which phase.
fn to_replace(place: Place, standing: Option<Standing>) -> Option<Option<ObjectMeta>> {
    match place {
        Place::Open(former) => Some(former),
        Place::Issued(meta) => {
            let lacks_mark = standing.is_some_and(|standing| secret_meta(&meta).mark != Some(standing.mark));
            lacks_mark.then_some(Some(meta))
        }
    }
}

impl PkiOperator {
    /// What is replaced by what is issued to a node now. None: it has that already, or is further in a rotation.
    async fn due(
        &self,
        issue: Issue<'_>,
        node: &str,
        standing: Option<Standing>,
    ) -> Result<Option<Option<ObjectMeta>>, Error> {
        let Issue { identity, world, hash, now, .. } = issue;
        let place = self.keys.place(identity, &identity.namespace, &names::node_secret(node), hash, now).await?;
        Ok(to_replace(place, standing).filter(|former| !is_ahead(former.as_ref(), world, standing)))
    }

    pub(super) async fn issue_master(
        &self,
        issue: Issue<'_>,
        node: &str,
        leaves: &[Leaf],
        standing: Option<Standing>,
    ) -> Result<(), Error> {
        let Some(former) = self.due(issue, node, standing).await? else { return Ok(()) };
        let identity = issue.identity;
        let roots = self.roots_for(issue).await?;
        let keys = keys::files::of(roots, standing.map_or(Phase::Before, |standing| standing.mark.phase))?;
        let mut data = BTreeMap::new();
        for (file, content) in [
            (paths::CA, roots.bundle(Authority::Kubernetes, standing).as_str()),
            (paths::ETCD_CA, &roots.bundle(Authority::Etcd, standing)),
            (paths::FRONT_PROXY_CA, &roots.bundle(Authority::FrontProxy, standing)),
            (paths::SERVICE_ACCOUNT_PUB, &keys.verify),
            (paths::SERVICE_ACCOUNT_KEY, keys.sign.expose_secret()),
            (paths::ENCRYPTION, keys.encryption.expose_secret()),
        ] {
            data.insert(file.to_owned(), bytes(content));
        }
        let annotations = self.fill(issue, &mut data, node, leaves, standing).await?;
        let secret = secret(identity, &identity.namespace, &names::node_secret(node), annotations, data);
        self.keys.store(former, secret).await?;
        authority::stored(&self.context, identity, node);
        info!(node, phase = standing.map(|standing| standing.mark.to_string()), "certificates issued");
        Ok(())
    }

    /// What a worker needs and no more: no key of an authority or of service accounts, nothing of etcd.
    pub(super) async fn issue_worker(
        &self,
        issue: Issue<'_>,
        node: &str,
        leaves: &[Leaf],
        standing: Option<Standing>,
    ) -> Result<(), Error> {
        let Some(former) = self.due(issue, node, standing).await? else { return Ok(()) };
        let identity = issue.identity;
        let trusted = self.roots_for(issue).await?.bundle(Authority::Kubernetes, standing);
        let mut data = BTreeMap::from([(paths::CA.to_owned(), bytes(&trusted))]);
        let annotations = self.fill(issue, &mut data, node, leaves, standing).await?;
        let mut secret = secret(identity, &identity.namespace, &names::node_secret(node), annotations, data);
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert(names::ROLE_LABEL.into(), names::ROLE_WORKER.into());
        labels.insert(names::NODE_LABEL.into(), node.into());
        self.keys.store(former, secret).await?;
        authority::stored(&self.context, identity, node);
        info!(node, phase = standing.map(|standing| standing.mark.to_string()), "certificates issued");
        Ok(())
    }

    /// Puts a node's certificates where it looks for them, and what it has to do in a rotation. Answers what its Secret says.
    async fn fill(
        &self,
        issue: Issue<'_>,
        data: &mut BTreeMap<String, ByteString>,
        node: &str,
        leaves: &[Leaf],
        standing: Option<Standing>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let Issue { hash, ttl, now, .. } = issue;
        let roots = self.roots_for(issue).await?;
        let mut ends = Ends::NEVER;
        for leaf in leaves {
            let signer = roots.signer(leaf, standing);
            ends = ends.first(self.sign_into(data, signer, node, leaf, ttl, now).await?);
        }
        let mut annotations = issued(hash, renew_at(now, ttl, ends.roots), ends.leaves);
        if let Some(standing) = standing {
            let mark = standing.mark.to_string();
            data.insert(paths::TURN.to_owned(), bytes(&standing.turns()));
            data.insert(paths::MARK.to_owned(), bytes(&mark));
            annotations.insert(names::AUTHORITIES_ANNOTATION.to_owned(), mark);
        }
        Ok(annotations)
    }

    pub(super) async fn remove_worker(&self, cluster: &Valid, world: &World, node: &str) -> Result<(), Error> {
        let (identity, name) = (&cluster.identity, names::node_secret(node));
        if let Some(meta) = self.context.meta(&self.context.cache.secrets, &identity.namespace, &name)
            && identity.owner().owns(&meta)
        {
            if cluster.pki.backend == PkiBackend::Vault {
                let ca = self.roots(identity, world).await?.current.kubernetes;
                // Before the Secret, which brings us back here until it is gone.
                authority::forget(&self.context, &ca, node, &leaf::OF_WORKER).await?;
            }
            apply::delete(&self.keys.secrets(&identity.namespace), &meta, None).await?;
            info!(node, "certificates removed");
        }
        Ok(())
    }

    pub(super) async fn issue_kubeconfig(&self, issue: Issue<'_>, endpoint: &str, front: Phase) -> Result<(), Error> {
        let Issue { identity, hash, ttl, now, .. } = issue;
        let name = names::kubeconfig_secret(&identity.key.name);
        let place = self.keys.place(identity, &identity.key.namespace, &name, hash, now).await?;
        let Place::Open(former) = place else { return Ok(()) };
        let clients = self.roots_for(issue).await?.clone().for_users(front);
        let ca = &clients.signer;
        let client = authority::sign(&self.context, ca, ADMINISTRATOR, &leaf::administrator(), now, ttl).await?;
        let text = kubeconfig::render(&identity.key.name, ADMINISTRATOR, endpoint, &clients.bundle, &client);
        let data = BTreeMap::from([("value".to_owned(), bytes(text.expose_secret()))]);
        let ends = embedded::expires(&client.certificate)?;
        let annotations = issued(hash, renew_at(now, ttl, embedded::expires(ca.certificate())?), ends);
        self.keys.store(former, secret(identity, &identity.key.namespace, &name, annotations, data)).await?;
        authority::stored(&self.context, identity, ADMINISTRATOR);
        info!("kubeconfig issued");
        Ok(())
    }

    /// Deletes the kubeconfig beside the Cluster. Answers whether it is gone.
    pub(super) async fn delete_kubeconfig(&self, identity: &Identity) -> Result<bool, Error> {
        let (api, owner) = (self.keys.secrets(&identity.key.namespace), identity.owner());
        let mut left = apply::prune(&api, &identity.selector(), &owner, None, |_| false).await?;
        // By its name, too: it may have lost its labels.
        let name = names::kubeconfig_secret(&identity.key.name);
        let named = call("get", format!("Secret {name}"), api.get_metadata_opt(&name)).await?;
        if let Some(named) = named.filter(|named| owner.owns(&named.metadata)) {
            if !left.contains(&name) {
                apply::delete(&api, &named.metadata, None).await?;
            }
            left.push(name);
        }
        Ok(left.is_empty())
    }

    /// Looks from time to time whether the guest's authorities are in Vault, and the recorded ones: who restores Vault from an
    /// older snapshot is to hear of what it lacks before a certificate has to be renewed.
    pub(super) async fn look_into_vault(&self, identity: &Identity, world: &World) -> Result<(), Error> {
        let vault = authority::vault(&self.context)?;
        let unseen: Vec<_> =
            Authority::ALL.into_iter().filter(|of| !vault.is_seen(&vault.mount(identity, *of))).collect();
        if unseen.is_empty() {
            return Ok(());
        }
        let roots = self.roots(identity, world).await?;
        for root in unseen.into_iter().filter_map(|of| roots.current.authority(of).in_vault()) {
            vault.verify(root).await?;
        }
        Ok(())
    }

    async fn roots_for<'a>(&self, issue: Issue<'a>) -> Result<&'a Generations, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::rotation::Mark;

    #[test]
    fn what_is_issued_and_lacks_its_mark_is_issued_again() {
        let at = |mark: Option<&str>| {
            let annotations = mark.map(|mark| [(names::AUTHORITIES_ANNOTATION.to_owned(), mark.to_owned())].into());
            ObjectMeta { annotations, ..ObjectMeta::default() }
        };
        let mark = Mark { generation: 2, phase: Phase::Drop };
        let standing = Some(Standing { mark, subject: Subject::Authorities, control_plane: true, alone: false });
        let issued = |mark, standing| to_replace(Place::Issued(at(mark)), standing);
        assert_eq!(issued(Some("2.drop"), standing), None);
        assert_eq!(issued(None, standing), Some(Some(at(None))));
        assert_eq!([issued(None, None), issued(Some("2.drop"), None)], [None, None], "no rotation goes on");
        assert_eq!(to_replace(Place::Open(None), standing), Some(None));
    }

    #[test]
    fn a_node_that_is_further_than_the_cache_has_it_is_left_alone() {
        let at = |mark: Option<&str>| {
            let annotations = mark.map(|mark| [(names::AUTHORITIES_ANNOTATION.to_owned(), mark.to_owned())].into());
            Some(ObjectMeta { annotations, ..ObjectMeta::default() })
        };
        let to = |generation, phase| {
            let (mark, subject) = (Mark { generation, phase }, Subject::EncryptionKey);
            Some(Standing { mark, subject, control_plane: true, alone: false })
        };
        let world = World::default();
        for (former, standing, ahead) in [
            (at(None), to(2, Phase::Trust), false),
            (at(Some("2.trust")), to(2, Phase::Trust), false),
            (at(Some("2.trust")), to(2, Phase::Reissue), false),
            (at(Some("2.reissue")), to(2, Phase::Trust), true),
            (at(Some("2.drop")), to(2, Phase::Reissue), false),
            (at(Some("2.drop")), to(2, Phase::Trust), true),
            (at(Some("3.drop")), to(2, Phase::Reissue), true),
            (at(Some("3.trust")), to(2, Phase::Drop), true),
            (at(Some("1.drop")), to(2, Phase::Trust), false),
            (at(Some("2.trust")), None, true),
            (at(Some("1.drop")), None, false),
            (at(None), None, false),
            (None, to(2, Phase::Trust), false),
        ] {
            assert_eq!(is_ahead(former.as_ref(), &world, standing), ahead, "{former:?} {standing:?}");
        }
        for subject in [Subject::Authorities, Subject::ServiceAccountKey] {
            let standing = to(2, Phase::Reissue).map(|standing| Standing { subject, ..standing });
            assert!(is_ahead(at(Some("2.drop")).as_ref(), &world, standing), "only what was stored asks for it");
        }
    }
}
