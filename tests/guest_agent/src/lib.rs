#![forbid(unsafe_code)]
//! What the static init programs have in common.
//!
//! Two programs of this package run as process 1 of a Linux booted from an initramfs:
//!
//! - `guest_agent` in a test guest: obeys line commands on the serial console ([`agent`]);
//! - `rig_init` in the rig, the emulated machine with a Hyper-V capable KVM: runs one command and
//!   carries its input, output and exit status ([`rig`]).

pub mod agent;
pub mod boot;
pub mod rig;
