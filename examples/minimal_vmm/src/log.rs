//! Logging to standard error from threads that must not wait for its reader.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::Builder;

use anyhow::Result;

/// The most lines in the queue; [`Log::line`] drops any further ones.
const QUEUE: usize = 256;

/// A handle to the thread that writes the log.
#[derive(Clone)]
pub(crate) struct Log(SyncSender<String>);

impl Log {
    pub(crate) fn start() -> Result<Self> {
        let (sender, lines) = sync_channel::<String>(QUEUE);
        let write = move || lines.into_iter().for_each(|line| eprintln!("{line}"));
        Builder::new().name("log".into()).spawn(write)?;
        Ok(Self(sender))
    }

    /// Queues a line, or drops it if the reader has fallen behind.
    pub(crate) fn line(&self, line: impl Into<String>) {
        let _ = self.0.try_send(line.into());
    }
}
