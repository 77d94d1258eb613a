//! The device as its driver and its guest see it.

mod config;
mod confirmation;
mod driver;
mod grow;
mod hot_add;
mod huge_pages;
mod inhibit;
mod limits;
mod negotiation;
mod online;
mod random_walk;
mod removal;
mod saved_state;
mod shrink;
mod transitions;
mod world;
