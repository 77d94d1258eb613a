//! The machine's few I/O ports: serial port, clock, the keyboard controller's reset line and ACPI's
//! power registers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cmos::{self, Cmos};
use crate::console::SerialPort;
use crate::power::{Power, PowerRequest};

/// First port of the serial port, COM1.
pub(crate) const SERIAL: u16 = 0x3f8;
/// Its interrupt.
pub(crate) const SERIAL_GSI: u32 = 4;
/// The interrupt listed for the VMBus device; never raised.
pub(crate) const VMBUS_GSI: u32 = 7;
const SERIAL_LAST: u16 = SERIAL + 7;

/// Whether this is a register of the serial port.
pub(crate) const fn is_serial(port: u16) -> bool {
    matches!(port, SERIAL..=SERIAL_LAST)
}
const KEYBOARD_COMMAND: u16 = 0x64;
/// Pulses the reset line; Linux's last resort for a reset.
const KEYBOARD_RESET: u8 = 0xfe;
/// The value read from an absent device.
const NOBODY: u8 = 0xff;

/// All ports.
pub(crate) struct Ports {
    serial: Mutex<SerialPort>,
    cmos: Mutex<Cmos>,
    power: Mutex<Power>,
}

impl Ports {
    pub(crate) fn new(serial: SerialPort) -> Self {
        Self { serial: Mutex::new(serial), cmos: Mutex::default(), power: Mutex::new(Power::new()) }
    }

    /// The serial port, for input from outside.
    pub(crate) fn serial(&self) -> MutexGuard<'_, SerialPort> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cmos(&self) -> MutexGuard<'_, Cmos> {
        self.cmos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn power(&self) -> MutexGuard<'_, Power> {
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(NOBODY);
        if let Some(value) = self.power().read(port) {
            for (byte, from) in data.iter_mut().zip(value.to_le_bytes()) {
                *byte = from;
            }
        } else if let [byte] = data {
            *byte = match port {
                SERIAL..=SERIAL_LAST => self.serial().read(offset(port)),
                cmos::DATA => self.cmos().read(),
                KEYBOARD_COMMAND => 0,
                _ => NOBODY,
            };
        }
    }

    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<PowerRequest> {
        match (port, data) {
            (SERIAL..=SERIAL_LAST, &[value]) => self.serial().write(offset(port), value),
            (cmos::INDEX, &[index]) => self.cmos().select(index),
            (KEYBOARD_COMMAND, &[KEYBOARD_RESET]) => return Some(PowerRequest::Reset),
            _ => return self.power().write(port, data),
        }
        None
    }
}

fn offset(port: u16) -> u8 {
    u8::try_from(port.wrapping_sub(SERIAL)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::{Confinement, Seccomp};
    use crate::console::{Console, SerialOutput};
    use crate::control::control_channel;

    fn ports() -> Ports {
        let (control, _) = control_channel();
        let confinement = Confinement::new(Seccomp::Off, control).unwrap();
        Ports::new(Console::open(&SerialOutput::None, confinement).unwrap().port().unwrap())
    }

    #[test]
    fn the_keyboard_controller_resets() {
        assert_eq!(ports().write(0x64, &[0xfe]), Some(PowerRequest::Reset));
        assert_eq!(ports().write(0x64, &[0xd1]), None);
        assert_eq!(ports().write(0x64, &[0xfe, 0]), None);
    }

    #[test]
    fn registers_are_read_in_the_width_asked_for() {
        let mut data = [0; 2];
        ports().read(crate::power::CONTROL_BLOCK, &mut data);
        assert_eq!(data, [1, 0]);
    }

    #[test]
    fn absent_devices_read_as_ones() {
        let mut data = [0; 4];
        ports().read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
