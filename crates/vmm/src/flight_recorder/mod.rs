//! The flight recorder: the last actions of each vCPU and the bus, recorded at all times for the
//! moment when a guest hangs and nobody was watching.
//!
//! Each thread writes to its own ring, behind a mutex for which only a dump contends. Repetitions
//! of one event are counted instead of stored, so that a guest that writes to its console, or a
//! loop that polls, does not push out earlier events.

mod capture;
mod ring;

use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmbus_kvm::Trace;

pub(crate) use capture::{Answered, Desk};
pub use ring::Exit;
use ring::{Event, Ring};

/// The number of events that all rings of a dump show together: as many as fit into a monitor
/// client's buffer.
const SHOWN: usize = 2048;
/// The least number for each ring, if there are many vCPUs.
const SHOWN_AT_LEAST: usize = 8;

/// How long a dump waits for the state of the vCPUs. One that is stuck in the host does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The recorder of a VM. It outlives the VM's machines, so that a dump shows what led to a reset.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    vcpus: Box<[Mutex<Ring>]>,
    bus: Mutex<Ring>,
    /// Of the current machine.
    desk: Mutex<Option<Arc<Desk>>>,
}

impl Recorder {
    /// A recorder for this many vCPUs.
    #[must_use]
    pub fn new(vcpus: u8) -> Self {
        Self {
            start: Instant::now(),
            vcpus: (0..vcpus).map(|_| Mutex::default()).collect(),
            bus: Mutex::default(),
            desk: Mutex::default(),
        }
    }

    /// A vCPU is about to enter the guest.
    pub fn entering(&self, vcpu: u8) {
        let now = self.start.elapsed();
        if let Some(ring) = self.vcpu(vcpu.into()) {
            lock(ring).entering(now);
        }
    }

    /// A vCPU has come out.
    pub fn exited(&self, vcpu: u8, exit: Exit) {
        let now = self.start.elapsed();
        if let Some(ring) = self.vcpu(vcpu.into()) {
            lock(ring).exited(now, exit);
        }
    }

    /// Something happened on the bus.
    pub fn trace(&self, trace: Trace) {
        let now = self.start.elapsed();
        let ring = trace.vcpu().map_or(Some(&self.bus), |vp| self.vcpu(vp.get()));
        if let Some(ring) = ring {
            lock(ring).push(now, Event::Bus(trace));
        }
    }

    /// A machine starts; its vCPUs can be asked at this desk.
    pub(crate) fn machine_started(&self, desk: Arc<Desk>) {
        *lock(&self.desk) = Some(desk);
    }

    /// The machine's vCPUs have stopped for good.
    pub(crate) fn machine_stopped(&self) {
        *lock(&self.desk) = None;
    }

    /// Everything known, as JSON: the events of each ring, oldest first, and the state of each vCPU
    /// that answers. Waits up to two seconds for the answers.
    #[must_use]
    pub fn dump(&self) -> Value {
        let desk = lock(&self.desk).clone();
        let states = desk.map(|desk| desk.ask(self.vcpus.len(), PATIENCE)).unwrap_or_default();
        let shown = self.shown();
        let now = self.start.elapsed();
        let vcpus = self.vcpus.iter().enumerate().map(|(index, ring)| {
            let (events, in_guest) = {
                let ring = lock(ring);
                (ring.lines(shown), ring.in_guest_since())
            };
            json!({
                "vcpu": index,
                "in-guest-for-us": in_guest.map(|since| micros(now.saturating_sub(since))),
                // Null if it did not answer because it waits in the host.
                "state": states.get(index),
                "events": events,
            })
        });
        let vcpus: Vec<_> = vcpus.collect();
        let bus = lock(&self.bus).lines(shown);
        json!({ "uptime-us": micros(now), "vcpus": vcpus, "bus": bus })
    }

