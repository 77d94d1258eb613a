//! A small VMM on KVM that boots Linux with the hv-balloon device.
//!
//! [`run`] is all of it; [`load_linux`] is its loader alone, [`flight_recorder`] what it remembers. Without the feature `hv-balloon`, which is
//! on by default, the machine has a bus and no device on it.
//!
//! Threads: one per vCPU, the two of `vmbus_kvm` (bus and memory), the monitor's own, two for the
//! console, those of the virtio devices, and the caller's, which governs the others.

#[cfg(feature = "hv-balloon")]
mod balloon;
mod boot;
mod brake;
mod bus_recorder;
mod cmos;
mod config;
mod confine;
mod console;
mod control;
mod crash;
mod devices;
mod error;
pub mod flight_recorder;
mod log_limit;
mod machine;
mod memory;
mod monitor;
mod ports;
mod power;
mod run;
mod services;
mod signals;
mod vcpu;
mod watch;

pub use boot::linux::load_linux;
pub use config::{Config, DiskConfig, FreePageReporting, LinkConfig, NetConfig, OnReset, UseVhost};
pub use confine::{Seccomp, confine_log_thread};
pub use console::SerialOutput;
pub use error::{BootError, MachineError, VmmError};
pub use guest_ram::HugePages;
pub use run::run;
pub use virtio_devices::{Format as DiskFormat, ImageError, Mac};

/// Whether this build has the Dynamic Memory device.
pub const HAS_BALLOON: bool = cfg!(feature = "hv-balloon");

/// Compiles the code in the guide for authors of VMMs.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/embedding.md")]
struct Embedding;
