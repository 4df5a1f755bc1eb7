//! `aws`: guests on AWS.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// The AWS provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AwsSettings {
    /// Node images, by version and region, such as `v1.36.3: {eu-central-1: ami-0123456789abcdef0}`.
    pub images: BTreeMap<String, BTreeMap<String, String>>,
    /// URL of what answers in AWS's place, for all its services: a stand-in. None: AWS.
    pub endpoint: Option<String>,
    /// How often an account's stacks are looked at while something is done to one of them, such as `5s`; otherwise it is twelve
    /// times as long.
    pub poll: SignedDuration,
    /// How often CloudFormation is asked whether somebody changed what stacks made, such as `6h`. Zero: never.
    pub drift_interval: SignedDuration,
    /// Path of Vault's AWS auth method, by which nodes log in.
    pub vault_mount: String,
    /// What nodes have to sign for that Vault alone (`iam_server_id_header_value` of the method), such as its host name.
    pub vault_server_id: String,
}

impl Default for AwsSettings {
    fn default() -> Self {
        Self {
            images: BTreeMap::new(),
            endpoint: None,
            poll: SignedDuration::from_secs(5),
            drift_interval: SignedDuration::from_hours(6),
            vault_mount: "giantnetes-aws".into(),
            vault_server_id: "giantnetes".into(),
        }
    }
}

impl AwsSettings {
    /// What is wrong with it: the field and why.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        let is_url = |url: &String| url.starts_with("https://") || url.starts_with("http://");
        if self.endpoint.as_ref().is_some_and(|url| !is_url(url)) {
            return Some(("endpoint", "is no URL"));
        }
        // Less would use up what AWS takes of an account's calls; more, and nobody would see how far a stack is.
        let polls = SignedDuration::from_millis(200)..=SignedDuration::from_mins(1);
        (!polls.contains(&self.poll)).then_some(("poll", "is not between 200ms and 1m"))
    }
}
