//! The I/O ports: a serial port, ACPI's power registers, and the reset line.

use std::io::{self, Stdout};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use kvm_ioctls::VmFd;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::End;

/// COM1: its first port and its interrupt.
pub(crate) const SERIAL: u16 = 0x3f8;
pub(crate) const SERIAL_GSI: u32 = 4;
const SERIAL_LAST: u16 = SERIAL + 7;

/// The interrupt that ACPI lists for the VMBus device. It is never raised.
pub(crate) const VMBUS_GSI: u32 = 7;

/// ACPI's event block (status and enable words), control block (one word) and interrupt. The guest
/// can enable events, but none ever occurs.
pub(crate) const POWER_EVENT: u16 = 0x600;
const POWER_ENABLE: u16 = POWER_EVENT + 2;
pub(crate) const POWER_CONTROL: u16 = 0x604;
pub(crate) const SCI_GSI: u16 = 9;
/// Bit of the control word: the machine is in ACPI mode. It is always set.
const SCI_ENABLED: u16 = 1;
/// The sleep type for power-off, which `\_S5` names, and the high byte of the control word that
/// requests it: SLP_EN in bit 5, and the sleep type from bit 2 up.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
const OFF: u8 = 1 << 5 | SLEEP_TYPE_OFF << 2;

/// The keyboard controller's command port, and the command that pulses the reset line. Nothing else
/// of the controller exists.
const KEYBOARD: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// What a read from an absent device returns.
const NOBODY: u16 = 0xffff;

/// The data port of the real-time clock. It reads as zero, so no guest waits for an update to end.
const CLOCK: u16 = 0x71;

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The devices behind the I/O ports.
pub(crate) struct Devices {
    serial: Mutex<Serial<Interrupt, NoEvents, Stdout>>,
    enabled_events: AtomicU16,
}

impl Devices {
    pub(crate) fn new(vm: &VmFd) -> Result<Self> {
        let interrupt = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&interrupt, SERIAL_GSI)
            .context("cannot connect the serial port's interrupt")?;
        let serial = Serial::new(Interrupt(interrupt), io::stdout());
        Ok(Self { serial: Mutex::new(serial), enabled_events: AtomicU16::new(0) })
    }

    /// Hands console input to the guest; returns how many bytes it had room for.
    pub(crate) fn enqueue(&self, input: &[u8]) -> usize {
        let mut serial = self.serial();
        let room = serial.fifo_capacity().min(input.len());
        serial.enqueue_raw_bytes(&input[..room]).unwrap_or(0)
    }

    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        let word = match port {
            SERIAL..=SERIAL_LAST => self.serial().read(serial_offset(port)).into(),
            KEYBOARD | CLOCK | POWER_EVENT => 0,
            POWER_ENABLE => self.enabled_events.load(Ordering::Relaxed),
            POWER_CONTROL => SCI_ENABLED,
            _ => NOBODY,
        };
        data.fill(0xff);
        for (byte, from) in data.iter_mut().zip(word.to_le_bytes()) {
            *byte = from;
        }
    }

    /// Handles a write by the guest; returns why the machine ends, if the write ends it.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<End> {
        match (port, data) {
            (SERIAL..=SERIAL_LAST, &[byte]) => {
                // This fails once nobody reads the output, which is no concern of the guest's.
                let _ = self.serial().write(serial_offset(port), byte);
            }
            (POWER_ENABLE, &[low, high]) => {
                self.enabled_events.store(u16::from_le_bytes([low, high]), Ordering::Relaxed);
            }
            (POWER_CONTROL, &[_, OFF]) => return Some(End::PowerOff),
            (KEYBOARD, &[KEYBOARD_RESET]) => return Some(End::Reset),
            _ => {}
        }
        None
    }

    fn serial(&self) -> MutexGuard<'_, Serial<Interrupt, NoEvents, Stdout>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serial_offset(port: u16) -> u8 {
    u8::try_from(port - SERIAL).unwrap_or_default()
}
