//! ACPI's power management registers (ACPI 6.5, section 4.8.3) and the PC's reset register.
//!
//! The machine is always in ACPI mode and raises no events, since it has no buttons. It is a full
//! ACPI machine and not a "hardware reduced" one, because Linux expects EFI to reset the latter.

use std::time::Instant;

/// PM1a event block: status word, then enable word.
pub(crate) const EVENT_BLOCK: u16 = 0x600;
/// PM1a control block: one word.
pub(crate) const CONTROL_BLOCK: u16 = 0x604;
/// The timer: one double word.
pub(crate) const TIMER_BLOCK: u16 = 0x608;
/// The system control interrupt; never raised.
pub(crate) const SCI_GSI: u8 = 9;
/// The reset register of PCs, and the value that resets.
pub(crate) const RESET: u16 = 0xcf9;
/// Full reset.
pub(crate) const RESET_VALUE: u8 = 0x0e;
/// The sleep type of "off", as in `\_S5`.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

const ENABLE: u16 = EVENT_BLOCK + 2;
/// Bit of the control word: ACPI mode is on.
const SCI_ENABLED: u16 = 1;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7;
const SLEEP_ENABLE: u16 = 1 << 13;
/// Bit of the reset register that starts the reset.
const RESET_CPU: u8 = 1 << 2;
const TIMER_HZ: u128 = 3_579_545;

/// What a write to a register means for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerRequest {
    /// The guest resets itself.
    Reset,
    /// The guest switches itself off.
    Off,
}

/// The registers.
#[derive(Debug)]
pub(crate) struct Power {
    start: Instant,
    enabled_events: u16,
}

impl Power {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), enabled_events: 0 }
    }

    /// The value at a port, if it is one of the registers. The caller takes as many bytes as the
    /// guest reads.
    pub(crate) fn read(&self, port: u16) -> Option<u32> {
        match port {
            EVENT_BLOCK => Some(0),
            ENABLE => Some(self.enabled_events.into()),
            CONTROL_BLOCK => Some(SCI_ENABLED.into()),
            TIMER_BLOCK => Some(self.ticks()),
            _ => None,
        }
    }

    /// Handles a guest write.
    pub(crate) fn write(&mut self, port: u16, data: &[u8]) -> Option<PowerRequest> {
        match (port, data) {
            (ENABLE, &[low, high]) => {
                self.enabled_events = u16::from_le_bytes([low, high]);
                None
            }
            (CONTROL_BLOCK, &[low, high]) => {
                let control = u16::from_le_bytes([low, high]);
                let sleep_type = control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                let off = control & SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_OFF);
                off.then_some(PowerRequest::Off)
            }
            (RESET, &[value]) if value & RESET_CPU != 0 => Some(PowerRequest::Reset),
            _ => None,
        }
    }

    /// The timer has 32 bits and wraps around.
    fn ticks(&self) -> u32 {
        let ticks = self.start.elapsed().as_micros() * TIMER_HZ / 1_000_000;
        u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_and_off_are_told_apart_from_other_writes() {
        let mut power = Power::new();
        assert_eq!(power.write(RESET, &[RESET_VALUE]), Some(PowerRequest::Reset));
        assert_eq!(power.write(RESET, &[0x02]), None);
        let off = (SLEEP_ENABLE | u16::from(SLEEP_TYPE_OFF) << 10 | 1).to_le_bytes();
        assert_eq!(power.write(CONTROL_BLOCK, &off), Some(PowerRequest::Off));
        assert_eq!(power.write(CONTROL_BLOCK, &off[..1]), None);
        assert_eq!(power.write(CONTROL_BLOCK, &[1, 0x14]), None);
    }

    #[test]
    fn acpi_mode_is_on_and_events_can_be_enabled() {
        let mut power = Power::new();
        assert_eq!(power.read(CONTROL_BLOCK), Some(1));
        power.write(ENABLE, &[0x20, 0x01]);
        assert_eq!(power.read(ENABLE), Some(0x120));
        assert_eq!(power.read(RESET), None);
    }
}
