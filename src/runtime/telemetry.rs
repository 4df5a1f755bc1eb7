//! Logs and metrics. Every metric of the process is declared here; label values come from closed sets.

use std::sync::LazyLock;

use prometheus::{Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use tracing_subscriber::{EnvFilter, fmt};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error. `filter` is as in `RUST_LOG`, such as `info,giantnetes=debug`.
pub fn init_logs(format: LogFormat, filter: &str) {
    // kube logs every refused connection as an error by itself; whoever made the call says it, with more meaning.
    let filter = EnvFilter::builder().parse_lossy(format!("{filter},kube_client::client::builder=off"));
    let logs = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only when logging is already on, as in tests: then the first one stays.
    let _ = match format {
        LogFormat::Text => logs.with_ansi(false).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
}

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// Reconciliations, by operator and result (`ok`, `error`, `panic`).
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
        VM_UP.with_label_values(&["qemu"]).set(1);
        VM_ACCELERATOR.with_label_values(&["tcg"]).set(1);
        let text = String::from_utf8(metrics_text().unwrap()).unwrap();
        for name in [
            "giantnetes_reconciles_total",
            "giantnetes_reconcile_seconds",
            "giantnetes_queue_depth",
            "giantnetes_vm_up",
            "giantnetes_vm_accelerator",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }
}
