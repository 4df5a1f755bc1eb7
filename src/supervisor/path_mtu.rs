//! How large packets pass whole to the guest's other VM pods: what VXLAN makes of the largest one that the overlay carries is
//! sent to each again and again, and may not be taken apart on the way.
//!
//! ```text
//!  supervisor ── udp/8474, a small one and one of full size, "don't fragment" ──► supervisor of a peer
//!             ◄──────────────── how many bytes came, for each ───────────────────
//! ```
//!
//! Not by what the kernel learned of the way: many networks drop what is too large and say nothing. A peer that does not
//! answer the small one says nothing of the way either: it is starting, going, or of an earlier version. `Path` and `between`
//! are pure; [`serve`] and [`Paths::follow`] act; the manager asks at [`PATH`].

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{Json, Router, routing::get};
use futures::future::join_all;
use prometheus::IntGaugeVec;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use serde::{Deserialize, Serialize};
use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    api::names::PATH_PORT,
    runtime::telemetry::metric::{Declared, Kind, Metric},
    supervisor::network,
};

/// Path on the supervisor's port.
pub const PATH: &str = "/path-mtu";
/// The most peers that an answer there names.
const MOST: usize = 16;
/// How often some of the peers are tried.
const PERIOD: Duration = Duration::from_secs(10);
/// How many peers are tried at a time; of more it is the turn of each.
const GROUP: usize = 16;
/// How long an answer may take, and how often what was not answered is sent again: a busy host loses packets of any size.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: usize = 3;
/// Pause after an error that was no packet.
const AFTER_AN_ERROR: Duration = Duration::from_millis(100);
/// Looks in a row that have to find a way too narrow before it counts as that.
const CERTAIN: u32 = 2;
/// Size of a packet that every network carries, in bytes.
const SMALL: u32 = 128;
/// How many sizes are tried at a time to find the largest that passes.
const STEPS: u32 = 8;
/// What a question and an answer begin with; an answer goes on with the number of bytes.
const QUESTION: &[u8; 8] = b"g8s-size";
const ANSWER: &[u8; 8] = b"g8s-came";
/// Longest datagram.
const DATAGRAM: usize = 1 << 16;

/// What is known of the ways to peers.
static PEERS: Declared<IntGaugeVec> = Declared::gauges(Metric {
    name: "giantnetes_path_mtu_peers",
    kind: Kind::Gauge,
    labels: &[("result", "whole, narrow, unknown")],
    help: "Other VM pods of the guest, by whether packets of full size pass to them whole; unknown: they have not answered yet",
});

/// The metrics of the ways to peers.
pub fn metrics() -> Vec<&'static Metric> {
    vec![&PEERS.metric]
}

/// A way on which packets of full size do not pass whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Narrow {
    /// Address of the VM pod at its end.
    pub peer: IpAddr,
    /// Full size: bytes of an IP packet that carries the overlay's largest.
    pub size: u32,
    /// The largest that passes.
    pub passes: u32,
}

/// What one look at a way found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Not even the small packet was answered.
    Nothing,
    /// All sizes pass.
    Whole,
    /// Small packets pass, those of full size do not.
    Narrow,
}

/// What is known of a way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Path {
    /// Nothing yet.
    #[default]
    Unknown,
    /// All sizes pass.
    Whole,
    /// The last looks, so many, found it too narrow.
    Doubtful(u32),
    /// It is too narrow; the largest packet that passes, once that is measured.
    Narrow(Option<u32>),
}

impl Path {
    /// What is known after a look. Whoever is silent changes nothing.
    fn after(self, seen: Seen) -> Self {
        match (self, seen) {
            (before, Seen::Nothing) => before,
            (_, Seen::Whole) => Self::Whole,
            (Self::Narrow(passes), Seen::Narrow) => Self::Narrow(passes),
            (Self::Doubtful(looks), Seen::Narrow) if looks + 1 >= CERTAIN => Self::Narrow(None),
            (Self::Doubtful(looks), Seen::Narrow) => Self::Doubtful(looks + 1),
            (Self::Unknown | Self::Whole, Seen::Narrow) => Self::Doubtful(1),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            // Not before it is certain.
            Self::Whole | Self::Doubtful(_) => "whole",
            Self::Narrow(_) => "narrow",
        }
    }
}

