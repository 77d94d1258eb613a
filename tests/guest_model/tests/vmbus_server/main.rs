//! The VMBus server against the client: two state machines that share the wire format and no logic.

mod channel;
mod connection;
mod ending;
mod gpadl;
mod hostile;
mod pair;
mod saved_state;
mod signals;
