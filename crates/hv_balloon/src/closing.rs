//! The phase in which a session has ended but the host's work for it has not.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use page_range::{PageCount, PageRange, PageRangeSet};

use crate::action::Prepare;
use crate::link::Link;
use crate::machine::Machine;
use crate::session::{Preparation, Prepared, Session};
use crate::{JobId, Task};

/// The unfinished work of a session.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    /// Running discards, with their numbers of pages.
    discards: BTreeMap<JobId, PageCount>,
    /// The running preparation.
    preparation: Option<Unfinished>,
    /// Pages that the host has to provide again before another guest may touch them.
    absent: PageRangeSet,
}

/// A preparation whose session has ended.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    job: JobId,
    then: Then,
}

/// What follows when a preparation has ended.
#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    /// Remove new memory, which was prepared in vain.
    Remove(PageRange),
    /// The absent pages are provided.
    Provided,
}

impl Closing {
    /// Starts closing after `session`. The guest has forgotten its balloon, so all RAM counts as
    /// the guest's again.
    pub(crate) fn after(session: Session, machine: &mut Machine) -> Self {
        let (discards, absent) = machine.ledger.forget();
        let preparation = session.end(machine).map(|Preparation { job, what }| {
            let then = match what {
                Prepared::Added(range) => Then::Remove(range),
                Prepared::Returned => Then::Nothing,
            };
            Unfinished { job, then }
        });
        Self { discards, preparation, absent }
    }

    /// Drops the work that a reset of the machine makes unnecessary: the next guest has other memory.
    /// (Memory that is being prepared in vain is removed with all that was added.)
    pub(crate) fn reset(self) -> Self {
        Self { absent: PageRangeSet::new(), ..self }
    }

    pub(crate) fn restore(absent: PageRangeSet) -> Self {
        Self { absent, ..Self::default() }
    }

    pub(crate) fn job_done(&mut self, machine: &mut Machine, id: JobId, ok: bool) {
        self.discards.remove(&id);
        match self.preparation.take_if(|at| at.job == id).map(|ended| ended.then) {
            Some(Then::Remove(range)) if ok => machine.removals.add(range),
            // A new kernel touches all its memory without notice. If the host cannot provide a
            // page, that guest fails: nobody is there to be asked for less.
            Some(Then::Provided) => self.absent.clear(),
            Some(Then::Remove(_) | Then::Nothing) | None => {}
        }
    }

    /// Takes the next step: wait for jobs, remove memory, provide pages.
    pub(crate) fn go_on(mut self, machine: &mut Machine) -> Link {
        if self.has_jobs() || machine.removals.is_busy() || machine.begin_removals() {
            return Link::Closing(self);
        }
        if !self.absent.is_empty() {
            let ranges: Vec<PageRange> = self.absent.iter().collect();
            let job = machine.jobs.next();
            self.preparation = Some(Unfinished { job, then: Then::Provided });
            machine.start(job, Task::Prepare(Prepare::Return(ranges)));
            return Link::Closing(self);
        }
        machine.close_finished();
        Link::Closed
    }

    /// Whether discards or a preparation are in flight.
    pub(crate) fn has_jobs(&self) -> bool {
        self.is_preparing() || !self.discards.is_empty()
    }

    pub(crate) const fn is_preparing(&self) -> bool {
        self.preparation.is_some()
    }

    /// Pages that are being discarded.
    pub(crate) fn discarding(&self) -> PageCount {
        self.discards.values().fold(PageCount::ZERO, |sum, &pages| sum.saturating_add(pages))
    }

    pub(crate) const fn absent(&self) -> &PageRangeSet {
        &self.absent
    }

    /// New memory that is being prepared in vain.
    pub(crate) fn prepared_in_vain(&self) -> Option<PageRange> {
        match self.preparation?.then {
            Then::Remove(range) => Some(range),
            Then::Nothing | Then::Provided => None,
        }
    }
}
