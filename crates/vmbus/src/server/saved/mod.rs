//! Saving and restoring the server.

mod form;
mod read;
#[cfg(test)]
mod tests;
mod write;

use alloc::vec::Vec;

use saved_state::Format;

use super::{MAX_CHANNELS, MAX_GPADLS, MAX_QUEUED_MESSAGES, Server, ServerConfig};
use crate::saved::Result;

const FORMAT: Format = Format { magic: *b"HVVMBSRV", name: "a VMBus server", newest: 1 };

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
    pub fn save(&self) -> Vec<u8> {
        FORMAT.write(&write::server(self))
    }

    /// Restores a server saved by [`Server::save`], in a machine with `config`. It has the devices
    /// that were offered: find them with [`Server::channel_of`], and get the parameters of open
    /// channels from [`Server::opened`]. Carry out the actions from [`Server::poll_action`] until
    /// it returns `None`: they reopen or close channels that were opening or closing.
    ///
    /// # Errors
    /// [`RestoreError`](crate::RestoreError) if the bytes are not a possible server, or use VPs,
    /// pages or a version that this machine does not have.
    pub fn restore(config: ServerConfig, bytes: &[u8]) -> Result<Self> {
        // There is only one version so far.
        read::server(FORMAT.read(bytes)?.decode()?, config)
    }
}
