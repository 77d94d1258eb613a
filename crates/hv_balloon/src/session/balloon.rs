//! Ballooning: pages from the guest.

use core::time::Duration;

use dynmem_protocol::{BalloonRequest, BalloonResponse};
use page_range::PageCount;

use super::{Activity, Session};
use crate::ledger::Accepted;
use crate::machine::Machine;
use crate::{GuestFault, Notice, StopReason, Transaction};

/// The most pages that one request asks for, which is what Windows gives at once. Windows stops
/// answering if a request asks for too much (QEMU `hv-balloon.c`).
pub const MAX_BALLOON_REQUEST: PageCount = PageCount::new(585_728);

/// How long the guest may be silent before a request is announced as overdue.
pub const BALLOON_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a request may take in all before it is announced as overdue. Each page that comes gives
/// the guest more time, but one that gives a page a minute would take years; others give all there is
/// in a request in some seconds.
pub const MAX_BALLOON_TIME: Duration = Duration::from_secs(600);

/// How long the device leaves the guest alone after a short answer. Linux computes its floor afresh
/// for each request, so asking again can yield more pages.
pub const SHORT_ANSWER_PAUSE: Duration = Duration::from_secs(1);

/// The number of short answers in a row after which the guest counts as being at its floor, even if
/// it still finds a few pages each time.
pub const MAX_SHORT_ANSWERS: u32 = 5;

/// Linux gives whole 2 MiB units as long as that many pages are requested, then single pages. A
/// request that is not a multiple would end in hundreds of single pages.
const LARGE_PAGE: u64 = 512;
const _: () = assert!(MAX_BALLOON_REQUEST.get().is_multiple_of(LARGE_PAGE));

/// An outstanding balloon request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Pages asked for.
    pub(super) pages: PageCount,
    /// New pages in the answers so far.
    pub(super) gained: PageCount,
    /// Whether the answers named any pages, useful or not.
    pub(super) named_pages: bool,
    /// The number of short answers before this request.
    pub(super) short_answers: u32,
    /// When the request is overdue, whatever comes.
    pub(super) until: Duration,
    /// When the request is overdue, unless pages come; `None` once it is.
    pub(super) deadline: Option<Duration>,
}

impl Asked {
    /// The request is in the ring: its time starts now.
    pub(super) const fn sent(self, machine: &Machine) -> Self {
        let until = machine.after(MAX_BALLOON_TIME);
        Self { until, deadline: Some(machine.after(BALLOON_TIMEOUT)), ..self }
    }
}

impl Session {
    /// Asks the guest for as many of `excess` pages as one request should: see [`request_size`].
    pub(super) fn request_pages(
        &mut self,
        machine: &mut Machine,
        excess: PageCount,
        short_answers: u32,
    ) -> Activity {
        machine.heard();
        self.size_changes();
        let pages = request_size(excess);
        let (id, request) = (self.transaction_id, BalloonRequest { pages });
        let pushed = self.outbox.push(|out| request.emit_into(id, out));
        debug_assert_eq!(pushed, Ok(()), "called with an idle outbox only");
        Activity::Ballooning(Asked {
            pages,
            gained: PageCount::ZERO,
            named_pages: false,
            short_answers,
            until: machine.after(MAX_BALLOON_TIME),
            deadline: Some(machine.after(BALLOON_TIMEOUT)),
        })
    }

    /// Handles an answer to the request, or a part of one.
    pub(super) fn answered(
        &mut self,
        machine: &mut Machine,
        mut asked: Asked,
        response: BalloonResponse<'_>,
    ) -> Activity {
        let accepted = accept(machine, response);
        asked.gained = asked.gained.saturating_add(accepted.fresh);
        asked.named_pages |= !accepted.is_empty();
        if !response.more_pages {
            return self.request_answered(machine, asked);
        }
        // Messages that bring nothing give the guest no more time.
        if !accepted.fresh.is_zero() && asked.deadline.is_some() {
            asked.deadline = Some(machine.after(BALLOON_TIMEOUT).min(asked.until));
        }
        Activity::Ballooning(asked)
    }

    /// Accepts pages that were not requested, since the guest no longer uses them.
    pub(super) fn gave_unasked(
        &mut self,
        machine: &mut Machine,
        response: BalloonResponse<'_>,
        activity: Activity,
    ) -> Activity {
        let accepted = accept(machine, response);
        let state = activity.name();
        if self.given_up == 0 {
            machine.fault(GuestFault::UnaskedResponse { pages: accepted.fresh, state });
        } else if !response.more_pages {
            self.given_up = self.given_up.saturating_sub(1);
        }
        activity
    }

    /// Handles the last answer to a request, and decides whether to ask again.
    fn request_answered(&mut self, machine: &mut Machine, asked: Asked) -> Activity {
        let idle = self.end_transaction(machine);
        machine.heard();
        let Asked { pages, gained, named_pages, short_answers, .. } = asked;
        // It may be the answer to a request that was given up.
        let is_certain = self.given_up == 0;
        self.given_up = self.given_up.saturating_sub(1);
        if gained > pages && is_certain {
            machine.fault(GuestFault::ExcessPages { asked: pages, given: gained });
        }
        if gained >= pages || machine.excess_pages().is_zero() {
            return idle;
        }
        let short_answers = short_answers.saturating_add(1);
        if gained.is_zero() && named_pages {
            machine.stop(StopReason::NothingUsable);
        } else if gained.is_zero() || short_answers >= MAX_SHORT_ANSWERS {
            machine.stop(StopReason::GuestFloor);
        } else {
            return Activity::Pausing { until: machine.after(SHORT_ANSWER_PAUSE), short_answers };
        }
        idle
    }

    /// The operator wants something else of a guest that has not answered in time.
    pub(super) fn asked_in_vain(&mut self, machine: &mut Machine) -> Activity {
        self.given_up = self.given_up.saturating_add(1);
        self.end_transaction(machine)
    }

    /// The guest is slow, or stands still. It is not asked again before it answers: one that stands
    /// still would find both requests when it goes on, and give twice as much.
    pub(super) fn balloon_overdue(machine: &mut Machine, asked: Asked) -> Activity {
        machine.notify(Notice::TimedOut(Transaction::Balloon));
        machine.overdue(StopReason::Timeout);
        Activity::Ballooning(Asked { deadline: None, ..asked })
    }
}

/// Accepts the pages of a response, and reports those that should not be in it.
fn accept(machine: &mut Machine, response: BalloonResponse<'_>) -> Accepted {
    let accepted = machine.ledger.accept(response.ranges);
    let Accepted { fresh: _, duplicate, foreign, forgotten, bad_ranges } = accepted;
    if bad_ranges != 0 {
        machine.fault(GuestFault::BadRanges { ranges: bad_ranges });
    }
    if !duplicate.is_zero() {
        machine.fault(GuestFault::DuplicatePages { pages: duplicate });
    }
    if !foreign.is_zero() {
        machine.fault(GuestFault::ForeignPages { pages: foreign });
    }
    if !forgotten.is_zero() {
        machine.fault(GuestFault::ForgottenPages { pages: forgotten });
    }
    accepted
}

/// The number of pages that one request asks for: whole large pages as long as there are any, then
/// the rest in a request of its own, so that the target is met exactly.
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
