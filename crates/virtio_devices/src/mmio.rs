//! The transport: a device's registers (virtio 1.2, 4.2.2).

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use guest_ram::GuestRam;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::queue::{Next, Signals, VirtQueue};
use crate::{BUFFER, Device, Vhost, Worker};

/// Bytes of address space that a device takes.
pub const MMIO_SIZE: u64 = 0x1000;

/// Where the guest writes a queue's number to notify of requests: for the hypervisor, which turns
/// such a write of 32 bits into an event on [`VirtQueue::kick`].
const NOTIFY: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// `virt`, in little-endian order.
const MAGIC: u32 = 0x7472_6976;
/// Not the legacy interface.
const VERSION: u32 = 2;
/// `HVB `: any value will do.
const VENDOR: u32 = 0x2042_5648;
/// What the length of a shared memory region reads as that is not there.
const NO_REGION: u32 = u32::MAX;

/// The features of every device here.
pub(crate) const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A device in one machine.
pub struct MmioDevice {
    device: Arc<dyn Device>,
    ram: Arc<GuestRam>,
    signals: Arc<Signals>,
    queues: Vec<Arc<VirtQueue>>,
    registers: Mutex<Registers>,
}

#[derive(Default)]
struct Registers {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
}

impl MmioDevice {
    /// Puts a device into a machine with this memory.
    ///
    /// # Errors
    /// The system has no eventfds left.
    pub fn new(device: Arc<dyn Device>, ram: &Arc<GuestRam>) -> io::Result<Self> {
        let signals = Arc::new(Signals::new()?);
        let queue =
            |size: &u16| VirtQueue::new(*size, Arc::clone(ram), Arc::clone(&signals)).map(Arc::new);
        let queues = device.queue_sizes().iter().map(queue).collect::<io::Result<_>>()?;
        let ram = Arc::clone(ram);
        Ok(Self { device, ram, signals, queues, registers: Mutex::default() })
    }

    /// The eventfd to connect to the device's interrupt, which is edge-triggered.
    #[must_use]
    pub fn interrupt(&self) -> &EventFd {
        self.signals.interrupt()
    }

    /// The queues, by number. A 32-bit write of the number at the first value, an offset in the
    /// registers, is to write to [`VirtQueue::kick`].
    #[must_use]
    pub fn queues(&self) -> (u64, &[Arc<VirtQueue>]) {
        (NOTIFY, &self.queues)
    }

    /// The threads to start.
    #[must_use]
    pub fn workers(&self) -> Vec<Worker> {
        let threads = |(number, queue): (usize, &Arc<VirtQueue>)| {
            let (kind, count) = self.device.service(number);
            let worker = || {
                let (device, queue) = (Arc::clone(&self.device), Arc::clone(queue));
                let run = move || {
                    let mut buffer = vec![0; BUFFER];
                    while let Some(next) = queue.next() {
                        match next {
                            Next::Request(chain) => {
                                device.serve((number, &queue), &chain, &mut buffer);
                            }
                            Next::KernelFailed => {
                                device.vhost().into_iter().for_each(Vhost::failed)
                            }
                        }
                    }
                };
                Worker { kind, run: Box::new(run) }
            };
            std::iter::repeat_with(worker).take(count).collect::<Vec<_>>()
        };
        self.queues.iter().enumerate().flat_map(threads).collect()
    }

    /// Serves the requests that are there, on this thread: for a caller without [`Worker`]s.
    pub fn serve_now(&self) {
        let mut buffer = vec![0; BUFFER];
        for (number, queue) in self.queues.iter().enumerate() {
            while let Some(chain) = queue.take() {
                self.device.serve((number, queue), &chain, &mut buffer);
            }
        }
    }

    /// Memory was added to the machine, or removed. Threads find that out by themselves; a kernel that
    /// serves the device does not access what was removed when this returns.
    pub fn memory_changed(&self) {
        self.vhost().for_each(Vhost::memory_changed);
    }

    /// Has all threads end, soon. A kernel that serves the device has stopped when this returns.
    pub fn stop(&self) {
        self.vhost().for_each(Vhost::stop);
        self.signals.stop();
        self.queues.iter().for_each(|queue| queue.stop());
    }

    fn vhost(&self) -> impl Iterator<Item = &Vhost> {
        self.device.vhost().into_iter()
    }

