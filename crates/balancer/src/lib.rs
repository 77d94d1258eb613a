#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::todo,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::float_arithmetic
)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
//! Decides how much memory each VM of a host should have.
//!
//! [`Balancer::decide`] takes what is known of host and VMs and returns a target for each VM, with
//! the reason. It knows no clock, no process and no monitor, and computes with whole numbers only:
//! the same samples give the same decisions, bit for bit, on any machine.
//!
//! A decision goes through these modules:
//!
//! 1. `demand`: what each guest could not do without. With the buffer of its settings on top, that
//!    is what it *wants*.
//! 2. `watchful`: whether it moves towards its last target; if not, it is stuck.
//! 3. `pace`: how much of a surplus it may keep if nobody else needs it.
//! 4. `host`: how much there is for VMs.
//! 5. `reserve` and `allot`: what is shared, in which order; [`share`] has the solver.
//! 6. `reason`: why, in sentences.
//!
//! What always holds:
//!
//! - Minimum ≤ target ≤ maximum.
//! - The sum of targets is at most what there is. The exception is a host too small for the minima,
//!   and for VMs that must be left alone; [`Account::overcommitted_kib`] says by how much.
//! - A VM of which the data are old, missing or impossible keeps what it has, unless the operator
//!   lowers its maximum.
//! - More host memory makes no VM poorer, as long as no reservation becomes possible through it.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod allot;
mod decide;
mod demand;
mod host;
mod pace;
mod reason;
mod reserve;
mod row;
mod sample;
mod settings;
pub mod share;
mod size;
mod watchful;

pub use allot::Account;
pub use decide::{Balancer, Decision, OrderError, Status, VmDecision};
pub use host::Zone;
pub use reason::{Basis, HoldCause, Limit, Reason, Rule};
pub use reserve::{Reservation, Room};
pub use sample::{
    Aged, CgroupLimit, Committed, GuestReport, HostSample, Mode, Pool, ProcessSample, Vm, VmId,
    VmSample,
};
pub use settings::{MAX_KIB, Policy, SettingsError, SettingsForm, VmSettings};
