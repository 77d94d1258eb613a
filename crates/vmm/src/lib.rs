//! A small VMM on KVM that boots Linux with the hv-balloon device.
//!
//! [`run`] is all of it. Threads: one per vCPU, one loop for bus and device, one that discards
//! pages, the monitor's own, two for the console, and the caller's, which governs.

mod boot;
mod bus;
mod channel;
mod cmos;
mod config;
mod console;
mod control;
mod device_loop;
mod error;
mod machine;
mod monitor;
mod notices;
mod ports;
mod power;
mod run;
mod vcpu;

pub use config::{Config, OnReset, SettleTime};
pub use console::SerialOutput;
pub use error::{BootError, MachineError, VmmError};
pub use guest_ram::HugePages;
pub use run::run;
