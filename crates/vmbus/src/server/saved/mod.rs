//! The server to bytes and back.

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
    /// The server as bytes: the connection, the channels, the GPADLs, and the messages that
    /// [`Server::poll_action`] has not given yet.
    ///
    /// May be called at any time between two calls. Messages that were polled are the driver's to
    /// save, where they are not in guest memory. What it was told about channels and has not
    /// finished, it is told again after [`Server::restore`].
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        FORMAT.write(&write::server(self))
    }

    /// The server that [`Server::save`] made `bytes` of, in a machine with `config`. It has the
    /// devices that were offered: find them by [`Server::channel_of`], and for those with an open
    /// channel what they need by [`Server::opened`]. Do what [`Server::poll_action`] says until it
    /// says `None`: a channel that was opening or closing is to be opened or closed again.
    ///
    /// # Errors
    /// [`RestoreError`](crate::RestoreError) if the bytes are no server that can be, or one with
    /// VPs, pages or a version that this machine has not.
    pub fn restore(config: ServerConfig, bytes: &[u8]) -> Result<Self> {
        // As long as there is one version, it is the one.
        read::server(FORMAT.read(bytes)?.decode()?, config)
    }
}
