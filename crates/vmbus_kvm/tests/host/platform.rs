//! A machine without KVM, and a supervisor that remembers.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmbus::protocol::{ConnectionId, VpIndex};
use vmbus_kvm::bus_recording::{Event, Line};
use vmbus_kvm::{Bound, HostFailure, MemoryGuard, Platform, Report, Supervisor, Thread};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// VPs of every machine here.
pub(crate) const VPS: u32 = 2;

/// Guest memory of every machine here, in bytes.
pub(crate) const MEMORY: usize = 1 << 20;

/// What every guest's reference counter shows.
pub(crate) const REFERENCE_TIME: u64 = 4_000_000;

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

/// How a machine differs from an obliging one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quirks {
    /// Signals leave the guest.
    pub(crate) signals_exit: bool,
    /// Nobody is told of acknowledgements.
    pub(crate) no_acknowledgement: bool,
    /// Every other kick is lost.
    pub(crate) loses_kicks: bool,
}

pub(crate) struct FakePlatform {
    pub(crate) memory: Memory,
    pub(crate) quirks: Quirks,
    kicked: [AtomicBool; VPS as usize],
    pub(crate) sints: [AtomicU32; VPS as usize],
    kicks: AtomicU32,
    acknowledged: Vec<EventFd>,
    pub(crate) refuses_binding: AtomicBool,
    pub(crate) bound: Mutex<BTreeMap<ConnectionId, EventFd>>,
}

impl FakePlatform {
    pub(crate) fn new(quirks: Quirks) -> Arc<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Self::with_memory(quirks, Arc::new(memory))
    }

    /// Another machine with the memory of one that was saved.
    pub(crate) fn with_memory(quirks: Quirks, memory: Memory) -> Arc<Self> {
        let acknowledged = (0..VPS).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        Arc::new(Self {
            memory,
            quirks,
            kicked: Default::default(),
            sints: Default::default(),
            kicks: AtomicU32::new(0),
            acknowledged,
            refuses_binding: AtomicBool::new(false),
            bound: Mutex::default(),
        })
    }

    /// Whether a VP has to look for work.
    pub(crate) fn take_kick(&self, vp: VpIndex) -> bool {
        self.kicked[vp.get() as usize].swap(false, Ordering::AcqRel)
    }

    /// The guest acknowledges an interrupt.
    pub(crate) fn acknowledge(&self, vp: VpIndex) {
        self.acknowledged[vp.get() as usize].write(1).unwrap();
    }
}

impl Platform for FakePlatform {
    type Memory = Memory;

    fn memory(&self) -> MemoryGuard<Self> {
        Arc::clone(&self.memory)
    }

    fn kick(&self, vp: VpIndex) {
        let number = self.kicks.fetch_add(1, Ordering::AcqRel);
        if !self.quirks.loses_kicks || number % 2 == 1 {
            self.kicked[vp.get() as usize].store(true, Ordering::Release);
        }
    }

    fn raise_sint(&self, vp: VpIndex) -> io::Result<()> {
        self.sints[vp.get() as usize].fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn bind_signal(&self, connection: ConnectionId, signal: &EventFd) -> io::Result<Bound> {
        if self.refuses_binding.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let before = self.bound.lock().unwrap().insert(connection, signal.try_clone()?);
        assert!(before.is_none(), "bound twice: {connection}");
        Ok(if self.quirks.signals_exit { Bound::ByExit } else { Bound::InKernel })
    }

    fn unbind_signal(&self, connection: ConnectionId) {
        let bound = self.bound.lock().unwrap().remove(&connection);
        assert!(bound.is_some(), "not bound: {connection}");
    }

    fn acknowledgement(&self, vp: VpIndex) -> Option<&EventFd> {
        (!self.quirks.no_acknowledgement).then(|| &self.acknowledged[vp.get() as usize])
    }

    const HAS_REFERENCE_TIME: bool = true;

    fn reference_time(&self) -> Option<u64> {
        Some(REFERENCE_TIME)
    }
}

/// What the supervisor was told.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) threads: Mutex<Vec<Thread>>,
    pub(crate) failures: Mutex<Vec<String>>,
    pub(crate) reports: Mutex<Vec<String>>,
    /// Refuses this thread.
    pub(crate) refuses: Option<Thread>,
    /// What the guest and the host said, if that is to be recorded.
    pub(crate) recorded: Option<Mutex<Vec<Line>>>,
}

impl Seen {
    pub(crate) fn reports(&self) -> Vec<String> {
        self.reports.lock().unwrap().clone()
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }
}

impl Supervisor for Seen {
    fn thread_started(&self, thread: Thread) -> io::Result<()> {
        self.threads.lock().unwrap().push(thread);
        match self.refuses == Some(thread) {
            true => Err(io::Error::other("not this one")),
            false => Ok(()),
        }
    }

    fn failed(&self, failure: HostFailure) {
        self.failures.lock().unwrap().push(chain(&failure));
    }

    fn report(&self, report: Report) {
        self.reports.lock().unwrap().push(chain(&report));
    }

    fn records(&self) -> bool {
        self.recorded.is_some()
    }

    fn record(&self, at: Duration, device: u32, event: Event) {
        let t = u64::try_from(at.as_micros()).unwrap();
        assert_eq!(Duration::from_micros(t), at, "a recording does not tell the time exactly");
        self.recorded.as_ref().unwrap().lock().unwrap().push(Line { t, device, event });
    }
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
