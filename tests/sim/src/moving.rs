//! Replacement of the VMM: its state is saved between two steps, and another VMM resumes from it
//! (`docs/saved-state.md`).

use dynmem_vsp::{DynamicMemory, Snapshot, Task};
use hv_balloon::StateName;
use page_range::PageCount;
use vmbus::Server;

use crate::dice::Dice;
use crate::host::{BUS, Host};
use crate::memory::Ram;

impl Host {
    /// Saves the VSP and the bus, and continues with restored ones.
    pub(crate) fn move_on(&mut self, dice: &mut Dice) {
        self.watch.note(self.now, || "-- another VMM takes over".into());
        let saved = self.vsp.save(self.now);
        let server = self.server.save();
        self.server = Server::restore(BUS, &server).expect("a bus that was just saved");
        assert_eq!(self.server.save(), server, "the restored bus is saved differently");
        let open = self.server.opened(self.channel);
        // The bus is about to ask for a close: the next VSP does not get the rings.
        let loses_rings = open.is_none() && self.uses_rings();
        if let Some(channel) = &open {
            self.signal = (channel.target_vp, channel.relid);
        }
        let open = open.map(|channel| (self.ram.of_host(), channel));
        // The bus asks again for a close that was under way.
        self.is_closing = false;
        let vsp = DynamicMemory::restore(self.config.clone(), &saved, open, self.now)
            .expect("a VSP that was just saved")
            .with_batch(self.batch)
            .with_trace();
        // The restore loaded words only to see whether the memory is there.
        self.ram.take_impossible_index();
        let is_closing = self.snapshot().state == StateName::Closing;
        // While discards are forbidden, the next VSP takes back what was being discarded.
        let is_inhibited = self.config.inhibited;
        if !is_inhibited {
            assert_eq!(lasting(&vsp), lasting(&self.vsp), "not the VSP that was saved");
        }
        if !is_closing && !loses_rings && !is_inhibited {
            assert_eq!(vsp.save(self.now), saved, "the restored VSP is saved differently");
        }
        self.said = self.vsp.unsent().map(<[u8]>::to_vec);
        self.vsp = vsp;
        self.end_of_jobs(dice);
        self.watch.moved(self.now);
        if is_inhibited {
            self.watch.oracle.forget_unfinished();
        }
        // A signal from the guest may have been lost, so the VSP gets one. A signal to the guest is
        // lost, too; the VSP must make up for it.
        self.signalled |= self.uses_rings();
        self.event_flag = false;
        self.pump();
        self.watch.oracle.end_move();
        assert_eq!(self.said, None, "a message was lost");
        self.watch.tally.see("event", "another VMM");
    }

    /// Ends the jobs of the previous VMM: they are carried out or not, and nobody is told.
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

/// The part of a snapshot that is the same in the next VMM, which has no work of a closed channel
/// to wait for and does not know when the last event was.
fn lasting(vsp: &DynamicMemory<Ram>) -> Snapshot {
    let snapshot = vsp.snapshot();
    let is_closing = snapshot.state == StateName::Closing;
    let state = if is_closing { StateName::Closed } else { snapshot.state };
    let in_flight = if is_closing { PageCount::ZERO } else { snapshot.in_flight };
    let discarding = if is_closing { PageCount::ZERO } else { snapshot.discarding };
    Snapshot { state, in_flight, discarding, ready_at: None, ready_in: None, ..snapshot }
}
