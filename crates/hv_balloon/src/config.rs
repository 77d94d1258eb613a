//! The configuration of a device.

use core::time::Duration;

use page_range::{PageCount, PageRange, PageRangeSet};

use crate::StateName;

/// The settle time of guests not known to be Linux. Hyper-V waits this long, and Windows Server
/// 2019 crashes if it gets a request right after boot (QEMU `hv-balloon.c`).
pub const DEFAULT_SETTLE: Duration = Duration::from_secs(50);

/// How long the device sends no requests to the guest after the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Settle {
    /// [`DEFAULT_SETTLE`], or no time at all for a guest whose OS ID says Linux.
    #[default]
    Auto,
    /// This long.
    Fixed(Duration),
}

impl Settle {
    pub(crate) const fn time(self, guest_os_id: u64) -> Duration {
        match self {
            Self::Fixed(time) => time,
            Self::Auto if is_linux(guest_os_id) => Duration::ZERO,
            Self::Auto => DEFAULT_SETTLE,
        }
    }
}

/// Bit 63 marks an open-source system, bits 56 to 62 say which; 1 is Linux (TLFS,
/// `HV_X64_MSR_GUEST_OS_ID`).
pub(crate) const fn is_linux(guest_os_id: u64) -> bool {
    guest_os_id >> 56 == 0x81
}

/// Memory that can be added beyond the guest's boot RAM.
///
/// Its place in `window` is chosen once the guest has reported its alignment, so that no capacity
/// is lost to an alignment that no guest needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotAdd {
    /// Guest addresses that neither RAM nor a device uses, and that the guest can address. Start
    /// and end are multiples of [`Config::discard_unit`].
    pub window: PageRange,
    /// The number of pages that can be added: a multiple of [`Config::discard_unit`], and at most
    /// the pages of the window.
    pub capacity: PageCount,
    /// The least alignment of added memory, even if the guest accepts a smaller one: the size of
    /// the huge pages behind it, or the guest's memory block size if the VMM knows it better than
    /// the guest's driver (Linux 6.1 always reports 128 MiB). A multiple of
    /// [`Config::discard_unit`].
    pub least_alignment: PageCount,
}

/// The configuration of a [`Device`](crate::Device).
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The guest's RAM at boot: the pages the host may discard when the guest gives them.
    pub boot_ram: PageRangeSet,
    /// How long to wait before the first request.
    pub settle: Settle,
    /// Ask the guest for status reports and pass them on. Linux sends them in any case.
    pub status_reports: bool,
    /// Memory to add while the guest runs, if any.
    pub hot_add: Option<HotAdd>,
    /// The number of pages that the host can discard only together: 512 if the memory consists of
    /// huge pages of 2 MiB. Zero counts as one. Boot RAM and hot-add memory begin and end at
    /// multiples of this.
    pub discard_unit: PageCount,
    /// Start with discards forbidden; see [`Device::set_inhibited`](crate::Device::set_inhibited).
    pub inhibited: bool,
}

/// Why a configuration is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no boot RAM.
    #[error("the guest has no RAM to boot with; name at least one page of boot RAM")]
    NoBootRam,
    /// Boot RAM begins or ends within a discard unit.
    #[error(
        "boot RAM at pages {range} is not aligned to the discard unit of {unit} pages; align its \
         start and end"
    )]
    BootRamUnaligned {
        /// The RAM.
        range: PageRange,
        /// [`Config::discard_unit`].
        unit: PageCount,
    },
    /// The hot-add window begins or ends within a discard unit.
    #[error(
        "the hot-add window at pages {window} is not aligned to the discard unit of {unit} pages; \
         align its start and end"
    )]
    WindowUnaligned {
        /// [`HotAdd::window`].
        window: PageRange,
        /// [`Config::discard_unit`].
        unit: PageCount,
    },
    /// The hot-add window overlaps boot RAM.
    #[error(
        "the hot-add window at pages {window} overlaps boot RAM at pages {ram}; move it to unused \
         addresses"
    )]
    WindowOverlapsRam {
        /// [`HotAdd::window`].
        window: PageRange,
        /// The boot RAM in the window.
        ram: PageRange,
    },
    /// The hot-add capacity is not a multiple of the discard unit.
    #[error(
        "the hot-add capacity of {capacity} pages is not a multiple of the discard unit of {unit} \
         pages; round it down"
    )]
    CapacityUnaligned {
        /// [`HotAdd::capacity`].
        capacity: PageCount,
        /// [`Config::discard_unit`].
        unit: PageCount,
    },
    /// The hot-add capacity exceeds the window.
    #[error(
        "the hot-add capacity of {capacity} pages does not fit into the hot-add window at pages \
         {window}; enlarge the window or reduce the capacity"
    )]
    CapacityTooLarge {
        /// [`HotAdd::capacity`].
        capacity: PageCount,
        /// [`HotAdd::window`].
        window: PageRange,
    },
    /// Added memory could begin or end within a discard unit.
    #[error(
        "with a least alignment of {alignment} pages, added memory may begin or end within a \
         discard unit of {unit} pages; use a nonzero multiple of {unit}"
    )]
    AlignmentUnaligned {
        /// [`HotAdd::least_alignment`].
        alignment: PageCount,
        /// [`Config::discard_unit`].
        unit: PageCount,
    },
}

/// Why the memory cannot be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// A guest may be using the memory.
    #[error("memory cannot be replaced in state {state}; reset first and wait for CloseFinished")]
    InUse {
        /// The state.
        state: StateName,
    },
    /// The new memory is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Checks the memory of a guest.
pub(crate) fn check_memory(
    boot_ram: &PageRangeSet,
    hot_add: Option<&HotAdd>,
    unit: PageCount,
) -> Result<(), ConfigError> {
    if boot_ram.is_empty() {
        return Err(ConfigError::NoBootRam);
    }
    if let Some(range) = boot_ram.iter().find(|&range| !range.is_whole(unit)) {
        return Err(ConfigError::BootRamUnaligned { range, unit });
    }
    let Some(&HotAdd { window, capacity, least_alignment: alignment }) = hot_add else {
        return Ok(());
    };
    if !window.is_whole(unit) {
        return Err(ConfigError::WindowUnaligned { window, unit });
    }
    if let Some(ram) = boot_ram.intersection(window).next() {
        return Err(ConfigError::WindowOverlapsRam { window, ram });
    }
    if capacity.align_down(unit) != capacity {
        return Err(ConfigError::CapacityUnaligned { capacity, unit });
    }
    if capacity > window.count() {
        return Err(ConfigError::CapacityTooLarge { capacity, window });
    }
    // Without a least alignment, the guest's alignment applies, which may be smaller than the unit.
    let divides_units = alignment.is_zero() && unit > PageCount::new(1);
    if divides_units || alignment.align_down(unit) != alignment {
        return Err(ConfigError::AlignmentUnaligned { alignment, unit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_needs_no_time_to_settle() {
        assert_eq!(Settle::Auto.time(0x8100_0601_0000_0000), Duration::ZERO);
        assert_eq!(Settle::Fixed(Duration::MAX).time(0x8100_0601_0000_0000), Duration::MAX);
    }

    #[test]
    fn windows_other_systems_and_none_get_fifty_seconds() {
        let ids = [0x0001_0406_0002_23f0, 0x8200_0000_0000_0000, 0x0100_0000_0000_0000, 0];
        assert_eq!(ids.map(|id| Settle::Auto.time(id)), [DEFAULT_SETTLE; 4]);
    }
}
