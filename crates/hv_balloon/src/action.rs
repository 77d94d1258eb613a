//! What the device asks of the driver.

use alloc::vec::Vec;

use page_range::PageRange;

use crate::Notice;

/// Names one discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiscardId(pub(crate) u64);

impl DiscardId {
    /// The number, for logs; no two discards of a device share it.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write this message to the ring, then report [`Event::Sent`]. There is no second one before
    /// that, so a full ring stops the device by itself.
    ///
    /// [`Event::Sent`]: crate::Event::Sent
    Send(Vec<u8>),
    /// Give the memory behind these pages back to the host, then report [`Event::Discarded`], also
    /// after a close or reset.
    ///
    /// [`Event::Discarded`]: crate::Event::Discarded
    Discard {
        /// To report with.
        id: DiscardId,
        /// The pages: ascending ranges that neither overlap nor touch.
        ranges: Vec<PageRange>,
    },
    /// The device is quiet: the close or reset may be acknowledged. One answers all closes and
    /// resets before it.
    CloseFinished,
    /// Tell whom it may concern.
    Notify(Notice),
}
