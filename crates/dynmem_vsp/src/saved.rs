//! Saving and restoring the VSP.

use core::time::Duration;

use hv_balloon::{Config, Device, SavedDevice, StateName};
use saved_state::{Format, SavedState};
use serde::{Deserialize, Serialize};
use vmbus::{Channel, GuestMemory, OpenChannel, Reminder, SavedChannel};

use crate::DynamicMemory;
use crate::machine::Leaving;
use crate::vsp::Link;

/// The saved state of a VSP, from [`DynamicMemory::save`], in one of its versions.
///
/// Store it on its own as bytes ([`SavedState`]), or as part of a larger state through its `serde`
/// implementations. Either way, what is read back may be anything: [`DynamicMemory::restore`]
/// checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedVsp(Version);

impl SavedState for SavedVsp {
    const FORMAT: Format = Format { magic: *b"HVDMVSP\0", name: "a Dynamic Memory VSP", newest: 1 };
}

/// A released version never changes. A new version is a new variant after the existing ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V1(Form),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Form {
    device: SavedDevice,
    /// `None` if the rings were not in use.
    channel: Option<SavedChannel>,
    leaving: SavedLeaving,
}

/// What is kept for the machine after a reset, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedLeaving {
    /// The size of the guest that closed its channel.
    pub(crate) size_at_close: Option<u64>,
    /// `Some` once a reset is announced: the target set since.
    pub(crate) after_reset: Option<Option<u64>>,
    /// The size and the target of the machine that was reset.
    pub(crate) kept: (Option<u64>, Option<u64>),
}

/// Why a VSP cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The device cannot be restored.
    #[error(transparent)]
    Device(#[from] hv_balloon::RestoreError),
    /// The channel cannot be restored.
    #[error(transparent)]
    Channel(#[from] vmbus::RestoreError),
    /// The channel is open, but the device has a session without rings, or rings without a session.
    #[error(
        "saved state is impossible for a VSP: a session without rings, or rings without a session"
    )]
    RingsAmiss,
}

impl<M: GuestMemory> DynamicMemory<M> {
    /// Saves the VSP: everything it knows of the guest, the operator and the channel, and
    /// everything it has begun.
    ///
    /// May be called at any time once all outputs have been taken. The vCPUs must be paused, and
    /// guest memory must be saved as it is now. Work whose end was not reported is requested again
    /// after [`DynamicMemory::restore`]; it may keep running, and repeating it does no harm.
    /// Deadlines are saved as the time left at `now`, the time since the VM started.
    #[must_use]
    pub fn save(&self, now: Duration) -> SavedVsp {
        let channel = match &self.link {
            Link::Open(channel) => channel.save(),
            Link::Closed | Link::Closing => None,
        };
        let (device, leaving) = (self.device.save(now), self.leaving.save());
        SavedVsp(Version::V1(Form { device, channel, leaving }))
    }

    /// Restores a saved VSP. `config` must describe the memory of the saved guest; `now` is the
    /// present time of the clock by which later events are reported. If the VSP's channel is open,
    /// `open` is the restored guest memory and the result of
    /// [`Server::opened`](vmbus::Server::opened); a channel that was opening or closing is opened
    /// or closed again by the server's actions.
    ///
    /// Take the outputs afterwards, then give the VSP a
    /// [`ChannelEvent::Signalled`](vmbus::ChannelEvent::Signalled), since a signal from the guest
    /// may have been lost with the old machine. The guest is signalled for the same reason.
    ///
    /// # Errors
    /// [`RestoreError`] if no VSP can be in this state, or if the VSP was saved with a different
    /// configuration.
    pub fn restore(
        config: Config,
        saved: &SavedVsp,
        open: Option<(M, OpenChannel)>,
        now: Duration,
    ) -> Result<Self, RestoreError> {
        let SavedVsp(Version::V1(saved)) = saved;
        let device = Device::restore(config, &saved.device, now)?;
        // While the channel is open, a session lasts as long as its rings are in use.
        let has_session = !matches!(device.state(), StateName::Closed | StateName::Closing);
        if open.is_some() && has_session != saved.channel.is_some() {
            return Err(RestoreError::RingsAmiss);
        }
        let link = match (open, &saved.channel) {
            (None, _) => Link::Closed,
            (Some((_, open)), None) => Link::Open(Channel::stopped(&open)),
            (Some((memory, open)), Some(channel)) => {
                Link::Open(Channel::restore(memory, &open, channel)?)
            }
        };
        let mut vsp = Self::with_device(device);
        vsp.link = link;
        vsp.now = now;
        vsp.is_restored = true;
        // The guest is signalled now, and may not hear that either.
        vsp.reminder = vsp.is_in_handshake().then(|| Reminder::new(now));
        vsp.leaving = Leaving::restore(saved.leaving);
        Ok(vsp)
    }
}
