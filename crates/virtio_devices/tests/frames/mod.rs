//! Frames with UDP datagrams.

use std::net::Ipv4Addr;

pub(crate) const BROADCAST: Ipv4Addr = Ipv4Addr::BROADCAST;
/// Bytes of a frame before the payload of its datagram.
pub(crate) const HEADERS: usize = 14 + 20 + 8;

/// An Ethernet frame to and from these cards with a datagram, whose own checksum is left out.
pub(crate) fn datagram(
    (to_card, from_card): ([u8; 6], [u8; 6]),
    (from, from_port): (Ipv4Addr, u16),
    (to, to_port): (Ipv4Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let len = |more: usize| u16::try_from(more + payload.len()).unwrap().to_be_bytes();
    let mut header = [&[0x45, 0][..], &len(28), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    header.extend(from.octets());
    header.extend(to.octets());
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [&from_port.to_be_bytes()[..], &to_port.to_be_bytes(), &len(8), &[0, 0]].concat();
    [&to_card[..], &from_card, &[8, 0], &header, &udp, payload].concat()
}
