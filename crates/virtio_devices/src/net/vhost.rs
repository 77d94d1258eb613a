//! vhost-net: the host's kernel moves the frames between a card's rings and its tap interface (Linux
//! `drivers/vhost/net.c`), and the threads here sleep.
//!
//! The kernel has the guest's notifications, raises the interrupt, and finds guest memory by a table of
//! host addresses. It knows nothing of [`DeviceMemory`](guest_ram::DeviceMemory), so these rules hold:
//!
//! - What the kernel has an address of stays mapped until it has another table, or no queue.
//! - Memory that was removed leaves the table before the removal ends.
//! - Each part of a ring lies in one piece of the table. The kernel reads and writes a ring by the
//!   address of its first byte alone, and would otherwise go on into this program's own memory.
//! - Where one of these cannot be kept, or the kernel gives up, the threads take the queues back.

pub mod requests;
mod table;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_ram::{GuestRam, RamAddressSpace, RamRegion};
use thiserror::Error;
use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net as Kernel;
use vhost::vhost_kern::vhost_binding::VHOST_NET_F_VIRTIO_NET_HDR;
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{GuestMemoryAtomic, GuestRegionCollection};

use super::Tap;
use crate::mmio::RING_FEATURES;
use crate::queue::{Rings, Signals, VirtQueue};
use table::Table;

/// The kernel, not the interface, adds and takes off the header before each frame.
const HEADER_BY_KERNEL: u64 = 1 << VHOST_NET_F_VIRTIO_NET_HDR;

/// Why the kernel does not serve a card.
#[derive(Debug, Error)]
pub enum VhostError {
    /// It does not serve cards at all, or not to this user.
    #[error("cannot use /dev/vhost-net")]
    Open(#[source] io::Error),
    /// It lacks features of virtio that the cards here have.
    #[error("/dev/vhost-net lacks features: it has {0:#x}")]
    Features(u64),
    /// It refuses the table of guest memory, as it does if there are too many pieces.
    #[error(
        "the kernel takes no table of {pieces} pieces of guest memory (vhost's parameter max_mem_regions)"
    )]
    Table {
        /// How many there are.
        pieces: usize,
        /// Why.
        #[source]
        source: vhost::Error,
    },
    /// A ring is not in one piece of guest memory.
    #[error("the guest has put a ring where the kernel cannot use it")]
    Ring,
    /// It refuses something else.
    #[error("the kernel does not take over the card's queues")]
    Queues(#[from] vhost::Error),
    /// It cannot go on: memory of a request or ring is not there, or the interface is gone.
    #[error("the kernel cannot serve the card any more")]
    Failed,
}

/// Told that the threads serve a card until its driver starts anew, and why.
pub type VhostRefused = Box<dyn Fn(&VhostError) + Send + Sync>;

/// The kernel's part of a card. It serves one machine after the other.
pub struct Vhost {
    kernel: Kernel<RamAddressSpace>,
    /// The memory of which the kernel has addresses.
    known: RamAddressSpace,
    interface: File,
    lent: Mutex<Option<Lent>>,
    refused: VhostRefused,
}

/// What the kernel serves.
struct Lent {
    queues: Vec<Arc<VirtQueue>>,
    rings: Vec<Rings>,
    table: Table,
    signals: Arc<Signals>,
    ram: Arc<GuestRam>,
}

fn unopened(error: vhost::Error) -> VhostError {
    VhostError::Open(match error {
        vhost::Error::VhostOpen(error) | vhost::Error::IoctlError(error) => error,
        other => io::Error::other(other),
    })
}

impl Vhost {
    /// Opens `/dev/vhost-net` for a card with this interface.
    ///
    /// # Errors
    /// [`VhostError::Open`] or [`VhostError::Features`].
    pub fn open(tap: &Tap, refused: VhostRefused) -> Result<Self, VhostError> {
        let interface = tap.as_fd().try_clone_to_owned().map_err(VhostError::Open)?;
        let known = GuestMemoryAtomic::new(GuestRegionCollection::new());
        let kernel = Kernel::new(known.clone()).map_err(unopened)?;
        let features = kernel.get_features().map_err(unopened)?;
        if !features & (RING_FEATURES | HEADER_BY_KERNEL) != 0 {
            return Err(VhostError::Features(features));
        }
        kernel.set_owner().map_err(unopened)?;
        let (interface, lent) = (interface.into(), Mutex::default());
        Ok(Self { kernel, known, interface, lent, refused })
    }

