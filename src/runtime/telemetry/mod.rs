//! Logs and metrics.
//!
//! - `logs`: how log lines look, and which are written
//! - [`metric`]: what a metric is called and means, once, for its series and for docs/metrics.md
//! - `kit`: the metrics of this kit
//! - [`pulled`]: metrics that are looked up when Prometheus asks
//!
//! A metric is declared where it is counted, and shown from its first use on. Label values come from closed sets, or go with
//! the objects that they name.

mod kit;
mod logs;
pub mod metric;
pub mod pulled;

pub use kit::{
    API_REQUEST_SECONDS, API_REQUESTS, LEADING, MALFORMED_OBJECTS, QUEUE_DEPTH, RECONCILE_ERRORS, RECONCILE_SECONDS,
    RECONCILES, WATCH_AGE, WATCH_FAILURES, of_every_process, of_operators,
};
pub use logs::{LogFormat, init_logs, set_log_filter};
pub use metric::{metrics_text, register};
