#![no_std]
#![forbid(unsafe_code)]
//! A host with guests, simulated, to judge how memory is balanced.
//!
//! A [`Scenario`] says how large the host is, which VMs it has and what their guests do. [`run`]
//! plays it second by second with a [`Policy`] that sets the sizes of the VMs, and returns an
//! [`Account`]: how much memory was missing, for how long, how much lay idle, and how often a size
//! was changed. [`Balanced`] is the policy of `balancer`. Whole numbers and a seeded generator:
//! the same scenario gives the same account on any machine.
//!
//! A second passes like this:
//!
//! 1. Each guest's need changes, and each guest moves towards the target that it was told, at the
//!    speed of its device (`guest`).
//! 2. If the VMs hold more than the host has, the host swaps (`world`).
//! 3. Each guest reports, and the policy sets new targets.
//!
//! A need that rises is therefore seen by the policy at the end of the second in which it rises,
//! and what the policy does about it takes effect in the next.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod account;
mod dice;
mod guest;
mod load;
mod policy;
mod scenario;
mod world;

pub use account::{Account, VmAccount};
pub use policy::{Balanced, Policy, Unseen, View};
pub use scenario::{Device, Group, Host, Load, Mistake, Scenario, ScenarioForm};
pub use world::run;
