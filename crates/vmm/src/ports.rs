//! The machine's few I/O ports: serial port, clock, keyboard controller's reset line,
//! ACPI registers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cmos::{self, Cmos};
use crate::console::SerialPort;

/// First port of the serial port, COM1.
pub(crate) const SERIAL: u16 = 0x3f8;
/// Its interrupt.
pub(crate) const SERIAL_GSI: u32 = 4;
/// The interrupt that the VMBus device lists; never raised.
pub(crate) const VMBUS_GSI: u32 = 7;
/// ACPI reset register.
pub(crate) const RESET: u16 = 0x600;
/// The value that resets.
pub(crate) const RESET_VALUE: u8 = 1;
/// ACPI sleep control register.
pub(crate) const SLEEP_CONTROL: u16 = 0x601;
/// ACPI sleep status register.
pub(crate) const SLEEP_STATUS: u16 = 0x602;
/// Sleep type of "off", as `\_S5` says.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

const SERIAL_LAST: u16 = SERIAL + 7;
const KEYBOARD_COMMAND: u16 = 0x64;
/// Pulses the reset line; Linux' way out when all else fails.
const KEYBOARD_RESET: u8 = 0xfe;
const SLEEP_ENABLE: u8 = 1 << 5;
/// What an absent device answers.
const NOBODY: u8 = 0xff;

/// What a write to a port means for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerRequest {
    /// The guest resets itself.
    Reset,
    /// The guest switches itself off.
    Off,
}

/// All ports.
pub(crate) struct Ports {
    serial: Mutex<SerialPort>,
    cmos: Mutex<Cmos>,
}

impl Ports {
    pub(crate) fn new(serial: SerialPort) -> Self {
        Self { serial: Mutex::new(serial), cmos: Mutex::default() }
    }

    /// The serial port, for bytes that come from outside.
    pub(crate) fn serial(&self) -> MutexGuard<'_, SerialPort> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cmos(&self) -> MutexGuard<'_, Cmos> {
        self.cmos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(NOBODY);
        if let [byte] = data {
            *byte = match port {
                SERIAL..=SERIAL_LAST => self.serial().read(offset(port)),
                cmos::DATA => self.cmos().read(),
                KEYBOARD_COMMAND | SLEEP_CONTROL | SLEEP_STATUS => 0,
                _ => NOBODY,
            };
        }
    }

    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<PowerRequest> {
        let &[value] = data else {
            return None;
        };
        match port {
            SERIAL..=SERIAL_LAST => {
                self.serial().write(offset(port), value);
                None
            }
            cmos::INDEX => {
                self.cmos().select(value);
                None
            }
            RESET if value == RESET_VALUE => Some(PowerRequest::Reset),
            KEYBOARD_COMMAND if value == KEYBOARD_RESET => Some(PowerRequest::Reset),
            SLEEP_CONTROL if value == SLEEP_ENABLE | SLEEP_TYPE_OFF << 2 => Some(PowerRequest::Off),
            _ => None,
        }
    }
}

fn offset(port: u16) -> u8 {
    u8::try_from(port.wrapping_sub(SERIAL)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{Console, SerialOutput};

    fn ports() -> Ports {
        Ports::new(Console::open(&SerialOutput::None).unwrap().port().unwrap())
    }

    #[test]
    fn reset_and_power_off_are_told_apart_from_other_writes() {
        let ports = ports();
        assert_eq!(ports.write(RESET, &[1]), Some(PowerRequest::Reset));
        assert_eq!(ports.write(0x64, &[0xfe]), Some(PowerRequest::Reset));
        assert_eq!(ports.write(SLEEP_CONTROL, &[0x34]), Some(PowerRequest::Off));
        assert_eq!(ports.write(SLEEP_CONTROL, &[0x14]), None);
        assert_eq!(ports.write(RESET, &[1, 0]), None);
        assert_eq!(ports.write(0x64, &[0xd1]), None);
    }

    #[test]
    fn absent_devices_read_as_ones() {
        let mut data = [0; 4];
        ports().read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
