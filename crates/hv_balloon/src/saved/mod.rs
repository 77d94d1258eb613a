//! The device to its saved state, to bytes, and back.

pub(crate) mod codes;
pub(crate) mod form;
mod read;
#[cfg(test)]
mod tests;
mod write;

use core::time::Duration;

use page_range::PageRange;
use saved_state::{Format, SavedState};
use serde::{Deserialize, Serialize};

use crate::{Config, ConfigError, Device};

pub(crate) use read::version;

/// A device as [`Device::save`] makes it, in one of the versions that there are.
///
/// Keep it by itself as bytes ([`SavedState`]), or as a part of a larger state by its `serde`
/// implementations. Either way what is read may be anything: [`Device::restore`] checks what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedDevice(Version);

/// A version, once released, stays as it is. A new one is a new variant behind those that there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V1(form::Device),
}

impl SavedState for SavedDevice {
    const FORMAT: Format =
        Format { magic: *b"HVDMDEV\0", name: "a Dynamic Memory device", newest: 1 };
}

/// Why a device is not restored. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The device was saved with another configuration, on which all in it depends.
    #[error(
        "the saved guest has other {what}; restore it with the configuration it was saved with"
    )]
    OtherConfig {
        /// What differs.
        what: &'static str,
    },
    /// The configuration describes no machine that can be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No device can be in this state.
    #[error("saved state is not that of any device: {reason}")]
    Impossible {
        /// What cannot be.
        reason: &'static str,
    },
}

pub(crate) type Result<T> = core::result::Result<T, RestoreError>;

pub(crate) const fn ensure(holds: bool, reason: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(RestoreError::Impossible { reason }) }
}

impl Device {
    /// The device's state: all that it knows of guest and operator, and all that it has begun.
    ///
    /// May be called at any time between two calls of [`Device::handle`]. The driver has to hold
    /// still what goes with it: the guest, whose memory is saved with the device, and its own work
    /// for the device. What was asked of the driver is part of the state until it is answered:
    ///
    /// - A message for which there was no [`Event::Sent`](crate::Event::Sent) is not in the ring.
    /// - A job for which there was no [`Event::JobDone`](crate::Event::JobDone) is asked for again
    ///   after [`Device::restore`]. It may run on, and may be done again: a discard concerns pages
    ///   that are nobody's until it has ended, memory to prepare may be there already, and memory
    ///   to remove may be gone. Of a closed channel, discards and memory that was to be added are not
    ///   asked for again; pages that the host has to provide before the next session are.
    /// - What has no answer is done when [`Device::poll_action`] gives it: a finished close is the
    ///   driver's to remember. Notices that were not polled are lost.
    /// - Whether discards are forbidden is not part of it: [`Config::inhibited`] says so for the
    ///   restored device, which then lets the pages of discards in flight wait.
    ///
    /// Times are saved as what is left of them at `now`, the time since the VM started.
    #[must_use]
    pub fn save(&self, now: Duration) -> SavedDevice {
        SavedDevice(Version::V1(write::device(self, self.machine.now.max(now))))
    }

    /// The pages that the host has back, upwards. What is in them is of no use: who saves the
    /// guest's memory can leave them out.
    pub fn ballooned(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.machine.ledger.ballooned()
    }

    /// The device that was saved; `now` is the time by which events will be
    /// told from now on. Call [`Device::poll_action`] until `None` afterwards.
    ///
    /// `config` names the memory that the saved guest has: what the device was made from, or what
    /// [`Device::replace_memory`] said since. Settle time, status reports and inhibition may be
    /// others.
    ///
    /// Jobs of the device that was saved must have ended before the guest runs on, or be unable to
    /// reach the memory of the restored one: it counts those that it asks for itself.
    ///
    /// # Errors
    /// [`RestoreError`] if no device can be in this state, or one with another configuration.
    pub fn restore(config: Config, saved: &SavedDevice, now: Duration) -> Result<Self> {
        let SavedDevice(Version::V1(form)) = saved;
        read::device(form, config, now)
    }
}
