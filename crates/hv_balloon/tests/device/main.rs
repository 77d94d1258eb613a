//! The device as its driver and its guest see it.

mod driver;
mod grow;
mod negotiation;
mod random_walk;
mod shrink;
mod transitions;
