//! The guest's other VM pods: where frames for all go, and from whom VXLAN is taken.
//!
//! Every two seconds a name of the management cluster's DNS is asked, whose addresses are those of all VM pods of the guest.
//! A Service without a head answers a pod as soon as it has its address, where a ConfigMap would lag up to a minute behind.
//! To whom frames for one go, the VXLAN device learns by itself.
//!
//! [`heed`] and [`steps`] are pure; [`follow`] acts.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    config::{OverlayConfig, PeersConfig},
    network::{self, PEERS, run},
};
use crate::runtime::chain;

/// How often peers are looked for, and how long an answer may take.
const PERIOD: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(2);
/// The Ethernet address of entries for frames that go to all.
const ALL: &str = "00:00:00:00:00:00";

/// Why peers could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The DNS server.
    #[error("ask {server} for the addresses of {name}")]
    Resolve {
        /// The management cluster's DNS server.
        server: IpAddr,
        /// Name of the Service.
        name: String,
        /// Why not.
        #[source]
        source: NetError,
    },
    /// `bridge` or `nft`.
    #[error("tell the overlay about its peers")]
    Apply(#[from] network::Error),
    /// The kernel has other entries than those that it was told.
    #[error("the overlay's entries are not those of its peers")]
    Left,
}

/// Keeps the overlay in step with the guest's VM pods until `stop`, and says in `known` which those are. The network must be
/// set up. A failure is logged once, and tried again.
pub async fn follow(
    overlay: OverlayConfig,
    own: IpAddr,
    known: watch::Sender<BTreeSet<IpAddr>>,
    stop: CancellationToken,
) {
    let Some(peers) = overlay.peers.clone() else { return stop.cancelled().await };
    // Where flanneld gives routes to, nothing is flooded.
    let device = overlay.flannel.is_none().then(|| overlay.device());
    let mut told = None;
    let work = async {
        loop {
            match look(&peers, device.as_deref(), own, &known).await {
                Ok(()) if told.take().is_some() => info!("peers are followed again"),
                Ok(()) => {}
                Err(error) => {
                    let error = chain(&error);
                    if told.as_ref() != Some(&error) {
                        warn!(error, "cannot follow the guest's other VM pods");
                        told = Some(error);
                    }
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn look(
    config: &PeersConfig,
    device: Option<&str>,
    own: IpAddr,
    known: &watch::Sender<BTreeSet<IpAddr>>,
) -> Result<(), Error> {
    let answer = resolve(config).await?;
    let wanted = heed(&known.borrow(), &answer, own);
    if wanted == *known.borrow() {
        return Ok(());
    }
    apply(device, &wanted).await?;
    info!(peers = ?wanted, "the guest's other VM pods");
    known.send_replace(wanted);
    Ok(())
}

/// The addresses that the name has now: none, if the server says that there is no such name.
async fn resolve(config: &PeersConfig) -> Result<BTreeSet<IpAddr>, Error> {
    let failed = |source| Error::Resolve { server: config.server, name: config.name.clone(), source };
    // A resolver of its own for each look: it keeps no answer and no opinion of the server, and the server is asked so
    // seldom that a socket kept open would gain nothing.
    let servers = ResolverConfig::from_name_servers(vec![NameServerConfig::udp_and_tcp(config.server)]);
    let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
    *builder.options_mut() = options(config.server);
    let resolver = builder.build().map_err(failed)?;
    match resolver.lookup_ip(format!("{}.", config.name)).await {
        Ok(found) => Ok(found.iter().collect()),
        Err(error) if error.is_no_records_found() => Ok(BTreeSet::new()),
        Err(error) => Err(failed(error)),
    }
}

fn options(server: IpAddr) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = TIMEOUT;
    options.attempts = 1;
    options.cache_size = 0;
    // Pods have addresses of the family that the cluster's DNS server has.
    options.ip_strategy = if server.is_ipv4() { LookupIpStrategy::Ipv4Only } else { LookupIpStrategy::Ipv6Only };
    options
}

/// The peers that follow from an answer. One that does not hold our own address is older than we are, or of a server that
/// is just starting: it brings nobody, and takes nobody away.
fn heed(known: &BTreeSet<IpAddr>, answer: &BTreeSet<IpAddr>, own: IpAddr) -> BTreeSet<IpAddr> {
    if !answer.contains(&own) {
        return known.clone();
    }
    let ours = |address: &IpAddr| *address != own && address.is_ipv4() == own.is_ipv4();
    answer.iter().copied().filter(ours).collect()
}

/// Tells the rules, and the device whose frames for all go to every peer. May be repeated after it failed half-way.
async fn apply(device: Option<&str>, wanted: &BTreeSet<IpAddr>) -> Result<(), Error> {
    // First whom packets are taken from: a peer that is gone may be another guest's pod by now.
    run("nft", &["-f", "-"], &set(wanted)).await?;
    let Some(device) = device else { return Ok(()) };
    let batch = steps(&entries(device).await?, device, wanted);
    // What was learned may be forgotten in the meantime, so one line's failure stops no other; what counts is checked below.
    let told = run("bridge", &["-force", "-batch", "-"], &batch).await;
    if flooded(&entries(device).await?) == *wanted {
        return Ok(());
    }
    told?;
    Err(Error::Left)
}

/// Forwarding entries of the device, as Ethernet address and peer.
async fn entries(device: &str) -> Result<Vec<(String, IpAddr)>, Error> {
    Ok(parse(&run("bridge", &["fdb", "show", "dev", device], "").await?))
}

fn parse(shown: &str) -> Vec<(String, IpAddr)> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let mac = words.next()?.to_owned();
        words.find(|word| *word == "dst")?;
        Some((mac, words.next()?.parse().ok()?))
    };
    shown.lines().filter_map(entry).collect()
}

fn flooded(entries: &[(String, IpAddr)]) -> BTreeSet<IpAddr> {
    entries.iter().filter(|(mac, _)| mac == ALL).map(|(_, peer)| *peer).collect()
}

/// Lines for `bridge -batch`. What was learned of a peer that is gone goes too: its VM may be elsewhere by now, and would
/// not be heard before it speaks.
fn steps(entries: &[(String, IpAddr)], device: &str, wanted: &BTreeSet<IpAddr>) -> String {
    let gone = entries.iter().filter(|(_, peer)| !wanted.contains(peer));
    let gone = gone.map(|(mac, peer)| format!("fdb del {mac} dev {device} dst {peer}\n"));
    let flooded = flooded(entries);
    let new = wanted.difference(&flooded).map(|peer| format!("fdb append {ALL} dev {device} dst {peer}\n"));
    gone.chain(new).collect()
}

/// Lines for `nft`: exactly these peers, in one step.
fn set(peers: &BTreeSet<IpAddr>) -> String {
    let mut text = format!("flush set inet giantnetes {PEERS}\n");
    if !peers.is_empty() {
        let list: Vec<_> = peers.iter().map(ToString::to_string).collect();
        text.push_str(&format!("add element inet giantnetes {PEERS} {{ {} }}\n", list.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<const N: usize>(last: [u8; N]) -> BTreeSet<IpAddr> {
        last.map(|last| IpAddr::from([10, 1, 1, last])).into()
    }

    #[test]
    fn an_answer_counts_if_it_knows_us() {
        let own = IpAddr::from([10, 1, 1, 1]);
        assert_eq!(heed(&of([]), &of([1, 2, 3]), own), of([2, 3]));
        assert_eq!(heed(&of([2, 3]), &of([1, 3]), own), of([3]));
        assert_eq!(heed(&of([2]), &of([1]), own), of([]));
        assert_eq!(heed(&of([2]), &of([]), own), of([2]));
        assert_eq!(heed(&of([2]), &of([4]), own), of([2]));
    }

    #[test]
    fn entries_are_brought_in_step_and_what_was_learned_of_the_gone_is_forgotten() {
        let shown = "\
00:00:00:00:00:00 dst 10.1.1.2 self permanent
00:00:00:00:00:00 dst 10.1.1.3 self permanent
02:00:00:00:00:40 dst 10.1.1.2 self
02:00:00:00:00:41 dst 10.1.1.3 self
02:00:00:00:00:41 master br0
";
        let entries = parse(shown);
        assert_eq!((entries.len(), flooded(&entries)), (4, of([2, 3])));
        assert_eq!(steps(&entries, "vx7", &of([2, 3])), "");
        assert_eq!(
            steps(&entries, "vx7", &of([3, 4])),
            "\
fdb del 00:00:00:00:00:00 dev vx7 dst 10.1.1.2
fdb del 02:00:00:00:00:40 dev vx7 dst 10.1.1.2
fdb append 00:00:00:00:00:00 dev vx7 dst 10.1.1.4
"
        );
    }

    #[test]
    fn the_rules_know_the_same_peers() {
        assert_eq!(set(&of([])), "flush set inet giantnetes peers\n");
        assert!(set(&of([2, 3])).ends_with("add element inet giantnetes peers { 10.1.1.2, 10.1.1.3 }\n"));
    }
}
