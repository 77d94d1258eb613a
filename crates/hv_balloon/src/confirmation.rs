//! Whether the guest's kernel knows the memory that was added before it started.
//!
//! A kernel that kexec starts gets a memory map from the kernel before it. `kexec_file_load` passes on
//! the firmware's map, and `kexec -l` the map at the time it was called: memory added since is not in
//! it. Windows goes on using added memory when its bus reconnects. The protocol has no message that
//! says which it is, but a status report does: what the guest has is available or committed.
//!
//! ```text
//!              another kernel opens the channel           the report has most of it
//!   Settled ───────────────────────────────────► Awaited ───────────────────────────► Settled
//!      ▲                                            │ │ next to nothing of it
//!      │                      no report in time, or │ └───────────────────► Settled, unconfirmed
//!      │  a report at last    none that decides     ▼
//!      └────────────────────────────────────────  Silent, unconfirmed
//! ```
//!
//! Unconfirmed memory is not counted as the guest's ([`PageLedger`](crate::ledger)). It is not offered
//! again: Linux switches hot-add off for good once it fails, and an offer of what it has fails. A
//! verdict holds for as long as the kernel runs, since what a guest commits later says little about
//! what it has.
//!
//! The verdict is as good as the report. Linux counts neither its own memory nor huge pages set aside
//! (`vm.nr_hugepages`), and a process can commit more than there is. Memory below a tenth of the
//! guest's size may therefore be judged wrongly, and a guest that has confirmed is asked as ever.

use core::time::Duration;

use dynmem_protocol::StatusReport;
use page_range::PageCount;

use crate::Notice;
use crate::StopReason;
use crate::config::is_linux;
use crate::machine::Machine;
use crate::target::Pursuit;

/// How long the device waits for a report that tells whether the guest has the memory added before
/// its kernel started. Linux sends none in the first 45 seconds of its driver.
pub const CONFIRMATION_WAIT: Duration = Duration::from_secs(120);

/// Whether it is known which of the added memory the guest has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// It is.
    #[default]
    Settled,
    /// A report is to tell. Until then no size changes.
    Awaited,
    /// No report has told in time. The next one still may.
    Silent,
}

/// Whether `shown` is enough of `pages`, in quarters, or next to nothing of them; `None` if it is
/// neither.
pub(crate) fn is_shown(shown: PageCount, pages: PageCount, enough: u64) -> Option<bool> {
    let quarters = |count: u64| PageCount::new(pages.get().saturating_mul(count) / 4);
    if shown >= quarters(enough) {
        Some(true)
    } else if shown < quarters(1) {
        Some(false)
    } else {
        None
    }
}

/// How many quarters of the added memory are enough. A Linux of 1.5 GiB counts some 190 MiB as neither
/// available nor committed, among them 64 MiB of buffers that it sets aside if it finds memory above
/// 4 GiB as it starts.
const ENOUGH: u64 = 2;

impl Machine {
    /// Another kernel has opened the channel: it may know all of the added memory, or nothing.
    pub(crate) fn doubt_added(&mut self) {
        self.ledger.confirm();
        self.confirmation = match self.hot_added() {
            PageCount::ZERO => Confirmation::Settled,
            _ => Confirmation::Awaited,
        };
    }

    /// Whether nothing may be asked of the guest before it has reported.
    pub(crate) fn awaits_report(&self) -> bool {
        self.confirmation == Confirmation::Awaited
    }

    /// Whether the guest must send reports, whatever the operator wants of them.
    pub(crate) fn needs_report(&self) -> bool {
        self.confirmation != Confirmation::Settled
    }

    /// No report has told in time.
    pub(crate) fn report_overdue(&mut self) {
        if self.awaits_report() {
            self.confirmation = Confirmation::Silent;
            self.count_out();
        }
    }

    /// A report tells whether the guest has the added memory, or leaves it open.
    pub(crate) fn judge_added(&mut self, report: StatusReport, guest_os_id: u64) {
        let (doubted, kept) = match self.confirmation {
            Confirmation::Settled => return,
            Confirmation::Awaited => {
                let added = self.hot_added();
                (added, self.ledger.present().saturating_sub(added))
            }
            Confirmation::Silent => (self.ledger.unconfirmed(), self.ledger.present()),
        };
        let rest = self.ledger.assigned().saturating_sub(doubted);
        let floor = match is_linux(guest_os_id) {
            true => StatusReport::linux_floor(kept),
            false => PageCount::ZERO,
        };
        let has = report.available.saturating_add(report.committed).saturating_sub(floor);
        match (is_shown(has.saturating_sub(rest), doubted, ENOUGH), self.confirmation) {
            (None, _) => return,
            (Some(true), _) => self.ledger.confirm(),
            (Some(false), Confirmation::Awaited) => self.count_out(),
            (Some(false), _) => {}
        }
        self.confirmation = Confirmation::Settled;
        self.judge_again();
    }

    /// Added memory does not count until the guest confirms it.
    fn count_out(&mut self) {
        self.ledger.count_out(&self.boot_ram);
        let pages = self.ledger.unconfirmed();
        self.notify(Notice::Unconfirmed { pages });
    }

    /// The guest has turned out to be of another size.
    fn judge_again(&mut self) {
        if let Some(goal) = &mut self.goal
            && let Pursuit::Reached | Pursuit::Stopped(StopReason::Unconfirmed) = goal.pursuit
        {
            goal.pursuit = Pursuit::Open;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_quarters_as_said_are_enough_and_less_than_one_is_nothing() {
        let judge = |shown, enough| is_shown(PageCount::new(shown), PageCount::new(1000), enough);
        let verdicts = [0, 249, 250, 499, 500, 2000].map(|shown| judge(shown, 2));
        let expected = [Some(false), Some(false), None, None, Some(true), Some(true)];
        assert_eq!(verdicts, expected);
        assert_eq!([749, 750].map(|shown| judge(shown, 3)), [None, Some(true)]);
    }
}
