#![forbid(unsafe_code)]
//! A small VMM on `kvm-ioctls` whose guest grows and shrinks while it runs.
//!
//! It boots a Linux bzImage with an initrd and has a serial console on standard input and output.
//! Everything about Dynamic Memory is in [`dynamic_memory`]; any VMM has modules like the others.
//! To add Dynamic Memory to your own VMM, start here and with `docs/embedding.md`.
//!
//! A line of standard input that begins with `!` is a command: `!target 384M`, `!status`, `!quit`.
//! Any other line goes to the guest. Replies and notices go to standard error.
//!
//! A reset by the guest ends the machine, just as a power-off does.

mod acpi;
mod boot;
mod console;
mod devices;
mod dynamic_memory;
mod log;
mod memory;
mod vcpu;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;

use anyhow::{Context, Result};
use clap::Parser;
use kvm_hyperv::probe::{self, Irqchip};
use kvm_hyperv::vm::slot_limit;

use crate::devices::Devices;
use crate::dynamic_memory::{DynamicMemory, Parts};
use crate::vcpu::Vcpus;

/// Boots a Linux guest whose memory can be resized.
#[derive(Debug, Parser)]
struct Args {
    /// A bzImage.
    #[arg(long)]
    kernel: PathBuf,
    /// Its initial RAM disk.
    #[arg(long)]
    initrd: PathBuf,
    /// Its command line.
    #[arg(long, default_value = "console=ttyS0")]
    append: String,
    /// Number of vCPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    cpus: u8,
    /// Memory at boot, such as 512M: at most 3G.
    #[arg(long, value_parser = memory::parse_size)]
    memory: u64,
    /// Memory that the guest may have while it runs [default: that at boot].
    #[arg(long, value_parser = memory::parse_size)]
    max_memory: Option<u64>,
}

/// Why the machine ends.
#[derive(Debug)]
enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// The user said `!quit`.
    Quit,
    /// The machine cannot continue.
    Failed(anyhow::Error),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    vcpu::install_kick()?;
    let (kvm, capabilities) = probe::open(Irqchip::Full)?;
    let (vm, memory) = memory::create(&kvm, args.memory)?;
    let fds: Vec<_> = (0..args.cpus)
        .map(|id| vcpu::create(&kvm, vm.fd(), id, args.cpus))
        .collect::<Result<_>>()?;
    let devices = Arc::new(Devices::new(vm.fd())?);
    let entry = boot::load(&memory, &args.kernel, &args.initrd, &args.append, args.cpus)?;
    vcpu::set_entry(fds.first().context("no vCPU")?, entry)?;

    let (ends, end) = channel();
    let vcpus = Arc::new(Vcpus::default());
    let kicked = Arc::clone(&vcpus);
    let (dynamic_memory, bus) = DynamicMemory::start(Parts {
        vm: Arc::new(vm),
        memory,
        vcpus: args.cpus.into(),
        address_bits: memory::address_bits(&kvm)?,
        to_add: args.max_memory.unwrap_or(args.memory).saturating_sub(args.memory),
        // Boot RAM takes one slot.
        free_slots: slot_limit(&kvm).saturating_sub(1),
        signals_in_kernel: capabilities.eventfd,
        kick: Box::new(move |vcpu| kicked.kick(vcpu)),
        ends: ends.clone(),
    })?;

    vcpus.start(fds, &bus, &devices, &ends)?;
    console::start(devices, dynamic_memory.control(), ends)?;
    let end = end.recv()?;
    vcpus.stop();
    match end {
        End::Failed(error) => Err(error),
        End::PowerOff | End::Reset | End::Quit => {
            eprintln!("ended: {end:?}");
            Ok(())
        }
    }
}
