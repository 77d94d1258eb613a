#![forbid(unsafe_code)]
//! The common parts of the static init programs.
//!
//! Two programs of this package run as process 1 of a Linux booted from an initramfs:
//!
//! - `guest_agent` in a test guest executes commands from the serial console ([`agent`]);
//! - `rig_init` in the rig, the emulated machine with a Hyper-V capable KVM, runs one command and
//!   transfers its input, output and exit status ([`rig`]).

pub mod agent;
pub mod boot;
pub mod rig;
