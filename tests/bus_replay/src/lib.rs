#![forbid(unsafe_code)]
//! Replays a recorded guest ([`bus_recording`]) against bus and devices.
//!
//! [`replay`] tells a fresh [`vmbus::Server`], a fresh [`dynmem_vsp::DynamicMemory`] and, if the recording
//! has them, fresh [`integration_services`] what they were
//! told when the recording was made, at the same times and in the same order, and compares everything
//! they say: messages and packets byte by byte, the statuses of hypercalls, jobs, and that nothing more
//! is said. So a change of bus or device that the recorded guest would notice is a [`Difference`].
//!
//! Three things are not compared, since they depend on what the guest did in its memory, which is not
//! recorded:
//!
//! - how often the guest is signalled. A replayed guest has read all when a packet comes, so every
//!   packet signals; a real one may be reading. But the VP and the flag of each signal must be those of the recording;
//! - when the guest reads. A replayed guest reads while the device writes. Only one whose ring was full
//!   at some time reads as late as it can, so that the ring is full again when it was;
//! - what is for the operator only (`dynmem_vsp::Notice`), since no guest sees it.

mod describe;
mod devices;
mod replayer;
mod ring;

use bus_recording::{InvalidSetup, Recording};
use thiserror::Error;

use replayer::Replayer;

/// What a replay has compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Messages of the bus.
    pub messages: usize,
    /// Packets of the device.
    pub packets: usize,
    /// Jobs on the guest's memory.
    pub jobs: usize,
    /// Of these, memory that was added.
    pub added: usize,
}

/// Why a replay ended early.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// Bus or device said something else than they did in the recording.
    #[error(transparent)]
    Difference(#[from] Difference),
    /// The recording's configuration is refused.
    #[error("the recording describes a machine that cannot be: {0}")]
    Setup(String),
    /// The recording has something that cannot follow what comes before it, or that cannot be replayed.
    #[error("line {line} cannot be replayed: {why}")]
    Impossible {
        /// The line in the recording.
        line: usize,
        /// Why.
        why: String,
    },
}

impl From<InvalidSetup> for ReplayError {
    fn from(error: InvalidSetup) -> Self {
        Self::Setup(error.to_string())
    }
}

/// Something that a guest would notice.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line} differs\n  expected: {expected}\n  actual:   {actual}")]
pub struct Difference {
    /// The line in the recording.
    pub line: usize,
    /// What it says, in words.
    pub expected: String,
    /// What was said now, in words.
    pub actual: String,
}

/// Replays a recording. Returns what was compared.
///
/// # Errors
/// [`ReplayError`] at the first difference.
pub fn replay(recording: &Recording) -> Result<Compared, ReplayError> {
    let mut replayer = Replayer::new(&recording.header)?;
    for index in 0..recording.lines.len() {
        replayer.step(&recording.lines, index)?;
    }
    Ok(replayer.compared())
}
