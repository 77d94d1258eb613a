//! Pages back to the guest.

use core::time::Duration;

use dynmem_protocol::{MessageType, UnballoonRequest};
use page_range::PageCount;

use crate::Device;
use crate::state::{Session, State};

/// The most pages one message gives back. Linux frees them one by one in its interrupt handler;
/// 2 GiB at a time are known to work with Windows (QEMU `hv-balloon.c`).
pub const MAX_UNBALLOON_MESSAGE: PageCount = PageCount::new(524_288);
const _: () = assert!(MAX_UNBALLOON_MESSAGE.get() <= dynmem_protocol::MAX_RANGE_PAGES.get());

/// How long the guest may take to read a message, and to confirm the last one.
pub const UNBALLOON_TIMEOUT: Duration = Duration::from_secs(60);

impl Device {
    /// Sends the next message of an unballoon request, the first one included. What the target asks
    /// for is looked up anew for each message, so a target set meanwhile ends or extends the
    /// request; a target that fell leads to a last message without pages.
    pub(crate) fn return_pages(&mut self, session: Session) {
        let mut owed = self.owed_pages();
        let mut list = core::mem::take(&mut self.ranges);
        list.clear();
        while !owed.is_zero() && !list.is_full() {
            let room = MAX_UNBALLOON_MESSAGE.saturating_sub(list.pages());
            let Some((range, of_ram)) = self.books.take_returnable(owed, room) else { break };
            let pushed = list.push(range);
            debug_assert_eq!(pushed, Ok(()), "there was room");
            owed = owed.saturating_sub(of_ram);
        }
        let more_pages = !owed.is_zero() && !self.books.returnable().is_zero();
        let id = self.transaction_id;
        let pushed =
            self.outbox.push(|out| UnballoonRequest::emit_into(id, more_pages, &list, out));
        debug_assert_eq!(pushed, Ok(()), "called with an idle outbox only");
        self.ranges = list;
        let deadline = self.after(UNBALLOON_TIMEOUT);
        self.state = State::Unballooning { session, all_sent: !more_pages, deadline };
    }

    /// Only the last message of a request is confirmed, and only once it is in the ring.
    pub(crate) fn on_unballoon_response(&mut self) {
        match self.state {
            State::Unballooning { session, all_sent: true, .. } if self.outbox.is_idle() => {
                self.end_transaction(session);
            }
            _ => self.out_of_state(MessageType::UNBALLOON_RESPONSE),
        }
    }

    /// Pages the guest lacks to its target, whether or not they may be returned yet.
    pub(crate) fn owed_pages(&self) -> PageCount {
        self.goal.map_or(PageCount::ZERO, |goal| goal.target.saturating_sub(self.books.present()))
    }
}
