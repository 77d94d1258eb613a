//! The host against a model of the guest, without KVM: hypercalls go in by `Machine::on_exit`, messages
//! are read from the message page, signals from the event flags.

mod echo;
mod faults;
mod guest;
mod platform;
// mod resize;
