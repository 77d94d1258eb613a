//! What `hvb` does when the bus reports: confines its threads, ends the machine, writes the log.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmbus_kvm::{HostFailure, Report, Supervisor, Trace};

use crate::confine::{Confinement, Thread};
use crate::control::Control;
use crate::error::{MachineError, chain};
use crate::flight_recorder::Recorder;
use crate::log_limit::LogLimit;

/// A bound on lines about the guest's driver, for all who write some.
pub(crate) type GuestLog = Arc<Mutex<LogLimit>>;

/// Watches over the bus.
pub(crate) struct Watch {
    confinement: Confinement,
    /// For what the guest causes.
    guest: GuestLog,
    /// For what fails on the host, since a guest can cause the work that fails.
    host: Mutex<LogLimit>,
    recorder: Arc<Recorder>,
}

impl Watch {
    pub(crate) fn new(confinement: Confinement, guest: GuestLog, recorder: Arc<Recorder>) -> Self {
        Self { confinement, guest, host: Mutex::new(LogLimit::new()), recorder }
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
            // Who refused it has said so.
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
}

/// Logs a line, unless there were too many.
pub(crate) fn log(limit: &Mutex<LogLimit>, line: impl FnOnce()) {
    limit.lock().unwrap_or_else(PoisonError::into_inner).log(line);
}
