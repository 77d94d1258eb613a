//! KVM with Hyper-V: what a VMM needs from KVM to run VMBus.
//!
//! - [`probe`]: whether this KVM can do it, by capability.
//! - [`cpuid`]: the Hyper-V leaves a guest must see.
//! - [`exit`] and [`hypercall`]: `KVM_EXIT_HYPERV` decoded, `HvPostMessage` and `HvSignalEvent`.
//! - [`synic`]: the message slot and the event flags of each virtual processor (VP).
//! - [`sint`]: SINT 2 interrupts through irqfd, with acknowledgement.
//! - [`signal`]: `HvSignalEvent` to an eventfd inside the kernel.
//! - [`vm`]: a VM with the memory it runs on.
//! - [`kick`]: getting a vCPU thread out of `KVM_RUN` without a race.
//!
//! KVM handles the MSRs; it neither reads nor writes the SynIC pages, apart from timer messages
//! (Linux `arch/x86/kvm/hyperv.c`). That part is here. The crate holds no thread and makes no
//! decision for the VMM.

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
