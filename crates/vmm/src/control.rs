//! What the parts of a running VMM tell the thread that governs it.

use std::sync::mpsc::{Receiver, Sender, channel};

use crate::error::{MachineError, VmmError};

/// Who wanted something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The guest itself.
    Guest,
    /// A client of the monitor.
    Monitor,
    /// A signal to the process.
    Signal,
    /// The user at the console.
    Console,
}

/// What is to happen to the machine.
#[derive(Debug)]
pub(crate) enum Control {
    /// Boot again.
    Reset(Cause),
    /// End.
    Shutdown(Cause),
    /// The machine broke.
    Failed(VmmError),
}

impl Control {
    /// The one of two wishes that wins: a failure over the end, the end over a reset.
    pub(crate) fn graver(self, other: Self) -> Self {
        let weight = |control: &Self| match control {
            Self::Reset(_) => 0,
            Self::Shutdown(_) => 1,
            Self::Failed(_) => 2,
        };
        if weight(&other) > weight(&self) { other } else { self }
    }
}

/// The sending end; may be given to any thread.
#[derive(Clone, Debug)]
pub(crate) struct ControlSender(Sender<Control>);

impl ControlSender {
    /// Sends; where the governing thread has gone already there is nothing left to control.
    pub(crate) fn send(&self, control: Control) {
        let _ = self.0.send(control);
    }
}

impl ControlSender {
    /// To be held by a thread without which the machine cannot run: should it panic, the machine
    /// ends instead of standing still.
    pub(crate) fn report_panic(&self, thread: &'static str) -> PanicReport {
        PanicReport { control: self.clone(), thread }
    }
}

/// Reports the end of a thread that panics.
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
