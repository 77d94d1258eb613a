//! The host's device against the guest's driver, message by message.

mod pair;
mod resize;
mod schedule;
