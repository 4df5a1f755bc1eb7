//! Roots of a guest outside of it: a bundle that only whom it is sealed for can open, and what a guest may be made of again.
//!
//! - [`bundle`]: what is in one; pure
//! - [`check`]: whether a guest could live by these roots; pure
//! - [`seal`]: how it is sealed and opened, by age
//! - [`exports`]: how exports are counted

pub mod bundle;
pub mod check;
pub mod exports;
pub mod seal;

pub use bundle::Bundle;
pub use check::{Flaw, check};
