//! Breaches of the protocol by the guest.

use dynmem_protocol::{MessageType, ParseError};
use page_range::PageCount;
use serde::{Deserialize, Serialize};

use crate::StateName;

/// A breach of the protocol. The device counts each one and carries on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestFault {
    /// A packet that is not a message; dropped.
    #[error("guest sent a malformed message: {0}")]
    Malformed(ParseError),
    /// A message that is not valid in the current state; dropped.
    #[error("guest sent \"{message}\" in state {state}")]
    OutOfState {
        /// The type of the message.
        message: MessageType,
        /// The state of the device.
        state: StateName,
    },
    /// Requests that come faster than the guest reads the answers; dropped.
    #[error("guest sends requests without reading the answers")]
    Flood,
    /// Range words that name no pages; skipped.
    #[error("guest gave {ranges} page ranges that name no pages")]
    BadRanges {
        /// The number of range words.
        ranges: u64,
    },
    /// Pages that the host already has; counted once.
    #[error("guest gave {pages} pages that the host already has")]
    DuplicatePages {
        /// The number of pages.
        pages: PageCount,
    },
    /// Pages that are not RAM of this guest; kept apart and returned with the next pages.
    #[error("guest gave {pages} pages that are not its RAM")]
    ForeignPages {
        /// The number of pages.
        pages: PageCount,
    },
    /// Pages that are not RAM of this guest, and are too many or too scattered to remember.
    #[error("guest gave {pages} pages that are not its RAM, too many or too scattered to remember")]
    ForgottenPages {
        /// The number of pages.
        pages: PageCount,
    },
    /// Pages that were not requested, or came after a timeout; accepted anyway, since the guest no
    /// longer uses them.
    #[error("guest gave {pages} pages unasked in state {state}")]
    UnaskedResponse {
        /// The number of new pages.
        pages: PageCount,
        /// The state of the device.
        state: StateName,
    },
    /// More pages than requested; accepted anyway.
    #[error("guest gave {given} pages when asked for {asked}")]
    ExcessPages {
        /// Pages requested.
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
        /// The block size, in pages.
        alignment: PageCount,
    },
}

/// Declares [`FaultCounts`]: for each counter its documentation, its field, its name, and the fault
/// that it counts with the amount.
macro_rules! fault_counts {
    ($($(#[$doc:meta])* $field:ident $name:literal: $fault:pat => $amount:expr,)*) => {
        /// How often each [`GuestFault`] occurred since the device was created. The counters
        /// saturate.
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

// The counters are saved with the device, so another one needs a new version of the saved state.
fault_counts! {
    /// Packets that were not messages.
    malformed "malformed": GuestFault::Malformed(_) => 1,
    /// Messages that were not valid in the state at the time.
    out_of_state "out-of-state": GuestFault::OutOfState { .. } => 1,
    /// Requests dropped because unread answers piled up.
    floods "floods": GuestFault::Flood => 1,
    /// Range words that named no pages.
    bad_ranges "bad-ranges": GuestFault::BadRanges { ranges } => ranges,
    /// Pages that the host already had.
    duplicate_pages "duplicate-pages": GuestFault::DuplicatePages { pages } => pages.get(),
    /// Pages that are not RAM and were remembered.
    foreign_pages "foreign-pages": GuestFault::ForeignPages { pages } => pages.get(),
    /// Pages that are not RAM and were not remembered.
    forgotten_pages "forgotten-pages": GuestFault::ForgottenPages { pages } => pages.get(),
    /// Balloon responses that were not requested.
    unasked_responses "unasked-responses": GuestFault::UnaskedResponse { .. } => 1,
    /// Pages beyond the number requested.
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
