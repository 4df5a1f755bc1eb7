//! Whether guests start on KVM here, asked again and again: a host may be repaired, or broken.

use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::runtime::telemetry::metric::{Declared, Kind, Metric};

/// 1 while this host offers KVM.
static KVM_OFFERED: Declared<IntGauge> = Declared::gauge(Metric {
    name: "giantnetes_kvm_offered",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 while a guest starts on KVM on this host, else 0",
});

/// The metrics of the device plugin.
pub fn metrics() -> Vec<&'static Metric> {
    vec![&KVM_OFFERED.metric]
}

/// A host where no guest started is asked less and less often, up to this many times the usual pause: a guest that hangs
/// keeps a CPU busy for as long as it is waited for.
const RARELY: u32 = 8;

/// What the last probe came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There was none yet.
    Unknown,
    /// A guest came up.
    Works,
    /// None did; in words.
    Broken(String),
}

/// Probes until `stop`, and tells what came of it when that is news.
pub async fn again_and_again<P, F>(probe: P, every: Duration, verdict: watch::Sender<Verdict>, stop: CancellationToken)
where
    P: Fn() -> F,
    F: Future<Output = Result<Duration, String>>,
{
    let mut pause = every;
    loop {
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = probe() => result,
        };
        pause = if result.is_ok() { every } else { (pause * 2).min(every * RARELY) };
        tell(&verdict, result);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn tell(verdict: &watch::Sender<Verdict>, result: Result<Duration, String>) {
    KVM_OFFERED.set(result.is_ok().into());
    let (new, took) = match result {
        Ok(took) => (Verdict::Works, took),
        Err(why) => (Verdict::Broken(why), Duration::ZERO),
    };
    let is_news = verdict.send_if_modified(|old| {
        let is_news = *old != new;
        old.clone_from(&new);
        is_news
    });
    match new {
        Verdict::Works if is_news => info!(seconds = took.as_secs_f32(), "a guest starts on KVM here; it is offered"),
        Verdict::Broken(why) if is_news => warn!(why, "no guest starts on KVM here; it is not offered"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_host_is_asked_again_and_a_broken_one_more_rarely() {
        let (verdict, mut seen) = watch::channel(Verdict::Unknown);
        let (asked, works) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let probe = {
            let (asked, works) = (asked.clone(), works.clone());
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
                let works = works.load(Ordering::Relaxed) > 0;
                std::future::ready(if works { Ok(Duration::from_secs(2)) } else { Err("it hangs".to_owned()) })
            }
        };
        let (every, stop) = (Duration::from_secs(600), CancellationToken::new());
        tokio::spawn(again_and_again(probe, every, verdict, stop.clone()));
        seen.wait_for(|verdict| *verdict == Verdict::Broken("it hangs".into())).await.unwrap();
        tokio::time::sleep(every * 50).await;
        let rarely = asked.load(Ordering::Relaxed);
        assert!((6..12).contains(&rarely), "{rarely}");
        works.store(1, Ordering::Relaxed);
        seen.wait_for(|verdict| *verdict == Verdict::Works).await.unwrap();
        let before = asked.load(Ordering::Relaxed);
        tokio::time::sleep(every * 50 + every / 2).await;
        assert_eq!(asked.load(Ordering::Relaxed) - before, 50);
        stop.cancel();
    }
}
