//! What is known of the VM, told apart: does QEMU run, has the guest come up, does its API answer.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, Router, routing::get};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use prometheus::IntGaugeVec;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    accelerator::Choice,
    line::{Callee, Line},
};
use crate::{
    api::names,
    node_config::paths::CA,
    pki::kubeconfig::TLS_SERVER_NAME,
    runtime::{
        http,
        telemetry::metric::{Declared, Kind, Metric},
    },
};

/// How often the guest is asked.
const PERIOD: Duration = Duration::from_secs(2);
/// How long it may take to answer: an emulated guest under load needs that for a handshake, and one that was given up has to
/// be begun anew.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Who was ready stays so while it refuses, for this long: what is slow under load is not down, and whoever waits for the VM
/// pod would be told so.
pub(super) const REFUSED: Duration = Duration::from_secs(20);
/// Who was ready stays so for this long without saying it again. That QEMU itself hangs is seen sooner.
const SILENT: Duration = Duration::from_secs(60);
/// Longest answer, in bytes.
const ANSWER: usize = 16 << 10;
/// QEMU's monitor was heard within this time, or QEMU hangs.
const QEMU_SILENCE: Duration = Duration::from_secs(30);

/// What of the VM is well.
static VM_UP: Declared<IntGaugeVec> = Declared::gauges(Metric {
    name: "giantnetes_vm_up",
    kind: Kind::Gauge,
    labels: &[("part", "qemu, guest, api, kubelet")],
    help: "1 if this part of the VM is well, else 0; only control-plane nodes have an api, only workers are asked for kubelet",
});

/// What QEMU runs the guest by.
static VM_ACCELERATOR: Declared<IntGaugeVec> = Declared::gauges(Metric {
    name: "giantnetes_vm_accelerator",
    kind: Kind::Gauge,
    labels: &[("accelerator", "kvm, tcg")],
    help: "1 for the accelerator that QEMU uses",
});

/// The metrics of a VM pod.
pub fn metrics() -> Vec<&'static Metric> {
    vec![&VM_UP.metric, &VM_ACCELERATOR.metric]
}

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
    /// Whether the guest was ready once.
    answered: bool,
    /// Since when its API is being started: it refused, and did not say since then that it is ready.
    starting_since: Option<Instant>,
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
            VM_UP.with_label_values(&[part]).set(well.into());
        }
    }

    /// Records the chosen accelerator.
    pub fn chose(&self, choice: &Choice) {
        VM_ACCELERATOR.with_label_values(&[choice.accel.label()]).set(1);
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

    pub(super) fn answers(&self, asked: &Asked, ready: bool) {
        self.update(|state| {
            state.answered |= ready;
            match asked {
                Asked::Api => state.status.api_ready = ready,
                Asked::Kubelet(_) => state.status.kubelet_ready = ready,
            }
        });
    }

    /// Whether the guest was ready once since its VM was started: its API, or on a worker its kubelet, which starts when the API is.
    pub fn has_answered(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).answered
    }

    /// Takes note that the API refused. It is there again when it says that it is ready: it takes connections sooner, and has read
    /// nobody's rights by then.
    pub fn api_refused(&self) {
        self.update(|state| {
            if state.answered {
                state.starting_since.get_or_insert_with(Instant::now);
            }
        });
    }

    /// Whether the API is being started, or may be: what takes longer than [`REFUSED`] is another thing.
    pub fn api_starts(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.starting_since.is_some_and(|since| since.elapsed() < REFUSED)
    }

    fn api_said(&self, answer: Answer) {
        match answer {
            Answer::Ready => self.update(|state| state.starting_since = None),
            Answer::Refused => self.api_refused(),
            Answer::Silent => {}
        }
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
        let (mut patience, mut line) = (Patience::default(), Line::default());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                answer = asked.is_ready(address, &mut line) => {
                    self.answers(&asked, patience.counts_as_ready(answer, Instant::now()));
                    if asked == Asked::Api {
                        self.api_said(answer);
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }
}

/// What the guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Ready,
    /// It says no, or nobody is there.
    Refused,
    /// Nothing, for [`TIMEOUT`].
    Silent,
}

