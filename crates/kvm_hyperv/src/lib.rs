//! KVM with Hyper-V: everything a VMM needs from KVM to run VMBus.
//!
//! - [`probe`]: whether this KVM is capable of it.
//! - [`cpuid`]: the Hyper-V leaves a guest must see, written or completed.
//! - [`acpi`]: the device by which it finds VMBus.
//! - [`exit`] and [`hypercall`]: `KVM_EXIT_HYPERV` decoded, `HvPostMessage`, `HvSignalEvent`, and
//!   extended hypercalls.
//! - [`synic`]: the message slot and the event flags of each virtual processor (VP), and its saved
//!   state.
//! - [`sint`]: SINT 2 interrupts through irqfd, with a full or a split irqchip.
//! - [`signal`]: `HvSignalEvent` to an eventfd inside the kernel.
//! - [`memory`]: any `vm-memory` backend as the memory of the bus.
//! - [`vm`]: a VM with the memory it runs on.
//! - [`kick`]: getting a vCPU thread out of `KVM_RUN` without a race.
//! - [`crash`]: what a guest says of its crash.
//! - [`msr`]: the MSRs that a VMM reads itself.
//! - [`ioctl_numbers`]: the ioctls of this crate, for a VMM's system call filter.
//!
//! KVM handles the MSRs but neither reads nor writes the SynIC pages, apart from timer messages
//! (Linux `arch/x86/kvm/hyperv.c`); this crate does. It starts no thread and makes no decision for
//! the VMM. Each module works alone, so a VMM with its own memory slots, kick or routing table can
//! use the others.
//!
//! Every write to guest memory is marked in the memory's dirty bitmap, if it has one, for live
//! migration.

pub mod acpi;
mod copy;
pub mod cpuid;
pub mod crash;
pub mod exit;
mod extended;
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

/// The synthetic interrupt source of VMBus, on every VP (Linux `hyperv-tlfs.h`).
pub const VMBUS_SINT: u8 = 2;

/// Compiles the example in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
