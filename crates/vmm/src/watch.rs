//! Supervision of the bus: confines its threads, ends the machine when it fails, and writes its
//! reports to the log.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmbus_kvm::bus_recording::Event;
use vmbus_kvm::{HostFailure, Report, Supervisor, Trace};

use crate::bus_recorder::BusRecorder;
use crate::confine::{Confinement, Thread};
use crate::control::Control;
use crate::error::{MachineError, chain};
use crate::flight_recorder::Recorder;
use crate::log_limit::LogLimit;

/// The rate limit for lines about the guest's driver, shared by everything that writes them.
pub(crate) type GuestLog = Arc<Mutex<LogLimit>>;

/// Supervises the bus.
pub(crate) struct Watch {
    confinement: Confinement,
    /// For events that the guest causes.
    guest: GuestLog,
    /// For failures on the host, since a guest can cause the work that fails.
    host: Mutex<LogLimit>,
    recorder: Arc<Recorder>,
    /// Records the conversation with the guest, if that is wanted.
    bus: Option<Arc<BusRecorder>>,
}

impl Watch {
    pub(crate) fn new(
        confinement: Confinement,
        guest: GuestLog,
        recorder: Arc<Recorder>,
        bus: Option<Arc<BusRecorder>>,
    ) -> Self {
        Self { confinement, guest, host: Mutex::new(LogLimit::new("the bus")), recorder, bus }
    }
}

impl Supervisor for Watch {
    fn thread_started(&self, thread: vmbus_kvm::Thread) -> io::Result<()> {
        self.confinement.enter(match thread {
            vmbus_kvm::Thread::Bus => Thread::Bus,
            vmbus_kvm::Thread::Memory => Thread::Memory,
        })
    }

    fn failed(&self, failure: HostFailure) {
        let error = match failure {
            HostFailure::Panicked(thread) => MachineError::Panic(thread.name()),
            // Whoever refused it has reported why.
            HostFailure::Refused { .. } => return,
            other => MachineError::Bus(other),
        };
        self.confinement.control().send(Control::Failed(error.into()));
    }

    fn report(&self, report: Report) {
        let text = chain(&report);
        match report {
            Report::ChannelOpened(_) | Report::ChannelClosed(_) => tracing::debug!("{text}"),
            report if report.is_guest_fault() => log(&self.guest, || tracing::warn!("{text}")),
            _ => log(&self.host, || tracing::error!("{text}")),
        }
    }

    fn trace(&self, trace: Trace) {
        self.recorder.trace(trace);
    }

    fn records(&self) -> bool {
        self.bus.is_some()
    }

    fn record(&self, at: Duration, device: u32, event: Event) {
        if let Some(bus) = &self.bus {
            bus.record(at, device, event);
        }
    }
}

/// Logs a line unless there were too many.
pub(crate) fn log(limit: &Mutex<LogLimit>, line: impl FnOnce()) {
    limit.lock().unwrap_or_else(PoisonError::into_inner).log(line);
}
