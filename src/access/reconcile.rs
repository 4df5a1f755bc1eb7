//! Effects of the access operator: the kubeconfig Secret beside a ClusterAccess, and its status.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use kube::{Api, Resource as _, ResourceExt as _, api::PostParams};
use secrecy::ExposeSecret as _;
use tracing::info;

use super::{
    AccessKey,
    plan::{self, Step, Verdict, Wish, World},
};
use crate::{
    api::{ClusterAccess, Reason, names},
    cluster::{Blames as _, Identity},
    context::Context,
    pki::{
        authority,
        clients::{clients, kubernetes_authority},
        embedded, kubeconfig, leaf,
        plan::{pause, renew_at},
        reconcile::Error,
        secrets::{bytes, issued, secret},
        store::{KeyStore, Place},
    },
    runtime::{apply, cache, call, chain, operator::Reconciler, queue::Outcome},
};

const MANAGER: &str = "giantnetes.access";
/// Pause until the next look where a watch brings one sooner, if all is well.
const SOON: Duration = Duration::from_secs(5);

/// What a look came to: what there is to say, the Secret's name if it is there, and when to look again.
type Look = (Verdict, Option<String>, Outcome);

/// The access operator.
pub struct AccessOperator {
    context: Context,
    keys: KeyStore,
}

impl AccessOperator {
    /// An access operator.
    pub fn new(context: Context) -> Self {
        Self { keys: KeyStore::new(context.clone(), MANAGER), context }
    }

    async fn look(&self, access: &ClusterAccess, now: Timestamp) -> Result<Look, Error> {
        let name = names::access_secret(&access.name_any());
        let there = self.context.meta(&self.context.cache.secrets, &namespace(access), &name);
        let there = there.filter(|meta| is_of(meta, access));
        let wish = match Wish::new(access, &self.context.settings.access) {
            Ok(wish) => wish,
            Err(violations) => {
                let message = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                let verdict = Verdict::Not { reason: Reason::InvalidSpec, message };
                return Ok((verdict, there.map(|_| name), Outcome::AwaitChange));
            }
        };
        let target = self.context.target(&wish.cluster).filter(|target| !target.is_deleting());
        let identity = target.as_ref().map(|target| &target.identity);
        if let Some(meta) = &there
            && identity.is_none_or(|identity| !identity.owner().owns(meta))
        {
            // It leads into a guest that is gone, or will be.
            apply::delete(&self.keys.secrets(&namespace(access)), meta, None).await?;
            info!(secret = name, "removed: its Cluster is gone");
            return Ok((waiting("the Secret of a former Cluster to be gone"), None, Outcome::After(SOON)));
        }
        let Some(target) = target else {
            return Ok((waiting(&format!("Cluster {}", wish.cluster.name)), None, Outcome::AwaitChange));
        };
        let identity = &target.identity;
        let world = World {
            endpoint: target.cluster.status.as_ref().and_then(|status| status.endpoint.clone()),
            authority: kubernetes_authority(&self.context, identity),
            secret: match &there {
                Some(meta) => Some(self.keys.seen(meta).await?),
                None => None,
            },
        };
        match plan::decide(&wish, &world, now) {
            Step::Wait(what) => Ok((waiting(what), there.map(|_| name), Outcome::AwaitChange)),
            Step::Keep { renew_at } => {
                let ends_at = there.as_ref().and_then(ends_at);
                let verdict = self.verdict(access, identity, &wish, ends_at);
                Ok((verdict, Some(name), Outcome::After(pause(Some(renew_at), now))))
            }
            Step::Issue { endpoint, hash } => {
                let ends_at = self.issue(access, identity, &wish, &endpoint, &hash, now).await?;
                // The watch brings what was stored, and with it the next look.
                Ok((self.verdict(access, identity, &wish, ends_at), Some(name), Outcome::After(SOON)))
            }
        }
    }

    /// What there is to say once the kubeconfig is there: it is worth nothing before the user's rights are.
    fn verdict(&self, access: &ClusterAccess, identity: &Identity, wish: &Wish, ends_at: Option<String>) -> Verdict {
        let reports = self.context.reports.of(identity);
        let bound = reports.bound.as_ref().map(|all| all.get(&access.name_any()));
        let was_ready = access.told().is_some_and(|condition| condition.status == "True");
        match plan::obstacle(wish, bound, was_ready) {
            Some((reason, message)) => Verdict::Not { reason, message },
            None => Verdict::Ready { ends_at },
        }
    }

