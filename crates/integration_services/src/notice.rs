//! What a service tells its driver.

use alloc::vec::Vec;
use core::fmt;

use vmbus::TracedPacket;

use crate::Contact;
use crate::Fault;
use crate::protocol::{STATUS_OK, Version};

/// Work for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Report to the operator, the monitor or the log.
    Notify(Notice),
    /// Call [`TimeSync::sample`](crate::Service::sample) with the present time; only of that service.
    Sample,
    /// A packet in the rings; only [with a trace](crate::Service::with_trace).
    Trace(Trace),
}

/// News for the operator. A guest can cause any number, so limit the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The guest's driver is there, and these versions were negotiated.
    Ready {
        /// Of the framework.
        framework: Version,
        /// Of the service.
        version: Version,
    },
    /// The guest has none of the versions that were offered.
    NoCommonVersion,
    /// The guest answered a request to shut down; with [`STATUS_OK`] it does.
    ShutdownAnswered {
        /// Its status.
        status: u32,
    },
    /// The guest was heard of for the first time, or again, or not for a while.
    Contact(Contact),
    /// The guest broke a rule; the packet was dropped.
    Fault(Fault),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { framework, version } => {
                write!(f, "ready, framework {framework}, version {version}")
            }
            Self::NoCommonVersion => f.write_str("the guest has none of the versions offered"),
            Self::ShutdownAnswered { status: STATUS_OK } => f.write_str("the guest shuts down"),
            Self::ShutdownAnswered { status } => {
                write!(f, "the guest refuses to shut down, with status {status:#x}")
            }
            Self::Contact(contact) => write!(f, "heartbeat: {contact}"),
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

/// A packet in the rings. Packets are traced in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The service has taken this packet of the guest.
    Received(TracedPacket),
    /// This message is in the ring.
    Sent(Vec<u8>),
    /// The completion of the guest's packet with this transaction ID is in the ring.
    Completed(u64),
}
