//! Calls to AWS, by its official SDK: each paced, within a time, counted, and understood when it fails.
//!
//! ```text
//!  CloudFormation ─┐                 ┌► leadership (writes) ─► time limit ─► SDK ─► AWS
//!  Keyring (STS) ──┼─ Caller::call ──┤
//!  Resources ──────┘  ▲ once more    └► token bucket of the account, region and family
//! ```
//!
//! - [`failure`]: what an answer means, and what is to be done about it; pure
//! - [`pace`]: how many calls are made; pure
//! - `caller`: what every call goes through
//! - [`identity`]: whom AWS takes us for
//! - [`cloudformation`]: the calls that stacks need
//! - [`resources`]: those about what is beside stacks; `query`: how these are made; `xml`: how they are answered, pure
//! - `read`: AWS's answers in our words
//! - `metrics`: what of it is counted
//!
//! The SDK repeats nothing by itself, keeps no credentials and brings no TLS stack of its own.

pub(super) mod caller;
pub mod cloudformation;
pub mod failure;
pub mod identity;
mod metrics;
pub mod pace;
mod query;
mod read;
pub mod resources;
mod xml;

pub use self::{
    failure::{AwsError, Failure},
    metrics::metrics,
};
