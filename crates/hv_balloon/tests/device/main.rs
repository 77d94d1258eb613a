//! The device as its driver and its guest see it.

mod driver;
mod grow;
mod hot_add;
mod huge_pages;
mod limits;
mod negotiation;
mod random_walk;
mod saved_state;
mod shrink;
mod transitions;
mod world;
