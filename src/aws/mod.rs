//! Guests on AWS: what can be said of them without asking AWS. Nothing here is used by the controller manager yet.
//!
//! A guest has one CloudFormation stack for its network, API, keys and control plane, and one for each of its node pools.
//!
//! - [`template`]: from what a guest is made of to the bytes that CloudFormation is sent
//! - [`tags`]: what tells our stacks and resources from others'
//!
//! All of it is pure. Calls to AWS, credentials and the micro-operator come around it.

pub mod tags;
pub mod template;

/// Bytes as text that a token or an output can carry.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
