//! The scenarios: which pages the guest gives, and their state.

use guest_ram::{HugePages, MemoryKind};
use page_range::{PageCount, PageRange};

/// The ranges that the guest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// 2 MiB each, one after another, as Linux gives them.
    Large,
    /// Every other 64 KiB, so that nothing can be merged.
    Medium,
    /// Every other page.
    Single,
    /// Every page, each in a range of its own.
    Neighbours,
}

impl Pieces {
    const ALL: [Self; 4] = [Self::Large, Self::Medium, Self::Single, Self::Neighbours];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Large => "2 MiB",
            Self::Medium => "64 KiB, every other",
            Self::Single => "4 KiB, every other",
            Self::Neighbours => "4 KiB, neighbours",
        }
    }

    const fn pages(self) -> u64 {
        match self {
            Self::Large => 512,
            Self::Medium => 16,
            Self::Single | Self::Neighbours => 1,
        }
    }

    /// The pieces of `range`, lowest first.
    pub(crate) fn of(self, range: PageRange) -> Vec<PageRange> {
        let size = PageCount::new(self.pages());
        let step = match self {
            Self::Medium | Self::Single => 2 * self.pages(),
            Self::Large | Self::Neighbours => self.pages(),
        };
        (0..range.count().get() / step)
            .filter_map(|index| {
                let start = range.start().checked_add(PageCount::new(index * step))?;
                PageRange::new(start, size).ok()
            })
            .collect()
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) kind: MemoryKind,
    pub(crate) pieces: Pieces,
    /// The guest has written to all pages.
    pub(crate) is_dirty: bool,
}

impl Scenario {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [MemoryKind::Anonymous, MemoryKind::Memfd].into_iter().flat_map(|kind| {
            [true, false].into_iter().flat_map(move |is_dirty| {
                Pieces::ALL.into_iter().map(move |pieces| Self { kind, pieces, is_dirty })
            })
        })
    }

    pub(crate) const fn memory(self) -> &'static str {
        match self.kind {
            MemoryKind::Anonymous => "anonymous, huge pages",
            MemoryKind::Memfd => "memfd",
        }
    }

    pub(crate) const fn state(self) -> &'static str {
        if self.is_dirty { "dirtied" } else { "untouched" }
    }

    pub(crate) fn name(self) -> String {
        format!("{}, {}, {}", self.memory(), self.state(), self.pieces.name())
    }

    pub(crate) const fn huge_pages(self) -> HugePages {
        match self.kind {
            MemoryKind::Anonymous => HugePages::Transparent,
            MemoryKind::Memfd => HugePages::Off,
        }
    }
}
