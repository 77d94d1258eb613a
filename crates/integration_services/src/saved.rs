//! Saving and restoring a service.

use alloc::vec::Vec;
use core::time::Duration;

use saved_state::{Format, SavedState};
use serde::{Deserialize, Serialize};
use vmbus::{Channel, GuestMemory, OpenChannel, Reminder, SavedChannel};

use crate::Contact;
use crate::kind::Kind;
use crate::protocol::{FRAMEWORK_VERSIONS, MessageType, Version as ServiceVersion};
use crate::service::{Link, Phase, Service};

/// The longest message: a request to shut down.
const LONGEST: usize = 4096;

/// The saved state of a service, from [`Service::save`], in one of its versions.
///
/// Store it on its own as bytes ([`SavedState`]), or as part of a larger state through its `serde`
/// implementations. Either way, what is read back may be anything: [`Service::restored`] checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedService(Version);

impl SavedState for SavedService {
    const FORMAT: Format =
        Format { magic: *b"HVINTSV\0", name: "an integration service", newest: 1 };
}

/// A released version never changes. A new version is a new variant after the existing ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V1(Form),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Form {
    kind: SavedKind,
    /// `None` if the rings were not in use.
    channel: Option<SavedChannel>,
    phase: SavedPhase,
    transaction: u8,
    /// The type of the message that was not answered.
    asked: Option<u16>,
    unsent: Option<Vec<u8>>,
}

/// Versions are pairs of major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SavedPhase {
    Negotiating,
    Ready { framework: (u16, u16), version: (u16, u16) },
    Refused,
}

/// What is particular to a kind of service. Times are what was left of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedKind {
    /// Shutdown.
    Shutdown {
        /// A request is to be sent.
        is_wanted: bool,
    },
    /// Heartbeat.
    Heartbeat {
        /// Whether the guest answers.
        contact: Contact,
        /// The number of the last heartbeat.
        sequence: u64,
        /// Until the next heartbeat.
        next: Option<Duration>,
        /// Until the guest counts as lost.
        lost: Option<Duration>,
    },
    /// Time synchronisation.
    TimeSync {
        /// The guest's driver is there.
        is_ready: bool,
    },
}

/// Why a service cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The channel cannot be restored.
    #[error(transparent)]
    Channel(#[from] vmbus::RestoreError),
    /// No such service can be in this state.
    #[error("saved state is impossible for an integration service: {0}")]
    Impossible(&'static str),
}

impl<M: GuestMemory, K: Kind + Default> Service<M, K> {
    /// Saves the service. May be called at any time once all outputs have been taken. The vCPUs must be
    /// paused, and guest memory must be saved as it is now. Deadlines are saved as the time left at
    /// `now`, the time since the VM started.
    #[must_use]
    pub fn save(&self, now: Duration) -> SavedService {
        let channel = match &self.link {
            Link::Open(channel) => channel.save(),
            Link::Closed => None,
        };
        let numbers = |version: ServiceVersion| (version.major, version.minor);
        let phase = match self.phase {
            Phase::Negotiating => SavedPhase::Negotiating,
            Phase::Refused => SavedPhase::Refused,
            Phase::Ready { framework, version } => {
                SavedPhase::Ready { framework: numbers(framework), version: numbers(version) }
            }
        };
        SavedService(Version::V1(Form {
            kind: self.kind.save(now),
            channel,
            phase,
            transaction: self.transaction,
            asked: self.asked.map(|message| message.0),
            unsent: self.unsent.clone(),
        }))
    }

    /// Restores the saved state in a service that was just created. `now` is the present time of the
    /// clock by which later events are reported. If the service's channel is open, `open` is the restored
    /// guest memory and the result of [`Server::opened`](vmbus::Server::opened); a channel that was
    /// opening or closing is opened or closed again by the server's actions.
    ///
    /// Afterwards give the service a [`ChannelEvent::Signalled`](vmbus::ChannelEvent::Signalled), since a
    /// signal from the guest may have been lost with the old machine. The guest is signalled for the same
    /// reason, and its clock is set.
    ///
    /// # Errors
    /// [`RestoreError`] if no such service can be in this state.
    pub fn restored(
        mut self,
        saved: &SavedService,
        open: Option<(M, OpenChannel)>,
        now: Duration,
    ) -> Result<Self, RestoreError> {
        let SavedService(Version::V1(saved)) = saved;
        self.now = now;
        self.link = match (open, &saved.channel) {
            // The server opens or closes it again.
            (None, _) => Link::Closed,
            (Some((_, open)), None) => Link::Open(Channel::stopped(&open)),
            (Some((memory, open)), Some(channel)) => {
                Link::Open(Channel::restore(memory, &open, channel)?)
            }
        };
        let has_rings = matches!(&self.link, Link::Open(channel) if channel.is_running());
        // The saved kind is checked even if nothing of it is kept.
        let mut kind = K::default();
        kind.restore(&saved.kind, now).map_err(RestoreError::Impossible)?;
        if has_rings {
            self.phase = phase(saved.phase, self.kind.versions())?;
            self.kind.restore(&saved.kind, now).map_err(RestoreError::Impossible)?;
            self.transaction = saved.transaction;
            self.asked = saved.asked.map(MessageType);
            self.unsent.clone_from(&saved.unsent);
            self.check::<K>()?;
            self.reminder = self.asked.map(|_| Reminder::new(now));
        }
        Ok(self)
    }

    fn check<T: Kind>(&self) -> Result<(), RestoreError> {
        let asks = match self.phase {
            Phase::Negotiating => self.asked == Some(MessageType::NEGOTIATE),
            Phase::Ready { .. } => self.asked.is_none_or(|asked| asked == T::MESSAGE),
            Phase::Refused => self.asked.is_none(),
        };
        let sends =
            self.unsent.as_ref().is_none_or(|it| self.asked.is_some() && it.len() <= LONGEST);
        if asks && sends {
            Ok(())
        } else {
            Err(RestoreError::Impossible("a message that it does not send then"))
        }
    }
}

fn phase(saved: SavedPhase, versions: &[ServiceVersion]) -> Result<Phase, RestoreError> {
    let version = |(major, minor)| ServiceVersion::new(major, minor);
    Ok(match saved {
        SavedPhase::Negotiating => Phase::Negotiating,
        SavedPhase::Refused => Phase::Refused,
        SavedPhase::Ready { framework, version: chosen } => {
            let (framework, chosen) = (version(framework), version(chosen));
            if !FRAMEWORK_VERSIONS.contains(&framework) || !versions.contains(&chosen) {
                return Err(RestoreError::Impossible("versions that it does not have"));
            }
            Phase::Ready { framework, version: chosen }
        }
    })
}
