//! The virtio devices of a VM, and their places in each of its machines.

mod network;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use guest_ram::GuestRam;
use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_devices::{
    Deed, Device, Disk, Entropy, Image, ImageError, MMIO_SIZE, MmioDevice, Worker, WorkerKind,
};

use crate::config::{Config, DiskConfig};
use crate::confine::{Confinement, Thread};
use crate::error::{MachineError, VmmError};
use crate::log_limit::LogLimit;

/// The registers of the first device, in the hole below 4 GiB. The others follow.
const BASE: u64 = 0xd000_0000;
/// The first interrupt: above those of a PC's own devices.
const FIRST_GSI: u32 = 16;
/// The most devices: one for each pin that the I/O APIC has above [`FIRST_GSI`].
const MOST: usize = 8;

/// A device's place in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) number: u8,
    /// Its registers, [`MMIO_SIZE`] bytes.
    pub(crate) base: u64,
    pub(crate) gsi: u32,
}

/// The places of so many devices.
pub(crate) fn places(count: usize) -> impl Iterator<Item = Place> {
    (0..).take(count.min(MOST)).map(|number: u8| Place {
        number,
        base: BASE + u64::from(number) * MMIO_SIZE,
        gsi: FIRST_GSI + u32::from(number),
    })
}

/// The devices of a VM. They outlive its machines.
#[derive(Clone)]
pub(crate) struct Devices(Vec<Arc<dyn Device>>);

impl Devices {
    /// Opens everything that the devices need.
    pub(crate) fn open(config: &Config) -> Result<Self, VmmError> {
        let mut devices: Vec<Arc<dyn Device>> = Vec::new();
        for disk in &config.disks {
            devices.push(Arc::new(open_disk(disk)?));
        }
        for (number, network) in (0..).zip(&config.networks) {
            devices.push(Arc::new(network::open(network, config, number)?));
        }
        devices.push(Arc::new(Entropy));
        if devices.len() > MOST {
            return Err(VmmError::TooManyDevices { most: MOST - 1 });
        }
        Ok(Self(devices))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Puts the devices into a machine, whose vCPUs must not run yet.
    pub(crate) fn plug(
        &self,
        vm: &VmFd,
        ram: &Arc<GuestRam>,
    ) -> Result<MachineDevices, MachineError> {
        let plug = |(device, place): (&Arc<dyn Device>, Place)| {
            let device = MmioDevice::new(Arc::clone(device), ram)
                .map_err(MachineError::system("cannot make a virtio device"))?;
            vm.register_irqfd(device.interrupt(), place.gsi)
                .map_err(MachineError::kvm("cannot connect a device's interrupt"))?;
            let (offset, queues) = device.queues();
            let notify = IoEventAddress::Mmio(place.base + offset);
            for (number, queue) in (0_u32..).zip(queues) {
                vm.register_ioevent(queue.kick(), &notify, number)
                    .map_err(MachineError::kvm("cannot connect a device's queue"))?;
            }
            Ok(device)
        };
        let devices = self.0.iter().zip(places(self.count())).map(plug);
        let devices = devices.collect::<Result<_, MachineError>>()?;
        Ok(MachineDevices { devices, threads: Mutex::default() })
    }
}

/// The devices of one machine.
pub(crate) struct MachineDevices {
    devices: Vec<MmioDevice>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl MachineDevices {
    /// The guest reads where there is no memory.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.at(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes where there is no memory.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.at(address) {
            device.write(offset, data);
        }
    }

    fn at(&self, address: u64) -> Option<(&MmioDevice, u64)> {
        let offset = address.checked_sub(BASE)?;
        let number = usize::try_from(offset / MMIO_SIZE).ok()?;
        Some((self.devices.get(number)?, offset % MMIO_SIZE))
    }

    /// Starts the devices' threads.
    pub(crate) fn start(&self, confinement: &Confinement) -> Result<(), MachineError> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for Worker { kind, run } in self.devices.iter().flat_map(MmioDevice::workers) {
            let confinement = confinement.clone();
            let thread = Thread::from(kind);
            let confined = move || {
                let _guard = confinement.control().report_panic("device's");
                if confinement.enter(thread).is_ok() {
                    run();
                }
            };
            let started = thread.builder().spawn(confined);
            threads.push(started.map_err(MachineError::system("cannot start a device's thread"))?);
        }
        Ok(())
    }

    /// Tells the devices that memory was added or removed.
    #[cfg(feature = "hv-balloon")]
    pub(crate) fn memory_changed(&self) {
        self.devices.iter().for_each(MmioDevice::memory_changed);
    }

    /// Ends the threads. Afterwards no device accesses the guest's memory.
    pub(crate) fn stop(&self) {
        self.devices.iter().for_each(MmioDevice::stop);
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
    }
}

impl From<WorkerKind> for Thread {
    fn from(kind: WorkerKind) -> Self {
        match kind {
            WorkerKind::Disk => Self::Disk,
            WorkerKind::Entropy => Self::Entropy,
            WorkerKind::NetReceive => Self::NetReceive,
            WorkerKind::NetSend => Self::NetSend,
        }
    }
}

fn open_disk(disk: &DiskConfig) -> Result<Disk, ImageError> {
    let image = Image::open(&disk.path, disk.format, disk.is_read_only)?;
    let name = disk.path.display().to_string();
    let limit = Mutex::new(LogLimit::new("disk errors"));
    let failures = move |deed: Deed, error: &std::io::Error| {
        limit.lock().unwrap_or_else(PoisonError::into_inner).log(|| {
            let remedy = crate::error::remedy(error.raw_os_error().unwrap_or_default());
            tracing::error!("cannot {deed} the disk image '{name}'{remedy}: {error}");
        });
    };
    Ok(Disk::new(image, disk.id.as_deref().unwrap_or_default(), Box::new(failures)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_apart_below_the_interrupt_controllers_and_above_ram() {
        let places: Vec<Place> = places(100).collect();
        assert_eq!(places.len(), MOST);
        for (place, next) in places.iter().zip(places.iter().skip(1)) {
            assert!(place.base + MMIO_SIZE <= next.base && place.gsi < next.gsi);
        }
        assert!(places.first().is_some_and(|it| it.base >= guest_ram::LOW_RAM_LIMIT.get()));
        // KVM's I/O APIC has 24 pins.
        assert!(places.last().is_some_and(|it| it.base + MMIO_SIZE < 0xfec0_0000 && it.gsi < 24));
    }
}
