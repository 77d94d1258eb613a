//! The wire protocol: control messages, identifiers, versions, and the layout of the rings.
//!
//! All integers are little-endian. Layouts and numbers are those of Linux `include/linux/hyperv.h`
//! and OpenVMM `vmbus_core/src/protocol.rs`, which agree on all versions in [`Version::KNOWN`].

mod guid;
mod ids;
mod message;
pub mod ring;
mod version;
pub mod wire;

pub use guid::{Guid, ParseGuidError};
pub use ids::{ConnectionId, GpadlId, OpenId, Relid, VpIndex};
pub use message::{GuestMessage, HostMessage, MAX_MESSAGE_LEN, Message, MessageFull, ParseError};
pub use version::Version;
