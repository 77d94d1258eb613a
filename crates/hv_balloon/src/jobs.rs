//! The end of a piece of work that the host did on its own time.

use crate::state::{Prepared, State};
use crate::{Device, JobId, Notice, StopReason};

impl Device {
    /// A job ended. One that nobody waits for any more, or never did, changes nothing.
    pub(crate) fn on_job_done(&mut self, id: JobId, ok: bool) {
        if self.finish_removal(id, ok) {
            return self.on_removed(ok);
        }
        if let State::Closing { discards, preparation, absent } = &mut self.state {
            discards.remove(&id);
            match preparation.take_if(|at| at.job == id).map(|ended| ended.what) {
                Some(Prepared::Added(range)) if ok => {
                    self.removals.waiting.insert(range);
                }
                // A new kernel touches all its memory unannounced. Where the host cannot provide a
                // page, that guest fails; there is nobody to be asked for less.
                Some(Prepared::Absent) => absent.clear(),
                _ => {}
            }
            return self.finish_close();
        }
        match self.state {
            State::Preparing { session, preparation } if preparation.job == id => {
                self.on_prepared(session, preparation.what, ok);
            }
            _ => {
                if let Some(pages) = self.books.finish_discard(id, ok)
                    && !ok
                {
                    self.notify(Notice::DiscardFailed { pages });
                }
            }
        }
    }

    /// A removal ended. A target that waits for it to succeed has failed with it.
    fn on_removed(&mut self, ok: bool) {
        match self.state {
            State::Closing { .. } => self.finish_close(),
            State::Idle { .. } if !ok && !self.missing_pages().is_zero() => {
                self.stop(StopReason::HostMemory);
            }
            _ => {}
        }
    }
}
