//! The VMBus server against the client: two machines that share the wire and no logic.

mod channel;
mod connection;
mod ending;
mod gpadl;
mod hostile;
mod pair;
mod saved_state;
mod signals;
