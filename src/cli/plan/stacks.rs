//! The stacks of a guest on AWS: templates as they would be sent, with what nobody knows yet left open.

use std::collections::BTreeMap;

use kube::api::ApiResource;
use serde_json::Value;

use super::{
    Failure,
    steps::{Object, Step},
};
use crate::{
    aws::{
        plan::{self, Outputs},
        surroundings::{self, Surroundings},
        template::Body,
    },
    cluster::{Valid, valid::Aws},
    settings::Settings,
};

/// The steps that make its stacks.
pub(super) fn of(valid: &Valid, aws: &Aws, settings: &Settings) -> Result<Vec<Step>, Failure> {
    let owner = plan::owner(&valid.identity);
    // A Cluster on AWS that was checked has a Vault.
    let vault = settings.vault.as_ref().ok_or("settings.vault names no Vault")?;
    let (roots, logins) = (BTreeMap::new(), BTreeMap::new());
    let around = Surroundings {
        owner: &owner,
        aws,
        vault,
        settings: &settings.aws,
        roots: &roots,
        etcd_formed: false,
        logins: &logins,
    };
    let cluster = plan::cluster_stack(valid, aws, surroundings::of_masters(valid, around)?).render()?;
    let needs = "network, key and control plane";
    let mut steps = vec![step(needs, &cluster, &["the roots".into()])?];
    let outputs = Outputs {
        subnets: aws.zones.iter().map(|zone| format!("<subnet in {zone}>")).collect(),
        worker_group: "<security group of workers>".into(),
        key_arn: "<key of the guest>".into(),
        api_host: "<host of the load balancer>".into(),
    };
    for pool in &valid.pools {
        let data = surroundings::of_pool(valid, pool, around)?;
        let drain = settings.rollout.drain_timeout.as_secs().clamp(30, 7200);
        let stack = plan::pool_stack(valid, aws, pool, &outputs, (data, u32::try_from(drain)?));
        steps.push(step("a node pool", &stack.render()?, &[format!("stack {}", cluster.stack)])?);
    }
    Ok(steps)
}

fn step(purpose: &'static str, body: &Body, waits_for: &[String]) -> Result<Step, Failure> {
    let resource = ApiResource {
        group: "cloudformation.amazonaws.com".into(),
        version: "2010-05-15".into(),
        api_version: "cloudformation.amazonaws.com/2010-05-15".into(),
        kind: "Stack".into(),
        plural: "stacks".into(),
    };
    Ok(Step {
        part: "aws",
        object: Object { resource, namespace: None, name: body.stack.clone(), in_guest: true },
        purpose,
        waits_for: waits_for.to_vec(),
        body: serde_json::from_str::<Value>(&body.json)?,
        rolls: None,
    })
}
