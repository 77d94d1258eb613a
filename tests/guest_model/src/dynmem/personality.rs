//! Guest personalities: the behaviour in which guests differ.

use alloc::vec::Vec;
use core::time::Duration;

use dynmem_protocol::{Capabilities, Version};
use page_range::{Gpfn, PageCount};

/// How the answer to a balloon request ends. Linux does both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// The message with the last pages ends it.
    #[default]
    WithPages,
    /// A separate message without pages ends it.
    Separate,
}

/// The ranges that a guest gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Aligned runs of 512 pages while there are any, then single pages: Linux.
    #[default]
    LargeThenSingle,
    /// Runs as long as the guest can find.
    Runs,
}

/// A guest's way of giving pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ballooning {
    /// How its answers end.
    pub ending: Ending,
    /// Which ranges it gives.
    pub shape: Shape,
    /// The most pages it gives for one request, however many are requested.
    pub most_per_request: PageCount,
    /// The most ranges in one message; at least 1. A message holds at most 508.
    pub ranges_per_message: usize,
}

/// A guest's handling of hot-added memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotAdd {
    /// Its answer to a request.
    pub answer: HotAddAnswer,
    /// Pages it adds at a time; at least 1.
    pub block: PageCount,
    /// How long it waits after each block.
    pub online_wait: Duration,
    /// Whether added pages become usable at once; otherwise
    /// [`Memory::online`](super::Memory::online) makes them usable.
    pub onlines: bool,
    /// Whether a request must name the region.
    pub wants_region: bool,
    /// The end of the addresses it can use.
    pub address_limit: Gpfn,
}

/// A guest's answer to a hot-add request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HotAddAnswer {
    /// Adds all of it.
    #[default]
    TakesAll,
    /// Adds at most this many pages in total, and nothing after that.
    AtMost(PageCount),
    /// Reports "success" and adds nothing, which tells the host never to ask again.
    Refuses,
    /// Reports "failure" this many times, then adds all.
    Fails {
        /// How many more times.
        times: u32,
    },
    /// Reports "failure" every time.
    FailsAlways,
    /// Adds nothing and does not answer.
    Silent,
    /// Adds all of it, and answers after this delay.
    Late(Duration),
    /// Adds all of it and claims this many more pages, as no honest guest does.
    ClaimsMore(PageCount),
    /// Adds and claims all but the last page, as no honest guest does.
    ClaimsOdd,
}

/// A guest's behaviour. The named ones reflect what is known of real guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Personality {
    /// The name in test output.
    pub name: &'static str,
    /// `HV_X64_MSR_GUEST_OS_ID`.
    pub guest_os_id: u64,
    /// The VMBus versions it tries, in this order.
    pub vmbus_versions: Vec<vmbus::protocol::Version>,
    /// The Dynamic Memory versions it requests, in this order.
    pub versions: Vec<Version>,
    /// The capabilities it reports.
    pub capabilities: Capabilities,
    /// How long after the handshake a request still crashes it.
    pub settle: Duration,
    /// It answers neither balloon nor unballoon requests.
    pub ignores_requests: bool,
    /// How it gives pages.
    pub ballooning: Ballooning,
    /// How it takes new memory.
    pub hot_add: HotAdd,
}

impl Personality {
    /// Whether its OS ID says Linux (TLFS, `HV_X64_MSR_GUEST_OS_ID`).
    #[must_use]
    pub const fn is_linux(&self) -> bool {
        self.guest_os_id >> 56 == 0x81
    }

    /// This guest with a hot-add alignment of 2^`log2_mib` MiB; it also adds memory in blocks of
    /// that size.
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
