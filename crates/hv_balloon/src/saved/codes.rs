//! The numbers of stop reasons in saved state.

use crate::StopReason;

macro_rules! codes {
    ($($code:literal $reason:ident,)*) => {
        pub(crate) const fn code(reason: StopReason) -> u8 {
            match reason {
                $(StopReason::$reason => $code,)*
            }
        }

        pub(crate) const fn reason(code: u8) -> Option<StopReason> {
            match code {
                $($code => Some(StopReason::$reason),)*
                _ => None,
            }
        }
    };
}

// A reason's number never changes.
codes! {
    1 GuestFloor,
    2 NothingUsable,
    3 NoBalloonCapability,
    4 Timeout,
    5 DiscardFailed,
    6 HeldByHugePages,
    7 NoHotAddCapability,
    8 HotAddRefused,
    9 HotAddFailed,
    10 HotAddPartial,
    11 HotAddTimeout,
    12 NotOnlined,
    13 NoAddressSpace,
    14 HostMemory,
    15 Reset,
    16 Unconfirmed,
}
