//! The host's device against the guest's driver, message by message.

mod hot_add;
mod pair;
mod personalities;
mod resize;
mod saved_state;
mod schedule;
