//! One module for each task.

pub(crate) mod boots;
pub(crate) mod coverage;
pub(crate) mod demo;
pub(crate) mod device_lines;
pub(crate) mod fuzz;
pub(crate) mod image;
mod links;
pub(crate) mod lint;
pub(crate) mod msrv;
pub(crate) mod mutants;
pub(crate) mod package;
pub(crate) mod peers;
pub(crate) mod public_api;
pub(crate) mod record_bus;
pub(crate) mod sanitize;
pub(crate) mod soak;
pub(crate) mod startup;
pub(crate) mod suite;
pub(crate) mod test;
pub(crate) mod toolchain;
