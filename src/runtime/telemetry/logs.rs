//! Log lines, and what of them is written.

use std::sync::OnceLock;

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
