//! A driver for the devices, as a guest has one: it writes registers and rings.

use std::sync::Arc;

use guest_ram::{GuestRam, RamConfig};
use page_range::PageCount;
use virtio_bindings::virtio_mmio as register;
use virtio_devices::{Device, MmioDevice};
use vm_memory::{Bytes, GuestAddress};

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
// Flags of descriptors (virtio 1.2, 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
pub(crate) const NEEDS_RESET: u32 = 64;
pub(crate) const MIB: u64 = 1 << 20;

/// Where the driver puts things.
pub(crate) const TABLE: u64 = 0x1_0000;
pub(crate) const AVAIL: u64 = 0x2_0000;
pub(crate) const USED: u64 = 0x3_0000;
const IDLE: u64 = 0x4_0000;
pub(crate) const DATA: u64 = 0x10_0000;
pub(crate) const RAM: u64 = 16 * MIB;

pub(crate) struct Driver {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) device: MmioDevice,
    /// The number of the queue that it uses.
    pub(crate) queue: u32,
    /// A queue that it sets up and does not use.
    pub(crate) idle: Option<u32>,
    pub(crate) size: u16,
    pub(crate) avail: u16,
    used: u16,
}

impl Driver {
    /// A driver that has accepted `features` and set up a queue.
    pub(crate) fn start(device: Arc<dyn Device>, features: u64) -> Self {
        let config = RamConfig { size: PageCount::from_bytes(RAM), ..RamConfig::default() };
        Self::start_in(Arc::new(GuestRam::new(&config).unwrap()), device, features)
    }

    pub(crate) fn start_in(ram: Arc<GuestRam>, device: Arc<dyn Device>, features: u64) -> Self {
        let device = MmioDevice::new(device, &ram).unwrap();
        let mut driver = Self { ram, device, queue: 0, idle: None, size: 0, avail: 0, used: 0 };
        driver.set_up(features);
        driver
    }

    /// Brings the device up, from its reset on.
    pub(crate) fn set_up(&mut self, features: u64) {
        self.write(register::VIRTIO_MMIO_STATUS, 0);
        self.write(register::VIRTIO_MMIO_STATUS, 3);
        for half in 0..2 {
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let value = u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap();
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.write(register::VIRTIO_MMIO_STATUS, 11);
        self.set_up_queue();
        self.write(register::VIRTIO_MMIO_STATUS, 15);
    }

    pub(crate) fn set_up_queue(&mut self) {
        if let Some(idle) = self.idle {
            self.place_queue(idle, IDLE);
        }
        self.size = self.place_queue(self.queue, 0);
        (self.avail, self.used) = (0, 0);
    }

    /// Sets up a queue, with its rings so far above the places of the one that is used.
    fn place_queue(&self, queue: u32, above: u64) -> u16 {
        self.write(register::VIRTIO_MMIO_QUEUE_SEL, queue);
        let most = self.read(register::VIRTIO_MMIO_QUEUE_NUM_MAX);
        self.put(AVAIL + above, &[0; 4]);
        self.put(USED + above, &[0; 4]);
        self.write(register::VIRTIO_MMIO_QUEUE_NUM, most);
        for (register, address) in [
            (register::VIRTIO_MMIO_QUEUE_DESC_LOW, TABLE),
            (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL),
            (register::VIRTIO_MMIO_QUEUE_USED_LOW, USED),
        ] {
            self.write(register, u32::try_from(address + above).unwrap());
            self.write(register + 4, 0);
        }
        self.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
        u16::try_from(most).unwrap()
    }

    pub(crate) fn read(&self, register: u32) -> u32 {
        let mut value = [0; 4];
        self.device.read(register.into(), &mut value);
        u32::from_le_bytes(value)
    }

    pub(crate) fn write(&self, register: u32, value: u32) {
        self.device.write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.read(register::VIRTIO_MMIO_STATUS)
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Writes entry `index` of the table at `table`.
    pub(crate) fn describe(
        &self,
        table: u64,
        index: u16,
        (address, len): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let mut entry = address.to_le_bytes().to_vec();
        entry.extend(len.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        entry.extend(next.to_le_bytes());
        self.put(table + u64::from(index) * 16, &entry);
    }

    /// Offers the chain that begins with entry `head`.
    pub(crate) fn offer(&mut self, head: u16) {
        let place = AVAIL + 4 + u64::from(self.avail % self.size) * 2;
        self.put(place, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.put(AVAIL + 2, &self.avail.to_le_bytes());
    }

    /// Offers a chain of these buffers, the readable ones first.
    pub(crate) fn request(&mut self, buffers: &[(u64, u32, bool)]) {
        let last = buffers.len() - 1;
        for (index, (address, len, writable)) in buffers.iter().enumerate() {
            let flags = if *writable { WRITE } else { 0 } | if index < last { NEXT } else { 0 };
            let index = u16::try_from(index).unwrap();
            self.describe(TABLE, index, (*address, *len), flags, index + 1);
        }
        self.offer(0);
    }

    /// The next request that the device has completed: its head, and the bytes written.
    pub(crate) fn completed(&mut self) -> Option<(u32, u32)> {
        let word = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().unwrap());
        let index = u16::from_le_bytes(self.get(USED + 2, 2).try_into().unwrap());
        if index == self.used {
            return None;
        }
        let place = USED + 4 + u64::from(self.used % self.size) * 8;
        self.used = self.used.wrapping_add(1);
        Some((word(self.get(place, 4)), word(self.get(place + 4, 4))))
    }
}
