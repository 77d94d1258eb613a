//! Whether the guest uses the memory that it added.
//!
//! Linux adds memory in blocks, which something in the guest has to bring online before it can be
//! used. Its driver waits up to five seconds for each. An answer that comes faster proves that the
//! memory is in use; one that comes later proves nothing, since the guest may be slow. The guest's
//! status reports tell, compared with one before: Linux counts memory that was added and is not online
//! as committed (`hv_balloon.c`, `post_status`), and memory that is online as available. It sends none
//! in the first 45 seconds of its driver; then the doubt is announced, and the next block tells.

use core::time::Duration;

use dynmem_protocol::StatusReport;
use page_range::PageCount;

use super::Session;
use crate::confirmation::is_shown;
use crate::machine::Machine;

/// How long to wait for a report that tells; Linux sends one a second.
pub(super) const REPORT_WAIT: Duration = Duration::from_secs(10);

/// How many quarters of the memory must show in a report to be sure what has become of it.
const ENOUGH: u64 = 3;

/// Memory that the guest added and has perhaps not put to use. No more is offered meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unused {
    pub(super) pages: PageCount,
    /// The last report before the memory was offered, if there was one to compare with.
    pub(super) before: Option<StatusReport>,
    /// How long to wait for a report; `None` once one has said that the memory is not in use.
    pub(super) until: Option<Duration>,
}

impl Unused {
    pub(super) const fn deadline(self) -> Option<Duration> {
        self.until
    }

    /// Whether the memory is in use, as far as a report can tell.
    fn is_used(self, report: StatusReport) -> Option<bool> {
        let before = self.before?;
        let available = report.available.saturating_sub(before.available);
        let committed = report.committed.saturating_sub(before.committed);
        match (is_shown(available, self.pages, ENOUGH), is_shown(committed, self.pages, ENOUGH)) {
            (Some(true), _) | (_, Some(false)) => Some(true),
            (Some(false), Some(true)) => Some(false),
            _ => None,
        }
    }
}

impl Session {
    /// The guest was slow to add `pages`: its next reports say whether it uses them.
    pub(super) fn doubt_use(&mut self, machine: &mut Machine, pages: PageCount) {
        let before = self.status_before;
        let until = before.map(|_| machine.after(REPORT_WAIT));
        self.unused = Some(Unused { pages, before, until });
        if before.is_none() {
            machine.not_onlined();
        }
    }

    /// Pages come or go: earlier reports cannot be compared with later ones.
    pub(super) const fn size_changes(&mut self) {
        self.fresh_status = None;
        self.unused = None;
    }

    /// Whether reports are to tell if the guest uses what it added.
    #[cfg(any(test, debug_assertions))]
    pub(crate) const fn looks_for_use(&self) -> bool {
        self.unused.is_some()
    }

    /// Looks in a report for the memory that was added before the guest's kernel started.
    pub(super) fn look_for_added(&mut self, machine: &mut Machine, report: StatusReport) {
        machine.judge_added(report, self.guest_os_id);
        self.confirmed_by = self.confirmed_by.filter(|_| machine.awaits_report());
    }

    pub(super) fn look_for_use(&mut self, machine: &mut Machine, report: StatusReport) {
        let Some(unused) = &mut self.unused else { return };
        if unused.before.is_none() {
            // The next block is compared with this report. If none is wanted, the doubt remains.
            if !machine.missing_pages().is_zero() {
                self.unused = None;
                machine.onlined();
            }
            return;
        }
        match unused.is_used(report) {
            Some(true) => {
                self.unused = None;
                self.is_proven = true;
                machine.onlined();
            }
            Some(false) => {
                unused.until = None;
                machine.not_onlined();
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 1000;

    /// What the guest's reports say, available and committed, before and after it added the pages.
    fn is_used(before: (u64, u64), after: (u64, u64)) -> Option<bool> {
        let report = |(available, committed)| StatusReport {
            available: PageCount::new(available),
            committed: PageCount::new(committed),
            ..StatusReport::default()
        };
        Unused { pages: PageCount::new(PAGES), before: Some(report(before)), until: None }
            .is_used(report(after))
    }

    #[test]
    fn memory_in_use_is_available() {
        assert_eq!(is_used((500, 300), (1490, 310)), Some(true));
        // A process has taken it at once.
        assert_eq!(is_used((500, 300), (700, 500)), Some(true));
        assert_eq!(is_used((500, 300), (1400, 1400)), Some(true));
    }

    #[test]
    fn memory_out_of_use_is_committed() {
        assert_eq!(is_used((500, 300), (490, 1300)), Some(false));
    }

    #[test]
    fn a_guest_that_commits_more_meanwhile_tells_nothing() {
        assert_eq!(is_used((500, 300), (1000, 1300)), None);
        assert_eq!(is_used((500, 300), (500, 800)), None);
    }
}
