//! Saving and restoring the server.

mod form;
mod read;
#[cfg(test)]
mod tests;
mod write;

use saved_state::{Format, SavedState};
use serde::{Deserialize, Serialize};

use super::{MAX_CHANNELS, MAX_GPADLS, MAX_QUEUED_MESSAGES, Server, ServerConfig};
use crate::saved::Result;

/// A server as [`Server::save`] makes it, in one of the versions that there are.
///
/// Keep it by itself as bytes ([`SavedState`]), or as a part of a larger state by its `serde`
/// implementations. Either way what is read may be anything: [`Server::restore`] checks what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedServer(Version);

impl SavedState for SavedServer {
    const FORMAT: Format = Format { magic: *b"HVVMBSRV", name: "a VMBus server", newest: 1 };
}

/// A version, once released, stays as it is. A new one is a new variant behind those that there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V1(form::Server),
}

/// The most messages that can wait: those accepted, all offers and their end, an end for each
/// GPADL, a withdrawal for each channel, and an answer more for each of these.
const MAX_MESSAGES: usize = 2 * (MAX_QUEUED_MESSAGES + 2 * MAX_CHANNELS + MAX_GPADLS);

impl Server {
    /// Saves the server: the connection, the channels, the GPADLs, and the messages that
    /// [`Server::poll_action`] has not returned yet.
    ///
    /// May be called at any time. The driver must save polled messages that are not yet in guest
    /// memory. Unfinished actions on channels are returned again after [`Server::restore`].
    #[must_use]
    pub fn save(&self) -> SavedServer {
        SavedServer(Version::V1(write::server(self)))
    }

    /// Restores a server saved by [`Server::save`], in a machine with `config`. It has the devices
    /// that were offered: find them with [`Server::channel_of`], and get the parameters of open
    /// channels from [`Server::opened`]. Carry out the actions from [`Server::poll_action`] until
    /// it returns `None`: they reopen or close channels that were opening or closing.
    ///
    /// # Errors
    /// [`RestoreError`](crate::RestoreError) if no server can be in this state, or it uses VPs,
    /// pages or a version that this machine does not have.
    pub fn restore(config: ServerConfig, saved: &SavedServer) -> Result<Self> {
        let SavedServer(Version::V1(form)) = saved;
        read::server(form, config)
    }
}
