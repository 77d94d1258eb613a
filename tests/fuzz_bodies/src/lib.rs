#![forbid(unsafe_code)]
//! The bodies of the fuzzers: one function for each target, which takes bytes and panics if an
//! invariant is broken.
//!
//! The programs in `fuzz/` call them under libFuzzer. The test `replay` of this package calls them
//! with each file of the corpora, so that an ordinary `cargo test` covers everything that the
//! fuzzers have ever found.

mod balance_recording;
mod boot;
mod device;
mod dm_messages;
mod doctor;
mod guest_memory;
mod hvb_options;
mod hypercalls;
mod page_set;
mod qmp_lines;
mod rings;
mod saved_state;
mod services;
mod virtio;
mod vmbus_messages;
mod vsp;

// Parts of the program `hvb`, which has no library.
#[path = "../../../bin/hvb/src/balance_args.rs"]
mod balance_args;
#[path = "../../../bin/hvb/src/cli.rs"]
mod cli;
#[path = "../../../bin/hvb/src/config.rs"]
mod config;
#[expect(dead_code, reason = "the program's main uses more")]
#[path = "../../../bin/hvb/src/definition.rs"]
mod definition;
#[path = "../../../bin/hvb/src/disk.rs"]
mod disk;
#[path = "../../../bin/hvb/src/doctor_args.rs"]
mod doctor_args;
#[path = "../../../bin/hvb/src/listen.rs"]
mod listen;
#[cfg_attr(not(test), expect(dead_code, reason = "other commands use more"))]
#[path = "../../../bin/hvb/src/names.rs"]
mod names;
#[path = "../../../bin/hvb/src/network.rs"]
mod network;
#[expect(dead_code, reason = "the balancer uses more")]
#[path = "../../../bin/hvb/src/size.rs"]
mod size;
#[path = "../../../bin/hvb/src/top_args.rs"]
mod top_args;

// A driver for virtio devices.
#[expect(dead_code, reason = "shared with the tests of the devices")]
#[path = "../../../crates/virtio_devices/tests/driver/mod.rs"]
mod driver;

// The device with a model of each page.
#[path = "../../../crates/hv_balloon/tests/device/world.rs"]
mod world;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of the program in `fuzz/fuzz_targets` and of the folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Runs one input. Panics if an invariant is broken.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "balance_recording", run: balance_recording::run },
    Target { name: "boot", run: boot::run },
    Target { name: "device", run: device::run },
    Target { name: "dm_messages", run: dm_messages::run },
    Target { name: "doctor", run: doctor::run },
    Target { name: "hvb_options", run: hvb_options::run },
    Target { name: "hypercalls", run: hypercalls::run },
    Target { name: "page_set", run: page_set::run },
    Target { name: "qmp_lines", run: qmp_lines::run },
    Target { name: "rings", run: rings::run },
    Target { name: "saved_state", run: saved_state::run },
    Target { name: "services", run: services::run },
    Target { name: "virtio", run: virtio::run },
    Target { name: "vmbus_messages", run: vmbus_messages::run },
    Target { name: "vsp", run: vsp::run },
];

/// Runs one input of the named target.
///
/// # Panics
/// If there is no such target, or an invariant is broken.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("there is no fuzz target {name}"));
    (target.run)(data);
}
