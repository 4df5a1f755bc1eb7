//! CloudFormation templates of a guest. The same input gives the same bytes.
//!
//! A template has no parameters: what it was made of is all in it, and whether a stack is up to date is read off its
//! output `SpecHash`. (A tag in its place would touch every resource whenever it changed.)

mod api;
mod check;
mod cluster;
mod input;
mod machine;
mod masters;
mod network;
mod pool;
mod resource;
mod rights;
mod security;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use self::resource::Resource;
pub use self::{
    check::{InputError, MAX_USER_DATA},
    input::{ApiAccess, ClusterStack, Machine, Master, Nat, PoolStack, Purchase, Zone},
    resource::Kind,
    rights::BOUNDARY,
};
use super::hex;

/// Most bytes of a template that is part of a request (CloudFormation's quota for `TemplateBody`).
pub const MAX_BYTES: usize = 51_200;

/// Most resources of one template (CloudFormation's quota).
pub const MAX_RESOURCES: usize = 500;

/// Output with the hash of the spec that a stack was made for.
pub const SPEC_HASH: &str = "SpecHash";
/// Output with the hash of the template that it was made by, for people: it moves with a newer controller manager, too.
pub const TEMPLATE_HASH: &str = "TemplateHash";

/// Resources and outputs of a stack, under their logical ids.
#[derive(Clone, Debug, Default)]
struct Template {
    resources: BTreeMap<String, Resource>,
    outputs: BTreeMap<&'static str, (&'static str, Value)>,
}

/// A template as CloudFormation takes it, with what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// Name of the stack.
    pub stack: String,
    /// The template, as compact JSON with sorted keys.
    pub json: String,
    /// Tags of the stack.
    pub tags: BTreeMap<String, String>,
    /// Number of its resources.
    pub resources: usize,
}

impl Template {
    /// Adds a resource. A logical id that is there already would be an error of ours, and tests render everything.
    fn add(&mut self, id: impl Into<String>, resource: Resource) {
        let earlier = self.resources.insert(id.into(), resource);
        debug_assert!(earlier.is_none(), "two resources of one logical id");
    }

    fn output(&mut self, name: &'static str, description: &'static str, value: Value) {
        self.outputs.insert(name, (description, value));
    }

    /// Its bytes. They are checked here, since neither a linter nor a stand-in for AWS does.
    fn render(mut self, head: Head) -> Result<Body, InputError> {
        let Head { stack, description, spec_hash, tags } = head;
        let resources = self.resources.len();
        if resources > MAX_RESOURCES {
            return Err(InputError::TooManyResources { stack, resources });
        }
        self.output(SPEC_HASH, "Hash of the spec that this stack is made for", json!(spec_hash));
        let hash = hex(&Sha256::digest(self.json(&description)));
        self.output(TEMPLATE_HASH, "Hash of the template, without this line", json!(hash));
        let json = self.json(&description);
        if json.len() > MAX_BYTES {
            return Err(InputError::TemplateTooBig { stack, bytes: json.len() });
        }
        Ok(Body { stack, json, tags, resources })
    }

    fn json(&self, description: &str) -> String {
        let outputs: BTreeMap<_, _> = self
            .outputs
            .iter()
            .map(|(name, (description, value))| (name, json!({"Description": description, "Value": value})))
            .collect();
        let resources: BTreeMap<_, _> = self.resources.iter().map(|(id, it)| (id, it.json())).collect();
        let mut template = json!({
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": description,
            "Outputs": outputs,
            "Resources": resources,
        });
        // A crate that asks serde_json to keep the order of insertion would change every byte.
        template.sort_all_objects();
        template.to_string()
    }
}

/// What a template says of its stack as a whole.
struct Head {
    stack: String,
    description: String,
    spec_hash: String,
    tags: BTreeMap<String, String>,
}
