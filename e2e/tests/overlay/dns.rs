//! The management cluster's DNS server, which knows the addresses of each guest's VM pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::namespace::Namespace;

/// How the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// It does not answer.
    Silent,
    /// As one that just started: it says that there is no such name.
    KnowsNobody,
}

struct Known {
    records: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    mood: Mood,
}

/// Ends when it is dropped.
pub struct Dns {
    known: Arc<Mutex<Known>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    pub fn start(ns: &Namespace, server: Ipv4Addr) -> Self {
        let socket = ns.inside(|| UdpSocket::bind((server, 53))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let known = Arc::new(Mutex::new(Known { records: BTreeMap::new(), mood: Mood::Well }));
        let ended = Arc::new(AtomicBool::new(false));
        let thread = {
            let (known, ended) = (known.clone(), ended.clone());
            thread::spawn(move || serve(&socket, &known, &ended))
        };
        Self { known, ended, thread: Some(thread) }
    }

    pub fn add(&self, name: &str, address: Ipv4Addr) {
        self.known.lock().unwrap().records.entry(name.into()).or_default().insert(address);
    }

    pub fn remove(&self, name: &str, address: Ipv4Addr) {
        self.known.lock().unwrap().records.entry(name.into()).or_default().remove(&address);
    }

    pub fn is(&self, mood: Mood) {
        self.known.lock().unwrap().mood = mood;
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(socket: &UdpSocket, known: &Mutex<Known>, ended: &AtomicBool) {
    let mut question = [0; 512];
    while !ended.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut question) else { continue };
        let known = known.lock().unwrap();
        let answer = answer(&question[..length], |name| match known.mood {
            Mood::KnowsNobody => BTreeSet::new(),
            Mood::Well | Mood::Silent => known.records.get(name).cloned().unwrap_or_default(),
        });
        if known.mood != Mood::Silent {
            // Who asked may be gone.
            let _ = socket.send_to(&answer, client);
        }
    }
}

/// Answers a question for addresses. Without an address, there is no such name.
fn answer(question: &[u8], find: impl Fn(&str) -> BTreeSet<Ipv4Addr>) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] != 0 {
        let label = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..=at + label]).into_owned());
        at += label + 1;
    }
    let found = find(&labels.join("."));
    let mut answer = question[..at + 5].to_vec();
    // A response with authority.
    (answer[2], answer[3]) = (0x84, if found.is_empty() { 3 } else { 0 });
    let count = u16::try_from(found.len()).unwrap().to_be_bytes();
    answer[6..12].copy_from_slice(&[count[0], count[1], 0, 0, 0, 0]);
    for address in found {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}