    /// The events alone, one per line, without waiting for any thread: for a thread that panics and
    /// may hold one of the locks.
    pub(crate) fn lines(&self) -> String {
        let rings =
            self.vcpus.iter().enumerate().map(|(index, ring)| (format!("vcpu{index}"), ring));
        let rings = rings.chain([("vmbus".to_owned(), &self.bus)]);
        let mut text = String::new();
        for (name, ring) in rings {
            let lines = ring.try_lock().map(|ring| ring.lines(self.shown())).unwrap_or_default();
            for line in lines {
                text.push_str(&format!("{name} {line}\n"));
            }
        }
        text
    }

    fn shown(&self) -> usize {
        (SHOWN / (self.vcpus.len() + 1)).max(SHOWN_AT_LEAST)
    }

    fn vcpu(&self, index: u32) -> Option<&Mutex<Ring>> {
        self.vcpus.get(usize::try_from(index).ok()?)
    }
}

/// The recorder of the VM that was started last.
static NEWEST: Mutex<Weak<Recorder>> = Mutex::new(Weak::new());

/// Makes a panic of any thread print the recorder's events after the panic's own message. A process
/// has one panic hook, so a VM that is started later takes the place of an earlier one.
pub(crate) fn dump_on_panic(recorder: &Arc<Recorder>) {
    static HOOK: Once = Once::new();
    *lock(&NEWEST) = Arc::downgrade(recorder);
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            previous(panic);
            if let Some(recorder) = lock(&NEWEST).upgrade() {
                eprint!("the last events before the panic:\n{}", recorder.lines());
            }
        }));
    });
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use vmbus::protocol::VpIndex;

    use super::*;

    fn events(dump: &Value, pointer: &str) -> Vec<String> {
        let list = dump.pointer(pointer).and_then(Value::as_array).unwrap();
        list.iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_thread_finds_its_own_ring() {
        let recorder = Recorder::new(2);
        recorder.exited(1, Exit::PortOut(0x3f8));
        recorder.trace(Trace::Delivered { vp: VpIndex::new(0) });
        recorder.trace(Trace::Posted { vp: VpIndex::new(1) });
        let dump = recorder.dump();
        let [line] = &events(&dump, "/vcpus/1/events")[..] else { panic!("{dump}") };
        assert!(line.ends_with("port 0x3f8 written"), "{line}");
        let [line] = &events(&dump, "/vcpus/0/events")[..] else { panic!("{dump}") };
        assert!(line.ends_with("message delivered, SINT raised"), "{line}");
        let [line] = &events(&dump, "/bus")[..] else { panic!("{dump}") };
        assert!(line.ends_with("message posted to VP 0x1, kicked"), "{line}");
        assert_eq!(dump.pointer("/vcpus/0/state"), Some(&Value::Null), "no machine runs");
    }

    #[test]
    fn a_vcpu_that_is_not_there_is_nobodys() {
        let recorder = Recorder::new(1);
        recorder.exited(7, Exit::Halted);
        recorder.trace(Trace::Delivered { vp: VpIndex::new(u32::MAX) });
        assert_eq!(recorder.lines(), "");
    }

    #[test]
    fn time_in_the_guest_shows_until_the_exit() {
        let recorder = Recorder::new(1);
        recorder.entering(0);
        assert!(recorder.dump().pointer("/vcpus/0/in-guest-for-us").unwrap().is_u64());
        recorder.exited(0, Exit::Interrupted);
        assert!(recorder.dump().pointer("/vcpus/0/in-guest-for-us").unwrap().is_null());
    }

    #[test]
    fn a_dump_of_many_vcpus_fits_a_monitor_clients_buffer() {
        let recorder = Recorder::new(u8::MAX);
        for vcpu in 0..u8::MAX {
            for port in 0..2000 {
                recorder.exited(vcpu, Exit::PortIn(port));
            }
        }
        let len = recorder.dump().to_string().len();
        assert!(len < 192 << 10, "{len}");
    }
}
