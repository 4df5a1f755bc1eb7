//! The metrics of an operator that is written on this kit.

use prometheus::{HistogramVec, IntCounterVec, IntGauge};

use super::{
    metric::{Declared, Kind, Metric},
    pulled::{Ages, Pulled},
};

const OPERATOR: (&str, &str) = ("operator", "the operator's name");
const WATCH: (&str, &str) = ("watch", "plural of the kind");
const SERVER: (&str, &str) = ("server", "management, guest, vault, flannel-etcd, vm-pod (its supervisor)");
const VERB: (&str, &str) = ("verb", "get (and list), watch, create, update, patch, delete");

/// Bounds of durations, in seconds.
const SECONDS: &[f64] = &[0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0];

/// Reconciliations, by operator and result.
pub static RECONCILES: Declared<IntCounterVec> = Declared::counters(Metric {
    name: "giantnetes_reconciles_total",
    kind: Kind::Counter,
    labels: &[OPERATOR, ("result", "ok, error, panic, not leading")],
    help: "Reconciliations, by operator and result",
});

/// Failed reconciliations, by operator and [`crate::runtime::reason`].
pub static RECONCILE_ERRORS: Declared<IntCounterVec> = Declared::counters(Metric {
    name: "giantnetes_reconcile_errors_total",
    kind: Kind::Counter,
    labels: &[
        OPERATOR,
        (
            "reason",
            "refused (by the API server), not-found, conflict, invalid, throttled, server-error, timeout, no-answer, \
             foreign-object, other",
        ),
    ],
    help: "Reconciliations that failed and are repeated, by operator and what the failed step came to",
});

/// Duration of reconciliations in seconds, by operator.
pub static RECONCILE_SECONDS: Declared<HistogramVec> = Declared::histograms(Metric {
    name: "giantnetes_reconcile_seconds",
    kind: Kind::Histogram(SECONDS),
    labels: &[OPERATOR],
    help: "Duration of reconciliations, by operator",
});

/// Keys that are ready or being worked on, by operator.
pub static QUEUE_DEPTH: Declared<Pulled> = Declared::new(
    Metric {
        name: "giantnetes_queue_depth",
        kind: Kind::Gauge,
        labels: &[OPERATOR],
        help: "Keys that are ready or being worked on, by operator; those of the leader count",
    },
    Pulled::new,
);

/// Requests to API servers, by verb and class of the answer.
pub static API_REQUESTS: Declared<IntCounterVec> = Declared::counters(Metric {
    name: "giantnetes_api_requests_total",
    kind: Kind::Counter,
    labels: &[SERVER, VERB, ("code", "2xx, 409, 429, 4xx, 5xx, other; none: no answer")],
    help: "Requests to the management cluster's API server, guests', Vault and Flannel's etcd, by verb and class of the answer",
});

/// How long API servers take to begin an answer in seconds, by verb.
pub static API_REQUEST_SECONDS: Declared<HistogramVec> = Declared::histograms(Metric {
    name: "giantnetes_api_request_seconds",
    kind: Kind::Histogram(SECONDS),
    labels: &[SERVER, VERB],
    help: "Time from a request to the head of its answer, by verb",
});

/// Seconds since the server was last heard on each watch.
pub static WATCH_AGE: Declared<Ages> = Declared::new(
    Metric {
        name: "giantnetes_watch_age_seconds",
        kind: Kind::Gauge,
        labels: &[WATCH],
        help: "Time since the API server last answered or told something on this watch; it is asked anew every minute",
    },
    Ages::new,
);

/// Watches that failed and were repeated, by watch.
pub static WATCH_FAILURES: Declared<IntCounterVec> = Declared::counters(Metric {
    name: "giantnetes_watch_failures_total",
    kind: Kind::Counter,
    labels: &[WATCH],
    help: "Watches that failed and were repeated, by watch",
});

/// Sights of objects that could not be read, by watch.
pub static MALFORMED_OBJECTS: Declared<IntCounterVec> = Declared::counters(Metric {
    name: "giantnetes_malformed_objects_total",
    kind: Kind::Counter,
    labels: &[WATCH],
    help: "Sights of objects that could not be read, by watch",
});

/// 1 while this process leads.
pub static LEADING: Declared<IntGauge> = Declared::gauge(Metric {
    name: "giantnetes_leading",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 while this process leads, else 0",
});

/// The metrics of every operator on this kit.
pub fn of_operators() -> Vec<&'static Metric> {
    vec![
        &LEADING.metric,
        &RECONCILES.metric,
        &RECONCILE_ERRORS.metric,
        &RECONCILE_SECONDS.metric,
        &QUEUE_DEPTH.metric,
        &API_REQUESTS.metric,
        &API_REQUEST_SECONDS.metric,
        &WATCH_AGE.metric,
        &WATCH_FAILURES.metric,
        &MALFORMED_OBJECTS.metric,
    ]
}

/// What the library says of every process.
static PROCESS: [Metric; 7] = [
    of_process("process_cpu_seconds_total", Kind::Counter, "CPU time that was used"),
    of_process("process_resident_memory_bytes", Kind::Gauge, "Resident memory"),
    of_process("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory"),
    of_process("process_open_fds", Kind::Gauge, "Open file descriptors"),
    of_process("process_max_fds", Kind::Gauge, "File descriptors that may be open"),
    of_process("process_threads", Kind::Gauge, "Threads"),
    of_process("process_start_time_seconds", Kind::Gauge, "When the process began, in seconds since 1970"),
];

const fn of_process(name: &'static str, kind: Kind, help: &'static str) -> Metric {
    Metric { name, kind, labels: &[], help }
}

/// The metrics of every process of ours.
pub fn of_every_process() -> Vec<&'static Metric> {
    PROCESS.iter().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::runtime::telemetry::metrics_text;

    #[test]
    fn every_metric_registers_and_shows_as_the_table_says() {
        RECONCILES.with_label_values(&["x", "ok"]).inc();
        RECONCILE_ERRORS.with_label_values(&["x", "other"]).inc();
        RECONCILE_SECONDS.with_label_values(&["x"]).observe(1.0);
        QUEUE_DEPTH.follow("x", || 1.0);
        API_REQUESTS.with_label_values(&["x", "get", "2xx"]).inc();
        API_REQUEST_SECONDS.with_label_values(&["x", "get"]).observe(1.0);
        WATCH_AGE.begin("x");
        WATCH_FAILURES.with_label_values(&["x"]).inc();
        MALFORMED_OBJECTS.with_label_values(&["x"]).inc();
        LEADING.set(1);
        let text = String::from_utf8(metrics_text().unwrap()).unwrap();
        let of_words = |line: &str| line.strip_prefix("# TYPE ")?.split_once(' ').map(|(a, b)| (a.into(), b.into()));
        let shown: BTreeMap<String, String> = text.lines().filter_map(of_words).collect();
        for metric in of_operators().into_iter().chain(of_every_process()) {
            assert_eq!(shown.get(metric.name).map(String::as_str), Some(metric.kind.name()), "{}", metric.name);
        }
        // Nothing of the library's that the table lacks.
        let known = of_every_process();
        let strange = shown.keys().filter(|name| name.starts_with("process_"));
        assert!(strange.clone().all(|name| known.iter().any(|metric| metric.name == *name)), "{shown:?}");
        assert!(strange.count() >= 5);
    }
}
