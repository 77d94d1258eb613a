//! Saving and restoring the device.

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

/// The saved state of a device, from [`Device::save`], in one of its versions.
///
/// Store it on its own as bytes ([`SavedState`]), or as part of a larger state through its `serde`
/// implementations. Either way, what is read back may be anything: [`Device::restore`] checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedDevice(Version);

/// A released version never changes. A new version is a new variant after the existing ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V1(form::Device),
}

impl SavedState for SavedDevice {
    const FORMAT: Format =
        Format { magic: *b"HVDMDEV\0", name: "a Dynamic Memory device", newest: 1 };
}

/// Why a device cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The device was saved with a different configuration, on which its whole state depends.
    #[error(
        "the saved guest differs in its {what}; restore it with the configuration it was saved with"
    )]
    OtherConfig {
        /// What differs.
        what: &'static str,
    },
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No device can be in this state.
    #[error("saved state is impossible for a device: {reason}")]
    Impossible {
        /// Why not.
        reason: &'static str,
    },
}

pub(crate) type Result<T> = core::result::Result<T, RestoreError>;

pub(crate) const fn ensure(holds: bool, reason: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(RestoreError::Impossible { reason }) }
}

impl Device {
    /// Saves the device: everything it knows of the guest and the operator, and everything it has
    /// begun.
    ///
    /// May be called at any time between two calls of [`Device::handle`]. The driver must pause
    /// what belongs to the saved state: the guest, whose memory is saved with the device, and the
    /// driver's own handling of the device. Requests to the driver are part of the state until they
    /// are answered:
    ///
    /// - A message without an [`Event::Sent`](crate::Event::Sent) is not in the ring.
    /// - A job without an [`Event::JobDone`](crate::Event::JobDone) is requested again after
    ///   [`Device::restore`]. The old job may keep running, and repeating it does no harm: nobody
    ///   uses the pages of a discard until it has ended, memory to prepare may already be present,
    ///   and memory to remove may already be gone. Of the jobs of a closed channel, discards and
    ///   preparations of memory to add are not requested again; preparations of pages that the host
    ///   must provide before the next session are.
    /// - An action without an answer counts as done once [`Device::poll_action`] has returned it:
    ///   the driver must remember a finished close. Notices that were not polled are lost.
    /// - Whether discards are forbidden is not saved. [`Config::inhibited`] decides this for the
    ///   restored device; if it is set, the pages of discards in flight wait.
    ///
    /// Deadlines are saved as the time left at `now`, the time since the VM started.
    #[must_use]
    pub fn save(&self, now: Duration) -> SavedDevice {
        SavedDevice(Version::V1(write::device(self, self.machine.now.max(now))))
    }

    /// The pages that the host has back, in ascending order. Their contents are irrelevant, so
    /// whoever saves the guest's memory can leave them out.
    pub fn ballooned(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.machine.ledger.ballooned()
    }

    /// Restores a saved device. `now` is the present time of the clock by which later events are
    /// reported. Call [`Device::poll_action`] until `None` afterwards.
    ///
    /// `config` must describe the memory of the saved guest: that of the original configuration, or
    /// of the last [`Device::replace_memory`]. Settle time, status reports and inhibition may
    /// differ.
    ///
    /// Jobs of the saved device must have ended before the guest resumes, or be unable to reach the
    /// restored guest's memory: the restored device tracks only the jobs that it requests itself.
    ///
    /// # Errors
    /// [`RestoreError`] if no device can be in this state, or if the device was saved with a
    /// different configuration.
    pub fn restore(config: Config, saved: &SavedDevice, now: Duration) -> Result<Self> {
        let SavedDevice(Version::V1(form)) = saved;
        read::device(form, config, now)
    }
}
