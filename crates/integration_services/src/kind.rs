//! What distinguishes one service from another.

use core::fmt::Debug;
use core::time::Duration;

use vmbus::protocol::Guid;

use crate::protocol::{MessageType, Version};
use crate::saved::SavedKind;
use crate::{Fault, Notice};

mod sealed {
    pub trait Sealed {}

    impl Sealed for crate::HeartbeatKind {}
    impl Sealed for crate::ShutdownKind {}
    impl Sealed for crate::TimeSyncKind {}
}

/// A kind of service: [`ShutdownKind`](crate::ShutdownKind), [`HeartbeatKind`](crate::HeartbeatKind) or
/// [`TimeSyncKind`](crate::TimeSyncKind). There are no others.
pub trait Kind: sealed::Sealed + Debug {
    /// The class of such devices (Linux `include/linux/hyperv.h`).
    const INTERFACE: Guid;
    /// The instance that every VM of Hyper-V has.
    const INSTANCE: Guid;
    /// The type of its messages.
    const MESSAGE: MessageType;

    /// The versions that it has, oldest first.
    #[doc(hidden)]
    fn versions(&self) -> &'static [Version];

    /// Versions were negotiated.
    #[doc(hidden)]
    fn ready(&mut self, now: Duration);

    /// The channel is gone.
    #[doc(hidden)]
    fn gone(&mut self) -> Option<Notice>;

    /// The body of the next message, if it is time for one. Called when none waits for an answer.
    #[doc(hidden)]
    fn next_body(&mut self, now: Duration, version: Version) -> Option<alloc::vec::Vec<u8>>;

    /// The guest answered.
    #[doc(hidden)]
    fn answered(
        &mut self,
        now: Duration,
        status: u32,
        body: &[u8],
    ) -> Result<Option<Notice>, Fault>;

    /// When [`Kind::on_time`] has something to do. `is_free` says whether a message could be sent.
    #[doc(hidden)]
    fn deadline(&self, is_free: bool) -> Option<Duration>;

    /// Does what is due.
    #[doc(hidden)]
    fn on_time(&mut self, now: Duration, is_free: bool) -> Option<Notice>;

    /// Whether the driver is to be asked for the time. Asked once for each sample.
    #[doc(hidden)]
    fn takes_sample(&mut self) -> bool {
        false
    }

    #[doc(hidden)]
    fn save(&self, now: Duration) -> SavedKind;

    #[doc(hidden)]
    fn restore(&mut self, saved: &SavedKind, now: Duration) -> Result<(), &'static str>;
}
