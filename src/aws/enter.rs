//! How the aws operator enters a guest's account.

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::time::Instant;

use super::{
    accounts::Session,
    blame::{self, Blame},
    credentials,
    memory::{Entry, Guest},
    reconcile::{AwsOperator, Error, SECRET, SECRET_REFUSED},
    stacks::{Is, Stand},
};
use crate::{
    api::Reason,
    cluster::valid::AwsCredentials,
    context::Target,
    runtime::{call, chain},
};

/// In looks at an account that is busy: how long keys that were refused are not tried again while the Secret is the same.
const REFUSED: u32 = 12;

impl AwsOperator {
    /// Enters the guest's account, or stays there: the Secret is looked at now and then, and what it holds is used until it is another.
    /// Keys that were refused are not tried again at once.
    pub(super) async fn enter(
        &self,
        target: &Target,
        (region, credentials): (&str, &AwsCredentials),
        guest: &mut Guest,
    ) -> Result<Result<Session, Blame>, Error> {
        if let Some(entry) = guest.entry.as_ref().filter(|entry| entry.credentials == *credentials) {
            let pause = if entry.session.is_ok() { SECRET } else { SECRET_REFUSED };
            if entry.looked.elapsed() < self.poll * pause {
                return Ok(entry.session.clone());
            }
        }
        let secret = self.secret(target, credentials).await?;
        let version = secret.as_ref().and_then(|secret| {
            let meta = &secret.metadata;
            Some((meta.uid.clone()?, meta.resource_version.clone()?))
        });
        if let Some(entry) = guest.entry.as_mut()
            && entry.version == version
            && entry.credentials == *credentials
            && entry.tried.elapsed() < self.poll * REFUSED
        {
            entry.looked = Instant::now();
            return Ok(entry.session.clone());
        }
        if let Some(entry) = guest.entry.as_mut().filter(|entry| entry.version == version && entry.session.is_ok()) {
            entry.looked = Instant::now();
            return Ok(entry.session.clone());
        }
        let way = (region, credentials);
        let session = match credentials::way(secret.as_ref(), &target.identity, way, &self.context.settings.aws) {
            Err(error) => Err(Blame { reason: Reason::AWSCredentialsRefused, message: error.to_string() }),
            Ok(way) => self
                .accounts
                .enter(&way)
                .await
                .map_err(|error| Blame { reason: blame::of_call(&error), message: chain(&error) }),
        };
        // With other keys all may be otherwise.
        guest.rests.clear();
        let now = Instant::now();
        let credentials = credentials.clone();
        guest.entry = Some(Entry { version, credentials, looked: now, tried: now, session: session.clone() });
        Ok(session)
    }

    async fn secret(&self, target: &Target, credentials: &AwsCredentials) -> Result<Option<Secret>, Error> {
        let (namespace, name) = (&target.identity.key.namespace, &credentials.secret);
        let api = Api::<Secret>::namespaced(self.context.client.clone(), namespace);
        call("get", format!("Secret {namespace}/{name}"), api.get_opt(name)).await.map_err(Error::Secret)
    }

    /// Keys that AWS does not take any more are looked at anew, soon.
    pub(super) fn note_refusals(&self, target: &Target, guest: &mut Guest, stand: &Stand) {
        if let Is::Failed(Blame { reason: Reason::AWSCredentialsRefused, .. }) = &stand.is
            && let Some(entry) = guest.entry.as_mut()
        {
            tracing::debug!(cluster = %target.identity.key, "AWS does not take the keys any more");
            // The next look reads the Secret.
            entry.looked = Instant::now().checked_sub(self.poll * SECRET).unwrap_or(entry.looked);
        }
    }
}
