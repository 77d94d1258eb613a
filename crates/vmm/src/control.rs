//! Messages from the parts of a running VM to the thread that governs it.

use std::sync::mpsc::{Receiver, Sender, channel};

use kvm_hyperv::crash::Crash;

use crate::error::{MachineError, VmmError};

/// The origin of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The guest itself.
    Guest,
    /// The guest, by a restart where it was asked to shut down.
    Restart,
    /// A client of the monitor.
    Monitor,
    /// A signal to the process.
    Signal,
    /// The user at the console.
    Console,
}

/// A request or event for the machine as a whole.
#[derive(Debug)]
pub(crate) enum Control {
    /// Boot again.
    Reset(Cause),
    /// Shut down.
    Shutdown(Cause),
    /// The machine failed.
    Failed(VmmError),
    /// The guest was asked to shut down by a signal: end it if it does not.
    EndInTime,
    /// The guest says that it crashed.
    Crashed(Box<Crash>),
}

impl Control {
    /// The more serious of two: a failure wins over a shutdown, a shutdown over a reset.
    pub(crate) fn graver(self, other: Self) -> Self {
        let weight = |control: &Self| match control {
            Self::EndInTime | Self::Crashed(_) => 0,
            Self::Reset(_) => 1,
            Self::Shutdown(_) => 2,
            Self::Failed(_) => 3,
        };
        if weight(&other) > weight(&self) { other } else { self }
    }
}

/// The sending end. Any thread may have one.
#[derive(Clone, Debug)]
pub(crate) struct ControlSender(Sender<Control>);

impl ControlSender {
    /// Sends. If the governing thread has already ended, there is nothing left to control.
    pub(crate) fn send(&self, control: Control) {
        let _ = self.0.send(control);
    }
}

impl ControlSender {
    /// A guard for a thread without which the machine cannot run: if that thread panics, the
    /// machine ends instead of hanging.
    pub(crate) fn report_panic(&self, thread: &'static str) -> PanicReport {
        PanicReport { control: self.clone(), thread }
    }
}

/// Reports a panic of its thread.
pub(crate) struct PanicReport {
    control: ControlSender,
    thread: &'static str,
}

impl Drop for PanicReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.control.send(Control::Failed(MachineError::Panic(self.thread).into()));
        }
    }
}

pub(crate) fn control_channel() -> (ControlSender, Receiver<Control>) {
    let (sender, receiver) = channel();
    (ControlSender(sender), receiver)
}
