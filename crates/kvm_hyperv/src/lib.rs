//! KVM with Hyper-V: what a VMM needs from KVM to run VMBus.
//!
//! - [`probe`]: whether this KVM can do it, by capability.
//! - [`cpuid`]: the Hyper-V leaves a guest must see, written or completed.
//! - [`acpi`]: the device by which it finds VMBus.
//! - [`exit`] and [`hypercall`]: `KVM_EXIT_HYPERV` decoded, `HvPostMessage` and `HvSignalEvent`.
//! - [`synic`]: the message slot and the event flags of each virtual processor (VP), and its saved
//!   state.
//! - [`sint`]: SINT 2 interrupts through irqfd, with a full or a split irqchip.
//! - [`signal`]: `HvSignalEvent` to an eventfd inside the kernel.
//! - [`memory`]: any `vm-memory` backend as the memory of the bus.
//! - [`vm`]: a VM with the memory it runs on.
//! - [`kick`]: getting a vCPU thread out of `KVM_RUN` without a race.
//! - [`msr`]: the MSRs that a VMM reads itself.
//! - [`ioctl_numbers`]: for the system call filter of a VMM.
//!
//! KVM handles the MSRs; it neither reads nor writes the SynIC pages, apart from timer messages
//! (Linux `arch/x86/kvm/hyperv.c`). That part is here. The crate starts no thread and makes no
//! decision for the VMM: each module works alone, so that a VMM with its own memory slots, kick or
//! routing table takes the others.
//!
//! Every write into guest memory is marked in the bitmap that the memory may have, for a live
//! migration.

pub mod acpi;
mod copy;
pub mod cpuid;
pub mod exit;
pub mod hypercall;
mod ioctl;
pub mod ioctl_numbers;
pub mod kick;
pub mod memory;
pub mod msr;
pub mod probe;
pub mod signal;
pub mod sint;
pub mod synic;
pub mod vm;

/// The synthetic interrupt source of VMBus, on every VP (`Linux hyperv-tlfs.h`).
pub const VMBUS_SINT: u8 = 2;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
