//! The daemon with make-believe VMs: it finds them, moves memory between them, and bears with any of them.

mod bad_monitors;
mod control;
mod moves;
mod qemu;
mod recording;
mod world;
