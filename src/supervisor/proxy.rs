//! The pod's API port, forwarded to the guest: a plain TCP proxy, so that the pod needs no IP forwarding.
//! TLS ends in the guest.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::TcpKeepalive;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a target that refused is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// A silent peer is asked after this time whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What is known of a target. How long connections are held may be all.
pub trait Known: Send + Sync + 'static {
    /// How long a connection is held that the target does not take: one that is started anew is back before anybody was told that
    /// it is away. Who never was there is not waited for.
    fn patience(&self) -> Duration;

    /// Takes note that it refused a connection.
    fn refused(&self) {}

    /// Whether it is being started. It may take connections by then, and refuse what is asked by them.
    fn is_starting(&self) -> bool {
        false
    }
}

impl Known for Duration {
    fn patience(&self) -> Duration {
        *self
    }
}

/// Forwards every connection on `listen` to `target` until `stop`, at most so many at a time: file descriptors are finite, and one
/// client must not use up all of them for ever. A target that refuses or is being started is tried again for as long as is told.
///
/// # Errors
/// If `listen` cannot be listened on.
pub async fn forward(
    listen: SocketAddr,
    target: SocketAddr,
    at_a_time: usize,
    known: impl Known,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let (room, known) = (Arc::new(Semaphore::new(at_a_time)), Arc::new(known));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return Ok(()) };
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, _)) => {
                let (stop, known) = (stop.clone(), known.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = one(client, target, &*known) => {}
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                // Out of file descriptors, most likely: give those in use time to end.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn one(mut client: TcpStream, target: SocketAddr, known: &impl Known) {
    let (began, patience) = (Instant::now(), known.patience());
    let mut server = loop {
        let may_wait = began.elapsed() < patience;
        if may_wait && known.is_starting() {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await {
            Ok(Ok(server)) => break server,
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused && may_wait => {
                known.refused();
                tokio::time::sleep(AGAIN).await;
            }
            Ok(Err(error)) => return debug!(%target, %error, "the guest does not answer"),
            Err(_) => return debug!(%target, "the guest does not answer"),
        }
    };
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
        // A peer that vanished would otherwise hold its place for ever.
        let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[derive(Default)]
    struct State {
        patience: Duration,
        refused: bool,
        starting: bool,
    }

    #[derive(Clone, Default)]
    struct Door(Arc<std::sync::Mutex<State>>);

    impl Known for Door {
        fn patience(&self) -> Duration {
            self.0.lock().unwrap().patience
        }

        fn refused(&self) {
            let mut state = self.0.lock().unwrap();
            (state.refused, state.starting) = (true, true);
        }

        fn is_starting(&self) -> bool {
            self.0.lock().unwrap().starting
        }
    }

    #[tokio::test]
    async fn who_refused_is_not_handed_a_connection_before_it_serves() {
        let door = Door::default();
        door.0.lock().unwrap().patience = Duration::from_secs(20);
        let place = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = place.local_addr().unwrap();
        drop(place);
        let entry = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(entry.local_addr().unwrap()).await.unwrap();
        let (held, _) = entry.accept().await.unwrap();
        let known = door.clone();
        let held = tokio::spawn(async move { one(held, target, &known).await });
        while !door.0.lock().unwrap().refused {
            tokio::time::sleep(AGAIN / 10).await;
        }
        // It listens, and is not ready.
        let server = TcpListener::bind(target).await.unwrap();
        assert!(tokio::time::timeout(AGAIN * 3, server.accept()).await.is_err(), "it was asked before it served");
        door.0.lock().unwrap().starting = false;
        server.accept().await.unwrap().0.write_all(b"here").await.unwrap();
        let mut text = Vec::new();
        let _ = client.read_to_end(&mut text).await;
        assert_eq!(text, b"here");
        held.abort();
    }

    #[tokio::test]
    async fn bytes_go_both_ways() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut text = [0; 4];
            stream.read_exact(&mut text).await.unwrap();
            stream.write_all(&text).await.unwrap();
        });
        let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = probe.local_addr().unwrap();
        drop(probe);
        let stop = CancellationToken::new();
        let proxy = tokio::spawn(forward(listen, target, 16, Duration::ZERO, stop.clone()));
        let mut client = loop {
            if let Ok(stream) = TcpStream::connect(listen).await {
                break stream;
            }
            tokio::task::yield_now().await;
        };
        client.write_all(b"ping").await.unwrap();
        let mut text = [0; 4];
        client.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"ping");
        stop.cancel();
        proxy.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn how_long_is_asked_for_each_connection() {
        let place = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (target, probe) = (place.local_addr().unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let listen = probe.local_addr().unwrap();
        drop((place, probe));
        let (door, stop) = (Door::default(), CancellationToken::new());
        let proxy = tokio::spawn(forward(listen, target, 16, door.clone(), stop.clone()));
        let mut held = Vec::new();
        for limit in [Duration::ZERO, Duration::from_secs(20)] {
            door.0.lock().unwrap().patience = limit;
            let mut client = loop {
                if let Ok(stream) = TcpStream::connect(listen).await {
                    break stream;
                }
                tokio::task::yield_now().await;
            };
            let ended = tokio::time::timeout(AGAIN * 5, client.read(&mut [0; 1])).await;
            held.push(ended.is_err());
        }
        assert_eq!(held, [false, true], "who is not there is waited for");
        stop.cancel();
        proxy.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_refuses_is_tried_again_for_a_while_and_no_longer() {
        for (patience, answered) in [(Duration::from_secs(20), true), (Duration::ZERO, false)] {
            let place = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let target = place.local_addr().unwrap();
            drop(place);
            let entry = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(entry.local_addr().unwrap()).await.unwrap();
            let (held, _) = entry.accept().await.unwrap();
            let held = tokio::spawn(async move { one(held, target, &patience).await });
            tokio::time::sleep(AGAIN / 2).await;
            let server = TcpListener::bind(target).await.unwrap();
            tokio::spawn(async move { server.accept().await.unwrap().0.write_all(b"here").await });
            let mut text = Vec::new();
            let _ = client.read_to_end(&mut text).await;
            assert_eq!(text == b"here", answered, "{text:?}");
            held.abort();
        }
    }
}
