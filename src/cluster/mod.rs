//! Identity, order of work, deletion, and the only writer of a Cluster's status.
//!
//! - [`identity`]: what a guest is called
//! - [`valid`]: the spec, checked and typed; nothing after it reads the raw one
//! - [`reports`]: what each micro-operator last said
//! - [`plan`]: the guest's namespace, and which status follows from the reports
//! - [`news`]: which events follow from it
//! - [`metrics`]: what Prometheus is told of all Clusters
//! - `pace`: how often it is written
//! - [`reconcile`]: the effects

pub mod identity;
pub mod metrics;
pub mod news;
mod pace;
pub mod plan;
pub mod reconcile;
pub mod reports;
pub mod valid;

pub use identity::{ClusterKey, Identity};
pub use reports::{Blames, Report, Reports};
pub use valid::{Valid, Violation};