    /// The guest reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some(config) = offset.checked_sub(register::VIRTIO_MMIO_CONFIG.into()) else {
            if let (Ok(register), Ok(data)) =
                (u32::try_from(offset), <&mut [u8; 4]>::try_from(data))
            {
                *data = self.read_register(register).to_le_bytes();
            }
            return;
        };
        let config = usize::try_from(config).ok().and_then(|at| self.device.config().get(at..));
        for (byte, value) in data.iter_mut().zip(config.unwrap_or_default()) {
            *byte = *value;
        }
    }

    /// The guest writes `data` at `offset`. No configuration space can be written.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(register), Ok(data)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(data));
        }
    }

    fn features(&self) -> u64 {
        self.device.features() | RING_FEATURES
    }

    fn read_register(&self, register: u32) -> u32 {
        let registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = self.selected(&registers);
        match register {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.features(), registers.device_features_select)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(VirtQueue::is_ready).into(),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.signals.interrupt_status(),
            register::VIRTIO_MMIO_STATUS => registers.status | self.signals.status(),
            register::VIRTIO_MMIO_SHM_LEN_LOW | register::VIRTIO_MMIO_SHM_LEN_HIGH => NO_REGION,
            _ => 0,
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        match register {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => registers.accept(value),
            register::VIRTIO_MMIO_QUEUE_SEL => registers.queue_select = value,
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.signals.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.set_status(&mut registers, value),
            // KVM handles the others of these, those of a queue there is.
            register::VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(queue) = self.queue(value) {
                    queue.notify();
                }
            }
            _ => {
                if register == register::VIRTIO_MMIO_QUEUE_READY && value != 1 {
                    // The kernel has all queues or none.
                    self.vhost().for_each(Vhost::hand_back);
                }
                if let Some(queue) = self.selected(&registers) {
                    configure(queue, register, value);
                }
            }
        }
    }

    fn set_status(&self, registers: &mut Registers, status: u32) {
        if status == 0 {
            self.vhost().for_each(Vhost::stop);
            self.queues.iter().for_each(|queue| queue.reset());
            self.signals.reset();
            *registers = Registers::default();
            return;
        }
        let added = status & !registers.status;
        let mut status = status & !self.signals.status();
        let features = registers.driver_features;
        let acceptable =
            features & !self.features() == 0 && features >> VIRTIO_F_VERSION_1 & 1 != 0;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !acceptable {
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            status &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        if added & status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            let mut kernels = self.vhost();
            if !kernels.any(|it| it.start(&self.queues, &self.signals, &self.ram, features)) {
                self.queues.iter().for_each(|queue| queue.go_live(features));
            }
        }
        if status & VIRTIO_CONFIG_S_FAILED != 0 {
            self.vhost().for_each(Vhost::stop);
            self.queues.iter().for_each(|queue| queue.reset());
        }
        registers.status = status;
    }

    fn selected(&self, registers: &Registers) -> Option<&VirtQueue> {
        self.queue(registers.queue_select)
    }

    fn queue(&self, number: u32) -> Option<&VirtQueue> {
        self.queues.get(usize::try_from(number).ok()?).map(|queue| &**queue)
    }
}

impl Registers {
    /// Takes half of the features that the driver wants. Once it has said that these are all, they
    /// stay.
    fn accept(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_features_select {
            0 => 0,
            1 => u32::BITS,
            // There are no such features, and so none can be accepted.
            _ => return,
        };
        let others = self.driver_features & !(u64::from(u32::MAX) << shift);
        self.driver_features = others | u64::from(value) << shift;
    }
}

fn configure(queue: &VirtQueue, register: u32, value: u32) {
    // Halves of addresses, put together before the alignment is checked.
    let low = |address: u64| GuestAddress(address >> 32 << 32 | u64::from(value));
    let high = |address: u64| GuestAddress(u64::from(value) << 32 | u64::from(half(address, 0)));
    match register {
        register::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
        register::VIRTIO_MMIO_QUEUE_NUM => {
            queue.configure(|queue| queue.try_set_size(u16::try_from(value).unwrap_or_default()))
        }
        register::VIRTIO_MMIO_QUEUE_DESC_LOW => {
            queue.configure(|it| it.try_set_desc_table_address(low(it.desc_table())));
        }
        register::VIRTIO_MMIO_QUEUE_DESC_HIGH => {
            queue.configure(|it| it.try_set_desc_table_address(high(it.desc_table())));
        }
        register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
            queue.configure(|it| it.try_set_avail_ring_address(low(it.avail_ring())));
        }
        register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
            queue.configure(|it| it.try_set_avail_ring_address(high(it.avail_ring())));
        }
        register::VIRTIO_MMIO_QUEUE_USED_LOW => {
            queue.configure(|it| it.try_set_used_ring_address(low(it.used_ring())));
        }
        register::VIRTIO_MMIO_QUEUE_USED_HIGH => {
            queue.configure(|it| it.try_set_used_ring_address(high(it.used_ring())));
        }
        _ => {}
    }
}

/// The lower half of a number (`0`) or the upper one (`1`).
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default(),
        1 => u32::try_from(value >> 32).unwrap_or_default(),
        _ => 0,
    }
}
