//! The shutdown service: the guest shuts down as if somebody had pressed its power button.

use alloc::vec::Vec;
use core::time::Duration;

use vmbus::GuestMemory;
use vmbus::protocol::Guid;

use crate::kind::Kind;
use crate::protocol::{MessageType, ShutdownBody, Version, shutdown_flags};
use crate::saved::SavedKind;
use crate::service::{NotReady, Service};
use crate::{Fault, Notice};

/// The shutdown service.
pub type Shutdown<M> = Service<M, ShutdownKind>;

/// What is particular to the shutdown service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShutdownKind {
    /// A request is to be sent.
    is_wanted: bool,
}

/// The reason for the guest's log: planned, no more known (Windows `SHTDN_REASON_FLAG_PLANNED`).
const PLANNED: u32 = 0x8000_0000;

impl Kind for ShutdownKind {
    const INTERFACE: Guid = Guid::from_digits(0x0e0b6031_5213_4934_818b_38d90ced39db);
    const INSTANCE: Guid = Guid::from_digits(0xb6650ff7_33bc_4840_8048_e0676786f393);
    const MESSAGE: MessageType = MessageType::SHUTDOWN;

    fn versions(&self) -> &'static [Version] {
        const VERSIONS: &[Version] =
            &[Version::new(1, 0), Version::new(3, 0), Version::new(3, 1), Version::new(3, 2)];
        VERSIONS
    }

    fn ready(&mut self, _: Duration) {}

    fn gone(&mut self) -> Option<Notice> {
        self.is_wanted = false;
        None
    }

    fn next_body(&mut self, _: Duration, _: Version) -> Option<Vec<u8>> {
        core::mem::take(&mut self.is_wanted).then(|| {
            // A program that asks its absent user what to do would keep the guest from shutting down.
            ShutdownBody {
                reason: PLANNED.into(),
                timeout_seconds: 0.into(),
                flags: shutdown_flags::FORCE.into(),
                text: [0; 2048],
            }
            .emit()
        })
    }

    fn answered(&mut self, _: Duration, status: u32, _: &[u8]) -> Result<Option<Notice>, Fault> {
        Ok(Some(Notice::ShutdownAnswered { status }))
    }

    fn deadline(&self, _: bool) -> Option<Duration> {
        None
    }

    fn on_time(&mut self, _: Duration, _: bool) -> Option<Notice> {
        None
    }

    fn save(&self, _: Duration) -> SavedKind {
        SavedKind::Shutdown { is_wanted: self.is_wanted }
    }

    fn restore(&mut self, saved: &SavedKind, _: Duration) -> Result<(), &'static str> {
        let SavedKind::Shutdown { is_wanted } = saved else { return Err("another service") };
        self.is_wanted = *is_wanted;
        Ok(())
    }
}

impl<M: GuestMemory> Shutdown<M> {
    /// Asks the guest to shut down. [`Notice::ShutdownAnswered`] tells what it says. While an earlier
    /// request is unanswered, another is not sent.
    ///
    /// # Errors
    /// [`NotReady`]: there is nobody to ask, and nothing was requested.
    pub fn request_shutdown(&mut self, now: Duration) -> Result<(), NotReady> {
        self.advance(now);
        self.negotiated()?;
        self.kind.is_wanted = !self.is_waiting();
        self.work();
        Ok(())
    }
}
