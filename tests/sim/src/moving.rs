//! Replacement of the VMM: its state is saved between two steps, and another VMM resumes
//! (`docs/saved-state.md`).

use dynmem_vsp::{DynamicMemory, Snapshot, Task};
use hv_balloon::StateName;
use page_range::PageCount;
use vmbus::Server;

use crate::dice::Dice;
use crate::host::{BUS, Host};
use crate::memory::Ram;

impl Host {
    /// Saves VSP and bus, and goes on with what is restored of them.
    pub(crate) fn move_on(&mut self, dice: &mut Dice) {
        self.watch.note(self.now, || "-- another VMM goes on".into());
        let saved = self.vsp.save(self.now);
        let server = self.server.save();
        self.server = Server::restore(BUS, &server).expect("a bus that was just saved");
        assert_eq!(self.server.save(), server, "saved again it is another bus");
        let open = self.server.opened(self.channel);
        // A close that the bus has not asked for yet: the next VSP has no use for the rings.
        let loses_rings = open.is_none() && self.uses_rings();
        if let Some(channel) = &open {
            self.signal = (channel.target_vp, channel.relid);
        }
        let open = open.map(|channel| (self.ram.of_host(), channel));
        // A close that was under way is asked for again by the bus.
        self.is_closing = false;
        let vsp = DynamicMemory::restore(self.config.clone(), &saved, open, self.now)
            .expect("a VSP that was just saved")
            .with_batch(self.batch)
            .with_trace();
        // Nothing was loaded but to see whether there is memory.
        self.ram.take_impossible_index();
        let is_closing = self.snapshot().state == StateName::Closing;
        // What was being discarded, and must not be, is taken back.
        let is_inhibited = self.config.inhibited;
        if !is_inhibited {
            assert_eq!(lasting(&vsp), lasting(&self.vsp), "not the VSP that was saved");
        }
        if !is_closing && !loses_rings && !is_inhibited {
            assert_eq!(vsp.save(self.now), saved, "saved again it is another one");
        }
        self.said = self.vsp.unsent().map(<[u8]>::to_vec);
        self.vsp = vsp;
        self.end_of_jobs(dice);
        self.watch.moved(self.now);
        if is_inhibited {
            self.watch.oracle.forget_unfinished();
        }
        // The guest's signal may have been lost. The VSP sees to it that the guest gets one.
        self.signalled |= self.uses_rings();
        self.event_flag = false;
        self.pump();
        self.watch.oracle.end_move();
        assert_eq!(self.said, None, "a message got lost");
        self.watch.tally.see("event", "another VMM");
    }

    /// The work of the VMM that was: done or not, nobody is told.
    fn end_of_jobs(&mut self, dice: &mut Dice) {
        for job in std::mem::take(&mut self.jobs) {
            if let Task::Discard(ranges) = job.task
                && self.watch.oracle.is_wanted(job.id)
                && dice.one_in(2)
            {
                self.discard(ranges);
            }
        }
    }
}

/// What another VMM finds as it was: it has no work of a closed channel to wait for, and for it the
/// time since the last event has passed.
fn lasting(vsp: &DynamicMemory<Ram>) -> Snapshot {
    let snapshot = vsp.snapshot();
    let is_closing = snapshot.state == StateName::Closing;
    let state = if is_closing { StateName::Closed } else { snapshot.state };
    let in_flight = if is_closing { PageCount::ZERO } else { snapshot.in_flight };
    let discarding = if is_closing { PageCount::ZERO } else { snapshot.discarding };
    Snapshot { state, in_flight, discarding, ready_at: None, ready_in: None, ..snapshot }
}
