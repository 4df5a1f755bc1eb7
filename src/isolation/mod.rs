//! Whether a guest is kept apart: each VM pod tries again and again what it must not reach, by the pod's own network.
//!
//! ```text
//!  isolation ── GET /isolation?to=… ──► supervisor ──✗ management API, hosts' kubelets, cloud metadata, other guests' VM pods
//!      │                                                (every connection that comes about is a leak)
//!      └──► NetworkIsolated: False, NotIsolated, "VM pod x reaches y"
//! ```
//!
//! The same VM pods say on which ways to their siblings packets of full size do not pass whole: that is the overlay's business, and
//! told in `NetworkReady`.
//!
//! - [`plan`]: who is tried, and what comes of the answers; pure
//! - [`narrow`]: ways that are too narrow; pure
//! - [`reconcile`]: the effects
//!
//! It shows that the CNI enforces the guest's NetworkPolicy and that no other policy opens what it closes. What holds QEMU in its
//! place inside the pod is another rule, by QEMU's user, and not tried by this.

use prometheus::IntCounterVec;

use crate::runtime::telemetry::metric::{Declared, Kind, Metric};

pub mod narrow;
pub mod plan;
pub mod reconcile;

/// Connections that VM pods tried.
static PROBES: Declared<IntCounterVec> = Declared::counters(Metric {
    name: "giantnetes_isolation_probes_total",
    kind: Kind::Counter,
    labels: &[("result", "closed, reached, silent")],
    help: "Connections that must not come about and were asked of VM pods, by what came of it; silent: the VM pod did not say",
});

/// The metrics of the isolation operator.
pub fn metrics() -> Vec<&'static Metric> {
    vec![&PROBES.metric]
}