/// Sizes to try where one passes and another does not: all of those between, if they are few.
fn between(passes: u32, fails: u32) -> Vec<u32> {
    let step = fails.saturating_sub(passes).div_ceil(STEPS + 1).max(1);
    (1..=STEPS).map(|number| passes + number * step).filter(|size| *size < fails).collect()
}

/// Bytes that IP and UDP put before the content of a datagram.
fn headers(address: IpAddr) -> u32 {
    if address.is_ipv4() { 20 + 8 } else { 40 + 8 }
}

/// Content of a question that makes an IP packet of this size.
fn question(size: u32, to: IpAddr) -> Vec<u8> {
    let length = usize::try_from(size.saturating_sub(headers(to))).unwrap_or(DATAGRAM);
    let mut content = QUESTION.to_vec();
    content.resize(length.max(QUESTION.len()), 0);
    content
}

/// The answer to what came from this address, if that is a question.
fn answer(came: &[u8], from: IpAddr) -> Option<Vec<u8>> {
    let size = u32::try_from(came.len()).ok()?.saturating_add(headers(from));
    came.starts_with(QUESTION).then(|| [&ANSWER[..], &size.to_be_bytes()].concat())
}

/// The size that an answer tells of.
fn told(answer: &[u8]) -> Option<u32> {
    answer.strip_prefix(ANSWER)?.try_into().ok().map(u32::from_be_bytes)
}

/// Answers peers at this address of the pod until `stop`: who else may ask is the rules' and the NetworkPolicy's to say.
///
/// # Errors
/// If the port cannot be had.
pub async fn serve(own: IpAddr, stop: CancellationToken) -> io::Result<()> {
    let socket = UdpSocket::bind((own, PATH_PORT)).await?;
    answer_all(&socket, stop).await;
    Ok(())
}

