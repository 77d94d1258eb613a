//! Unballooning: pages back to the guest.

use core::time::Duration;

use dynmem_protocol::UnballoonRequest;
use page_range::PageCount;

use super::{Activity, Session};
use crate::machine::Machine;
use crate::{Notice, StopReason, Transaction};

/// The most pages that one message returns. Linux frees them one by one in its interrupt handler.
/// Returning 2 GiB at a time is known to work with Windows (QEMU `hv-balloon.c`).
pub const MAX_UNBALLOON_MESSAGE: PageCount = PageCount::new(524_288);
const _: () = assert!(MAX_UNBALLOON_MESSAGE.get() <= dynmem_protocol::MAX_RANGE_PAGES.get());

/// How long the guest may take to read a message, and to confirm the last one, before that is
/// announced as overdue.
pub const UNBALLOON_TIMEOUT: Duration = Duration::from_secs(60);

impl Session {
    /// Sends the next message of an unballoon request, the first one included. Each message follows
    /// the current target, so a target set meanwhile ends or extends the request; a lower target
    /// leads to a last message without pages.
    ///
    /// The guest confirms only the last message of a request, and only once it is in the ring.
    pub(super) fn return_pages(&mut self, machine: &mut Machine) -> Activity {
        machine.heard();
        self.size_changes();
        let mut owed = machine.owed_pages();
        let ledger = &mut machine.ledger;
        self.ranges.clear();
        while !owed.is_zero() && !self.ranges.is_full() {
            let room = MAX_UNBALLOON_MESSAGE.saturating_sub(self.ranges.pages());
            let Some((range, of_ram)) = ledger.take_returnable(owed, room) else { break };
            let pushed = self.ranges.push(range);
            debug_assert_eq!(pushed, Ok(()), "there was room");
            owed = owed.saturating_sub(of_ram);
        }
        let more_pages = !owed.is_zero() && !ledger.returnable().is_zero();
        let (id, ranges) = (self.transaction_id, &self.ranges);
        let pushed =
            self.outbox.push(|out| UnballoonRequest::emit_into(id, more_pages, ranges, out));
        debug_assert_eq!(pushed, Ok(()), "called with an idle outbox only");
        let deadline = Some(machine.after(UNBALLOON_TIMEOUT));
        Activity::Unballooning { all_sent: !more_pages, deadline }
    }

    /// The guest is slow, or stands still. A request of which it waits for the next message must not
    /// be broken off for another one.
    pub(super) fn unballoon_overdue(machine: &mut Machine, all_sent: bool) -> Activity {
        machine.notify(Notice::TimedOut(Transaction::Unballoon));
        machine.overdue(StopReason::Timeout);
        Activity::Unballooning { all_sent, deadline: None }
    }
}
