#![forbid(unsafe_code)]
//! QEMU's monitor protocol (QMP) and the human monitor commands (HMP) that go with it: a server
//! that QEMU's own clients accept, and a client for this server and QEMU's.
//!
//! [`Server`] listens on a UNIX socket and serves several clients at once. It controls a machine
//! through the [`Machine`] trait; the crate knows no device. [`EventSender`] sends events to every
//! client that has negotiated, and never blocks its caller.
//!
//! A program that is no machine can have the same server with its own commands: [`CommandSet`].
//!
//! [`Client`] is the other side: blocking, one command at a time, each with a deadline.
//!
//! No client's input can block, slow down or end another client or the machine: every client has
//! its own two threads, a limit on the length of a command ([`MAX_COMMAND_BYTES`]) and a bounded
//! queue of unsent output ([`MAX_UNSENT_BYTES`]).
//!
//! Texts, error classes and framing follow QEMU 10.0; the documentation of a type or constant says
//! where they differ.

mod client;
mod command_set;
mod commands;
mod conversation;
mod dynamic_memory;
mod event;
mod framer;
mod hmp;
mod kept;
mod machine;
mod memory_device;
mod outbox;
mod schema;
mod server;
mod services;
mod session;
mod socket;

pub use client::{Client, ClientError, ReceivedEvent};
pub use command_set::CommandSet;
pub use commands::{XQueryDynamicMemory, XQueryIntegrationServices};
pub use conversation::Conversation;
pub use dynamic_memory::{DynamicMemoryInfo, Faults, Refusal, Reported};
pub use event::{Event, EventSender};
pub use machine::{Machine, MonitorError};
pub use memory_device::{HvBalloonDevice, MemoryDevice};
pub use outbox::MAX_UNSENT_BYTES;
pub use qapi_qmp::{HvBalloonInfo, MemoryInfo, RunState, ShutdownCause};
pub use qapi_spec::ErrorClass;
pub use serde_json::{Map, Value};
pub use server::{MAX_CLIENTS, Server, ServerThread};
pub use services::IntegrationServicesInfo;
pub use session::MAX_COMMAND_BYTES;
pub use socket::ServerError;

/// QEMU's typed commands and answers, for use with [`Client::run`].
pub use qapi_qmp as qapi;
