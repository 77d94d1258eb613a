#![forbid(unsafe_code)]
//! Runs the VMBus and its devices in a KVM VMM: threads, SynIC delivery, memory work.
//!
//! The crates below this one are state machines without I/O. This crate runs them in a VMM: it has
//! one thread that drives the bus and every device on it, one thread for slow work on guest memory,
//! and the calls for the vCPU threads.
//!
//! # What the VMM provides
//!
//! - a [`Platform`] for each machine: guest memory, the interrupt of SINT 2, a way to kick a vCPU,
//!   and how the guest's signals reach an eventfd. [`KvmPlatform`] is one for VMMs on `kvm-ioctls`;
//! - a [`Supervisor`], which is told when a thread starts or fails, and what to log;
//! - with the feature `dynamic-memory` (on by default) a [`MemoryBackend`], which discards, adds
//!   and removes guest memory.
//!
//! # What the VMM calls
//!
//! 1. [`HostBuilder::new`], then [`HostBuilder::dynamic_memory`] or [`HostBuilder::attach`] for each
//!    device, then [`HostBuilder::start`];
//! 2. [`Host::start_machine`] before the vCPUs run;
//! 3. on the vCPU threads [`Machine::before_run`] before each `KVM_RUN` and [`Machine::on_exit`] for
//!    each Hyper-V exit;
//! 4. [`Host::pause`] to save a machine whose vCPUs stand still; [`HostBuilder::restore`] is the way back;
//! 5. [`BusHandle::stop_clock`] and [`BusHandle::continue_clock`] around a time for which the vCPUs stand
//!    still;
//! 6. [`Host::reset`] when the vCPUs have stopped for a reset, then `start_machine` again.
//!
//! # Threads and locks
//!
//! | Thread | Task |
//! |---|---|
//! | `vmbus` | drives the bus and its devices, woken by `epoll` |
//! | `memory` | calls the [`MemoryBackend`], in the order in which the device asks |
//!
//! A hypercall is answered on the vCPU's thread, under a lock that no thread holds over a system
//! call. Pages that the guest reports as free are discarded on that thread as well, without a lock. Messages go into the guest's message page on the vCPU's own thread, because KVM writes
//! timer messages into the same page on that thread.

mod attached;
mod bus_loop;
mod clock;
#[cfg(feature = "dynamic-memory")]
mod dynamic_memory;
mod error;
mod host;
#[cfg(feature = "integration-services")]
mod integration;
mod kvm;
mod machine;
mod paused;
mod platform;
mod recording;
#[cfg(feature = "dynamic-memory")]
mod reporting;
mod shared;
mod sources;
mod supervisor;
mod trace;

pub use attached::Sink;
pub use bus_recording;
#[cfg(feature = "guest_ram")]
pub use dynamic_memory::VmSlots;
#[cfg(feature = "dynamic-memory")]
pub use dynamic_memory::{
    BackendError, DynamicMemoryHandle, HostSnapshot, Inhibit, Inhibitor, MachineMemory,
    MemoryBackend, NoMachine, SetTargetError, WorkError,
};
#[cfg(feature = "dynamic-memory")]
pub use dynmem_vsp::{
    Config, HotAdd, Kept, Notice, ReplaceError, SavedVsp, Settle, Snapshot, TargetError,
};
pub use error::{OpenError, RestoreError, StartError, Stopped};
pub use host::{Host, HostBuilder};
#[cfg(feature = "integration-services")]
pub use integration::{
    IntegrationServices, SavedServices, ServiceName, ServicesSnapshot, ShutdownError,
};
#[cfg(feature = "integration-services")]
pub use integration_services;
pub use kvm::{HasVm, KvmPlatform};
pub use machine::Machine;
pub use paused::{Paused, SavedBus};
pub use platform::{Bound, BusMemory, MemoryGuard, Platform};
#[cfg(feature = "dynamic-memory")]
pub use reporting::{FreePages, Reported};
pub use saved_state::{FormatError, SavedState};
pub use shared::BusHandle;
pub use supervisor::{HostFailure, Report, Supervisor, THREAD_STACK_BYTES, Thread};
pub use trace::Trace;
