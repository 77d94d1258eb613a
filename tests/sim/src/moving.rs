//! The VMM is saved between two steps, and another one goes on (`docs/saved-state.md`).

use hv_balloon::{Device, Snapshot, StateName};
use page_range::PageCount;
use vmbus::{Server, ServerConfig};

use crate::dice::Dice;
use crate::host::{Host, Work};

impl Host {
    /// Saves device, bus and rings, and goes on with what is restored of them.
    pub(crate) fn move_on(&mut self, dice: &mut Dice) {
        self.watch.note(self.now, || "-- another VMM goes on".into());
        let saved = self.device.save(self.now);
        let device = Device::restore(self.config.clone(), &saved, self.now)
            .expect("a device that was just saved");
        assert_eq!(lasting(&device), lasting(&self.device), "not the device that was saved");
        let is_closing = self.device.snapshot().state == StateName::Closing;
        assert!(is_closing || device.save(self.now) == saved, "saved again it is another one");
        let bytes = self.server.save();
        let server =
            Server::restore(ServerConfig::default(), &bytes).expect("a bus that was just saved");
        assert_eq!(server.save(), bytes, "saved again it is another bus");
        // The next VMM has its own Action::Send for a message that is not in the ring.
        self.said = self.device.message().map(<[u8]>::to_vec);
        self.device = device;
        self.server = server;
        self.end_of_jobs(dice);
        self.watch.moved(self.now);
        if let Some(channel) = &mut self.channel {
            let opened = self.server.opened(channel.id);
            channel.move_on(&self.ram, opened.map(|opened| opened.rings));
        }
        // A signal in either direction may have been lost.
        self.signalled |= self.uses_rings();
        self.event_flag |= self.uses_rings();
        self.pump();
        self.watch.oracle.end_move();
        assert_eq!(self.said, None, "a message got lost");
        self.watch.tally.see("event", "another VMM");
    }

    /// The work of the VMM that was: done or not, nobody is told.
    fn end_of_jobs(&mut self, dice: &mut Dice) {
        for job in std::mem::take(&mut self.jobs) {
            match job.what {
                Work::Discard(ranges) if self.watch.oracle.is_wanted(job.id) && dice.one_in(2) => {
                    self.discard(ranges);
                }
                Work::Remove(range) if dice.one_in(2) => self.ram.remove(range),
                Work::Discard(_) | Work::Prepare(_) | Work::Remove(_) => {}
            }
        }
    }
}

/// What another VMM finds as it was: it has no work of a closed channel to wait for, and for it the
/// time since the last event has passed.
fn lasting(device: &Device) -> Snapshot {
    let snapshot = device.snapshot();
    let is_closing = snapshot.state == StateName::Closing;
    let state = if is_closing { StateName::Closed } else { snapshot.state };
    let discarding = if is_closing { PageCount::ZERO } else { snapshot.discarding };
    let in_flight = if is_closing { PageCount::ZERO } else { snapshot.in_flight };
    Snapshot { state, in_flight, discarding, ready_at: None, ready_in: None, ..snapshot }
}
