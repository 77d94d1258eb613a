//! Guests differ.

use alloc::vec::Vec;
use core::time::Duration;

use dynmem_protocol::{Capabilities, Version};
use page_range::{Gpfn, PageCount};

/// How the answer to a balloon request ends. Linux does both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// With the message that brings the last pages.
    #[default]
    WithPages,
    /// With a message of its own that brings none.
    Separate,
}

/// The ranges that a guest gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Aligned runs of 512 pages while there are any, then single pages: Linux.
    #[default]
    LargeThenSingle,
    /// Runs as long as the guest finds them.
    Runs,
}

/// How a guest gives pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ballooning {
    /// How its answers end.
    pub ending: Ending,
    /// Which ranges it gives.
    pub shape: Shape,
    /// The most pages it gives for one request, however many are wanted.
    pub most_per_request: PageCount,
    /// The most ranges in one message; at least 1. No message takes more than 510.
    pub ranges_per_message: usize,
}

/// How a guest takes hot-added memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotAdd {
    /// What it does with a request.
    pub answer: HotAddAnswer,
    /// Pages it adds at a time; at least 1.
    pub block: PageCount,
    /// How long it waits after each block.
    pub online_wait: Duration,
    /// Whether added pages become usable at once; else [`Memory::online`](super::Memory::online)
    /// makes them so.
    pub onlines: bool,
    /// Whether a request must name the region.
    pub wants_region: bool,
    /// The end of the addresses it can use.
    pub address_limit: Gpfn,
}

/// What a guest does with a hot-add request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HotAddAnswer {
    /// Adds all.
    #[default]
    TakesAll,
    /// Adds no more than so many pages in all, then nothing: its limit.
    AtMost(PageCount),
    /// Says "success" and adds nothing: never ask again.
    Refuses,
    /// Says "failure" so many times, then adds all.
    Fails {
        /// How many times from now on.
        times: u32,
    },
    /// Says "failure" every time.
    FailsAlways,
    /// Adds nothing and says nothing.
    Silent,
    /// Adds all, and says so that much later.
    Late(Duration),
    /// Adds all and claims so many pages more. No honest guest does.
    ClaimsMore(PageCount),
    /// Adds, and claims, all but the last page. No honest guest does.
    ClaimsOdd,
}

/// How a guest behaves. The named ones are what is known of real guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Personality {
    /// For the messages of tests.
    pub name: &'static str,
    /// `HV_X64_MSR_GUEST_OS_ID`.
    pub guest_os_id: u64,
    /// The versions of VMBus it tries, in this order.
    pub vmbus_versions: Vec<vmbus::protocol::Version>,
    /// The versions of Dynamic Memory it asks for, in this order.
    pub versions: Vec<Version>,
    /// What it says it can do.
    pub capabilities: Capabilities,
    /// A request sooner than this after the handshake crashes it.
    pub settle: Duration,
    /// It answers no balloon and no unballoon request.
    pub ignores_requests: bool,
    /// How it gives pages.
    pub ballooning: Ballooning,
    /// How it takes new memory.
    pub hot_add: HotAdd,
}

impl Personality {
    /// This guest with a hot-add alignment of 2^`log2_mib` MiB, which is what it adds at a time.
    #[must_use]
    pub fn with_alignment(mut self, log2_mib: u8) -> Self {
        self.capabilities = self.capabilities.with_hot_add_alignment(log2_mib);
        self.hot_add.block = self.capabilities.hot_add_alignment();
        self
    }

    /// This guest with another answer to hot-add requests.
    #[must_use]
    pub const fn with_hot_add(mut self, answer: HotAddAnswer) -> Self {
        self.hot_add.answer = answer;
        self
    }
}
