//! How a device is set up.

use core::time::Duration;

use page_range::{PageCount, PageRange, PageRangeSet};

use crate::StateName;

/// The settle time of guests not known to be Linux: Hyper-V waits so long, and Windows Server 2019
/// crashes when asked right after boot (QEMU `hv-balloon.c`).
pub const DEFAULT_SETTLE: Duration = Duration::from_secs(50);

/// How long the device asks nothing of the guest after the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Settle {
    /// [`DEFAULT_SETTLE`], and no time at all for a guest whose OS id says Linux.
    #[default]
    Auto,
    /// So long.
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

/// Memory the guest may get beyond its boot RAM.
///
/// Where in `window` it goes is decided when the guest has told its alignment, so that none of the
/// capacity is lost to an alignment that no guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotAdd {
    /// Guest addresses that nothing else uses: not RAM, no device, and that the guest can reach.
    /// Starts and ends at multiples of [`Config::discard_unit`].
    pub window: PageRange,
    /// How many pages there are to add: at most those of the window, in whole
    /// [`Config::discard_unit`]s.
    pub capacity: PageCount,
    /// Memory is added in multiples of this even if the guest is content with less: the huge page
    /// behind it, or the guest's memory block size where the VMM knows better than its driver
    /// (Linux 6.1 always says 128 MiB). A multiple of [`Config::discard_unit`].
    pub least_alignment: PageCount,
}

/// What a device is made from.
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
    /// Pages the host can only discard together: 512 for memory of 2 MiB pages. No pages count as
    /// one. Boot RAM and hot-add memory begin and end at multiples of it.
    pub discard_unit: PageCount,
    /// Begin with discards forbidden; see [`Device::set_inhibited`](crate::Device::set_inhibited).
    pub inhibited: bool,
}

/// Why no device is made from a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no boot RAM.
    #[error("the guest has no RAM to boot with; name at least one page of boot RAM")]
    NoBootRam,
    /// Boot RAM consists of more than whole units.
    #[error(
        "boot RAM at pages {range} is not a multiple of the {unit} pages that are discarded \
         together; begin and end it at such multiples"
    )]
    BootRamUnaligned {
        /// The RAM.
        range: PageRange,
        /// [`Config::discard_unit`].
        unit: PageCount,
    },
    /// The window begins or ends within a unit.
    #[error(
        "the hot-add window at pages {window} is not a multiple of the {unit} pages that are \
         discarded together; begin and end it at such multiples"
    )]
    WindowUnaligned {
        /// [`HotAdd::window`].
        window: PageRange,
        /// [`Config::discard_unit`].
        unit: PageCount,
    },
    /// Memory would be added where there is RAM.
    #[error(
        "the hot-add window at pages {window} has boot RAM in it, at pages {ram}; put it where \
         nothing else is"
    )]
    WindowOverlapsRam {
        /// [`HotAdd::window`].
        window: PageRange,
        /// The RAM in it.
        ram: PageRange,
    },
    /// The memory to add ends within a unit.
    #[error(
        "{capacity} pages to add are not a multiple of the {unit} pages that are discarded \
         together; round them down"
    )]
    CapacityUnaligned {
        /// [`HotAdd::capacity`].
        capacity: PageCount,
        /// [`Config::discard_unit`].
        unit: PageCount,
    },
    /// The window has too few pages.
    #[error(
        "{capacity} pages to add do not fit into the hot-add window, pages {window}; enlarge the \
         window or add less"
    )]
    CapacityTooLarge {
        /// [`HotAdd::capacity`].
        capacity: PageCount,
        /// [`HotAdd::window`].
        window: PageRange,
    },
    /// Memory could be added in parts of units.
    #[error(
        "memory aligned to {alignment} pages may begin or end within the {unit} pages that are \
         discarded together; use a multiple of {unit} as the least alignment"
    )]
    AlignmentUnaligned {
        /// [`HotAdd::least_alignment`].
        alignment: PageCount,
        /// [`Config::discard_unit`].
        unit: PageCount,
    },
}

/// Why the memory of the next guest is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// A guest may be using the memory.
    #[error("memory cannot be replaced in state {state}; reset first and wait for CloseFinished")]
    InUse {
        /// The state.
        state: StateName,
    },
    /// The memory cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Checks what a guest is to have for memory.
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
    // Without a least alignment the guest's own decides, which may be less than the unit.
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
