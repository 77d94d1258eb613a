//! A network card in a real guest. This program, in passt's place, or the host's kernel is at the other
//! end of the link, and speaks to the guest's kernel in the few messages that it answers by itself: ICMPv6.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::ping::{ECHO, ECHO_REPLY, GUESTS, MAC, Pinger, link_local, set_up};
use e2e::tap::Interface;
use e2e::{MIB, NO_CLEARING, Vm, VmConfig, wait_for};

const OURS: [u8; 6] = [0x52, 0x48, 0, 0, 0, 0x99];

/// Types of ICMPv6 messages (RFC 4861).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ICMPV6: u8 = 58;

/// An Ethernet frame to the guest with an ICMPv6 message.
fn frame(to: [u8; 16], to_mac: [u8; 6], kind: u8, body: &[u8]) -> Result<Vec<u8>> {
    let from = link_local(OURS);
    let mut message = [&[kind, 0, 0, 0], body].concat();
    let length = u16::try_from(message.len())?.to_be_bytes();
    let pseudo = [&from[..], &to, &[0, 0], &length, &[0, 0, 0, ICMPV6], &message].concat();
    let sum = pseudo.chunks(2).fold(0_u32, |sum, pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        sum + u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let header = [&[0x60, 0, 0, 0][..], &length, &[ICMPV6, 255], &from, &to].concat();
    Ok([&to_mac[..], &OURS, &[0x86, 0xdd], &header, &message].concat())
}

/// The other end of the guest's link.
struct Peer(UnixStream);

impl Peer {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.0.write_all(&u32::try_from(frame.len())?.to_be_bytes())?;
        Ok(self.0.write_all(frame)?)
    }

    /// Sends a frame again and again until the guest answers with an ICMPv6 message of this kind that
    /// has `content` at this place behind its header.
    fn ask(&mut self, question: &[u8], kind: u8, (at, content): (usize, &[u8])) -> Result<()> {
        wait_for("an answer from the guest", || {
            self.send(question)?;
            for _ in 0..20 {
                let Some(frame) = self.receive()? else { break };
                ensure!(frame.get(6..12) == Some(&GUESTS), "a frame from elsewhere: {frame:x?}");
                let is_kind = frame.get(20) == Some(&ICMPV6) && frame.get(54) == Some(&kind);
                if is_kind && frame.get(58 + at..).is_some_and(|it| it.starts_with(content)) {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })
    }

    /// The next frame of the guest, if one comes within a second.
    fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        self.0.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        }
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut frame)?;
        Ok(Some(frame))
    }
}

/// Finds the guest by its address, and has it answer pings of many sizes.
fn ping(vm: &mut Vm, peer: &mut Peer) -> Result<()> {
    set_up(vm)?;
    let guest = link_local(GUESTS);
    let solicitation = [&[0; 4][..], &guest, &[1, 1], &OURS].concat();
    let solicitation = frame(guest, GUESTS, SOLICITATION, &solicitation)?;
    peer.ask(&solicitation, ADVERTISEMENT, (4, &guest))?;
    for len in (0..=1400).step_by(200) {
        let body: Vec<u8> = (0..=255).cycle().take(4 + len).collect();
        peer.ask(&frame(guest, GUESTS, ECHO, &body)?, ECHO_REPLY, (0, &body))?;
    }
    Ok(())
}

#[test]
fn the_guest_answers_pings_before_and_after_a_reset() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("passt");
    let listener = UnixListener::bind(&socket)?;
    let networks = vec![format!("passt={},mac={MAC}", socket.display())];
    let mut vm = Vm::start(&VmConfig { networks, ..VmConfig::default() })?;
    let mut peer = Peer(listener.accept()?.0);
    ping(&mut vm, &mut peer)?;
    vm.monitor.execute("system_reset", serde_json::json!({}))?;
    vm.agent.wait_up()?;
    ping(&mut vm, &mut peer)?;
    drop(peer);
    wait_for("a line about the lost link", || {
        Ok(vm.log()?.contains("its link is gone").then_some(()))
    })?;
    vm.agent.ask("ping")?;
    vm.power_off_after_complaints("its link is gone")
}

/// Waits for what is told when an interface is gone.
fn link_is_lost(vm: &Vm) -> Result<()> {
    wait_for("a line about the lost link", || {
        Ok(vm.log()?.contains("its link is gone").then_some(()))
    })
}

#[test]
fn the_guest_answers_pings_over_a_tap_interface() -> Result<()> {
    let tap = Interface::new("hvbtest0")?;
    let networks = vec![format!("tap={},mac={MAC},vhost=off", tap.name())];
    let mut vm = Vm::start(&VmConfig { networks, ..VmConfig::default() })?;
    set_up(&mut vm)?;
    Pinger::new(&tap)?.ping()?;
    // Without it the guest runs on.
    drop(tap);
    link_is_lost(&vm)?;
    vm.agent.ask("ping")?;
    vm.power_off_after_complaints("its link is gone")
}

/// The host's kernel serves the card, in all memory that the guest has, before and after a reset.
#[test]
fn the_guest_answers_pings_through_vhost_net_while_it_grows_and_shrinks() -> Result<()> {
    let tap = Interface::new("hvbtest1")?;
    let networks = vec![format!("tap={},mac={MAC},vhost=on", tap.name())];
    let (boot, most) = (512 * MIB, 1024 * MIB);
    let config = VmConfig {
        networks,
        cpus: 2,
        memory: boot,
        max_memory: Some(most),
        append: NO_CLEARING,
        ..VmConfig::default()
    };
    let mut vm = Vm::start(&config)?;
    let pinger = Pinger::new(&tap)?;
    for sizes in [&[most, boot, most][..], &[most]] {
        vm.wait_for_driver()?;
        set_up(&mut vm)?;
        pinger.ping()?;
        for &size in sizes {
            vm.set_target(size)?;
            // While memory comes and goes, and with buffers in what came.
            pinger.ping()?;
            vm.wait_for_size(size)?;
            pinger.ping()?;
        }
        vm.monitor.execute("system_reset", serde_json::json!({}))?;
        vm.agent.wait_up()?;
    }
    let log = vm.log()?;
    ensure!(!log.contains("in place of vhost-net"), "{log}");
    // The kernel finds out when the guest sends something: a card that is switched on does.
    set_up(&mut vm)?;
    pinger.ping()?;
    drop(tap);
    vm.agent.ask("write /sys/class/net/eth0/flags 0x1002")?;
    vm.agent.ask("write /sys/class/net/eth0/flags 0x1003")?;
    link_is_lost(&vm)?;
    let log = vm.log()?;
    ensure!(log.contains("in place of vhost-net"), "{log}");
    vm.agent.ask("ping")?;
    vm.power_off_after_complaints("network")
}
