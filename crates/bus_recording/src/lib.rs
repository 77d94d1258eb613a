#![forbid(unsafe_code)]
//! The format of recordings of a guest's whole VMBus conversation.
//!
//! The bus ([`vmbus::Server`]) and its devices (`dynmem_vsp::DynamicMemory`, and the services of
//! `integration_services`) are state machines: what
//! they are told determines what they say. A recording holds both, as [`Event`]s in their order, so
//! that it can be replayed without the guest and what they say now can be compared with what they
//! said then.
//!
//! A file consists of JSON lines. The first is the [`Header`], each other one a [`Line`]. A recording
//! that ended in an orderly way ends with [`Event::End`]; one that was cut off is read up to the cut.
//!
//! A recording holds control messages and ring packets, and no other guest memory. What the guest does
//! to its rings beyond writing packets is not recorded: when it reads, and whether it wants signals.
//! Therefore the number of signals to the guest cannot be compared, and whether the ring had room is
//! recorded with [`FromDevice::Idle`].

mod convert;
mod event;
mod header;
mod lines;

pub use convert::{page_set, pages};
pub use event::{Event, FromBus, FromDevice, Line, Packet, Task, ToBus, ToDevice};
pub use header::{
    BusSetup, DeviceSetup, FORMAT, Header, HotAddSetup, InvalidSetup, OLDEST_VERSION, Pages,
    ServiceSetup, VERSION,
};
pub use lines::{ReadError, ReadLine, Recording, read, write};
