//! A VMBus client and the guest side of its rings, for tests.
