//! `giantnetes run`: all micro-operators over one cache.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::Failure;
use crate::{
    cluster::{Reports, reconcile::ClusterOperator},
    context::{Cache, Context, Wake},
    guest::reconcile::GuestOperator,
    kvm::reconcile::KvmOperator,
    network::reconcile::NetworkOperator,
    pki::reconcile::PkiOperator,
    runtime::{cache::Readiness, http, operator, queue::Queue},
    settings::Settings,
};

/// Clusters that one micro-operator works on at a time.
const WORKERS: usize = 8;
/// Longest time that work under way may take after SIGTERM.
const GRACE: Duration = Duration::from_secs(8);

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The operator's settings.
    #[arg(long, env = "GIANTNETES_SETTINGS")]
    settings: PathBuf,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "GIANTNETES_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
}

pub(super) async fn run(args: RunArgs) -> Result<(), Failure> {
    let settings = Arc::new(Settings::read(&args.settings)?);
    let mut config = Config::infer().await?;
    // The client would repeat a refused call up to fifteen times and sleep in between; our queues do that better.
    config.default_retry = false;
    // Beyond the length of a watch: a list or a watch that hears nothing for so long is dead.
    config.read_timeout = Some(Duration::from_secs(75));
    config.reset_reader_on_write = true;
    let client = Client::try_from(config)?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();

    let queues: [Queue<_>; 5] = std::array::from_fn(|_| Queue::default());
    let wake = Wake::new(queues.to_vec());
    let readiness = Readiness::default();
    let cache = Cache::start(&client, &wake, &readiness, &stop);
    let reports = Reports::new(move |key| wake.cluster(key));
    let context = Context { client, settings, cache, reports };

    let waiting = readiness.clone();
    let ready = move || waiting.waiting_for().into_iter().map(|name| format!("first list of {name}")).collect();
    let routes = http::routes(Arc::new(Vec::new), Arc::new(ready));
    let mut server = tokio::spawn(http::serve(args.listen, routes, stop.clone()));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let caught_up = async {
        while !readiness.waiting_for().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let [cluster, network, pki, kvm, guest] = &queues;
        operator::start(Arc::new(ClusterOperator::new(context.clone())), cluster, WORKERS, &tasks, &stop);
        operator::start(Arc::new(NetworkOperator::new(context.clone())), network, WORKERS, &tasks, &stop);
        operator::start(Arc::new(PkiOperator::new(context.clone())), pki, WORKERS, &tasks, &stop);
        operator::start(Arc::new(KvmOperator::new(context.clone())), kvm, WORKERS, &tasks, &stop);
        operator::start(Arc::new(GuestOperator::new(context.clone())), guest, WORKERS, &tasks, &stop);
        info!("caught up; working");
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        () = caught_up => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut server => Err(ended),
    };
    info!("stopping");
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        warn!("work under way was cut off; it is picked up at the next start");
    }
    match ended {
        Ok(()) => Ok(()),
        Err(Ok(Ok(()))) => Err("the HTTP server ended".into()),
        Err(Ok(Err(error))) => Err(format!("listen on {}: {error}", args.listen).into()),
        Err(Err(join)) => Err(join.into()),
    }
}
