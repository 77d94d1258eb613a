//! State kept across a reset of the machine.

use core::time::Duration;

use hv_balloon::{HotAdd, ReplaceError};
use page_range::{PageCount, PageRangeSet};
use vmbus::GuestMemory;

use crate::DynamicMemory;
use crate::saved::SavedLeaving;

/// What is kept of a machine for the one that starts after a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The guest's size in pages before it closed its channel. A kernel that panics closes the
    /// channel first, and from then on the device counts all memory as the guest's.
    pub size: Option<PageCount>,
    /// The target that the device still pursued, in pages.
    pub target: Option<PageCount>,
    /// The target that was set after [`DynamicMemory::announce_reset`], in pages.
    pub set_since: Option<PageCount>,
}

/// What is remembered to make a [`Kept`].
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    /// The size of the guest that closed its channel, until another one opens it.
    size_at_close: Option<PageCount>,
    /// `Some` once a reset is announced: the target set since.
    after_reset: Option<Option<PageCount>>,
    kept: Kept,
}

impl Leaving {
    pub(crate) fn save(&self) -> SavedLeaving {
        let pages = |count: Option<PageCount>| count.map(PageCount::get);
        SavedLeaving {
            size_at_close: pages(self.size_at_close),
            after_reset: self.after_reset.map(pages),
            kept: (pages(self.kept.size), pages(self.kept.target)),
        }
    }

    pub(crate) fn restore(saved: SavedLeaving) -> Self {
        let pages = |count: Option<u64>| count.map(PageCount::new);
        let (size, target) = saved.kept;
        Self {
            size_at_close: pages(saved.size_at_close),
            after_reset: saved.after_reset.map(pages),
            kept: Kept { size: pages(size), target: pages(target), set_since: None },
        }
    }

    pub(crate) fn target_set(&mut self, target: PageCount) {
        self.after_reset = self.after_reset.map(|_| Some(target));
    }

    pub(crate) const fn forget_size(&mut self) {
        self.size_at_close = None;
    }

    /// A channel whose ring broke closes a second time: the first size counts.
    pub(crate) fn closed(&mut self, size: PageCount) {
        self.size_at_close.get_or_insert(size);
    }

    /// Records what is kept when the machine stops.
    pub(crate) fn reset(&mut self, size: PageCount, target: Option<PageCount>) {
        let size = self.size_at_close.take().unwrap_or(size);
        self.kept = Kept { size: Some(size), target, set_since: None };
    }
}

impl<M: GuestMemory> DynamicMemory<M> {
    /// Announces that the machine is about to be reset: targets set from now on are for the machine
    /// after the reset, and end up in [`Kept::set_since`].
    pub const fn announce_reset(&mut self) {
        self.leaving.after_reset = Some(None);
    }

    /// Takes what is kept of the machine that was reset. Call it once, when the VSP is quiet after
    /// [`ChannelEvent::Reset`](vmbus::ChannelEvent::Reset).
    pub fn take_kept(&mut self) -> Kept {
        let kept = core::mem::take(&mut self.leaving.kept);
        Kept { set_since: self.leaving.after_reset.take().flatten(), ..kept }
    }

    /// Describes the machine that starts next: its memory, and the target for its guest, in pages.
    /// A target set since the reset is newer and stays.
    ///
    /// # Errors
    /// [`ReplaceError`] if the VSP is not quiet, or if the memory is invalid. Nothing has changed
    /// then.
    pub fn start_machine(
        &mut self,
        now: Duration,
        boot_ram: PageRangeSet,
        hot_add: Option<HotAdd>,
        target: Option<PageCount>,
    ) -> Result<(), ReplaceError> {
        self.advance(now);
        self.device.replace_memory(self.now, boot_ram, hot_add)?;
        self.leaving.forget_size();
        if let Some(target) = target
            && self.device.snapshot().target.is_none()
        {
            // The device remembers a refusal, and the snapshot shows it.
            let _ = self.device.set_target(self.now, target);
        }
        self.work();
        Ok(())
    }
}
