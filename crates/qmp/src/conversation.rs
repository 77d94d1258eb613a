//! One client's side of the monitor without its socket.

use crate::framer::Framer;
use crate::machine::Machine;
use crate::session::{MAX_COMMAND_BYTES, Session};
use serde_json::Value;
use std::sync::Arc;

/// What one client says, in whatever pieces it comes, and the answers: what [`Server`](crate::Server)
/// has with each of its clients, for whoever brings a transport of their own.
///
/// It holds at most the bytes of the last [`push`](Self::push) and one command of
/// [`MAX_COMMAND_BYTES`].
pub struct Conversation {
    framer: Framer,
    session: Session,
}

impl Conversation {
    /// A conversation that has not negotiated yet.
    pub fn new(machine: Arc<dyn Machine>) -> Self {
        Self { framer: Framer::new(MAX_COMMAND_BYTES), session: Session::new(machine) }
    }

    /// What the server says before the client says anything.
    pub fn greeting() -> Value {
        Session::greeting()
    }

    /// Takes bytes as they came. Take all answers before the next call.
    pub fn push(&mut self, bytes: &[u8]) {
        self.framer.push(bytes);
    }

    /// Executes the next command, if there is one, and gives its answer, success or failure.
    pub fn next_answer(&mut self) -> Option<Value> {
        let message = self.framer.next_message()?;
        Some(self.session.answer(message))
    }

    /// Whether the client has negotiated, and so gets events.
    pub fn has_negotiated(&self) -> bool {
        self.session.has_negotiated()
    }
}
