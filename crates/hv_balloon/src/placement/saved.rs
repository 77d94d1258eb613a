//! Saving and restoring the placement of added memory.

use page_range::{Gpfn, PageCount, PageRange};
use saved_state::Range;

use super::HotAddPlacement;
use crate::action::Prepare;
use crate::saved::{Result, ensure, form};

impl HotAddPlacement {
    pub(crate) fn save(&self) -> form::Placement {
        form::Placement {
            base: self.base.map(Gpfn::get),
            used: self.used.get(),
            reach: self.reach.get(),
        }
    }

    pub(crate) const fn save_config(&self) -> form::HotAdd {
        form::HotAdd {
            window: Range(self.config.window),
            capacity: self.config.capacity.get(),
            least_alignment: self.config.least_alignment.get(),
        }
    }

    /// Restores the placement, if the saved one is possible.
    pub(crate) fn restore(&self, saved: form::Placement) -> Result<Self> {
        let base = saved.base.map(Gpfn::new);
        ensure(base != Some(None), "memory added outside the address space")?;
        let placement = Self {
            config: self.config,
            base: base.flatten(),
            used: PageCount::new(saved.used),
            reach: PageCount::new(saved.reach),
        };
        let window = self.config.window;
        let in_window = match placement.base {
            Some(base) => {
                let end = base.checked_add(placement.reach);
                base >= window.start() && end.is_some_and(|end| end <= window.end())
            }
            None => placement.reach.is_zero(),
        };
        ensure(
            in_window
                && placement.used <= placement.reach
                && placement.reach <= self.config.capacity,
            "more memory added than the window or the capacity allows",
        )?;
        Ok(placement)
    }

    /// Whether `range` lies in the used memory.
    pub(crate) fn has_added(&self, range: PageRange) -> bool {
        let end = self.end_of_used();
        self.base.is_some_and(|base| base <= range.start()) && Some(range.end()) <= end
    }

    /// Whether `range` can be on offer to a guest with this alignment.
    pub(crate) fn can_offer(&self, range: PageRange, of_guest: PageCount) -> bool {
        let limit = self.base.and_then(|base| base.checked_add(self.reach));
        let is_free = self.end_of_used().is_some_and(|end| end <= range.start());
        is_free
            && range.is_whole(self.alignment(of_guest))
            && limit.is_some_and(|limit| range.end() <= limit)
    }

    /// Whether `range` can be hot-add memory.
    pub(crate) fn may_hold(&self, range: PageRange) -> bool {
        self.config.window.contains_range(range)
    }

    /// The preparation of memory at `range`.
    pub(crate) fn prepare(&self, range: PageRange, of_guest: PageCount) -> Option<Prepare> {
        let offset = range.start().distance_from(self.base?);
        Some(Prepare::Add { range, offset, alignment: self.alignment(of_guest) })
    }

    /// The first unused page; `None` if there is no base, or if the page number would be too high.
    fn end_of_used(&self) -> Option<Gpfn> {
        self.base?.checked_add(self.used)
    }
}
