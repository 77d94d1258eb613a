//! Guest memory: backends, mapping, adding and discarding.
//!
//! [`GuestRam`] maps the RAM a guest boots with, adds to it while the guest runs, and is the one
//! place that gives pages of it back to the host. Its [`GuestRam::memory`] has the `vm-memory`
//! traits, so that loaders and devices of the rust-vmm family work on it, and it implements
//! [`vmbus::GuestMemory`] for the bus.
//!
//! Discarding is slow beside everything else a resize needs, and so is taking huge pages from the
//! host's pool; [`MemoryWorker`] does both on its own thread and reports back. Which system calls
//! do it and how large they are is decided in `plan` and `mapping`; what that rests on was measured
//! and stands there.
//!
//! Unsafe code stands in `mapping` only.

mod backend;
mod borrowed;
mod bus;
mod copy;
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
mod worker;

pub use backend::{BackendError, MemorySlots, RamBackend};
pub use borrowed::{BorrowedRam, RegionError};
pub use discard::{DiscardError, ProvideError};
pub use hot_add::AddError;
pub use huge_pages::{HugePages, PoolError};
pub use layout::{HIGH_RAM_START, LOW_RAM_LIMIT, boot_ram_ranges};
pub use mapping::{Backend, BorrowError};
pub use ram::{GuestRam, RamConfig, RamError, RamPart};
pub use region::RamRegion;
pub use worker::{MemoryWorker, WorkError};
