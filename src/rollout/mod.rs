//! Which node of a guest may change next, and when what of a spec makes a node outdated. Pure; providers act.
//!
//! ```text
//!             begin: the intent, on the VM pod          drained, or overdue
//!   it stays ─────────────────────────────────► leaving ────────────────────► off ──► made anew, or no more
//!             one at a time, the others ready            (masters at once)
//! ```
//!
//! - [`plan`]: who leaves next, and until when it is waited for
//! - [`wish`]: the hash by which a node is told to be outdated

pub mod plan;
pub mod wish;

pub use plan::{Fit, Gate, Leaving, Node, Plan, Vm, Why, gate, may_grow, plan};
