//! Guest memory: backends, mapping and discard.
//!
//! [`GuestRam`] maps the RAM a guest boots with and is the one place that gives pages of it back
//! to the host. It implements the `vm-memory` traits through [`GuestRam::memory`], so that loaders
//! and devices of the rust-vmm family work on it, and [`vmbus::GuestMemory`] for the bus.
//!
//! Discarding is slow beside everything else a resize needs, so [`DiscardWorker`] does it on its
//! own thread and reports back.
//!
//! Unsafe code stands in `mapping` only.

mod bus;
mod discard;
mod layout;
mod mapping;
mod ram;
mod worker;

pub use discard::DiscardError;
pub use layout::{HIGH_RAM_START, LOW_RAM_LIMIT, boot_ram_ranges};
pub use mapping::Backend;
pub use ram::{GuestRam, HugePages, RamConfig, RamError, RamRegion};
pub use worker::DiscardWorker;
