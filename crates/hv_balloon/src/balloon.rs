//! Pages from the guest.

use core::time::Duration;

use dynmem_protocol::{BalloonRequest, BalloonResponse, MessageType};
use page_range::PageCount;

use crate::books::Accepted;
use crate::state::{Session, State};
use crate::target::Pursuit;
use crate::{Device, GuestFault, StopReason};

/// The most pages one request asks for: what Windows gives at once. It stops answering requests
/// that ask for too much (QEMU `hv-balloon.c`).
pub const MAX_BALLOON_REQUEST: PageCount = PageCount::new(585_728);

/// How long the guest may be silent before a request is given up.
pub const BALLOON_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a request may take in all. Each page that comes gives the guest more time, but one that
/// gives a page a minute would take years; others give all there is in a request in some seconds.
pub const MAX_BALLOON_TIME: Duration = Duration::from_secs(600);

/// How long the guest is left alone after it gave less than asked for. Linux computes its floor
/// afresh for each request, so asking again can bring more.
pub const SHORT_ANSWER_PAUSE: Duration = Duration::from_secs(1);

/// After so many short answers in a row the guest is at its floor, though it still finds a few
/// pages each time.
pub const MAX_SHORT_ANSWERS: u32 = 5;

/// Linux gives whole 2 MiB units as long as that many are asked for, then single pages; and a
/// request that is no multiple ends in hundreds of those.
const LARGE_PAGE: u64 = 512;
const _: () = assert!(MAX_BALLOON_REQUEST.get().is_multiple_of(LARGE_PAGE));

/// A balloon request that is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Pages asked for.
    pub(crate) pages: PageCount,
    /// New pages the answers brought so far.
    pub(crate) gained: PageCount,
    /// The answers named pages, whatever they are good for.
    pub(crate) named_pages: bool,
    /// Answers before this one that were short.
    pub(crate) short_answers: u32,
    /// When the request ends, whatever comes.
    pub(crate) until: Duration,
}

impl Asked {
    /// The request is in the ring: its time starts now.
    pub(crate) const fn sent(&mut self, now: Duration) {
        self.until = now.saturating_add(MAX_BALLOON_TIME);
    }
}

impl Device {
    /// Asks the guest for `excess` pages, or a good part of them.
    pub(crate) fn request_pages(
        &mut self,
        session: Session,
        excess: PageCount,
        short_answers: u32,
    ) {
        let pages = request_size(excess);
        let id = self.transaction_id;
        let request = BalloonRequest { pages };
        if self.outbox.push(|out| request.emit_into(id, out)).is_ok() {
            let asked = Asked {
                pages,
                gained: PageCount::ZERO,
                named_pages: false,
                short_answers,
                until: self.after(MAX_BALLOON_TIME),
            };
            let deadline = self.after(BALLOON_TIMEOUT);
            self.state = State::Ballooning { session, asked, deadline };
        }
    }

    /// Pages count whenever they come: the guest has them no more.
    pub(crate) fn on_balloon_response(&mut self, response: BalloonResponse<'_>) {
        if self.state.session().is_none() {
            return self.out_of_state(MessageType::BALLOON_RESPONSE);
        }
        let accepted = self.books.accept(response.ranges);
        self.report_odd_pages(accepted);
        let State::Ballooning { session, mut asked, mut deadline } = self.state else {
            let state = self.state.name();
            return self.fault(GuestFault::UnaskedResponse { pages: accepted.fresh, state });
        };
        asked.gained = asked.gained.saturating_add(accepted.fresh);
        asked.named_pages |= !accepted.is_empty();
        if response.more_pages {
            // Messages that bring nothing do not keep the request alive.
            if !accepted.fresh.is_zero() {
                deadline = self.after(BALLOON_TIMEOUT).min(asked.until);
            }
            self.state = State::Ballooning { session, asked, deadline };
        } else {
            self.request_answered(session, asked);
        }
    }

    /// The guest said its last word on a request. Decides whether it is asked again.
    fn request_answered(&mut self, session: Session, asked: Asked) {
        self.end_transaction(session);
        let Asked { pages, gained, named_pages, short_answers, .. } = asked;
        if gained > pages {
            self.fault(GuestFault::ExcessPages { asked: pages, given: gained });
        }
        if gained >= pages || self.excess_pages().is_zero() {
            return;
        }
        let short_answers = short_answers.saturating_add(1);
        if gained.is_zero() && named_pages {
            self.stop(StopReason::NothingUsable);
        } else if gained.is_zero() || short_answers >= MAX_SHORT_ANSWERS {
            self.stop(StopReason::GuestFloor);
        } else {
            let until = self.after(SHORT_ANSWER_PAUSE);
            self.state = State::Pausing { session, until, short_answers };
        }
    }

    /// The transaction is over, well or not.
    pub(crate) fn end_transaction(&mut self, session: Session) {
        self.retry_held();
        self.transaction_id = self.transaction_id.wrapping_add(1);
        self.state = State::Idle { session };
    }

    /// Lets held pages be discarded where the guest is not to get them back.
    pub(crate) fn retry_held(&mut self) {
        if self.owed_pages().is_zero() && !self.is_inhibited {
            self.books.retry_held();
        }
    }

    /// Gives up until a target is set again.
    pub(crate) fn stop(&mut self, reason: StopReason) {
        if let Some(goal) = &mut self.goal
            && !goal.is_given_up()
        {
            goal.pursuit = Pursuit::Stopping(reason);
        }
    }

    /// Pages the guest has above an open target.
    pub(crate) fn excess_pages(&self) -> PageCount {
        match self.goal {
            Some(goal) if goal.pursuit == Pursuit::Open => {
                self.books.present().saturating_sub(goal.target)
            }
            _ => PageCount::ZERO,
        }
    }

    fn report_odd_pages(&mut self, accepted: Accepted) {
        let Accepted { fresh: _, duplicate, foreign, forgotten, bad_ranges } = accepted;
        if bad_ranges != 0 {
            self.fault(GuestFault::BadRanges { ranges: bad_ranges });
        }
        if !duplicate.is_zero() {
            self.fault(GuestFault::DuplicatePages { pages: duplicate });
        }
        if !foreign.is_zero() {
            self.fault(GuestFault::ForeignPages { pages: foreign });
        }
        if !forgotten.is_zero() {
            self.fault(GuestFault::ForgottenPages { pages: forgotten });
        }
    }
}

/// How much of `excess` one request asks for: whole large pages as long as there are any, the rest
/// in a request of its own, so that the end is exact.
fn request_size(excess: PageCount) -> PageCount {
    let capped = excess.min(MAX_BALLOON_REQUEST);
    let large = PageCount::new(capped.get() & !(LARGE_PAGE - 1));
    if large.is_zero() { capped } else { large }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(excess: u64) -> u64 {
        request_size(PageCount::new(excess)).get()
    }

    #[test]
    fn requests_are_large_pages_then_the_rest() {
        assert_eq!([size(1024), size(1025), size(513), size(511)], [1024, 1024, 512, 511]);
    }

    #[test]
    fn no_request_asks_for_more_than_windows_gives() {
        assert_eq!([size(585_728), size(585_729), size(u64::MAX)], [585_728; 3]);
    }
}
