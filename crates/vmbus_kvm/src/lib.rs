#![forbid(unsafe_code)]
//! Runs the VMBus and its devices in a KVM VMM: threads, SynIC delivery, memory work.
