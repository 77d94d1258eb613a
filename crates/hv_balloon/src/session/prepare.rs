//! Preparation of memory for the guest by the host.

use page_range::PageRange;

use super::{Activity, Session};
use crate::action::Prepare;
use crate::machine::Machine;
use crate::{JobId, StopReason, Task};

/// A running preparation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preparation {
    pub(crate) job: JobId,
    pub(crate) what: Prepared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prepared {
    /// Pages to add.
    Added(PageRange),
    /// Pages to give back.
    Returned,
}

impl Session {
    pub(super) fn prepare(machine: &mut Machine, what: Prepared, task: Prepare) -> Activity {
        let job = machine.jobs.next();
        machine.start(job, Task::Prepare(task));
        Activity::Preparing(Preparation { job, what })
    }

    /// Handles the end of a preparation.
    pub(super) fn made_ready(
        &mut self,
        machine: &mut Machine,
        what: Prepared,
        ok: bool,
    ) -> Activity {
        machine.begin_removals();
        if let Prepared::Returned = what {
            machine.ledger.finish_provide(ok);
            machine.retry_held();
        }
        match what {
            _ if !ok => self.try_again(machine, StopReason::HostMemory),
            Prepared::Returned => {
                self.failures = 0;
                Activity::Idle
            }
            Prepared::Added(range) => self.offer_memory(machine, range),
        }
    }
}
