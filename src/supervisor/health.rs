//! What is known of the VM, told apart: does QEMU run, has the guest come up, does its API answer.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, Router, routing::get};
use kube::{Client, Config, client::Body};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{accelerator::Choice, paths};
use crate::{
    api::names,
    node_config::paths::CA,
    pki::kubeconfig::TLS_SERVER_NAME,
    runtime::{http, telemetry},
};

/// How often the guest is asked, and how long it may take to answer.
const PERIOD: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// So often in a row it may not answer in time before it counts as down: a VM pod that is not ready is cut off from its
/// Service, and an API that is slow under load would be made one that nobody reaches.
const MISSES: u32 = 3;
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
    /// The guest's API says that it is ready. Never on a worker, which has none.
    pub api_ready: bool,
    /// The guest's kubelet answers. Asked on workers alone.
    pub kubelet_ready: bool,
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
        let parts = [
            ("qemu", status.qemu_running),
            ("guest", status.guest_up),
            ("api", status.api_ready),
            ("kubelet", status.kubelet_ready),
        ];
        for (part, well) in parts {
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

    fn answers(&self, asked: &Asked, ready: bool) {
        self.update(|state| match asked {
            Asked::Api => state.status.api_ready = ready,
            Asked::Kubelet(_) => state.status.kubelet_ready = ready,
        });
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
    pub fn routes(&self, asked: &Asked) -> Router {
        let (is_worker, what) = match asked {
            Asked::Api => (false, "the guest's API"),
            Asked::Kubelet(_) => (true, "the guest's kubelet"),
        };
        let (live, ready, status) = (self.clone(), self.clone(), self.clone());
        let live = move || if live.hangs() { vec!["QEMU to answer".to_owned()] } else { Vec::new() };
        let ready = move || {
            let status = ready.status();
            let answers = if is_worker { status.kubelet_ready } else { status.api_ready };
            if answers { Vec::new() } else { vec![what.to_owned()] }
        };
        http::routes(Arc::new(live), Arc::new(ready))
            .route("/status", get(move || std::future::ready(Json(status.status()))))
    }

    /// Asks the guest at `address` again and again whether it is ready, until `stop`.
    pub async fn watch(self, asked: Asked, address: IpAddr, stop: CancellationToken) {
        let mut patience = Patience::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                ready = asked.is_ready(address) => self.answers(&asked, patience.counts_as_ready(ready)),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }
}

/// What is made of the answers: who was ready stays so over a few misses.
#[derive(Debug, Default)]
struct Patience {
    /// Misses that are left.
    left: u32,
}

impl Patience {
    fn counts_as_ready(&mut self, ready: bool) -> bool {
        self.left = if ready { MISSES } else { self.left.saturating_sub(1) };
        self.left > 0
    }
}

/// Who in the guest is asked whether it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The API of a control-plane node.
    Api,
    /// The kubelet of the worker of this name.
    Kubelet(String),
}

impl Asked {
    async fn is_ready(&self, address: IpAddr) -> bool {
        matches!(tokio::time::timeout(TIMEOUT, self.ask(address)).await, Ok(Some(true)))
    }

    /// What the guest says, once it has proved itself by the guest's CA.
    async fn ask(&self, address: IpAddr) -> Option<bool> {
        let (port, path, server) = match self {
            Self::Api => (names::API_PORT, "/readyz", TLS_SERVER_NAME),
            Self::Kubelet(node) => (names::KUBELET_PORT, "/healthz", node.as_str()),
        };
        // Read anew each time: the mount is live.
        let ca = tokio::fs::read(format!("{}/{CA}", paths::PKI)).await.ok()?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(&ca).ok()?;
        let mut config = Config::new(format!("https://{}", SocketAddr::from((address, port))).parse().ok()?);
        config.root_cert = Some(vec![pem.contents]);
        config.tls_server_name = Some(server.into());
        config.default_retry = false;
        let client = Client::try_from(config).ok()?;
        let request = ::http::Request::get(path);
        match self {
            Self::Api => Some(client.request_text(request.body(Vec::new()).ok()?).await.ok()? == "ok"),
            // It refuses strangers, which we are: whoever can refuse is there.
            Self::Kubelet(_) => client.send(request.body(Body::empty()).ok()?).await.ok().map(|_| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_ready_stays_so_over_a_few_misses_and_no_more() {
        let mut patience = Patience::default();
        let said = [false, true, false, false, true, false, false, false, false, true];
        let counts = said.map(|ready| patience.counts_as_ready(ready));
        assert_eq!(counts, [false, true, true, true, true, true, true, false, false, true]);
    }
}
