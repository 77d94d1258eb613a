//! A guest's memory: mapping it, adding to it, and giving pages back to the host.
//!
//! - [`GuestRam`] maps the RAM that a guest boots with and adds to it while the guest runs. Its
//!   [`memory`](GuestRam::memory) implements the `vm-memory` traits, so loaders and devices of the
//!   rust-vmm family work on it.
//! - [`RamBackend`] changes a [`GuestRam`] and the memory slots of its VM together.
//! - [`BorrowedRam`] discards pages of memory that another VMM has mapped with `vm-memory`.
//!
//! Discarding is slow compared with everything else a resize needs, and so is allocating huge pages
//! from the host's pool: do both on a thread of their own. The modules `plan` and `mapping` decide
//! which system calls discard memory and how large they are, and document the measurements behind
//! that.
//!
//! # What keeps memory mapped
//!
//! Every safe function of this crate is sound however it is called. Memory is only accessed through
//! `VolatileSlice`, so the guest, other threads, other processes and a discard may change it at any
//! time. It is unmapped when the last of these is dropped:
//!
//! | Owner | Keeps mapped |
//! |---|---|
//! | [`GuestRam`] | boot RAM, and all memory that can be added |
//! | [`RamRegion`] | the mapping it is a part of: its boot RAM, or all memory that can be added |
//! | a [`DeviceMemory`] | the regions that existed when it was made |
//! | a snapshot from [`GuestRam::memory`] | the regions that existed when it was taken |
//! | [`BorrowedRam`] | the mapping of each region, from `insert` to `remove` |
//!
//! So [`GuestRam::remove`] unmaps nothing. A region that it returned stays valid, and shows the same
//! memory as the region that a later [`GuestRam::add`] makes at its place.
//!
//! Host addresses (`get_host_address`) are plain pointers. Code that hands one to a hypervisor must
//! hold the region until the hypervisor has let go of the address.
//!
//! A touch can still end the process with SIGBUS: if the host's pool of huge pages is empty, or if
//! someone truncates the file behind shared memory. That is not undefined behaviour.
//!
//! All unsafe code is in the module `mapping`.

mod backend;
mod borrowed;
mod device_memory;
mod discard;
mod extent;
mod extents;
mod hot_add;
mod huge_pages;
mod layout;
mod mapping;
mod plan;
mod ram;
mod region;
mod small_pages;

pub use backend::{BackendError, MemorySlots, RamBackend};
pub use borrowed::{BorrowedRam, RegionError};
pub use device_memory::DeviceMemory;
pub use discard::{DiscardError, ProvideError};
pub use hot_add::AddError;
pub use huge_pages::{HugePages, PoolError};
pub use layout::{HIGH_RAM_START, LOW_RAM_LIMIT, boot_ram_ranges};
pub use mapping::{BorrowError, MemoryKind};
pub use ram::{GuestRam, RamAddressSpace, RamConfig, RamError, RamPart};
pub use region::RamRegion;
