//! Who is there, who heard what, and what is lost on the way.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover, set_socket_recv_buffer_size_force};

use crate::namespace::Namespace;

/// Port at which every VM says who it is.
pub const PORT: u16 = 7000;
/// Port of [`Stream`].
const STREAM: u16 = 7001;
const WHO: &[u8] = b"who is there?";
/// How long an answer may take where there is a way.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two packets of a stream.
const PACE: Duration = Duration::from_millis(5);
/// What IPv4 and UDP put before the content of a datagram.
const HEADERS: u32 = 28;

/// Listens at a port, remembers all that it hears, and answers who asks by its name. Ends when it is dropped.
pub struct Listener {
    heard: Arc<Mutex<BTreeSet<Vec<u8>>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub fn start(ns: &Namespace, port: u16, name: &str) -> Self {
        let socket = ns.inside(|| UdpSocket::bind(("0.0.0.0", port))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (heard, ended) = (Arc::<Mutex<BTreeSet<_>>>::default(), Arc::new(AtomicBool::new(false)));
        let (shared, name) = ((heard.clone(), ended.clone()), name.to_owned());
        let thread = thread::spawn(move || {
            let (heard, ended) = shared;
            let mut content = [0; 65_535];
            while !ended.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut content) else { continue };
                if &content[..length] == WHO {
                    let _ = socket.send_to(name.as_bytes(), client);
                } else {
                    heard.lock().unwrap().insert(content[..length].to_vec());
                }
            }
        });
        Self { heard, ended, thread: Some(thread) }
    }

    pub fn heard(&self, content: &[u8]) -> bool {
        self.heard.lock().unwrap().contains(content)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// The name of who answers at an address.
pub fn ask(ns: &Namespace, address: Ipv4Addr) -> Option<String> {
    let socket = ns.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Connected, or the answer might be anybody's.
    socket.connect((address, PORT)).ok()?;
    socket.send(WHO).ok()?;
    let mut answer = [0; 100];
    let length = socket.recv(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Sends an IP packet of this many bytes that may not be taken apart, and answers what a listener hears if it arrives whole.
pub fn send_whole(ns: &Namespace, to: Ipv4Addr, size: u32) -> Vec<u8> {
    let socket = ns.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    // Whatever the kernel has learned of the way: the network is asked, not its memory.
    set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE).unwrap();
    let content = vec![b'x'; usize::try_from(size - HEADERS).unwrap()];
    socket.send_to(&content, (to, PORT)).unwrap();
    content
}

/// Numbered packets from one VM to another, 200 in a second.
pub struct Stream {
    ended: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<BTreeSet<u32>>,
}

impl Stream {
    pub fn start(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let receiver = to.inside(|| UdpSocket::bind((address, STREAM))).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        // A busy machine may let the receiver wait: what the network brought is not lost by that.
        set_socket_recv_buffer_size_force(&receiver, 8 << 20).unwrap();
        let sender = from.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        let until = [ended.clone(), ended.clone()];
        let [sending, receiving] = until;
        let sender = thread::spawn(move || {
            let mut number = 0;
            while !sending.load(Ordering::Relaxed) {
                // One that cannot be sent is one that is lost.
                let _ = sender.send_to(&u32::to_be_bytes(number), (address, STREAM));
                number += 1;
                thread::sleep(PACE);
            }
            number
        });
        let receiver = thread::spawn(move || {
            let (mut all, mut number) = (BTreeSet::new(), [0; 4]);
            loop {
                match receiver.recv(&mut number) {
                    Ok(_) => drop(all.insert(u32::from_be_bytes(number))),
                    Err(_) if receiving.load(Ordering::Relaxed) => return all,
                    Err(_) => {}
                }
            }
        });
        Self { ended, sender, receiver }
    }

    /// Ends it, and requires that every packet arrived.
    #[track_caller]
    pub fn lost_nothing(self, least: Duration, started: Instant) {
        self.ended.store(true, Ordering::Relaxed);
        let (sent, arrived) = (self.sender.join().unwrap(), self.receiver.join().unwrap());
        let lost: Vec<_> = (0..sent).filter(|number| !arrived.contains(number)).collect();
        println!("a stream sent {sent} packets in {:.1?}", started.elapsed());
        assert!(lost.is_empty(), "of {sent} packets {} were lost: {lost:?}", lost.len());
        // As many as a busy machine sends: it did not stand still.
        assert!(u64::from(sent) > least.as_secs() * 50, "only {sent} packets were sent");
    }
}
