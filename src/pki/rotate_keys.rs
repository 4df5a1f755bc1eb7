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
    rotation::Stage,
};
use crate::{
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
    let mut seen = Seen { verifies: all_answers(asked.iter().cloned(), TIMEOUT, verifies).await, ..Seen::default() };
    match subject {
        Subject::Authorities => {}
        Subject::ServiceAccountKey => {
            let id = |roots: &Roots| files::key_id(&roots.service_account.certificate);
            seen.ids = Some((id(&roots.current)?, id(next)?));
        }
        Subject::EncryptionKey if all_wrote(world) => {
            // Who is silent would take the time that another member needs.
            let answer: Vec<_> = asked.iter().filter(|(node, _)| seen.verifies.contains_key(node)).collect();
            let key = files::key_name(&next.encryption)?;
            seen.stored = tokio::time::timeout(STORED_TIMEOUT, stored(&answer, &key)).await.ok().flatten();
            seen.unwritten = guest.and_then(Report::facts).and_then(|facts| facts.unwritten.clone());
        }
        Subject::EncryptionKey => {}
    }
    Ok(seen)
}

/// Whether every node was seen to write with the new key, in a look before this one: what etcd is seen to hold says nothing of what a
/// node stores with the former key after that, and before it is seen to have been started anew.
fn all_wrote(world: &World) -> bool {
    let (next, noted) = (world.generation() + 1, world.rotation.as_ref());
    noted.is_some_and(|noted| noted.generation == next && noted.stage >= Stage::Overlap)
}

/// What is seen of keys, and then what nodes say: one that came up with the former key since is seen to have.
pub(super) async fn before_nodes<K, N>(
    keys: impl Future<Output = Result<K, Error>>,
    nodes: impl Future<Output = N>,
) -> Result<(K, N), Error> {
    let keys = keys.await?;
    Ok((keys, nodes.await))
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
async fn stored(asked: &[&(String, IpAddr)], key: &str) -> Option<Stored> {
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::pki::turnover::Record;

    #[tokio::test]
    async fn etcd_is_looked_at_before_the_nodes_are_asked() {
        let asked = Mutex::new(Vec::new());
        let note = async |what: &'static str| {
            tokio::task::yield_now().await;
            asked.lock().unwrap().push(what);
            what
        };
        let of_keys = async { Ok(note("etcd").await) };
        assert_eq!(before_nodes(of_keys, note("nodes")).await.unwrap(), ("etcd", "nodes"));
        assert_eq!(*asked.lock().unwrap(), ["etcd", "nodes"]);
    }

    #[test]
    fn etcd_is_looked_at_once_all_nodes_were_seen_to_write_with_the_new_key() {
        let noted = |generation, stage| {
            let record = Record { generation, stage, since: crate::testing::NOW, alone: false };
            all_wrote(&World { rotation: Some(record), ..World::default() })
        };
        let next = World::default().generation() + 1;
        let found = Stage::ALL.map(|stage| (stage, noted(next, stage)));
        assert_eq!(found.map(|(_, due)| due), found.map(|(stage, _)| stage >= Stage::Overlap));
        assert!(!noted(next, Stage::Reissue) && noted(next, Stage::Overlap) && noted(next, Stage::Drop));
        assert!(!noted(next - 1, Stage::Drop), "of another rotation");
        assert!(!all_wrote(&World::default()));
    }
}
