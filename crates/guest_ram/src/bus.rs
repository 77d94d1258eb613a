//! The view the bus has of guest memory.
