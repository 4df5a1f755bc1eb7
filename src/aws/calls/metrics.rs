//! What of calls to AWS is counted.

use prometheus::{HistogramVec, IntCounterVec};

use super::failure::OUTCOMES;
use crate::runtime::telemetry::metric::{Declared, Kind, Metric};

const SERVICE: (&str, &str) = ("service", "cloudformation, sts, ec2, elasticloadbalancing");
const OPERATION: (&str, &str) = ("operation", "the call, by AWS's name");

/// Calls, each try by itself.
pub(super) static CALLS: Declared<IntCounterVec> = Declared::counters(Metric {
    name: "giantnetes_aws_calls_total",
    kind: Kind::Counter,
    labels: &[SERVICE, OPERATION, ("outcome", OUTCOMES)],
    help: "Calls to AWS, each try by itself, by what came of it",
});

/// How long they took.
pub(super) static CALL_SECONDS: Declared<HistogramVec> = Declared::histograms(Metric {
    name: "giantnetes_aws_call_seconds",
    kind: Kind::Histogram(&[0.02, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0]),
    labels: &[SERVICE, OPERATION],
    help: "Time from a call to the end of its answer, without what it waited for its turn",
});

/// Calls that waited for their turn.
pub(super) static HELD_BACK: Declared<IntCounterVec> = Declared::counters(Metric {
    name: "giantnetes_aws_held_back_total",
    kind: Kind::Counter,
    labels: &[("family", "look, change, identity, resource")],
    help: "Calls to AWS that waited for their turn, since the account would be throttled, by what AWS counts together",
});

/// The metrics of calls to AWS.
pub fn metrics() -> Vec<&'static Metric> {
    vec![&CALLS.metric, &CALL_SECONDS.metric, &HELD_BACK.metric]
}
