//! What the guest did wrong.

use dynmem_protocol::{MessageType, ParseError};
use page_range::PageCount;

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

/// How often each [`GuestFault`] was seen since the device was made. Saturating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Packets that were no message.
    pub malformed: u64,
    /// Messages without meaning in their state.
    pub out_of_state: u64,
    /// Requests dropped because their answers pile up.
    pub floods: u64,
    /// Range words that named no pages.
    pub bad_ranges: u64,
    /// Pages given twice.
    pub duplicate_pages: u64,
    /// Pages given that are not RAM, and remembered.
    pub foreign_pages: u64,
    /// Pages given that are not RAM, and not remembered.
    pub forgotten_pages: u64,
    /// Balloon responses nobody was waiting for.
    pub unasked_responses: u64,
    /// Pages given beyond what was asked for.
    pub excess_pages: u64,
    /// Impossible answers to hot-add requests.
    pub odd_hot_adds: u64,
}

impl FaultCounts {
    pub(crate) fn count(&mut self, fault: GuestFault) {
        let (counter, amount) = match fault {
            GuestFault::Malformed(_) => (&mut self.malformed, 1),
            GuestFault::OutOfState { .. } => (&mut self.out_of_state, 1),
            GuestFault::Flood => (&mut self.floods, 1),
            GuestFault::BadRanges { ranges } => (&mut self.bad_ranges, ranges),
            GuestFault::DuplicatePages { pages } => (&mut self.duplicate_pages, pages.get()),
            GuestFault::ForeignPages { pages } => (&mut self.foreign_pages, pages.get()),
            GuestFault::ForgottenPages { pages } => (&mut self.forgotten_pages, pages.get()),
            GuestFault::UnaskedResponse { .. } => (&mut self.unasked_responses, 1),
            GuestFault::OddHotAdd { .. } => (&mut self.odd_hot_adds, 1),
            GuestFault::ExcessPages { asked, given } => {
                (&mut self.excess_pages, given.saturating_sub(asked).get())
            }
        };
        *counter = counter.saturating_add(amount);
    }

    /// All counters, in the order in which they are saved.
    fn counters(&mut self) -> [&mut u64; 10] {
        let Self {
            malformed,
            out_of_state,
            floods,
            bad_ranges,
            duplicate_pages,
            foreign_pages,
            forgotten_pages,
            unasked_responses,
            excess_pages,
            odd_hot_adds,
        } = self;
        [
            malformed,
            out_of_state,
            floods,
            bad_ranges,
            duplicate_pages,
            foreign_pages,
            forgotten_pages,
            unasked_responses,
            excess_pages,
            odd_hot_adds,
        ]
    }

    pub(crate) fn to_saved(mut self) -> [u64; 10] {
        self.counters().map(|counter| *counter)
    }

    pub(crate) fn from_saved(saved: [u64; 10]) -> Self {
        let mut counts = Self::default();
        for (counter, count) in counts.counters().into_iter().zip(saved) {
            *counter = count;
        }
        counts
    }
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
