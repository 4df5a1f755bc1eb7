//! What clients of a guest's API are given: who signs for them, and whom they trust.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::Api;

use super::{
    authority,
    embedded::{self, Pair},
    generations::{Clients, Generations},
    leaf::{self, Authority},
    reconcile::{Error, lost, read_roots},
    roots::{self, Root},
    rotation::{Phase, users_get_new},
    secrets::secret_meta,
};
use crate::{api::names, cluster::Identity, context::Context};

/// A short-lived client certificate with every right, for as long as a guest's RBAC is not set up, and whom its holder trusts (PEM).
/// Never stored.
///
/// # Errors
/// [`Error`] if the Kubernetes CA cannot be read or used.
pub async fn bootstrap_credentials(
    context: &Context,
    identity: &Identity,
    ttl: Duration,
) -> Result<(String, Pair), Error> {
    let clients = clients(context, identity).await?;
    let signer = &clients.signer;
    let client = authority::sign(context, signer, "manager", &leaf::bootstrapper(), Timestamp::now(), ttl).await?;
    Ok((clients.all, client))
}

/// What is recorded of a guest's roots.
struct Recorded {
    generation: u32,
    current: BTreeMap<String, String>,
    next: BTreeMap<String, String>,
    /// The phase of the foremost node.
    front: Phase,
}

impl Recorded {
    fn of(context: &Context, identity: &Identity) -> Option<Self> {
        let namespace = context.namespace(identity)?;
        let noted = namespace.metadata.annotations.as_ref();
        let (current, next) = (roots::fingerprints(noted), roots::next_fingerprints(noted));
        let secrets = context.secrets(&identity.namespace);
        let ours = secrets.iter().map(|secret| &secret.metadata).filter(|meta| identity.owner().owns(meta));
        let seen: BTreeMap<_, _> =
            ours.map(|meta| (meta.name.clone().unwrap_or_default(), secret_meta(meta))).collect();
        let noted = noted.and_then(|all| all.get(names::GENERATION_ANNOTATION)?.parse().ok());
        let generation = super::turnover::generation(noted, &seen, &current).unwrap_or(1);
        let marks = seen.values().filter_map(|secret| secret.mark).filter(|mark| mark.generation == generation + 1);
        let front = marks.map(|mark| mark.phase).max().unwrap_or_default();
        // Somebody may have taken the marks: who looks at the nodes remembers.
        let told = context.reports.of(identity).pki;
        let told =
            told.as_ref().and_then(|report| report.facts()?.rotation.as_ref()?.going.as_ref().map(|going| going.mark));
        let told = told.filter(|mark| mark.generation == generation + 1).map(|mark| mark.phase).unwrap_or_default();
        Some(Self { generation, current, next, front: front.max(told) })
    }

    /// Whether it is recorded who signs. What the former authorities sign where others have taken their place is refused everywhere.
    fn is_whole(&self) -> bool {
        !users_get_new(self.front) || !self.next.is_empty()
    }
}

/// What identifies those who sign a guest's clients and whom these trust, once it is recorded.
pub fn kubernetes_authority(context: &Context, identity: &Identity) -> Option<String> {
    let recorded = Recorded::of(context, identity).filter(Recorded::is_whole)?;
    let of = |all: &BTreeMap<String, String>| all.get(&Root::Ca(Authority::Kubernetes).record()).cloned();
    let current = of(&recorded.current)?;
    match of(&recorded.next).filter(|next| *next != current && users_get_new(recorded.front)) {
        Some(next) => Some(format!("{current}+{next}")),
        None => Some(current),
    }
}

/// Who signs a guest's clients and whom they trust, if these are the recorded ones.
///
/// # Errors
/// [`Error::Lost`] if one is missing or another one; a call.
pub async fn clients(context: &Context, identity: &Identity) -> Result<Clients, Error> {
    let api = Api::<Secret>::namespaced(context.client.clone(), &identity.namespace);
    let recorded = Recorded::of(context, identity).ok_or_else(|| lost(identity, 1))?;
    if !recorded.is_whole() {
        return Err(lost(identity, recorded.generation + 1));
    }
    let read = async |generation: u32, records: &BTreeMap<String, String>| {
        let found = read_roots(&api, generation).await?.map(|(_, kept)| kept);
        let of = Root::Ca(Authority::Kubernetes).record();
        let is_recorded = |ca: &str| Some(&embedded::fingerprint(ca)) == records.get(&of);
        found.filter(|kept| is_recorded(kept.kubernetes.certificate())).ok_or_else(|| lost(identity, generation))
    };
    let current = read(recorded.generation, &recorded.current).await?;
    let next = match recorded.next.is_empty() {
        true => None,
        false => Some(read(recorded.generation + 1, &recorded.next).await?),
    };
    Ok(Generations { current, next }.for_users(recorded.front))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_signs_by_the_former_authorities_where_others_took_their_place() {
        let recorded = |front, next: bool| {
            let next = next.then(|| (Root::Encryption.record(), String::new()));
            Recorded { generation: 1, current: BTreeMap::new(), next: next.into_iter().collect(), front }
        };
        for front in Phase::ALL {
            assert!(recorded(front, true).is_whole());
            assert_eq!(recorded(front, false).is_whole(), front < Phase::Reissue, "{front:?}");
        }
    }
}
