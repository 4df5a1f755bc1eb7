//! Whether a guest is kept apart: each VM pod tries again and again what it must not reach, in the pod's own network.
//!
//! ```text
//!  isolation ── GET /isolation?to=… ──► supervisor ──✗ management API, hosts' kubelets, cloud metadata, other guests' VM pods
//!      │                                                (every connection that comes about is a leak)
//!      └──► NetworkIsolated: False, NotIsolated, "VM pod x reaches y"
//! ```
//!
//! - [`plan`]: who is tried, and what comes of the answers; pure
//! - [`reconcile`]: the effects
//!
//! It shows that the CNI enforces the guest's NetworkPolicy and that no other policy opens what it closes. What holds QEMU in its
//! place inside the pod is another rule, by QEMU's user, and not tried by this.

pub mod plan;
pub mod reconcile;
