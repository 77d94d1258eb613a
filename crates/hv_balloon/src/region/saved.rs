//! The memory to add to what is written and back.

use page_range::{Gpfn, PageCount, PageRange};
use saved_state::Range;

use super::{Region, Unanswered};
use crate::action::Prepare;
use crate::saved::{Result, ensure, form};

impl Region {
    pub(crate) fn save(&self) -> form::Region {
        form::Region {
            base: self.base.map(Gpfn::get),
            used: self.used.get(),
            reach: self.reach.get(),
            unanswered: self.unanswered.map(|late| (Range(late.range), late.is_told)),
            is_proven: self.is_proven,
        }
    }

    pub(crate) const fn save_config(&self) -> form::HotAdd {
        form::HotAdd {
            window: Range(self.config.window),
            capacity: self.config.capacity.get(),
            least_alignment: self.config.least_alignment.get(),
        }
    }

    /// The region with what was written, if that can be.
    pub(crate) fn restore(&self, saved: Option<form::Region>) -> Result<Self> {
        let Some(saved) = saved else {
            ensure(false, "no memory to add where there is some")?;
            return Ok(self.clone());
        };
        let base = saved.base.map(Gpfn::new);
        ensure(base != Some(None), "memory added outside the address space")?;
        let unanswered =
            saved.unanswered.map(|(Range(range), is_told)| Unanswered { range, is_told });
        let region = Self {
            config: self.config,
            base: base.flatten(),
            used: PageCount::new(saved.used),
            reach: PageCount::new(saved.reach),
            unanswered,
            is_proven: saved.is_proven,
        };
        let window = self.config.window;
        let in_window = match region.base {
            Some(base) => {
                let end = base.checked_add(region.reach);
                base >= window.start() && end.is_some_and(|end| end <= window.end())
            }
            None => region.reach.is_zero(),
        };
        ensure(
            in_window && region.used <= region.reach && region.reach <= self.config.capacity,
            "more memory added than there is",
        )?;
        Ok(region)
    }

    /// Whether `range` was added, as far as the region knows.
    pub(crate) fn has_added(&self, range: PageRange) -> bool {
        let end = self.end_of_used();
        self.base.is_some_and(|base| base <= range.start()) && Some(range.end()) <= end
    }

    /// Whether `range` may be on offer to a guest of this alignment.
    pub(crate) fn can_offer(&self, range: PageRange, of_guest: PageCount) -> bool {
        let limit = self.base.and_then(|base| base.checked_add(self.reach));
        let is_free = self.end_of_used().is_some_and(|end| end <= range.start());
        is_free
            && range.units_within(self.alignment(of_guest)) == Some(range)
            && limit.is_some_and(|limit| range.end() <= limit)
    }

    /// Whether `range` can have been memory to add.
    pub(crate) fn may_hold(&self, range: PageRange) -> bool {
        self.config.window.intersection(range) == Some(range)
    }

    /// How memory on offer is prepared.
    pub(crate) fn prepare(&self, range: PageRange, of_guest: PageCount) -> Option<Prepare> {
        let offset = range.start().distance_from(self.base?);
        Some(Prepare::Add { range, offset, alignment: self.alignment(of_guest) })
    }

    /// The first page that is not used; `None` where there is no base, or none that high.
    fn end_of_used(&self) -> Option<Gpfn> {
        self.base?.checked_add(self.used)
    }
}
