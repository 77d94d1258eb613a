#![forbid(unsafe_code)]
//! Virtio devices over MMIO: disk, network and entropy.
//!
//! [`MmioDevice`] is the transport: the registers that the guest sees (virtio 1.2, 4.2.2), with
//! split rings and `VIRTIO_F_VERSION_1`. Behind it is a [`Device`], which outlives the machine, and
//! whose [`Worker`]s, threads that the caller starts for each machine, take requests from the
//! [`VirtQueue`]s. The caller connects the eventfds of transport and queues to the hypervisor.
//!
//! # Guest memory is hostile
//!
//! All of this works on [`guest_ram::DeviceMemory`], taken anew for each access: memory that was
//! added is there at once, memory that was removed is not, and a page that the host's pool has gives
//! an error. The crate reads each descriptor once, keeps no address in the host, and copies data
//! between guest memory and buffers of its own, so that input and output may take their time without
//! holding guest memory.
//!
//! A guest that breaks the rules of a ring (a chain that loops or has no end, a ring outside memory,
//! an index that runs ahead) stops its device: `DEVICE_NEEDS_RESET` is set, and nothing more is
//! taken from the ring until the guest resets the device. A request that names memory that is not
//! there fails alone, where its device can tell the guest so.

mod chain;
mod disk;
mod entropy;
mod mmio;
mod net;
mod queue;
mod wait;

pub use chain::Chain;
pub use disk::{Deed, Disk, Failures, Format, Image, ImageError};
pub use entropy::Entropy;
pub use mmio::{MMIO_SIZE, MmioDevice};
pub use net::{
    Link, LinkLost, MTU, Mac, Net, Passt, Tap, Vhost, VhostError, VhostRefused, vhost_requests,
};
pub use queue::{Lost, VirtQueue};

/// A device behind the transport. It serves one machine after the other.
pub trait Device: Send + Sync {
    /// The device ID (virtio 1.2, 5).
    fn id(&self) -> u32;

    /// The features of this kind of device; the transport adds those of its rings.
    fn features(&self) -> u64 {
        0
    }

    /// The size of each queue, a power of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// The configuration space, which the guest can only read.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// What serving a queue takes, and how many requests of it are served at a time, each by a thread.
    fn service(&self, queue: usize) -> (WorkerKind, usize);

    /// The kernel's part of the device, if it has one: it serves the queues where it can.
    fn vhost(&self) -> Option<&Vhost> {
        None
    }

    /// Serves a request of a queue, and completes it ([`VirtQueue::complete`]) unless it is void. It
    /// may wait for what is not the guest, and for as long as the request is not void
    /// ([`VirtQueue::is_void`]). `buffer` has [`BUFFER`] bytes, of any content.
    fn serve(&self, queue: (usize, &VirtQueue), chain: &Chain, buffer: &mut [u8]);
}

/// Bytes of the buffer in which a thread copies data. It is all the memory that requests take,
/// whatever their length.
pub const BUFFER: usize = 64 << 10;

/// What a thread of a device does, for its name and its system call filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerKind {
    /// Serves a disk's requests, one at a time.
    Disk,
    /// Brings frames to the guest.
    NetReceive,
    /// Takes frames from the guest.
    NetSend,
    /// Fills buffers with random bytes.
    Entropy,
}

/// A thread to start for a machine.
pub struct Worker {
    /// What it does.
    pub kind: WorkerKind,
    /// Runs until [`MmioDevice::stop`].
    pub run: Box<dyn FnOnce() + Send>,
}
