//! A PC's real-time clock, from which Linux reads the date while it boots. Without one, Linux waits
//! for it for seconds and starts in 1970.

use time::OffsetDateTime;

/// Index port; the next one is the data port.
pub(crate) const INDEX: u16 = 0x70;
/// Data port.
pub(crate) const DATA: u16 = 0x71;
/// Register of the century, as ACPI's FADT names it.
pub(crate) const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const STATUS_A: u8 = 0xa;
const STATUS_B: u8 = 0xb;
const STATUS_D: u8 = 0xd;

/// A 32,768 Hz crystal; never an update in progress.
const DIVIDER: u8 = 0x20;
/// 24-hour format. Numbers are BCD: Linux assumes this on a PC (`RTC_ALWAYS_BCD`), whatever this
/// register says.
const DECIMAL_24_HOURS: u8 = 0x02;
/// The battery is good.
const VALID: u8 = 0x80;

/// The clock. It shows the host's time in UTC and cannot be set.
#[derive(Debug, Default)]
pub(crate) struct Cmos {
    index: u8,
}

impl Cmos {
    /// Handles a write to the index port. The top bit masks the NMI and has no effect here.
    pub(crate) fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// Handles a read of the data port.
    pub(crate) fn read(&self) -> u8 {
        self.register(OffsetDateTime::now_utc())
    }

    fn register(&self, now: OffsetDateTime) -> u8 {
        let year = u32::try_from(now.year()).unwrap_or(1970);
        let number = match self.index {
            SECONDS => now.second(),
            MINUTES => now.minute(),
            HOURS => now.hour(),
            WEEKDAY => now.weekday().number_from_sunday(),
            DAY => now.day(),
            MONTH => now.month().into(),
            YEAR => u8::try_from(year % 100).unwrap_or(0),
            CENTURY => u8::try_from(year / 100).unwrap_or(19),
            STATUS_A => return DIVIDER,
            STATUS_B => return DECIMAL_24_HOURS,
            STATUS_D => return VALID,
            _ => return 0,
        };
        ((number / 10) << 4) | (number % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_told_register_by_register() {
        let now = OffsetDateTime::from_unix_timestamp(1_795_405_320).unwrap();
        let read = |index: u8| {
            let mut cmos = Cmos::default();
            cmos.select(index | 0x80);
            cmos.register(now)
        };
        let date = [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS].map(read);
        assert_eq!(date, [0x20, 0x26, 0x11, 0x23, 0x03, 0x42, 0]);
        assert_eq!(read(STATUS_A) & 0x80, 0, "an update in progress would stop the guest");
    }
}
