//! Tests of `hvb` running Debian's kernel, from the view of the guest, the host and the monitor.

mod bad_input;
mod confinement;
mod definition;
mod devices;
mod flight_recorder;
mod free_pages;
mod host_faults;
mod hot_add;
mod huge_pages;
mod kexec;
mod life;
mod minimal_vmm;
mod monitor;
mod network;
mod pause;
mod recording;
mod reports;
mod reset;
mod resize;
mod services;
mod soak;

/// Defines two tests for each function: with one and with two vCPUs.
macro_rules! on_one_and_two_cpus {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn one_cpu() -> anyhow::Result<()> {
                super::$name(1)
            }

            #[test]
            fn two_cpus() -> anyhow::Result<()> {
                super::$name(2)
            }
        }
    )*};
}
pub(crate) use on_one_and_two_cpus;
