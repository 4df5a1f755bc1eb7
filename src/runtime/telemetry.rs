//! Logs and metrics. Every metric of the process is declared here; label values come from closed sets.

use std::sync::{LazyLock, OnceLock};

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tracing_subscriber::{
    EnvFilter, Registry as Subscribers, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

static FILTER: OnceLock<reload::Handle<EnvFilter, Subscribers>> = OnceLock::new();

/// Starts logging to standard error. `filter` is as in `RUST_LOG`, such as `info,giantnetes=debug`.
pub fn init_logs(format: LogFormat, filter: &str) {
    let (filter, handle) = reload::Layer::new(EnvFilter::builder().parse_lossy(whole(filter)));
    let lines = fmt::layer().with_writer(std::io::stderr);
    // Fails only when logging is already on, as in tests: then the first one stays.
    let begun = match format {
        LogFormat::Text => tracing_subscriber::registry().with(filter).with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => {
            tracing_subscriber::registry().with(filter).with(lines.json().flatten_event(true)).try_init()
        }
    };
    if begun.is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Changes what is logged from now on.
///
/// # Errors
/// If `filter` is none, with the place where it is wrong.
pub fn set_log_filter(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::builder().parse(whole(filter.trim())).map_err(|error| error.to_string())?;
    let handle = FILTER.get().ok_or("logging was not begun by this process")?;
    handle.reload(filter).map_err(|error| error.to_string())
}

/// kube logs every refused connection as an error by itself; whoever made the call says it, with more meaning. And it logs
/// an answer that it cannot read with its whole body, which may be a Secret's.
fn whole(filter: &str) -> String {
    format!("{filter},kube_client::client=error,kube_client::client::builder=off")
}

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// Reconciliations, by operator and result (`ok`, `error`, `panic`, `not leading`).
pub static RECONCILES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new("giantnetes_reconciles_total", "Reconciliations, by operator and result");
    registered(IntCounterVec::new(opts, &["operator", "result"]))
});

/// Duration of reconciliations in seconds, by operator.
pub static RECONCILE_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let opts = HistogramOpts::new("giantnetes_reconcile_seconds", "Duration of reconciliations, by operator")
        .buckets(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0]);
    registered(HistogramVec::new(opts, &["operator"]))
});

/// Keys that are ready or being worked on, by operator.
pub static QUEUE_DEPTH: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let opts = Opts::new("giantnetes_queue_depth", "Keys that are ready or being worked on, by operator");
    registered(IntGaugeVec::new(opts, &["operator"]))
});

/// Requests to the management cluster's API, by verb and class of the answer.
pub static API_REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts =
        Opts::new("giantnetes_api_requests_total", "Requests to the API server, by verb and class of the answer");
    registered(IntCounterVec::new(opts, &["verb", "code"]))
});

/// Watches that failed and were repeated, by watch.
pub static WATCH_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new("giantnetes_watch_failures_total", "Watches that failed and were repeated, by watch");
    registered(IntCounterVec::new(opts, &["watch"]))
});

/// Sights of objects that could not be read, by watch.
pub static MALFORMED_OBJECTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new("giantnetes_malformed_objects_total", "Sights of objects that could not be read, by watch");
    registered(IntCounterVec::new(opts, &["watch"]))
});

/// 1 while this process leads.
pub static LEADING: LazyLock<IntGauge> = LazyLock::new(|| {
    let opts = Opts::new("giantnetes_leading", "1 while this process leads, else 0");
    registered(IntGauge::with_opts(opts))
});

/// State of the VM in this pod: 1 for each thing that is well (`qemu`, `guest`, `api`).
pub static VM_UP: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let opts = Opts::new("giantnetes_vm_up", "1 if this part of the VM is well: qemu, guest, api");
    registered(IntGaugeVec::new(opts, &["part"]))
});

/// How QEMU runs the guest: 1 for the accelerator in use.
pub static VM_ACCELERATOR: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let opts = Opts::new("giantnetes_vm_accelerator", "1 for the accelerator that QEMU uses: kvm or tcg");
    registered(IntGaugeVec::new(opts, &["accelerator"]))
});

/// 1 while this host offers KVM to VM pods.
pub static KVM_OFFERED: LazyLock<IntGauge> = LazyLock::new(|| {
    let opts = Opts::new("giantnetes_kvm_offered", "1 while a guest starts on KVM on this host, else 0");
    registered(IntGauge::with_opts(opts))
});

fn registered<C: prometheus::core::Collector + Clone + 'static>(metric: prometheus::Result<C>) -> C {
    // The names above are constants: that they are valid and distinct is proved by the test below.
    #[allow(clippy::expect_used)]
    let metric = metric.expect("a valid metric");
    #[allow(clippy::expect_used)]
    REGISTRY.register(Box::new(metric.clone())).expect("a metric of a new name");
    metric
}

/// All metrics in Prometheus' text format.
///
/// # Errors
/// If a metric cannot be encoded.
pub fn metrics_text() -> Result<Vec<u8>, prometheus::Error> {
    let mut families = REGISTRY.gather();
    families.extend(prometheus::gather());
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_and_shows() {
        RECONCILES.with_label_values(&["x", "ok"]).inc();
        RECONCILE_SECONDS.with_label_values(&["x"]).observe(1.0);
        QUEUE_DEPTH.with_label_values(&["x"]).set(1);
        API_REQUESTS.with_label_values(&["get", "2xx"]).inc();
        WATCH_FAILURES.with_label_values(&["x"]).inc();
        MALFORMED_OBJECTS.with_label_values(&["x"]).inc();
        LEADING.set(1);
        VM_UP.with_label_values(&["qemu"]).set(1);
        VM_ACCELERATOR.with_label_values(&["tcg"]).set(1);
        KVM_OFFERED.set(1);
        let text = String::from_utf8(metrics_text().unwrap()).unwrap();
        for name in [
            "giantnetes_reconciles_total",
            "giantnetes_reconcile_seconds",
            "giantnetes_queue_depth",
            "giantnetes_api_requests_total",
            "giantnetes_watch_failures_total",
            "giantnetes_malformed_objects_total",
            "giantnetes_leading",
            "giantnetes_vm_up",
            "giantnetes_vm_accelerator",
            "giantnetes_kvm_offered",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }
}