    /// Issues a certificate and stores it. Answers when it ends.
    async fn issue(
        &self,
        access: &ClusterAccess,
        identity: &Identity,
        wish: &Wish,
        endpoint: &str,
        hash: &str,
        now: Timestamp,
    ) -> Result<Option<String>, Error> {
        let (namespace, name) = (namespace(access), names::access_secret(&access.name_any()));
        let former = match self.keys.place(identity, &namespace, &name, hash, now).await? {
            Place::Issued(meta) => return Ok(ends_at(&meta)),
            Place::Open(former) => former,
        };
        let clients = clients(&self.context, identity).await?;
        let ca = clients.signer;
        let leaf = leaf::user(&wish.user, &wish.groups);
        let uid = access.metadata.uid.clone().unwrap_or_default();
        let client = authority::sign(&self.context, &ca, &uid, &leaf, now, wish.ttl).await?;
        let text = kubeconfig::render(&wish.cluster.name, &wish.user, endpoint, &clients.bundle, &client);
        let ends = embedded::expires(&client.certificate)?;
        let annotations = issued(hash, renew_at(now, wish.ttl, embedded::expires(ca.certificate())?), ends);
        let data = BTreeMap::from([("value".to_owned(), bytes(text.expose_secret()))]);
        let mut secret: Secret = secret(identity, &namespace, &name, annotations, data);
        // Kubernetes deletes it with the ClusterAccess.
        secret.metadata.owner_references = access.controller_owner_ref(&()).map(|owner| vec![owner]);
        // Nobody else asks for this one, and it is not kept open until the next time.
        authority::forget(&self.context, &ca, &uid, &[leaf.name]).await?;
        self.keys.store(former, secret).await?;
        authority::stored(&self.context, identity, &uid);
        info!("certificate issued");
        Ok(Some(ends.to_string()))
    }

    /// Writes the status, unless it is so already.
    async fn tell(
        &self,
        access: &ClusterAccess,
        verdict: &Verdict,
        secret: Option<&str>,
        now: Timestamp,
    ) -> Result<(), Error> {
        let status = plan::status(access, secret, verdict, now);
        if access.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let told = ClusterAccess { status: Some(status), ..access.clone() };
        let api = Api::<ClusterAccess>::namespaced(self.context.client.clone(), &namespace(access));
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let name = access.name_any();
        let object = format!("ClusterAccess {}", AccessKey::of(access));
        match call("replace status of", object, api.replace_status(&name, &params, &told)).await {
            // Somebody was faster, or it is gone: the watch brings the newer object and with it the next look.
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

fn namespace(access: &ClusterAccess) -> String {
    access.namespace().unwrap_or_default()
}

/// Whether an object was made for this very ClusterAccess.
fn is_of(meta: &ObjectMeta, access: &ClusterAccess) -> bool {
    let owners = meta.owner_references.iter().flatten();
    owners.into_iter().any(|owner| access.metadata.uid.as_ref() == Some(&owner.uid))
}

fn ends_at(meta: &ObjectMeta) -> Option<String> {
    meta.annotations.as_ref()?.get(names::ENDS_AT_ANNOTATION).cloned()
}

fn waiting(what: &str) -> Verdict {
    Verdict::Not { reason: Reason::Waiting, message: format!("waits for {what}") }
}

impl Reconciler for AccessOperator {
    const NAME: &'static str = "access";
    type Key = AccessKey;
    type Error = Error;

    async fn reconcile(&self, key: &AccessKey) -> Result<Outcome, Error> {
        let found = cache::get(&self.context.cache.accesses, Some(&key.namespace), &key.name);
        let found = found.filter(|access| access.metadata.deletion_timestamp.is_none());
        let Some(access) = found else { return Ok(Outcome::AwaitChange) };
        let now = Timestamp::now();
        match self.look(&access, now).await {
            Ok((verdict, secret, outcome)) => {
                self.tell(&access, &verdict, secret.as_deref(), now).await?;
                Ok(outcome)
            }
            Err(error) => {
                let verdict = Verdict::Not { reason: error.reason(), message: chain(&error) };
                let before = access.status.as_ref().and_then(|status| status.secret.clone());
                self.tell(&access, &verdict, before.as_deref(), now).await?;
                Err(error)
            }
        }
    }
}
