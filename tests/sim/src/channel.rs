//! The open channel on the host's side, as a VMM has it (`vmm/src/balloon/channel.rs`).

use std::collections::VecDeque;

use vmbus::ChannelId;
use vmbus::protocol::ring::PacketKind;
use vmbus::ring::{ChannelRings, RingError, RingLayout, Sent};

use crate::memory::Ram;

/// Completions that may wait for room in the ring, as in `vmm`.
const MAX_COMPLETIONS: usize = 16;

#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) id: ChannelId,
    /// `None` once the guest broke them: they are not touched again.
    rings: Option<ChannelRings<Ram>>,
    completions: VecDeque<u64>,
    /// The guest is to be signalled.
    signal: bool,
    /// The bus wants the channel closed.
    pub(crate) closing: bool,
    /// The device has nothing in flight for it any more.
    pub(crate) quiet: bool,
}

/// What [`Channel::receive`] found.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message for the device.
    Message(Vec<u8>),
    /// None of the device's business.
    Other,
    /// Nothing more.
    Nothing,
}

impl Channel {
    pub(crate) fn open(id: ChannelId, ram: Ram, rings: &RingLayout) -> Result<Self, RingError> {
        Ok(Self {
            id,
            rings: Some(ChannelRings::open(ram, rings)?),
            completions: VecDeque::new(),
            signal: false,
            closing: false,
            quiet: false,
        })
    }

    pub(crate) fn is_blocked(&self, has_message: bool) -> bool {
        self.rings.is_some() && (has_message || !self.completions.is_empty())
    }

    pub(crate) const fn uses_rings(&self) -> bool {
        self.rings.is_some()
    }

    pub(crate) fn receive(&mut self) -> Result<Received, RingError> {
        let Some(rings) = &mut self.rings else { return Ok(Received::Nothing) };
        let Some(packet) = rings.receive()? else { return Ok(Received::Nothing) };
        if packet.completion_requested && self.completions.len() < MAX_COMPLETIONS {
            self.completions.push_back(packet.transaction_id);
        }
        Ok(if packet.kind == PacketKind::DATA_IN_BAND {
            Received::Message(packet.payload.to_vec())
        } else {
            Received::Other
        })
    }

    pub(crate) fn end_receive(&mut self) {
        if let Some(rings) = &mut self.rings {
            self.signal |= rings.end_receive();
        }
    }

    /// Writes what waits, the device's message last; says whether that has gone out.
    pub(crate) fn flush(&mut self, message: Option<&[u8]>) -> Result<bool, RingError> {
        let Some(rings) = &mut self.rings else { return Ok(false) };
        while let Some(transaction_id) = self.completions.front() {
            match rings.complete(*transaction_id)? {
                Sent::Written { signal } => self.signal |= signal,
                Sent::Full => break,
            }
            self.completions.pop_front();
        }
        let Some(message) = message else { return Ok(false) };
        match rings.send(message, 0)? {
            Sent::Written { signal } => {
                self.signal |= signal;
                Ok(true)
            }
            Sent::Full => Ok(false),
        }
    }

    /// Whether the guest must be signalled, once.
    pub(crate) const fn take_signal(&mut self) -> bool {
        std::mem::replace(&mut self.signal, false)
    }

    /// Goes on with rings that are saved and restored, where the bus still has them.
    pub(crate) fn move_on(&mut self, ram: &Ram, layout: Option<RingLayout>) {
        let saved = self.rings.take().map(|rings| rings.save());
        self.rings = saved.zip(layout).map(|(saved, layout)| {
            let rings = ChannelRings::restore(ram.of_host(), &layout, &saved)
                .expect("rings that were just saved");
            assert_eq!(rings.save(), saved, "saved again they are others");
            rings
        });
    }

    pub(crate) fn stop(&mut self) {
        self.rings = None;
        self.completions.clear();
    }
}
