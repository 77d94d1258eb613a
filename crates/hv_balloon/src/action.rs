//! What the device asks of the driver.

use alloc::vec::Vec;

use page_range::{PageCount, PageRange};

use crate::Notice;

/// The name of a [`Job`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(crate) u64);

impl JobId {
    /// The number, for logs; no two jobs of a device share it.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Where job names come from.
#[derive(Debug, Default)]
pub(crate) struct JobIds {
    pub(crate) next: u64,
}

impl JobIds {
    pub(crate) const fn next(&mut self) -> JobId {
        let id = JobId(self.next);
        self.next = self.next.wrapping_add(1);
        id
    }
}

/// Memory to get ready for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepare {
    /// New memory: back these pages and let the guest reach them. It is told of them once this has
    /// succeeded; a failure leaves nothing behind.
    Add {
        /// The pages; start and size are multiples of `alignment`.
        range: PageRange,
        /// Where in the memory to add from (see [`HotAdd::capacity`](crate::HotAdd::capacity)) the
        /// pages begin. Pages at one offset always have the same address until a system reset.
        offset: PageCount,
        /// The guest's alignment.
        alignment: PageCount,
    },
    /// Memory that was discarded and that the guest is to get back: provide it again, where that
    /// does not happen by itself on first use. Whole multiples of
    /// [`Config::discard_unit`](crate::Config::discard_unit), and only where that is more than a page.
    /// Some may be there already, and keep what they hold.
    Return(Vec<PageRange>),
}

/// Work on the guest's memory, which the host does in its own time. Report its end by
/// [`Event::JobDone`], also after a close or reset.
///
/// [`Event::JobDone`]: crate::Event::JobDone
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// To report with.
    pub id: JobId,
    /// What to do.
    pub task: Task,
}

/// What a [`Job`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Give the memory behind these pages back to the host: ascending ranges that neither overlap
    /// nor touch.
    Discard(Vec<PageRange>),
    /// Get memory ready for the guest. One at a time.
    Prepare(Prepare),
    /// Take memory that was added out of the guest's reach and discard it. Skip parts that were
    /// never prepared or are gone already.
    ///
    /// No [`Task::Prepare`] is asked for while a removal is in flight. Where a removal fails, the
    /// guest may still reach the memory: the device asks for it again at the next close or reset,
    /// and before it adds memory to the guest. It adds none until a removal has succeeded.
    Remove(PageRange),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write [`Device::message`] to the ring, then report [`Event::Sent`]. There is no second one
    /// before that, so a full ring stops the device by itself. A close or reset takes the message
    /// back.
    ///
    /// [`Device::message`]: crate::Device::message
    /// [`Event::Sent`]: crate::Event::Sent
    Send,
    /// Do this job.
    Work(Job),
    /// The device is quiet: the close or reset may be acknowledged. One answers all closes and
    /// resets before it.
    CloseFinished,
    /// Report to the operator or the log.
    Notify(Notice),
}
