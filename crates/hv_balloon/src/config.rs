//! How a device is set up.

use core::time::Duration;

use page_range::PageRangeSet;

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
const fn is_linux(guest_os_id: u64) -> bool {
    guest_os_id >> 56 == 0x81
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
