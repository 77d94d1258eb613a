#![forbid(unsafe_code)]
//! Keeps every VM of a host at what it needs: the `balancer` with eyes and hands.
//!
//! - [`Daemon`] is the loop: it waits for reports and for the second, has a decision made, and hands out
//!   the targets.
//! - `finder` finds the VMs: sockets under a glob, and their names.
//! - `session` speaks with one VM's monitor, on a thread of its own, so that a monitor that hangs
//!   delays nobody; `machine` knows the three kinds of monitors. `watch` takes the reports of all guests
//!   while nothing else is wanted of their monitors, and `rate` limits what one may say.
//! - `host`, `process` and `cgroup` read the host's side from `/proc` and `/sys`.
//! - [`Core`] turns all of it into samples for the `balancer`, and decisions into orders. It knows no
//!   clock, file or socket: time is an argument.
//! - `record` writes what goes into the core and what comes out of it; [`Replay`] does it all again.
//! - [`Control`] answers the operator, whose end of the line is [`Operator`]; [`View`] is for others in
//!   the daemon's own process.
//!
//! What a monitor says is not trusted: messages, events and time have limits, and a size that the host
//! cannot have is refused.

mod board;
mod cgroup;
mod control;
mod core;
mod daemon;
mod finder;
mod host;
mod machine;
mod operator;
mod process;
mod rate;
mod reading;
mod record;
mod replay;
mod session;
mod stamp;
mod status;
mod view;
mod watch;
mod wish;

pub use balancer::{MAX_KIB, Policy};
pub use control::{Control, command};
pub use core::{Core, Order, SetError, TooMany, UnknownVm, VmInput};
pub use daemon::{Daemon, DaemonError, Handle, Notice, OnExit, Setup};
pub use finder::{BadPattern, Found, find};
pub use host::{Host, HostReader, kib_field, number};
pub use operator::Operator;
pub use qmp::ClientError;
pub use reading::{Facts, Link, Reading, Stamped};
pub use record::RecordError;
pub use replay::{Replay, Step};
pub use status::{
    ActionStatus, Explanation, HostStatus, MovedStatus, ReservationStatus, SettingsStatus, Status,
    VmStatus,
};
pub use view::View;
pub use wish::{Configuration, Wish, WishError};
