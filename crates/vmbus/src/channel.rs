//! A device's end of an open channel: packets, completions and signals to the guest.

use alloc::{collections::VecDeque, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{
    GuestMemory, OpenChannel, RestoreError,
    protocol::{Relid, VpIndex, ring::PacketKind},
    ring::{ChannelRings, Packet, RingError, SavedRings, Sent},
};

/// Maximum number of completions that wait for room in the ring. If a guest requests completions
/// and never reads them, further ones are dropped.
pub const MAX_COMPLETIONS: usize = 16;

/// How to signal the guest: set the event flag of SINT 2 on a VP and, if the flag was clear, raise
/// the SINT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSignal {
    /// The VP that the guest chose, below [`ServerConfig::vp_count`](crate::ServerConfig::vp_count).
    pub vp: VpIndex,
    /// Event flag number.
    pub flag: u16,
}

/// Result of [`Channel::receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A data packet.
    Data(Packet<'a>),
    /// A packet of another kind, which a device drops.
    Other(Packet<'a>),
    /// The ring is empty. The guest will signal its next packet.
    Nothing,
}

/// A channel as [`Channel::save`] makes it, in one of the versions that there are; a part of the state
/// of its device. What is read may be anything: [`Channel::restore`] checks what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedChannel(Version);

/// A version, once released, stays as it is. A new one is a new variant behind those that there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V1 { rings: SavedRings, completions: Vec<u64> },
}

/// An open channel.
///
/// The channel collects signals for the guest; take them with [`Channel::take_signal`] after each
/// call that reads or writes the rings.
#[derive(Debug)]
pub struct Channel<M> {
    /// `None` after the channel has been stopped; the rings are not accessed again.
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

    /// Restores a channel that was stopped before it was saved.
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

    /// Saves the state of the channel that is not in guest memory; `None` after the channel has
    /// been stopped. A pending signal is not saved, because the guest is signalled after every
    /// restore.
    #[must_use]
    pub fn save(&self) -> Option<SavedChannel> {
        let rings = self.rings.as_ref()?.save();
        let completions = self.completions.iter().copied().collect();
        Some(SavedChannel(Version::V1 { rings, completions }))
    }

    /// Restores a saved channel. Guest memory must be as it was when the channel was saved.
    /// Afterwards look for packets and signal the guest: signals in either direction may have been
    /// lost with the old machine, and a spurious one is harmless.
    ///
    /// # Errors
    /// [`RestoreError`] if the state is invalid, or the rings are not in guest memory.
    pub fn restore(
        memory: M,
        open: &OpenChannel,
        saved: &SavedChannel,
    ) -> Result<Self, RestoreError> {
        let SavedChannel(Version::V1 { rings, completions }) = saved;
        if completions.len() > MAX_COMPLETIONS {
            return Err(RestoreError::Impossible { reason: "too many completions" });
        }
        let rings = ChannelRings::restore(memory, &open.rings, rings)?;
        let completions = completions.iter().copied().collect();
        Ok(Self { completions, wants_signal: true, ..Self::with_rings(rings, open) })
    }

    /// Directs future signals to another VP.
    pub const fn set_target_vp(&mut self, vp: VpIndex) {
        self.target_vp = Some(vp);
    }

    /// Whether the rings are in use; false after [`Channel::stop`].
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.rings.is_some()
    }

    /// Whether completions wait for room in the ring.
    #[must_use]
    pub fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }

    /// Takes the next packet out of the ring. If the packet requests a completion, it is queued.
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
            Received::Data(packet)
        } else {
            Received::Other(packet)
        })
    }

    /// Ends a batch of [`Channel::receive`], whether or not it emptied the ring.
    pub fn end_receive(&mut self) {
        if let Some(rings) = &mut self.rings {
            self.wants_signal |= rings.end_receive();
        }
    }

    /// Writes the next waiting completion and returns its transaction ID; `None` if none waits or the
    /// ring has no room. Call it until it returns `None`.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring; the channel must be [stopped](Channel::stop).
    #[inline]
    pub fn complete(&mut self) -> Result<Option<u64>, RingError> {
        let Some(rings) = &mut self.rings else { return Ok(None) };
        let Some(transaction_id) = self.completions.front() else { return Ok(None) };
        match rings.complete(*transaction_id)? {
            Sent::Written { signal } => self.wants_signal |= signal,
            Sent::Full => return Ok(None),
        }
        Ok(self.completions.pop_front())
    }

    /// Writes a data packet. Returns false if the ring has no room now or the channel was stopped.
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

    /// Signals the guest again if it has left packets unread, and returns whether it has. A guest may
    /// miss signals that come before it has heard that the channel is open.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring; the channel must be [stopped](Channel::stop).
    pub fn remind(&mut self) -> Result<bool, RingError> {
        let Some(rings) = &self.rings else { return Ok(false) };
        let is_unread = rings.is_unread()?;
        self.wants_signal |= is_unread;
        Ok(is_unread)
    }

    /// Takes the pending signal to the guest. `None` if there is none, or the guest wants no
    /// signals.
    #[inline]
    pub fn take_signal(&mut self) -> Option<GuestSignal> {
        let is_owed = core::mem::take(&mut self.wants_signal);
        let vp = self.target_vp.filter(|_| is_owed)?;
        let flag = u16::try_from(self.relid.get()).ok()?;
        Some(GuestSignal { vp, flag })
    }

    /// Stops using the rings.
    pub fn stop(&mut self) {
        self.rings = None;
        self.completions.clear();
        self.wants_signal = false;
    }
}
