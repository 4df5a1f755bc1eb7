//! Guests on AWS.
//!
//! A guest has one CloudFormation stack for its network, API, keys and control plane, and one for each of its node pools.
//!
//! ```text
//!  ClusterStack ─┐ render          ┌─ absent, … 23 statuses …      owner, change set, events
//!  PoolStack ────┴──────► Body ──► │ CloudFormation ──────────────────────► Observed
//!                                  └──────◄────────── Action ◄── driver::next ──┘ ◄── Desired
//! ```
//!
//! What decides, and is pure:
//! - [`template`]: from what a guest is made of to the bytes that CloudFormation is sent
//! - [`status`]: CloudFormation's states, each of them
//! - [`change_set`]: what a change set would do, and what of it may not happen unasked
//! - [`driver`]: what is done next about a stack
//! - [`progress`]: what a stack's events tell people
//! - [`tags`]: what tells our stacks and resources from others'
//! - [`identity`]: by what nodes are known to Vault, and what it signs for them
//! - [`nodes`]: what a guest's nodes are handed, and what of certificates and keys is theirs
//! - [`user_data`]: what an instance is handed when it boots, without secrets
//!
//! What acts:
//! - [`calls`]: each call, paced, within a time, counted and understood
//! - [`accounts`]: what guests in one account and region share: tokens, and looks at its stacks
//! - [`deploy`]: the driver's steps, one at a time
//! - [`admission`]: lets nodes into Vault
//!
//!
//! And the micro-operator around them:
//! - [`plan`]: which stacks a guest has, and what each is made of; [`surroundings`]: what its nodes are handed by the operator; both pure
//! - [`credentials`]: as whom its account is entered; [`blame`]: what people are told of what went wrong; both pure
//! - [`reconcile`]: the effects; `enter`: the way into the account, `leave`: on a guest that goes; `stacks`: on one stack; `sweep`: on what the guest made itself; `ledger`: its record in the Cluster's status; `memory`: what is remembered

pub mod accounts;
pub mod admission;
pub mod blame;
pub mod calls;
pub mod change_set;
pub mod credentials;
pub mod deploy;
pub mod driver;
mod enter;
pub mod identity;
mod leave;
mod ledger;
mod memory;
pub mod nodes;
pub mod plan;
pub mod progress;
pub mod reconcile;
mod stacks;
pub mod status;
pub mod surroundings;
mod sweep;
pub mod tags;
pub mod template;
pub mod user_data;

/// Bytes as text that a token or an output can carry.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
