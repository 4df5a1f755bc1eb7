//! Has the kernel forward what comes in by one device, and by no other.
//!
//! Whether it does is a switch of each device under `/proc/sys`, which is read-only in a pod. rtnetlink has the same switches,
//! for whoever has NET_ADMIN in the network namespace, but `ip` does not speak of them.

use std::{
    fs,
    io::{self, Read as _},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// Numbers of `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_link.h` and `linux/ip.h`.
mod kernel {
    pub(super) const AF_NETLINK: i32 = 16;
    pub(super) const NETLINK_ROUTE: i32 = 0;
    pub(super) const NLMSG_ERROR: u16 = 2;
    pub(super) const NLM_F_REQUEST: u16 = 1;
    pub(super) const NLM_F_ACK: u16 = 4;
    pub(super) const RTM_SETLINK: u16 = 19;
    pub(super) const IFLA_AF_SPEC: u16 = 26;
    pub(super) const AF_INET: u16 = 2;
    pub(super) const IFLA_INET_CONF: u16 = 1;
    pub(super) const IPV4_DEVCONF_FORWARDING: u16 = 1;
}

/// The kernel answers at once.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Switches forwarding on for IPv4 packets that come in by `device`.
pub(super) fn switch_on(device: &str) -> io::Result<()> {
    let index = fs::read_to_string(format!("/sys/class/net/{device}/ifindex"))?;
    let index: u32 = index.trim().parse().map_err(io::Error::other)?;
    let protocol = Protocol::from(kernel::NETLINK_ROUTE);
    let socket = Socket::new(Domain::from(kernel::AF_NETLINK), Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    // Without an address it is for the kernel.
    socket.send(&request(index))?;
    let mut answer = [0; 1024];
    let length = (&socket).read(&mut answer)?;
    acknowledged(answer.get(..length).unwrap_or_default())
}

/// A header of 16 bytes, the link that is meant (16 bytes more), and the switch, three attributes deep.
fn request(index: u32) -> Vec<u8> {
    let switch = attribute(kernel::IPV4_DEVCONF_FORWARDING, &1_u32.to_ne_bytes());
    let nested = [kernel::IFLA_INET_CONF, kernel::AF_INET, kernel::IFLA_AF_SPEC];
    let attributes = nested.into_iter().fold(switch, |inner, kind| attribute(kind, &inner));
    let mut link = [0; 16];
    link[4..8].copy_from_slice(&index.to_ne_bytes());
    let length = u32::try_from(16 + link.len() + attributes.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kernel::RTM_SETLINK.to_ne_bytes());
    message.extend((kernel::NLM_F_REQUEST | kernel::NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(link);
    message.extend(attributes);
    message
}

/// Length, kind and value. All of ours are multiples of four bytes, as attributes have to be.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
}

/// An answer is an error with a number after its header: zero, or that of the reason with a minus.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let field = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, field(16)) {
        (Some(kernel::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(kernel::NLMSG_ERROR), Some(number)) => Err(io::Error::from_raw_os_error(number.saturating_neg())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_switch_of_the_one_device() {
        let message = request(7);
        assert_eq!(message.len(), 16 + 16 + 4 * 4 + 4);
        assert_eq!(message[..4], u32::try_from(message.len()).unwrap().to_ne_bytes());
        assert_eq!(message[20..24], 7_u32.to_ne_bytes());
        let kinds: Vec<_> = (0..4).map(|n| u16::from_ne_bytes([message[34 + 4 * n], message[35 + 4 * n]])).collect();
        assert_eq!(kinds, [26, 2, 1, 1]);
        let lengths: Vec<_> = (0..4).map(|n| u16::from_ne_bytes([message[32 + 4 * n], message[33 + 4 * n]])).collect();
        assert_eq!(lengths, [20, 16, 12, 8]);
        assert_eq!(message[48..], 1_u32.to_ne_bytes());
    }

    #[test]
    fn a_refusal_says_why() {
        let answer = |number: i32| {
            let mut bytes = vec![0; 36];
            bytes[4..6].copy_from_slice(&2_u16.to_ne_bytes());
            bytes[16..20].copy_from_slice(&number.to_ne_bytes());
            acknowledged(&bytes)
        };
        assert!(answer(0).is_ok());
        assert_eq!(answer(-1).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(acknowledged(&[0; 8]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