async fn answer_all(socket: &UdpSocket, stop: CancellationToken) {
    let mut content = vec![0; DATAGRAM];
    let work = async {
        loop {
            let Ok((length, from)) = socket.recv_from(&mut content).await else {
                // About an answer that nobody took; or one that lasts, which must not take a CPU.
                tokio::time::sleep(AFTER_AN_ERROR).await;
                continue;
            };
            if let Some(answer) = answer(content.get(..length).unwrap_or_default(), from.ip()) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// The line to one peer. What goes over it may not be taken apart.
struct Line {
    socket: UdpSocket,
    peer: SocketAddr,
    patience: Duration,
}

impl Line {
    async fn open(own: IpAddr, peer: SocketAddr, patience: Duration) -> io::Result<Self> {
        let socket = UdpSocket::bind((own, 0)).await?;
        // Not less than the interface carries either, whatever the kernel has learned of the way.
        match own {
            IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
            IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
        }
        socket.connect(peer).await?;
        Ok(Self { socket, peer, patience })
    }

    /// Which packets of these sizes arrive.
    async fn arrive(&self, sizes: &[u32]) -> BTreeSet<u32> {
        let mut arrived = BTreeSet::new();
        for _ in 0..TRIES {
            let missing: Vec<_> = sizes.iter().filter(|size| !arrived.contains(*size)).collect();
            if missing.is_empty() {
                break;
            }
            for size in missing {
                let question = question(*size, self.peer.ip());
                // What the interface does not take does not arrive. An error may be about an earlier one, too.
                if self.socket.send(&question).await.is_err() {
                    let _ = self.socket.send(&question).await;
                }
            }
            let deadline = Instant::now() + self.patience;
            let mut content = [0; 64];
            while sizes.iter().any(|size| !arrived.contains(size)) {
                match timeout_at(deadline, self.socket.recv(&mut content)).await {
                    Ok(Ok(length)) => arrived.extend(content.get(..length).and_then(told)),
                    // That nobody listens there, or that something was too large: each is told once.
                    Ok(Err(_)) => {}
                    Err(_) => break,
                }
            }
        }
        arrived
    }

    /// The largest size below `fails` that passes, if this one does.
    async fn largest(&self, mut passes: u32, mut fails: u32) -> u32 {
        loop {
            let sizes = between(passes, fails);
            if sizes.is_empty() {
                return passes;
            }
            let arrived = self.arrive(&sizes).await;
            passes = sizes.iter().copied().filter(|size| arrived.contains(size)).max().unwrap_or(passes);
            fails = sizes.into_iter().filter(|size| *size > passes).min().unwrap_or(fails);
        }
    }
}

/// The ways to all peers. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    known: Arc<Mutex<BTreeMap<IpAddr, (u32, Path)>>>,
}

/// How ways are tried.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// This pod's address.
    pub own: IpAddr,
    /// Full size: bytes of an IP packet that carries the overlay's largest.
    pub size: u32,
    /// How often some of the peers are tried.
    pub period: Duration,
    /// How long an answer may take, a few times over.
    pub patience: Duration,
}

impl Trial {
    /// That of a VM pod whose overlay carries packets of `mtu` bytes.
    pub fn new(own: IpAddr, mtu: u32) -> Self {
        Self { own, size: mtu + network::overhead(own), period: PERIOD, patience: PATIENCE }
    }

    /// What is known of a way after another look, and how wide it is if it is too narrow.
    async fn path_to(&self, peer: SocketAddr, before: Path) -> io::Result<Path> {
        let line = Line::open(self.own, peer, self.patience).await?;
        let measured = if let Path::Narrow(passes) = before { passes } else { None };
        let sizes: Vec<_> = [SMALL, self.size].into_iter().chain(measured).collect();
        let arrived = line.arrive(&sizes).await;
        let seen = match (arrived.contains(&SMALL), arrived.contains(&self.size)) {
            (_, true) => Seen::Whole,
            (true, false) => Seen::Narrow,
            (false, false) => Seen::Nothing,
        };
        Ok(match (before.after(seen), measured) {
            // Still as wide as it was, or nobody says anything.
            (Path::Narrow(_), Some(passes)) if arrived.contains(&passes) || seen == Seen::Nothing => before,
            (Path::Narrow(_), _) if seen == Seen::Narrow => Path::Narrow(Some(line.largest(SMALL, self.size).await)),
            (after, _) => after,
        })
    }
}

impl Paths {
    fn known(&self) -> MutexGuard<'_, BTreeMap<IpAddr, (u32, Path)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are too narrow, as far as they were measured.
    pub fn narrow(&self) -> Vec<Narrow> {
        let known = self.known();
        let narrow = known.iter().filter_map(|(peer, (size, path))| match path {
            Path::Narrow(Some(passes)) => Some(Narrow { peer: *peer, size: *size, passes: *passes }),
            _ => None,
        });
        narrow.take(MOST).collect()
    }

    /// To how many peers packets of full size pass whole.
    pub fn whole(&self) -> usize {
        self.known().values().filter(|(_, path)| *path == Path::Whole).count()
    }

    /// The route.
    pub fn routes(&self) -> Router {
        let paths = self.clone();
        Router::new().route(PATH, get(move || std::future::ready(Json(paths.narrow()))))
    }

    /// Tries the ways to `peers`, some in every period, until `stop`.
    pub async fn follow(self, trial: Trial, peers: watch::Receiver<BTreeSet<IpAddr>>, stop: CancellationToken) {
        let work = async {
            for turn in 0.. {
                let all: Vec<_> = peers.borrow().iter().copied().collect();
                self.known().retain(|peer, _| all.contains(peer));
                let groups = all.len().div_ceil(GROUP).max(1);
                let asked = all.iter().enumerate().filter(|(number, _)| number % groups == turn % groups);
                join_all(asked.map(|(_, peer)| self.look(trial, *peer))).await;
                self.count(all.len());
                tokio::time::sleep(trial.period).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    fn count(&self, peers: usize) {
        let known = self.known();
        let of = |label: &str| known.values().filter(|(_, path)| path.label() == label).count();
        let (whole, narrow) = (of("whole"), of("narrow"));
        for (label, count) in [("whole", whole), ("narrow", narrow), ("unknown", peers.saturating_sub(whole + narrow))]
        {
            PEERS.with_label_values(&[label]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    async fn look(&self, trial: Trial, peer: IpAddr) {
        let (_, before) = self.known().get(&peer).copied().unwrap_or_default();
        let size = trial.size;
        match trial.path_to(SocketAddr::new(peer, PATH_PORT), before).await {
            Ok(after) => {
                match (before, after) {
                    (Path::Narrow(Some(before)), Path::Narrow(Some(after))) if before == after => {}
                    (_, Path::Narrow(Some(passes))) => {
                        warn!(%peer, size, passes, "packets of full size do not pass whole to a peer");
                    }
                    (Path::Narrow(_), Path::Whole) => info!(%peer, size, "packets pass whole again"),
                    _ => {}
                }
                self.known().insert(peer, (size, after));
            }
            Err(error) => debug!(%peer, %error, "a way cannot be tried"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const BRIEF: Duration = Duration::from_millis(100);

    #[test]
    fn a_way_is_too_narrow_when_that_was_seen_twice_and_silence_says_nothing() {
        use Seen::{Narrow, Nothing, Whole};
        for (seen, label) in [
            (&[][..], "unknown"),
            (&[Nothing, Nothing, Nothing], "unknown"),
            (&[Nothing, Whole], "whole"),
            (&[Narrow], "whole"),
            (&[Narrow, Narrow], "narrow"),
            (&[Whole, Narrow, Nothing, Narrow], "narrow"),
            (&[Narrow, Whole, Narrow], "whole"),
            (&[Narrow, Narrow, Nothing], "narrow"),
            (&[Narrow, Narrow, Whole], "whole"),
        ] {
            let path = seen.iter().fold(Path::default(), |path, seen| path.after(*seen));
            assert_eq!(path.label(), label, "{seen:?}");
        }
    }

    #[test]
    fn sizes_close_in_on_the_largest_that_passes() {
        for (limit, fails) in [(1404, 1500), (128, 1500), (1499, 1500), (8000, 9000), (129, 130)] {
            let (mut passes, mut fails, mut rounds) = (SMALL, fails, 0);
            loop {
                let sizes = between(passes, fails);
                if sizes.is_empty() {
                    break;
                }
                assert!(sizes.iter().all(|size| passes < *size && *size < fails) && sizes.len() <= 8, "{sizes:?}");
                passes = sizes.iter().copied().filter(|size| *size <= limit).max().unwrap_or(passes);
                fails = sizes.into_iter().filter(|size| *size > passes).min().unwrap_or(fails);
                rounds += 1;
            }
            assert!(passes == limit.max(SMALL) && rounds <= 5, "{passes} for {limit} after {rounds}");
        }
    }

    #[test]
    fn an_answer_is_shorter_than_its_question_and_is_no_question() {
        let asked = question(1500, HERE);
        assert_eq!(asked.len(), 1472);
        let said = answer(&asked, HERE).unwrap();
        assert_eq!((told(&said), said.len()), (Some(1500), 12));
        assert_eq!(answer(&said, HERE), None, "two would answer each other for ever");
        assert_eq!(question(1500, "fd00::1".parse().unwrap()).len(), 1452);
        assert_eq!((told(b"g8s-came"), told(&asked)), (None, None));
        // Not even the smallest question is longer than its answer's.
        assert!(question(SMALL, HERE).len() >= said.len());
    }

    #[tokio::test]
    async fn what_arrives_is_told_by_the_peer_and_who_is_silent_is_not_known() {
        let (server, stop) = (UdpSocket::bind((HERE, 0)).await.unwrap(), CancellationToken::new());
        let peer = server.local_addr().unwrap();
        let served = tokio::spawn({
            let stop = stop.clone();
            async move { answer_all(&server, stop).await }
        });
        let line = Line::open(HERE, peer, PATIENCE).await.unwrap();
        assert_eq!(line.arrive(&[128, 1500, 9000]).await, [128, 1500, 9000].into());
        let trial = Trial { patience: BRIEF, ..Trial::new(HERE, 1450) };
        assert_eq!(trial.path_to(peer, Path::Doubtful(1)).await.unwrap(), Path::Whole);
        // No packet is larger than 65,535 bytes.
        let wide = Trial { size: 65_564, ..trial };
        let doubtful = wide.path_to(peer, Path::Whole).await.unwrap();
        assert_eq!(doubtful, Path::Doubtful(1));
        let narrow = wide.path_to(peer, doubtful).await.unwrap();
        assert_eq!(narrow, Path::Narrow(Some(65_535)));
        assert_eq!(wide.path_to(peer, narrow).await.unwrap(), narrow);
        stop.cancel();
        served.await.unwrap();
        assert_eq!(trial.path_to(peer, Path::Whole).await.unwrap(), Path::Whole, "it is gone");
        assert_eq!(wide.path_to(peer, narrow).await.unwrap(), narrow);
    }
}
