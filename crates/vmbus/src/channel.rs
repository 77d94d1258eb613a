//! A device's end of its open channel: packets, completions, and when the guest must be signalled.

use alloc::{collections::VecDeque, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{
    GuestMemory, OpenChannel, RestoreError,
    protocol::{Relid, VpIndex, ring::PacketKind},
    ring::{ChannelRings, RingError, Sent},
};

/// The most completions that wait for room in the ring. A guest that asks for completions and never
/// reads them gets no more.
pub const MAX_COMPLETIONS: usize = 16;

/// How to signal the guest: set the event flag of SINT 2 on a VP, and raise the SINT if the flag was
/// clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSignal {
    /// The VP that the guest chose, below [`ServerConfig::vp_count`](crate::ServerConfig::vp_count).
    pub vp: VpIndex,
    /// The number of the event flag.
    pub flag: u16,
}

/// What [`Channel::receive`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// The payload of a data packet.
    Data(&'a [u8]),
    /// A packet of another kind, which was dropped.
    Other,
    /// The ring is empty: the guest signals its next packet.
    Nothing,
}

/// A channel as [`Channel::save`] makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedChannel {
    rings: Vec<u8>,
    completions: Vec<u64>,
}

/// An open channel.
///
/// The channel collects signals for the guest; take them with [`Channel::take_signal`] after each
/// call that reads or writes the rings.
#[derive(Debug)]
pub struct Channel<M> {
    /// `None` once the channel was stopped: the rings are not touched again.
    rings: Option<ChannelRings<M>>,
    target_vp: Option<VpIndex>,
    relid: Relid,
    completions: VecDeque<u64>,
    wants_signal: bool,
}

impl<M: GuestMemory> Channel<M> {
    /// Takes over the rings of a channel that the guest opens.
    ///
    /// # Errors
    /// [`RingError`] if the rings are not in guest memory or hold impossible indices.
    pub fn open(memory: M, open: &OpenChannel) -> Result<Self, RingError> {
        let rings = ChannelRings::open(memory, &open.rings)?;
        Ok(Self::with_rings(rings, open))
    }

    const fn with_rings(rings: ChannelRings<M>, open: &OpenChannel) -> Self {
        Self {
            rings: Some(rings),
            target_vp: open.target_vp,
            relid: open.relid,
            completions: VecDeque::new(),
            wants_signal: false,
        }
    }

    /// A channel that was stopped before it was saved.
    #[must_use]
    pub const fn stopped(open: &OpenChannel) -> Self {
        Self {
            rings: None,
            target_vp: open.target_vp,
            relid: open.relid,
            completions: VecDeque::new(),
            wants_signal: false,
        }
    }

    /// What this side knows of the channel and does not have in guest memory; `None` once the channel
    /// was stopped. A signal that the guest is owed is not part of it: after a restore the guest gets
    /// one in any case.
    #[must_use]
    pub fn save(&self) -> Option<SavedChannel> {
        let rings = self.rings.as_ref()?.save();
        Some(SavedChannel { rings, completions: self.completions.iter().copied().collect() })
    }

    /// The channel that was saved, in memory as it was then. Look for packets afterwards, and signal
    /// the guest: signals of either side may be lost with the old machine, and one too many does no
    /// harm.
    ///
    /// # Errors
    /// [`RestoreError`] if there was no such channel, or the rings are not in guest memory.
    pub fn restore(
        memory: M,
        open: &OpenChannel,
        saved: &SavedChannel,
    ) -> Result<Self, RestoreError> {
        if saved.completions.len() > MAX_COMPLETIONS {
            return Err(RestoreError::Impossible { reason: "too many completions" });
        }
        let rings = ChannelRings::restore(memory, &open.rings, &saved.rings)?;
        let completions = saved.completions.iter().copied().collect();
        Ok(Self { completions, wants_signal: true, ..Self::with_rings(rings, open) })
    }

    /// Signals another VP from now on.
    pub const fn set_target_vp(&mut self, vp: VpIndex) {
        self.target_vp = Some(vp);
    }

    /// Whether the rings are in use: until [`Channel::stop`].
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.rings.is_some()
    }

    /// Whether completions wait for room in the ring.
    #[must_use]
    pub fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }

    /// Takes the next packet out of the ring. A completion that the packet asks for is queued.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring; the channel must be [stopped](Channel::stop).
    #[inline]
    pub fn receive(&mut self) -> Result<Received<'_>, RingError> {
        let Some(rings) = &mut self.rings else { return Ok(Received::Nothing) };
        let Some(packet) = rings.receive()? else { return Ok(Received::Nothing) };
        if packet.completion_requested && self.completions.len() < MAX_COMPLETIONS {
            self.completions.push_back(packet.transaction_id);
        }
        Ok(if packet.kind == PacketKind::DATA_IN_BAND {
            Received::Data(packet.payload)
        } else {
            Received::Other
        })
    }

    /// Ends a batch of [`Channel::receive`], whether or not it emptied the ring.
    pub fn end_receive(&mut self) {
        if let Some(rings) = &mut self.rings {
            self.wants_signal |= rings.end_receive();
        }
    }

    /// Writes the completions that wait, as far as there is room.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring; the channel must be [stopped](Channel::stop).
    pub fn complete(&mut self) -> Result<(), RingError> {
        let Some(rings) = &mut self.rings else { return Ok(()) };
        while let Some(transaction_id) = self.completions.front() {
            match rings.complete(*transaction_id)? {
                Sent::Written { signal } => self.wants_signal |= signal,
                Sent::Full => break,
            }
            self.completions.pop_front();
        }
        Ok(())
    }

    /// Writes a data packet; false where the ring has no room for it now, or the channel was stopped.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring or made it too small for the packet; the channel
    /// must be [stopped](Channel::stop).
    pub fn send(&mut self, payload: &[u8]) -> Result<bool, RingError> {
        let Some(rings) = &mut self.rings else { return Ok(false) };
        match rings.send(payload, 0)? {
            Sent::Written { signal } => {
                self.wants_signal |= signal;
                Ok(true)
            }
            Sent::Full => Ok(false),
        }
    }

    /// The signal that the guest is owed, once. `None` also where the guest wants no signals.
    pub fn take_signal(&mut self) -> Option<GuestSignal> {
        let is_owed = core::mem::take(&mut self.wants_signal);
        let vp = self.target_vp.filter(|_| is_owed)?;
        let flag = u16::try_from(self.relid.get()).ok()?;
        Some(GuestSignal { vp, flag })
    }

    /// Leaves the rings alone from now on.
    pub fn stop(&mut self) {
        self.rings = None;
        self.completions.clear();
        self.wants_signal = false;
    }
}
