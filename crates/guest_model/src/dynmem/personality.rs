//! Guests differ.

use alloc::vec::Vec;

use dynmem_protocol::{Capabilities, Version};

/// How the answer to a balloon request ends. Linux does both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// With the message that brings the last pages.
    #[default]
    WithPages,
    /// With a message of its own that brings none.
    Separate,
}

/// How a guest behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Personality {
    /// The versions it asks for, in this order.
    pub versions: Vec<Version>,
    /// What it says it can do.
    pub capabilities: Capabilities,
    /// How it ends its answers.
    pub ending: Ending,
    /// It answers no balloon and no unballoon request, as Linux where it could hibernate.
    pub ignores_requests: bool,
}

impl Personality {
    /// A Linux 6.1 guest.
    #[must_use]
    pub fn linux() -> Self {
        Self {
            versions: Version::KNOWN.to_vec(),
            capabilities: Capabilities::BALLOON
                .union(Capabilities::HOT_ADD)
                .with_hot_add_alignment(7),
            ending: Ending::WithPages,
            ignores_requests: false,
        }
    }
}