    /// Lends all queues to the kernel, with the features that the guest has accepted. `false` if they
    /// are not all set up, or it does not take them.
    pub(crate) fn start(
        &self,
        queues: &[Arc<VirtQueue>],
        signals: &Arc<Signals>,
        ram: &Arc<GuestRam>,
        features: u64,
    ) -> bool {
        let mut lent = self.lock();
        let Some(rings) = queues.iter().map(|queue| queue.lend(features)).collect() else {
            return false;
        };
        let memory = ram.snapshot();
        let new = Lent {
            queues: queues.to_vec(),
            rings,
            table: Table::of(&memory),
            signals: Arc::clone(signals),
            ram: Arc::clone(ram),
        };
        // The first interrupt may come before this returns.
        signals.set_lent(true);
        if let Err(error) = self.give(&new, memory, features) {
            self.release(&new);
            (self.refused)(&error);
            return false;
        }
        // The guest may have notified too early.
        new.queues.iter().for_each(|queue| queue.notify());
        *lent = Some(new);
        true
    }

    fn give(
        &self,
        new: &Lent,
        memory: Arc<GuestRegionCollection<RamRegion>>,
        features: u64,
    ) -> Result<(), VhostError> {
        if !new.table.holds_all(&new.rings) {
            return Err(VhostError::Ring);
        }
        self.kernel.set_features(features & RING_FEATURES | HEADER_BY_KERNEL)?;
        self.learn(&new.table, memory)?;
        for (number, (queue, rings)) in new.queues.iter().zip(&new.rings).enumerate() {
            let addresses = VringConfigData {
                queue_max_size: rings.size,
                queue_size: rings.size,
                flags: 0,
                desc_table_addr: rings.descriptors,
                used_ring_addr: rings.used,
                avail_ring_addr: rings.avail,
                log_addr: None,
            };
            self.kernel.set_vring_num(number, rings.size)?;
            self.kernel.set_vring_base(number, rings.next_avail)?;
            self.kernel.set_vring_addr(number, &addresses)?;
            self.kernel.set_vring_err(number, queue.error())?;
            self.kernel.set_vring_call(number, new.signals.interrupt())?;
            self.kernel.set_vring_kick(number, queue.kick())?;
        }
        for number in 0..new.queues.len() {
            self.kernel.set_backend(number, Some(&self.interface))?;
        }
        Ok(())
    }

    /// Gives the kernel another table, whose memory stays mapped; that of the last one need not.
    fn learn(
        &self,
        table: &Table,
        memory: Arc<GuestRegionCollection<RamRegion>>,
    ) -> Result<(), VhostError> {
        let pieces = table.pieces();
        let learnt = self.kernel.set_mem_table(&pieces);
        learnt.map_err(|source| VhostError::Table { pieces: pieces.len(), source })?;
        self.keep(Arc::unwrap_or_clone(memory));
        Ok(())
    }

    fn keep(&self, memory: GuestRegionCollection<RamRegion>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).replace(memory);
    }

    /// Takes the queues from the kernel, and returns its place in each; `None` if that is not known.
    fn release(&self, lent: &Lent) -> Vec<Option<u16>> {
        let mut is_free = true;
        let release = |number| {
            let released = self.kernel.set_backend(number, None).is_ok();
            is_free &= released;
            let place = self.kernel.get_vring_base(number).ok().filter(|_| released);
            place.and_then(|place| u16::try_from(place).ok())
        };
        let places = (0..lent.queues.len()).map(release).collect();
        // It still has the table, and no queue for which it would look something up there.
        if is_free {
            self.keep(GuestRegionCollection::new());
        }
        lent.signals.set_lent(false);
        places
    }

    /// Ends the kernel's access to guest memory, for a card that is reset or whose machine ends.
    pub(crate) fn stop(&self) {
        if let Some(lent) = self.lock().take() {
            self.release(&lent);
        }
    }

    /// Has the threads serve the queues, from where the kernel is.
    pub(crate) fn hand_back(&self) {
        self.hand_back_for(self.lock().take(), None);
    }

    /// The same, because the kernel has written to a queue's error eventfd.
    pub(crate) fn failed(&self) {
        self.hand_back_for(self.lock().take(), Some(&VhostError::Failed));
    }

    /// Tells the kernel of memory that was added or removed. When this returns, it does not access what
    /// was removed.
    pub(crate) fn memory_changed(&self) {
        let mut lent = self.lock();
        let Some(it) = &mut *lent else { return };
        let memory = it.ram.snapshot();
        let table = Table::of(&memory);
        let learnt = match () {
            () if !table.holds_all(&it.rings) => Err(VhostError::Ring),
            // Several pieces of memory are added at a time.
            () if table == it.table => {
                self.keep(Arc::unwrap_or_clone(memory));
                return;
            }
            () => self.learn(&table, memory),
        };
        match learnt {
            Ok(()) => it.table = table,
            Err(error) => self.hand_back_for(lent.take(), Some(&error)),
        }
    }

    /// Under the lock, so that no one lends the queues again meanwhile.
    fn hand_back_for(&self, lent: Option<Lent>, reason: Option<&VhostError>) {
        let Some(lent) = lent else { return };
        let places = self.release(&lent);
        for (queue, place) in lent.queues.iter().zip(places) {
            queue.take_back(place);
        }
        lent.signals.repeat_interrupt();
        if let Some(reason) = reason {
            (self.refused)(reason);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Lent>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
