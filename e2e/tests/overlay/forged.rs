//! Packets that say what is not true.

use std::net::{Ipv4Addr, UdpSocket};

use giantnetes::network::addresses::Mac;

use crate::namespace::Namespace;

const EVERYBODY: Mac = Mac([0xff; 6]);

/// Who is said to send something, or is to take it.
#[derive(Clone, Copy)]
pub struct End {
    pub mac: Mac,
    pub ip: Ipv4Addr,
}

fn ethernet(to: Mac, from: Mac, kind: u16, content: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes(), content].concat()
}

/// "I have this address": a question for it, and an answer, to everybody and to these.
pub fn claims(sender: Mac, claimed: End, told: &[End]) -> Vec<Vec<u8>> {
    let arp = |operation: u8, to: Mac, target: End| {
        // Ethernet and IPv4, with addresses of 6 and 4 bytes.
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        let (who, whom) = ((claimed.mac.0, claimed.ip.octets()), (target.mac.0, target.ip.octets()));
        ethernet(to, sender, 0x0806, &[&head[..], &who.0, &who.1, &whom.0, &whom.1].concat())
    };
    let of_itself = End { mac: EVERYBODY, ip: claimed.ip };
    let to_all = [1, 2].map(|operation| arp(operation, EVERYBODY, of_itself));
    to_all.into_iter().chain(told.iter().map(|one| arp(2, one.mac, *one))).collect()
}

/// A UDP datagram.
pub fn datagram(from: End, to: End, port: u16, content: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    // Without a checksum, which IPv4 allows, and from the port at which answers are discarded.
    let ports = [9_u16.to_be_bytes(), port.to_be_bytes(), length(8 + content.len()), [0, 0]].concat();
    let mut head = [&[0x45, 0][..], &length(28 + content.len()), &[0, 0, 0x40, 0, 64, 17, 0, 0]].concat();
    head.extend([from.ip.octets(), to.ip.octets()].concat());
    let sum: u32 = head.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    head[10..12].copy_from_slice(&checksum.to_be_bytes());
    ethernet(to.mac, from.mac, 0x0800, &[&head, &ports, content].concat())
}

/// What a VXLAN device sends for a frame.
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), frame].concat()
}

/// Sends a UDP datagram from a namespace. It may be refused there.
pub fn send(ns: &Namespace, to: Ipv4Addr, port: u16, content: &[u8]) {
    let _ = ns.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(content, (to, port)));
}

/// Sends frames by an interface, as they are.
pub fn send_frames(ns: &Namespace, interface: &str, frames: &[Vec<u8>]) {
    // Python, because a socket for frames takes an address that Rust knows no safe way to make.
    const SCRIPT: &str = "import socket,sys;s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW);s.bind((sys.argv[1],0));\
        [s.send(bytes.fromhex(frame)) for frame in sys.argv[2:]]";
    let hex = |frame: &Vec<u8>| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let status = std::process::Command::new("ip")
        .args(["netns", "exec", ns.name(), "python3", "-c", SCRIPT, interface])
        .args(frames.iter().map(hex))
        .status();
    assert!(status.unwrap().success(), "frames could not be sent");
}
