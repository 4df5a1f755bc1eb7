//! `giantnetes run`: all micro-operators over one cache. Every replica keeps its cache warm; the leader works.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Config, Resource as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Failure;
#[cfg(feature = "aws")]
use crate::aws::reconcile::AwsOperator;
use crate::{
    access::reconcile::AccessOperator,
    api::{Cluster, ClusterAccess, NetworkClaim, names},
    cluster::{Reports, metrics, reconcile::ClusterOperator},
    context::{Cache, Context, Queues, Wake},
    flannel::{
        install::{InstallOperator, Installation},
        reconcile::FlannelOperator,
        server::FlannelEtcd,
    },
    guest::reconcile::GuestOperator,
    isolation::reconcile::IsolationOperator,
    kvm::reconcile::KvmOperator,
    network::{reconcile::NetworkOperator, tls_route, underlay::Underlay},
    pki::{reconcile::PkiOperator, vault::Vault},
    runtime::{
        apply::Memory,
        cache::{Readiness, Watches},
        events::Events,
        http,
        lease::Elector,
        link,
        operator::{self, Shift},
        set_call_timeout,
        telemetry::{self, LEADING},
    },
    settings::Settings,
};

/// Longest time that writes under way may take when leadership ends. With the lease's release it is less than ten seconds.
const GRACE: Duration = Duration::from_secs(5);

/// How long the first list is waited for of kinds that only some guests need.
const OPTIONAL: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The operator's settings.
    #[arg(long, env = "GIANTNETES_SETTINGS")]
    settings: PathBuf,
    /// Address of /livez, /readyz, /metrics and /loglevel.
    #[arg(long, env = "GIANTNETES_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Clusters that one micro-operator works on at a time; those of one namespace take half of it at most.
    #[arg(long, env = "GIANTNETES_WORKERS", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,
    /// Longest time that one call to the API server may take.
    #[arg(long, env = "GIANTNETES_CALL_TIMEOUT", default_value = "15s", value_parser = duration)]
    call_timeout: Duration,
    /// Time without a sign of life after which another replica takes over: whole seconds, at least one.
    #[arg(long, env = "GIANTNETES_LEASE_DURATION", default_value = "15s", value_parser = whole_seconds)]
    lease_duration: Duration,
    /// Namespace of the lease. Default: that of the pod or of the kubeconfig's context.
    #[arg(long, env = "GIANTNETES_NAMESPACE")]
    namespace: Option<String>,
    /// Name of the lease.
    #[arg(long, env = "GIANTNETES_LEASE", default_value = names::MANAGER)]
    lease: String,
    /// Name of this replica. Default: a random one.
    #[arg(long, env = "GIANTNETES_REPLICA", default_value = "replica")]
    replica: String,
    /// Address of the pod that this process runs in, which no guest's overlay may cover. Default: none is known.
    #[arg(long, env = "GIANTNETES_POD_IP")]
    pod_ip: Option<IpAddr>,
    /// Where pods find the management cluster's API, likewise: Kubernetes tells each of them.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST")]
    api_service: Option<String>,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    let duration = Duration::try_from(parsed).map_err(|_| format!("{text} lies in the past"))?;
    if (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("{text} is not between 1s and 1h"))
    }
}

/// A lease says its length in whole seconds.
fn whole_seconds(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.subsec_nanos() == 0 { Ok(duration) } else { Err(format!("{text} is not whole seconds")) }
}

pub(super) async fn run(args: RunArgs) -> Result<(), Failure> {
    let settings = Arc::new(Settings::read(&args.settings)?);
    let underlay = Arc::new(underlay(&args));
    set_call_timeout(args.call_timeout);
    let config = Config::infer().await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    // Unique to this process: a container that was restarted in the same pod is not the one before.
    let me = format!("{}_{:016x}", args.replica, RandomState::new().build_hasher().finish());
    let leases = Api::<Lease>::namespaced(link::connect(config.clone(), None)?, &namespace);
    let elector = Elector::new(leases, &args.lease, &me, args.lease_duration);
    let leadership = elector.leadership();

    let client = link::connect(config, Some(leadership.clone()))?;
    let stop = CancellationToken::new();
    let queues = Queues::new(usize::from(args.workers));
    let wake = Wake::new(queues.clone(), leadership.clone());
    let watches = Watches::new(client.clone(), stop.clone());
    let (memory, events) = (Memory::default(), Events::new(client.clone(), names::MANAGER, Some(args.replica)));
    let cache = Cache::start(&watches, &wake, &memory, &events, &settings);
    let reports = {
        let wake = wake.clone();
        Reports::new(move |key| wake.cluster(key))
    };
    let vault = settings.vault.clone().map(|vault| Vault::new(vault, Some(leadership.clone()))).transpose()?;
    let vault = vault.map(Arc::new);
    let flannel = settings.network.flannel.clone().map(|flannel| Arc::new(FlannelEtcd::new(flannel)));
    let context = Context { client, settings, cache, reports, memory, events, leadership, underlay, vault, flannel };

    // Who does not lead says so, too: that nobody leads must show.
    LEADING.set(0);
    telemetry::register(metrics::Fleet::new(context.cache.clusters.clone())?)?;

    let readiness = watches.readiness().clone();
    let waiting = readiness.clone();
    let ready = move || waiting.waiting_for().into_iter().map(first_list).collect();
    let routes = http::routes(Arc::new(Vec::new), Arc::new(ready));
    let mut server = tokio::spawn(http::serve(args.listen, routes, stop.clone()));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut work = tokio::spawn(work(context, queues, wake, stop.clone()));
    // Released last: nobody else may write before our last write has ended.
    let elections_end = CancellationToken::new();
    let mut elections = tokio::spawn(elect(elector, readiness, elections_end.clone()));
    let ended: Result<(), Failure> = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut server => Err(match ended {
            Ok(Ok(())) => "the HTTP server ended".into(),
            Ok(Err(error)) => format!("listen on {}: {error}", args.listen).into(),
            Err(join) => join.into(),
        }),
        // Only by a defect: a leader that does nothing would keep others from leading.
        ended = &mut work => return Err(format!("the work ended: {ended:?}").into()),
        ended = &mut elections => return Err(format!("the election ended: {ended:?}").into()),
    };
    info!("stopping");
    stop.cancel();
    work.await?;
    elections_end.cancel();
    elections.await?;
    ended
}

