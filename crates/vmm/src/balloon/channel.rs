//! The open channel: its rings, its signals both ways.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use guest_ram::GuestRam;
use vmbus::ChannelId;
use vmbus::protocol::ring::PacketKind;
use vmbus::protocol::{ConnectionId, Relid, VpIndex};
use vmbus::ring::{ChannelRings, RingError, RingLayout, Sent};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::MachineHandle;

/// Packets taken in one go; then the loop looks at its other work first.
pub(crate) const BATCH: usize = 64;

/// Completions that may wait for room in the ring. The device's protocol asks for none; a guest
/// that does so all the same and never reads gets no more of them.
const MAX_COMPLETIONS: usize = 16;

/// What [`Channel::receive`] found.
pub(crate) enum Received<'a> {
    /// A packet with a message for the device.
    Message(&'a [u8]),
    /// A packet that is none of the device's business.
    Other,
    /// Nothing more.
    Nothing,
}

/// A channel that the guest opened.
pub(crate) struct Channel {
    pub(crate) id: ChannelId,
    /// `None` once the guest broke them: they are not touched again.
    rings: Option<ChannelRings<Arc<GuestRam>>>,
    machine: MachineHandle,
    relid: Relid,
    connection_id: ConnectionId,
    target_vp: Option<VpIndex>,
    signal: EventFd,
    in_kernel: bool,
    completions: VecDeque<u64>,
    /// The bus wants the channel closed.
    pub(crate) closing: bool,
    /// The device has nothing in flight for it any more.
    pub(crate) quiet: bool,
}

/// What the bus says of a channel to open.
pub(crate) struct Opening {
    pub(crate) id: ChannelId,
    pub(crate) rings: RingLayout,
    pub(crate) target_vp: Option<VpIndex>,
    pub(crate) relid: Relid,
    pub(crate) connection_id: ConnectionId,
}

/// A channel cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// By the guest's fault.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// By the host's.
    #[error(
        "cannot receive the channel's signals{}; then have the guest's driver try again",
        crate::error::remedy(.0.raw_os_error().unwrap_or_default())
    )]
    Signal(#[from] io::Error),
}

impl Channel {
    /// Opens the rings and lets KVM signal us, where it can.
    pub(crate) fn open(
        opening: Opening,
        machine: MachineHandle,
        eventfd_in_kernel: bool,
    ) -> Result<Self, OpenError> {
        let rings = ChannelRings::open(Arc::clone(&machine.ram), &opening.rings)?;
        let signal = EventFd::new(EFD_NONBLOCK)?;
        if eventfd_in_kernel {
            let connection_id = opening.connection_id.get();
            kvm_hyperv::signal::assign(machine.vm.fd(), connection_id, &signal)?;
        }
        Ok(Self {
            id: opening.id,
            rings: Some(rings),
            machine,
            relid: opening.relid,
            connection_id: opening.connection_id,
            target_vp: opening.target_vp,
            signal,
            in_kernel: eventfd_in_kernel,
            completions: VecDeque::new(),
            closing: false,
            quiet: false,
        })
    }

    /// The eventfd by which the guest signals.
    pub(crate) fn signal(&self) -> &EventFd {
        &self.signal
    }

    /// Signals another VP from now on.
    pub(crate) fn set_target_vp(&mut self, vp: VpIndex) {
        self.target_vp = Some(vp);
    }

    /// Whether anything waits for room in the ring; the device's message does if it has one.
    pub(crate) fn is_blocked(&self, has_message: bool) -> bool {
        self.rings.is_some() && (has_message || !self.completions.is_empty())
    }

    /// The next packet.
    pub(crate) fn receive(&mut self) -> Result<Received<'_>, RingError> {
        let Some(rings) = &mut self.rings else {
            return Ok(Received::Nothing);
        };
        let Some(packet) = rings.receive()? else {
            return Ok(Received::Nothing);
        };
        if packet.completion_requested && self.completions.len() < MAX_COMPLETIONS {
            self.completions.push_back(packet.transaction_id);
        }
        Ok(if packet.kind == PacketKind::DATA_IN_BAND {
            Received::Message(packet.payload)
        } else {
            Received::Other
        })
    }

    /// Ends a batch of [`Channel::receive`].
    pub(crate) fn end_receive(&mut self) {
        if let Some(rings) = &mut self.rings
            && rings.end_receive()
        {
            self.signal_guest();
        }
    }

    /// Writes what waits, the device's message last. Returns whether that has gone out.
    pub(crate) fn flush(&mut self, message: Option<&[u8]>) -> Result<bool, RingError> {
        let Some(rings) = &mut self.rings else {
            return Ok(false);
        };
        let mut wants_signal = false;
        while let Some(transaction_id) = self.completions.front() {
            match rings.complete(*transaction_id)? {
                Sent::Written { signal } => wants_signal |= signal,
                Sent::Full => break,
            }
            self.completions.pop_front();
        }
        let mut sent = false;
        if let Some(message) = message
            && let Sent::Written { signal } = rings.send(message, 0)?
        {
            wants_signal |= signal;
            sent = true;
        }
        if wants_signal {
            self.signal_guest();
        }
        Ok(sent)
    }

    /// Leaves the rings alone from now on.
    pub(crate) fn stop(&mut self) {
        self.rings = None;
        self.completions.clear();
    }

    fn signal_guest(&self) {
        let (Some(vp), Ok(flag)) = (self.target_vp, u16::try_from(self.relid.get())) else {
            return;
        };
        let bus = &self.machine.bus;
        if bus
            .synic(vp.get())
            .is_some_and(|synic| synic.set_event(&*self.machine.ram.memory(), flag))
        {
            // The eventfd's counter cannot be full: KVM takes each write at once.
            let _ = bus.raise(vp.get());
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if self.in_kernel {
            // Only fails where it was never assigned.
            let _ = kvm_hyperv::signal::deassign(self.machine.vm.fd(), self.connection_id.get());
        }
    }
}
