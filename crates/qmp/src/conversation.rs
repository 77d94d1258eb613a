//! One client's side of the monitor without its socket.

use crate::command_set::{CommandSet, MachineCommands};
use crate::framer::Framer;
use crate::machine::Machine;
use crate::session::{MAX_COMMAND_BYTES, Session};
use serde_json::Value;
use std::sync::Arc;

/// One client's input, in pieces of any size, and the answers to it: what [`Server`](crate::Server)
/// runs for each of its clients, for programs that bring their own transport.
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
        Self::with(Arc::new(MachineCommands(machine)))
    }

    /// The same with another set of commands.
    pub(crate) fn with(commands: Arc<dyn CommandSet>) -> Self {
        Self { framer: Framer::new(MAX_COMMAND_BYTES), session: Session::new(commands) }
    }

    /// The server's first message, sent before the client says anything.
    pub fn greeting() -> Value {
        Session::greeting()
    }

    /// Takes bytes from the transport. Take all answers before the next call.
    pub fn push(&mut self, bytes: &[u8]) {
        self.framer.push(bytes);
    }

    /// Executes the next complete command, if there is one, and returns its answer, success or
    /// failure.
    pub fn next_answer(&mut self) -> Option<Value> {
        let message = self.framer.next_message()?;
        Some(self.session.answer(message))
    }

    /// Whether the client has negotiated and therefore receives events.
    pub fn has_negotiated(&self) -> bool {
        self.session.has_negotiated()
    }
}
