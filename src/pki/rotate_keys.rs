//! Effects of a rotation of keys: the roots that come, and what VM pods say of what API servers verify and of what is stored.

use std::{net::IpAddr, time::Duration};

use tracing::debug;

use super::{
    embedded,
    generations::Generations,
    keys::{Subject, Wishes, decide::Seen, files},
    plan::World,
    reconcile::Error,
    roots::Roots,
    rotate::all_answers,
    rotation::Phase,
};
use crate::{
    api::names,
    cluster::Report,
    guest::GuestFacts,
    runtime::chain,
    supervisor::{
        client::Question,
        keys::{KEYS_PATH, LOOK, STORED_PATH, Stored},
    },
};

/// How long a supervisor may take to say which keys its API server verifies tokens with (longer than it takes itself), and bytes
/// that its answer may have.
const TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER: usize = 16 << 10;
/// What etcd takes to be looked through, and more; and bytes of the answer: names have 500 at most.
const STORED_TIMEOUT: Duration = LOOK.saturating_add(Duration::from_secs(5));
const STORED_ANSWER: usize = 512 << 10;

/// The roots with another key.
pub(super) fn next_roots(current: &Roots, subject: Subject, wishes: Wishes, generation: u32) -> Result<Roots, Error> {
    let (mut made, keys_for) = (current.clone(), current.keys_for);
    match subject {
        Subject::Authorities => {}
        Subject::ServiceAccountKey => {
            made.service_account = embedded::key_pair()?;
            made.keys_for = Wishes { service_account: wishes.service_account, ..keys_for };
        }
        Subject::EncryptionKey => {
            let name = files::name_of_next(&current.encryption, generation)?;
            made.encryption = embedded::encryption_config(&name)?;
            made.keys_for = Wishes { encryption: wishes.encryption, ..keys_for };
        }
    }
    Ok(made)
}

/// Looks at the keys of the control-plane nodes whose VM pods are at these addresses.
pub(super) async fn look(
    world: &World,
    roots: &Generations,
    subject: Subject,
    asked: &[(String, IpAddr)],
    guest: Option<&Report<GuestFacts>>,
) -> Result<Seen, Error> {
    let Some(next) = &roots.next else { return Ok(Seen::default()) };
    let mut seen = Seen::default();
    match subject {
        Subject::Authorities => {}
        Subject::ServiceAccountKey => {
            let id = |roots: &Roots| files::key_id(&roots.service_account.certificate);
            seen.ids = Some((id(&roots.current)?, id(next)?));
            seen.verifies = all_answers(asked.iter().cloned(), TIMEOUT, verifies).await;
        }
        Subject::EncryptionKey if writes(world) => {
            seen.stored = stored(asked, &files::key_name(&next.encryption)?).await;
            seen.unwritten = guest.and_then(Report::facts).and_then(|facts| facts.unwritten.clone());
        }
        Subject::EncryptionKey => {}
    }
    Ok(seen)
}

/// Whether every node that has a part in it has what it writes with the new key with: before that there is no use in looking.
fn writes(world: &World) -> bool {
    let next = world.generation() + 1;
    let masters = (0..).map(names::master).map_while(|node| world.secrets.get(&names::node_secret(&node)));
    let mut phases = masters.map(|secret| secret.mark.filter(|mark| mark.generation == next).map(|mark| mark.phase));
    phases.all(|phase| phase >= Some(Phase::Reissue))
}

async fn verifies(node: String, address: IpAddr) -> Option<(String, std::collections::BTreeSet<String>)> {
    let question = Question { address, path: KEYS_PATH, answer: ANSWER, timeout: TIMEOUT };
    match question.json().await {
        Ok(keys) => Some((node, keys)),
        Err(error) => {
            debug!(node, error = chain(&error), "a VM pod does not say which keys tokens are verified with");
            None
        }
    }
}

/// What etcd holds, by the first member that says it: all have the same.
async fn stored(asked: &[(String, IpAddr)], key: &str) -> Option<Stored> {
    let path = format!("{STORED_PATH}?key={key}");
    for (node, address) in asked {
        let question = Question { address: *address, path: &path, answer: STORED_ANSWER, timeout: STORED_TIMEOUT };
        match question.json().await {
            Ok(stored) => return Some(stored),
            Err(error) => debug!(node, error = chain(&error), "a VM pod does not say what its etcd holds"),
        }
    }
    None
}
