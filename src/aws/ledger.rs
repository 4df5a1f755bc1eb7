//! Where stacks' records are kept: in the status of their Cluster, which is written only on top of what was read.

use std::{error::Error, sync::Mutex, sync::PoisonError};

use kube::{Api, ResourceExt as _, api::PostParams};

use super::deploy::{Ledger, record::Record};
use crate::{
    api::{Cluster, StackRecord},
    cluster::ClusterKey,
    runtime::call,
};

const MANAGER: &str = "giantnetes.aws";

/// Tries of a write that others were faster than: they write what this does not touch.
const TRIES: usize = 5;

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Somebody else has written one for the stack since.
    #[error("the record of stack {0} in the Cluster's status is another than was read; it is looked at again")]
    Stale(String),
    /// The Cluster is another than it was.
    #[error("the Cluster is gone, or another has its name")]
    Gone,
}

/// The records of a Cluster's stacks.
#[derive(Debug)]
pub(super) struct Book {
    api: Api<Cluster>,
    key: ClusterKey,
    /// The newest that is known of it.
    object: Mutex<Cluster>,
}

impl Book {
    pub(super) fn new(api: Api<Cluster>, key: &ClusterKey, object: Cluster) -> Self {
        Self { api, key: key.clone(), object: Mutex::new(object) }
    }

    fn object(&self) -> Cluster {
        self.object.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest that is known, to go on with.
    pub(super) fn close(self) -> Cluster {
        self.object.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the stacks that are recorded.
    pub(super) fn stacks(&self) -> Vec<String> {
        let object = self.object();
        let aws = object.status.as_ref().and_then(|status| status.aws.as_ref());
        aws.map(|aws| aws.stacks.keys().cloned().collect()).unwrap_or_default()
    }

    /// The record of a stack.
    pub(super) fn of<'a>(&'a self, stack: &'a str) -> Page<'a> {
        Page { book: self, stack }
    }

    async fn write(&self, stack: &str, record: &Record) -> Result<(), Box<dyn Error + Send + Sync>> {
        let believed = self.object();
        let mut base = believed.clone();
        for _ in 0..TRIES {
            let mut next = base.clone();
            let aws = next.status.get_or_insert_default().aws.get_or_insert_default();
            aws.stacks.insert(stack.to_owned(), kept(record));
            let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
            let name = next.name_any();
            let write = call("replace status of", self.key.to_string(), self.api.replace_status(&name, &params, &next));
            match write.await {
                Ok(written) => {
                    *self.object.lock().unwrap_or_else(PoisonError::into_inner) = written;
                    return Ok(());
                }
                Err(error) if error.status() == Some(409) => {}
                Err(error) => return Err(error.into()),
            }
            let live = call("get", self.key.to_string(), self.api.get_opt(&name)).await?;
            base = live.filter(|live| live.metadata.uid == believed.metadata.uid).ok_or(LedgerError::Gone)?;
            if read(&base, stack).as_ref() == Some(record) {
                // It was written before, and the answer was lost.
                *self.object.lock().unwrap_or_else(PoisonError::into_inner) = base;
                return Ok(());
            }
            if read(&base, stack) != read(&believed, stack) {
                return Err(LedgerError::Stale(stack.to_owned()).into());
            }
        }
        Err(LedgerError::Stale(stack.to_owned()).into())
    }
}

/// The record of one stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page<'a> {
    book: &'a Book,
    stack: &'a str,
}

impl Ledger for Page<'_> {
    fn read(&self) -> Option<Record> {
        read(&self.book.object(), self.stack)
    }

    async fn write(&self, record: &Record) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.book.write(self.stack, record).await
    }
}

fn read(cluster: &Cluster, stack: &str) -> Option<Record> {
    let StackRecord { attempt, goal, id } = cluster.status.as_ref()?.aws.as_ref()?.stacks.get(stack)?.clone();
    Some(Record { attempt: u32::try_from(attempt).unwrap_or(u32::MAX), goal, id })
}

fn kept(record: &Record) -> StackRecord {
    let Record { attempt, goal, id } = record.clone();
    StackRecord { attempt: attempt.into(), goal, id }
}

/// The newer of two states of an object: resourceVersions are numbers that rise. What is no number is compared by nobody, and the
/// first is taken.
pub(super) fn newer(seen: Cluster, kept: Option<Cluster>) -> Cluster {
    let number =
        |cluster: &Cluster| cluster.metadata.resource_version.as_ref().and_then(|text| text.parse::<u128>().ok());
    match kept.filter(|kept| kept.metadata.uid == seen.metadata.uid) {
        Some(kept) if number(&kept) > number(&seen) && number(&seen).is_some() => kept,
        _ => seen,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_written_a_moment_ago_counts_more_than_a_cache_that_lags() {
        let at = |version: &str, uid: &str| {
            let mut cluster = crate::testing::cluster(json!({}));
            (cluster.metadata.resource_version, cluster.metadata.uid) = (Some(version.into()), Some(uid.into()));
            cluster
        };
        let version = |cluster: Cluster| cluster.metadata.resource_version.unwrap();
        assert_eq!(version(newer(at("9", "u"), Some(at("10", "u")))), "10");
        assert_eq!(version(newer(at("11", "u"), Some(at("10", "u")))), "11");
        assert_eq!(version(newer(at("9", "v"), Some(at("10", "u")))), "9", "another of its name");
        assert_eq!(version(newer(at("9", "u"), None)), "9");
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let record = Record { attempt: 7, goal: "present/a".into(), id: Some("arn:1".into()) };
        let mut cluster = crate::testing::cluster(json!({}));
        let aws = cluster.status.get_or_insert_default().aws.get_or_insert_default();
        aws.stacks.insert("g8s-a".into(), kept(&record));
        assert_eq!(read(&cluster, "g8s-a"), Some(record));
        assert_eq!(read(&cluster, "g8s-b"), None);
    }
}
