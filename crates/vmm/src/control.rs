//! What the parts of a running VMM tell the thread that governs it.

use std::sync::mpsc::{Receiver, Sender, channel};

use crate::error::VmmError;

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

pub(crate) fn control_channel() -> (ControlSender, Receiver<Control>) {
    let (sender, receiver) = channel();
    (ControlSender(sender), receiver)
}