/// What is made of the answers: who was ready stays so for a while.
#[derive(Debug, Default)]
struct Patience {
    /// When it was ready, while it counts as that.
    ready_at: Option<Instant>,
    /// Since when it refuses.
    refused_at: Option<Instant>,
}

impl Patience {
    fn counts_as_ready(&mut self, answer: Answer, now: Instant) -> bool {
        match answer {
            Answer::Ready => (self.ready_at, self.refused_at) = (Some(now), None),
            Answer::Refused => drop(self.refused_at.get_or_insert(now)),
            Answer::Silent => {}
        }
        let within = |since: Instant, limit: Duration| now.duration_since(since) < limit;
        let refuses = self.refused_at.is_some_and(|since| !within(since, REFUSED));
        self.ready_at = self.ready_at.filter(|at| within(*at, SILENT) && !refuses);
        self.ready_at.is_some()
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
    async fn is_ready(&self, address: IpAddr, line: &mut Line) -> Answer {
        match tokio::time::timeout(TIMEOUT, self.ask(address, line)).await {
            Ok(Some(true)) => Answer::Ready,
            Ok(_) => Answer::Refused,
            Err(_) => Answer::Silent,
        }
    }

    /// Nobody in particular asks.
    fn callee(&self) -> Callee {
        let (port, server_name) = match self {
            Self::Api => (names::API_PORT, TLS_SERVER_NAME),
            Self::Kubelet(node) => (names::KUBELET_PORT, node.as_str()),
        };
        Callee { port, server_name: server_name.to_owned(), authority: CA, identity: None }
    }

    async fn ask(&self, address: IpAddr, line: &mut Line) -> Option<bool> {
        let client = line.client(&self.callee(), address).await?;
        match self {
            Self::Api => {
                let request = ::http::Request::get("/readyz").body(Body::empty()).ok()?;
                let answer = client.send(request).await.ok()?;
                let is_ok = answer.status() == ::http::StatusCode::OK;
                Some(is_ok && read(answer.into_body()).await? == b"ok")
            }
            // It refuses strangers, which we are: whoever can refuse is there. Its answer is read to the end, or the connection
            // would not be used again.
            Self::Kubelet(_) => {
                let request = ::http::Request::get("/healthz").body(Body::empty()).ok()?;
                let answer = client.send(request).await.ok()?;
                Some(read(answer.into_body()).await.is_some())
            }
        }
    }
}

/// An answer to its end. It has a word to say; whoever is root in the guest may say more.
pub(super) async fn read(body: Body) -> Option<Vec<u8>> {
    let whole = Limited::new(body, ANSWER).collect().await.ok()?;
    Some(whole.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_that_refused_starts_until_it_says_that_it_is_ready() {
        let health = Health::default();
        health.api_refused();
        assert!(!health.api_starts(), "it never was there");
        health.answers(&Asked::Api, true);
        for refuses in [Health::api_refused as fn(&Health), |health| health.api_said(Answer::Refused)] {
            refuses(&health);
            assert!(health.api_starts());
            health.api_said(Answer::Silent);
            assert!(health.api_starts());
            health.api_said(Answer::Ready);
            assert!(!health.api_starts());
        }
        health.api_refused();
        health.update(|state| state.starting_since = Instant::now().checked_sub(REFUSED));
        health.api_refused();
        assert!(!health.api_starts(), "it is away");
    }

    #[test]
    fn who_was_ready_stays_so_for_a_while_and_longer_if_it_is_silent() {
        use Answer::{Ready, Refused, Silent};
        let (mut patience, start) = (Patience::default(), Instant::now());
        for (second, answer, counts) in [
            (0, Refused, false),
            (1, Silent, false),
            (2, Ready, true),
            (4, Refused, true),
            (23, Refused, true),
            (24, Refused, false),
            // Who is down stays so until it says otherwise.
            (25, Silent, false),
            (30, Ready, true),
            (60, Silent, true),
            (89, Silent, true),
            (90, Silent, false),
            (100, Ready, true),
            (150, Silent, true),
            // Its first refusal, though it was silent before.
            (151, Refused, true),
            (160, Silent, false),
        ] {
            let now = start + Duration::from_secs(second);
            assert_eq!(patience.counts_as_ready(answer, now), counts, "{answer:?} after {second} s");
        }
    }
}
