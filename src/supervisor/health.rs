//! What is known of the VM, told apart: does QEMU run, has the guest come up, does its API answer.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, Router, routing::get};
use kube::{Client, Config};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{accelerator::Choice, paths};
use crate::{
    node_config::paths::CA,
    pki::kubeconfig::TLS_SERVER_NAME,
    runtime::{http, telemetry},
};

/// How often the guest's API is asked, and how long it may take to answer.
const API_PERIOD: Duration = Duration::from_secs(2);
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// QEMU's monitor was heard within this time, or QEMU hangs.
const QEMU_SILENCE: Duration = Duration::from_secs(30);

/// What `/status` shows.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `KVM` or `TCG`; empty until it is chosen.
    pub accelerator: String,
    /// Why this accelerator.
    pub accelerator_reason: String,
    /// The guest's kernel and initial RAM disk have run.
    pub guest_up: bool,
    /// The guest's API says that it is ready.
    pub api_ready: bool,
    /// QEMU says that the machine runs.
    pub qemu_running: bool,
}

#[derive(Debug, Default)]
struct State {
    status: Status,
    /// When QEMU last said that the machine runs. `None` until it is started.
    heard: Option<Instant>,
}

/// The VM's health. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

impl Health {
    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let status = &state.status;
        for (part, well) in [("qemu", status.qemu_running), ("guest", status.guest_up), ("api", status.api_ready)] {
            telemetry::VM_UP.with_label_values(&[part]).set(well.into());
        }
    }

    /// Records the chosen accelerator.
    pub fn chose(&self, choice: &Choice) {
        telemetry::VM_ACCELERATOR.with_label_values(&[choice.accel.label()]).set(1);
        self.update(|state| {
            state.status.accelerator = choice.accel.to_string();
            state.status.accelerator_reason.clone_from(&choice.reason);
        });
    }

    /// Records what QEMU's monitor said.
    pub fn qemu(&self, running: bool) {
        self.update(|state| {
            state.status.qemu_running = running;
            if running || state.heard.is_none() {
                state.heard = Some(Instant::now());
            }
        });
    }

    /// Records that the guest has come up.
    pub fn guest_is_up(&self) {
        self.update(|state| state.status.guest_up = true);
    }

    fn api(&self, ready: bool) {
        self.update(|state| state.status.api_ready = ready);
    }

    /// What is known.
    pub fn status(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).status.clone()
    }

    fn hangs(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.heard.is_some_and(|heard| heard.elapsed() > QEMU_SILENCE)
    }

    /// `/livez`, `/readyz`, `/metrics` and `/status`.
    pub fn routes(&self) -> Router {
        let (live, ready, status) = (self.clone(), self.clone(), self.clone());
        let live = move || if live.hangs() { vec!["QEMU to answer".to_owned()] } else { Vec::new() };
        let ready = move || if ready.status().api_ready { Vec::new() } else { vec!["the guest's API".to_owned()] };
        http::routes(Arc::new(live), Arc::new(ready))
            .route("/status", get(move || std::future::ready(Json(status.status()))))
    }

    /// Asks the guest's API at `address` whether it is ready, again and again until `stop`.
    pub async fn watch_api(self, address: std::net::SocketAddr, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                ready = api_is_ready(address) => self.api(ready),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(API_PERIOD) => {}
            }
        }
    }
}

/// Whether the API at `address` proves itself by the guest's CA and says that it is ready.
async fn api_is_ready(address: std::net::SocketAddr) -> bool {
    let ask = async {
        // Read anew each time: the mount is live.
        let ca = tokio::fs::read(format!("{}/{CA}", paths::PKI)).await.ok()?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(&ca).ok()?;
        let mut config = Config::new(format!("https://{address}").parse().ok()?);
        config.root_cert = Some(vec![pem.contents]);
        config.tls_server_name = Some(TLS_SERVER_NAME.into());
        config.default_retry = false;
        let client = Client::try_from(config).ok()?;
        client.request_text(::http::Request::get("/readyz").body(Vec::new()).ok()?).await.ok()
    };
    matches!(tokio::time::timeout(API_TIMEOUT, ask).await, Ok(Some(text)) if text == "ok")
}
