//! What the guest did wrong.

use dynmem_protocol::{MessageType, ParseError};
use page_range::PageCount;
use serde::{Deserialize, Serialize};

use crate::StateName;

/// A breach of the protocol. Each is counted and survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestFault {
    /// A packet that is no message; dropped.
    #[error("guest sent a malformed message: {0}")]
    Malformed(ParseError),
    /// A message that has no meaning now; dropped.
    #[error("guest sent \"{message}\" in state {state}")]
    OutOfState {
        /// Its type.
        message: MessageType,
        /// The state it came in.
        state: StateName,
    },
    /// Requests came faster than the guest reads answers; dropped.
    #[error("guest sends requests without reading the answers")]
    Flood,
    /// Range words that name no pages; skipped.
    #[error("guest gave {ranges} page ranges that name no pages")]
    BadRanges {
        /// How many.
        ranges: u64,
    },
    /// Pages given that the host has already; counted once.
    #[error("guest gave {pages} pages the host has already")]
    DuplicatePages {
        /// How many.
        pages: PageCount,
    },
    /// Pages given that are not RAM of this guest; kept apart, returned with the next pages.
    #[error("guest gave {pages} pages that are not its RAM")]
    ForeignPages {
        /// How many.
        pages: PageCount,
    },
    /// Pages given that are not RAM of this guest, more or in more pieces than the device remembers.
    #[error("guest gave {pages} pages that are not its RAM, too many or too scattered to remember")]
    ForgottenPages {
        /// How many.
        pages: PageCount,
    },
    /// Pages nobody was waiting for, perhaps after a timeout; taken all the same, since the guest
    /// has them no more.
    #[error("guest gave {pages} pages unasked in state {state}")]
    UnaskedResponse {
        /// How many were new.
        pages: PageCount,
        /// The state they came in.
        state: StateName,
    },
    /// More pages than asked for; taken all the same.
    #[error("guest gave {given} pages when asked for {asked}")]
    ExcessPages {
        /// Pages asked for.
        asked: PageCount,
        /// Pages given.
        given: PageCount,
    },
    /// An answer to a hot-add request that names more pages than were offered, or parts of blocks.
    /// All blocks it touches count as added.
    #[error("guest added {added} pages when offered {offered} in blocks of {alignment}")]
    OddHotAdd {
        /// Pages offered.
        offered: PageCount,
        /// Pages the guest says it added.
        added: PageCount,
        /// The block.
        alignment: PageCount,
    },
}

/// Declares [`FaultCounts`]: for each counter its documentation, its field, its name, and the fault
/// that it counts with the amount.
macro_rules! fault_counts {
    ($($(#[$doc:meta])* $field:ident $name:literal: $fault:pat => $amount:expr,)*) => {
        /// How often each [`GuestFault`] was seen since the device was made. Saturating.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct FaultCounts {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl FaultCounts {
            /// Each counter with its name, such as `bad-ranges`: for monitors and logs.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$(($name, self.$field)),*].into_iter()
            }

            pub(crate) fn count(&mut self, fault: GuestFault) {
                match fault {
                    $($fault => self.$field = self.$field.saturating_add($amount),)*
                }
            }
        }
    };
}

// Saved with the device, so a counter more makes a new version of the saved state.
fault_counts! {
    /// Packets that were no message.
    malformed "malformed": GuestFault::Malformed(_) => 1,
    /// Messages without meaning in their state.
    out_of_state "out-of-state": GuestFault::OutOfState { .. } => 1,
    /// Requests dropped because their answers pile up.
    floods "floods": GuestFault::Flood => 1,
    /// Range words that named no pages.
    bad_ranges "bad-ranges": GuestFault::BadRanges { ranges } => ranges,
    /// Pages given twice.
    duplicate_pages "duplicate-pages": GuestFault::DuplicatePages { pages } => pages.get(),
    /// Pages given that are not RAM, and remembered.
    foreign_pages "foreign-pages": GuestFault::ForeignPages { pages } => pages.get(),
    /// Pages given that are not RAM, and not remembered.
    forgotten_pages "forgotten-pages": GuestFault::ForgottenPages { pages } => pages.get(),
    /// Balloon responses nobody was waiting for.
    unasked_responses "unasked-responses": GuestFault::UnaskedResponse { .. } => 1,
    /// Pages given beyond what was asked for.
    excess_pages "excess-pages":
        GuestFault::ExcessPages { asked, given } => given.saturating_sub(asked).get(),
    /// Impossible answers to hot-add requests.
    odd_hot_adds "odd-hot-adds": GuestFault::OddHotAdd { .. } => 1,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stop_at_the_top() {
        let mut counts = FaultCounts { bad_ranges: u64::MAX - 1, ..FaultCounts::default() };
        counts.count(GuestFault::BadRanges { ranges: 5 });
        assert_eq!(counts.bad_ranges, u64::MAX);
    }
}
