//! Actions: the device's requests to its driver.

use alloc::vec::Vec;

use page_range::{PageCount, PageRange};

use crate::Notice;

/// The ID of a [`Job`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(crate) u64);

impl JobId {
    /// The number, for logs. No two jobs of a device share it.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Assigns job IDs.
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

/// Memory to prepare for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepare {
    /// New memory: back these pages and map them into the guest. The device offers them to the
    /// guest only after this has succeeded; a failure must leave nothing behind.
    Add {
        /// The pages; start and size are multiples of `alignment`.
        range: PageRange,
        /// The offset of the first page in the hot-add memory (see
        /// [`HotAdd::capacity`](crate::HotAdd::capacity)). The page at a given offset keeps its
        /// guest address until a system reset.
        offset: PageCount,
        /// The guest's alignment, or [`HotAdd::least_alignment`](crate::HotAdd::least_alignment) if
        /// that is larger.
        alignment: PageCount,
    },
    /// Discarded memory that the guest is to get back: provide it again. Requested only if
    /// [`Config::discard_unit`](crate::Config::discard_unit) is more than a page, since single
    /// pages come back by themselves on first use. The ranges are multiples of the discard unit.
    /// Memory that is already present must keep its contents.
    Return(Vec<PageRange>),
}

/// Work on the guest's memory, which may take time. Report its end with [`Event::JobDone`], even
/// after a close or reset.
///
/// [`Event::JobDone`]: crate::Event::JobDone
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The ID to report in [`Event::JobDone`](crate::Event::JobDone).
    pub id: JobId,
    /// What to do.
    pub task: Task,
}

/// The kinds of [`Job`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Give the memory behind these pages back to the host. The ranges are ascending and neither
    /// overlap nor touch.
    Discard(Vec<PageRange>),
    /// Prepare memory for the guest. At most one preparation is in flight.
    Prepare(Prepare),
    /// Unmap added memory from the guest and discard it. Skip parts that were never prepared or
    /// have already been removed.
    ///
    /// The device requests no [`Task::Prepare`] while a removal is in flight. If a removal fails,
    /// the guest may still have access to the memory: the device requests the removal again at the
    /// next close or reset, and before it adds memory to the guest. It adds none until the removal
    /// has succeeded.
    Remove(PageRange),
}

/// A request to the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write [`Device::message`] to the ring, then report [`Event::Sent`]. No second message
    /// follows before that, so a full ring throttles the device. A close or reset withdraws the
    /// message.
    ///
    /// [`Device::message`]: crate::Device::message
    /// [`Event::Sent`]: crate::Event::Sent
    Send,
    /// Do this job.
    Work(Job),
    /// No job is in flight: the close or reset may be acknowledged. One such action answers all
    /// closes and resets before it.
    CloseFinished,
    /// Report to the operator or the log.
    Notify(Notice),
}
