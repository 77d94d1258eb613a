//! Two ends of a channel in one process, shared by the benchmark and the test of allocations.

mod channel;
mod floor;
mod machine;
mod memory;

pub use channel::{BALLOON_RESPONSE, Ends, LINUX_RING, STATUS_REPORT};
pub use floor::Floor;
pub use machine::{Machine, Workload};
pub use memory::{ByteArray, byte_array, real_memory, shared_memory};
