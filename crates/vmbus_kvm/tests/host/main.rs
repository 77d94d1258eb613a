//! The host against a model of the guest, without KVM: hypercalls go in by `Machine::on_exit`, messages
//! are read from the message page, signals from the event flags.

#[cfg(feature = "dynamic-memory")]
mod dynmem;
mod echo;
mod faults;
mod guest;
#[cfg(feature = "dynamic-memory")]
mod pause;
mod platform;
#[cfg(feature = "dynamic-memory")]
mod recording;
#[cfg(feature = "dynamic-memory")]
mod reporting;
#[cfg(feature = "dynamic-memory")]
mod resize;
#[cfg(all(feature = "dynamic-memory", feature = "integration-services"))]
mod services;