/// What of the management cluster this process was told. A name in place of an address says nothing of ranges.
fn underlay(args: &RunArgs) -> Underlay {
    let mut underlay = Underlay::default();
    if let Some(address) = args.api_service.as_deref().and_then(|host| host.parse().ok()) {
        underlay.add_address(address, "the Service of the management cluster's API");
    }
    if let Some(address) = args.pod_ip {
        underlay.add_address(address, "the controller manager's own address");
    }
    underlay
}

/// What a watch waits for that has not listed yet.
fn first_list(watch: &str) -> String {
    if [Cluster::plural(&()), ClusterAccess::plural(&()), NetworkClaim::plural(&())].iter().any(|ours| ours == watch) {
        return format!(
            "first list of {watch} (is its CustomResourceDefinition installed? The chart brings it, or `giantnetes crds | kubectl apply -f -`)"
        );
    }
    if watch == tls_route::WATCH {
        return format!(
            "first list of {watch} (settings.exposure.gateway asks for it: is the Gateway API installed, 1.5 or newer?)"
        );
    }
    format!("first list of {watch}")
}

/// Takes part in the election once everything is listed: a replica that knows nothing keeps nobody else from leading.
async fn elect(elector: Elector, readiness: Readiness, end: CancellationToken) {
    let began = Instant::now();
    let caught_up = async {
        // A kind that is not there is to stop no guest but those that asked for it.
        let holds_up = |watch: &&str| *watch != tls_route::WATCH || began.elapsed() < OPTIONAL;
        while readiness.waiting_for().iter().any(holds_up) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = end.cancelled() => return,
        () = caught_up => info!("caught up"),
    }
    elector.run(end).await;
}

/// Works whenever this process leads, until `stop`.
async fn work(context: Context, queues: Queues, wake: Wake, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.leadership.gained() => {}
        }
        info!("working");
        LEADING.set(1);
        // What was said under an earlier leadership may have been overtaken by another leader.
        context.reports.clear();
        context.cache.resync(&wake);
        let shift = Shift::default();
        let Queues { cluster, network, flannel, flannel_etcd, pki, kvm, isolation, guest, access, .. } = &queues;
        operator::start(Arc::new(ClusterOperator::new(context.clone())), cluster, &shift);
        operator::start(Arc::new(NetworkOperator::new(context.clone())), network, &shift);
        operator::start(Arc::new(FlannelOperator::new(context.clone())), flannel, &shift);
        if let Some(etcd) = context.flannel.clone() {
            operator::start(
                Arc::new(InstallOperator::new(context.clone(), etcd, flannel.clone())),
                flannel_etcd,
                &shift,
            );
            flannel_etcd.add(Installation);
        }
        operator::start(Arc::new(PkiOperator::new(context.clone())), pki, &shift);
        operator::start(Arc::new(KvmOperator::new(context.clone())), kvm, &shift);
        #[cfg(feature = "aws")]
        operator::start(Arc::new(AwsOperator::new(context.clone())), &queues.aws, &shift);
        operator::start(Arc::new(IsolationOperator::new(context.clone())), isolation, &shift);
        operator::start(Arc::new(GuestOperator::new(context.clone())), guest, &shift);
        operator::start(Arc::new(AccessOperator::new(context.clone())), access, &shift);
        tokio::select! {
            // Nobody else may lead before the last write has ended: none begins any more.
            () = stop.cancelled() => context.leadership.close(),
            () = context.leadership.lost() => warn!("this process leads no more"),
        }
        LEADING.set(0);
        // Work that does not write, as a look at a guest that is dead, holds nobody up.
        if !shift.end(context.leadership.idle(GRACE)).await {
            info!("work under way was cut off; it is picked up by the next leader");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_checked() {
        assert_eq!(duration("15s"), Ok(Duration::from_secs(15)));
        assert!(whole_seconds("1500ms").is_err() && whole_seconds("2s").is_ok());
        for bad in ["0s", "15", "-1s", "2h", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
