//! A guest's network card, and pings that its kernel answers by itself: ICMPv6 echoes.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recvfrom, sendto, socket,
};

use crate::tap::Interface;
use crate::{Vm, wait_for};

/// The guest's Ethernet address.
pub const GUESTS: [u8; 6] = [0x52, 0x48, 0, 0, 0, 1];

/// The same for `--net`.
pub const MAC: &str = "52:48:00:00:00:01";

/// Types of ICMPv6 messages (RFC 4443).
pub const ECHO: u8 = 128;
/// The answer to [`ECHO`].
pub const ECHO_REPLY: u8 = 129;

/// The address that a card has without being told: fe80, and what follows from its Ethernet address
/// (RFC 4291, appendix A).
#[must_use]
pub fn link_local([a, b, c, d, e, f]: [u8; 6]) -> [u8; 16] {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

/// Loads the drivers of the guest's devices and switches its card on.
///
/// # Errors
///
/// There is no such card.
pub fn set_up(vm: &mut Vm) -> Result<()> {
    vm.agent.ask("load devices")?;
    let mac = vm.agent.ask("cat /sys/class/net/eth0/address")?.lines;
    ensure!(mac == [MAC], "{mac:?}");
    vm.agent.ask("write /sys/class/net/eth0/flags 0x1003").map(drop)
}

/// The host's end of a tap interface, with which its kernel pings the guest.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    guest: SocketAddrV6,
}

impl Pinger {
    /// Begins to ping the guest behind an interface.
    ///
    /// # Errors
    ///
    /// Only root may.
    pub fn new(tap: &Interface) -> Result<Self> {
        let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(1)))?;
        let guest = SocketAddrV6::new(Ipv6Addr::from(link_local(GUESTS)), 0, 0, tap.number()?);
        Ok(Self { socket, guest })
    }

    /// Has the guest answer pings of many sizes.
    ///
    /// # Errors
    ///
    /// No answer comes within [`PATIENCE`](crate::PATIENCE).
    pub fn ping(&self) -> Result<()> {
        for len in (0..=1400).step_by(200) {
            let body: Vec<u8> = (0..=255).cycle().take(4 + len).collect();
            // The kernel computes the checksum.
            let question = [&[ECHO, 0, 0, 0][..], &body].concat();
            wait_for("an answer from the guest", || {
                // No way to the guest before its address and the interface's are known.
                let _ = sendto(&self.socket, &question, SendFlags::empty(), &self.guest);
                let mut answer = [0; 2000];
                while let Ok((received, _, from)) =
                    recvfrom(&self.socket, &mut answer[..], RecvFlags::empty())
                {
                    // The socket receives whatever comes to this host.
                    let from = from.and_then(|from| SocketAddrV6::try_from(from).ok());
                    let is_guest = from.is_some_and(|from| {
                        (from.ip(), from.scope_id()) == (self.guest.ip(), self.guest.scope_id())
                    });
                    if is_guest && answer[0] == ECHO_REPLY && answer[4..received] == body {
                        return Ok(Some(()));
                    }
                }
                Ok(None)
            })?;
        }
        Ok(())
    }
}
