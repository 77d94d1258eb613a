//! The VSP to a saved state and back.

use core::time::Duration;

use hv_balloon::{Config, Device, SavedDevice, StateName};
use saved_state::{Format, SavedState};
use serde::{Deserialize, Serialize};
use vmbus::{Channel, GuestMemory, OpenChannel, SavedChannel};

use crate::DynamicMemory;
use crate::machine::Leaving;
use crate::vsp::Link;

/// A VSP as [`DynamicMemory::save`] makes it, in one of the versions that there are.
///
/// Keep it by itself as bytes ([`SavedState`]), or as a part of a larger state by its `serde`
/// implementations. Either way what is read may be anything: [`DynamicMemory::restore`] checks what it
/// says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedVsp(Version);

impl SavedState for SavedVsp {
    const FORMAT: Format = Format { magic: *b"HVDMVSP\0", name: "a Dynamic Memory VSP", newest: 1 };
}

/// A version, once released, stays as it is. A new one is a new variant behind those that there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V1(Form),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Form {
    device: SavedDevice,
    /// `None` where the rings were not in use.
    channel: Option<SavedChannel>,
    leaving: SavedLeaving,
}

/// What is kept for the machine after a reset, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedLeaving {
    /// The size of the guest that closed its channel.
    pub(crate) size_at_close: Option<u64>,
    /// While a reset is coming: the target that was set since.
    pub(crate) after_reset: Option<Option<u64>>,
    /// What the machine that was reset leaves: its size and its target.
    pub(crate) kept: (Option<u64>, Option<u64>),
}

/// Why a VSP is not restored. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The device.
    #[error(transparent)]
    Device(#[from] hv_balloon::RestoreError),
    /// The channel.
    #[error(transparent)]
    Channel(#[from] vmbus::RestoreError),
    /// The channel is open, and the device has a session without rings, or rings without a session.
    #[error(
        "the saved device has a session without rings, or rings without a session; no VSP is saved \
         like that"
    )]
    RingsAmiss,
}

impl<M: GuestMemory> DynamicMemory<M> {
    /// What the VSP knows of guest, operator and channel, and all that it has begun.
    ///
    /// May be called at any time once all outputs were taken. The vCPUs stand still, and guest memory
    /// is saved as it is now. Work whose end the VSP was not told of is asked for again after
    /// [`DynamicMemory::restore`]: it may run on, and may be done again. Times are saved as what is
    /// left of them at `now`, the time since the VM started.
    #[must_use]
    pub fn save(&self, now: Duration) -> SavedVsp {
        let channel = match &self.link {
            Link::Open(channel) => channel.save(),
            Link::Closed | Link::Closing => None,
        };
        let (device, leaving) = (self.device.save(now), self.leaving.save());
        SavedVsp(Version::V1(Form { device, channel, leaving }))
    }

    /// The VSP that was saved. `config` names the memory that the saved guest has; `now` is the time
    /// by which events will be told from now on. `open` is the guest's memory, restored, and what
    /// [`Server::opened`](vmbus::Server::opened) says of the VSP's channel, if it is open; a channel
    /// that was opening or closing is opened or closed again by the server's actions.
    ///
    /// Take outputs afterwards, then give the VSP a
    /// [`ChannelEvent::Signalled`](vmbus::ChannelEvent::Signalled): the guest's signal may be lost
    /// with the old machine. The guest is signalled for the same reason.
    ///
    /// # Errors
    /// [`RestoreError`] if there was no such VSP, or if it had another configuration.
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
        vsp.leaving = Leaving::restore(saved.leaving);
        Ok(vsp)
    }
}
