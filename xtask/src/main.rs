//! The project's tasks: `cargo xtask TASK`.

mod cargo_tool;
mod debian;
mod disk_image;
mod guest_image;
mod rig;
mod tasks;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use rig::{emulator, host};
use tasks::{
    boots, coverage, demo, device_lines, fuzz, image, lint, msrv, mutants, package, peers,
    public_api, record_bus, sanitize, soak, startup, suite, test, toolchain,
};

/// Tasks of the hv-balloon project.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boots a Debian Linux, shrinks it, grows it again, and shows what both sides saw.
    Demo(demo::DemoArgs),
    /// Runs a command where KVM has Hyper-V support: here, or in an emulated machine.
    Rig(rig::RigArgs),
    /// Runs all tests, those that need KVM in the rig where this machine cannot.
    Test(test::TestArgs),
    /// Fuzzes everything that takes input: each target for so many seconds.
    Fuzz(fuzz::FuzzArgs),
    /// Resizes, resets and reloads the driver of a guest at random, with its memory under check.
    Soak(soak::SoakArgs),
    /// Boots guests again and again, and keeps the evidence of each that does not come up.
    Boots(boots::BootsArgs),
    /// Records real guests for the replays in tests/bus_replay, with each kernel.
    RecordBus(record_bus::RecordBusArgs),
    /// Shows how much of the code the tests without a guest run through.
    Coverage(coverage::CoverageArgs),
    /// Runs tests under AddressSanitizer and ThreadSanitizer.
    Sanitize(sanitize::SanitizeArgs),
    /// Changes the code of the pure crates, one place at a time, and shows where no test notices.
    Mutants(mutants::MutantsArgs),
    /// Measures the same guest under hvb and under QEMU's two balloons.
    BenchPeers(peers::PeersArgs),
    /// Measures how fast a machine starts and how little memory it takes, beside QEMU's microvm.
    BenchStartup(startup::StartupArgs),
    /// Counts the lines of our own code that each virtio device takes.
    DeviceLines,
    /// Checks what the compiler does not: layers, purity, manifests, file sizes, links.
    Lint,
    /// Checks that the compiler in use is the oldest one that README.md and `rust-version` promise.
    ///
    /// Prints the name of the rustup toolchain to use where that is another one than the default.
    Toolchain,
    /// Checks that the libraries compile with the compilers that their `rust-version` names.
    ///
    /// Says which could not be checked, for want of a compiler.
    Msrv,
    /// Packages every library as `cargo publish` would, and builds what is in the packages.
    Package(package::PackageArgs),
    /// Writes the listings of the libraries' public API in `docs/api`, or checks them.
    PublicApi(public_api::PublicApiArgs),
    /// Installs and downloads all that the rig and the test guest need, ahead of time.
    Prepare {
        /// Takes the newest kernels even where some are cached.
        #[arg(long)]
        refresh: bool,
    },
    /// Makes a disk image with Debian, systemd and PostgreSQL, and the kernel and initrd to boot it.
    ///
    /// Needs root, and Debian's mirror. An image that was made with the same options stays as it is,
    /// with what a guest has written to it since. Other options replace it.
    ///
    /// Whoever has the serial console of the guest is root: no password is asked for there. Elsewhere
    /// root cannot log in, except with the key of --ssh-key.
    Image(image::ImageArgs),
    /// Builds a test guest and prints the paths of its kernel and initramfs.
    GuestImage {
        /// Which kernel it has.
        #[arg(long, value_enum, default_value = "stable")]
        kernel: guest_image::GuestKernel,
    },
    /// Runs the test programs of a plan; what `test` starts in the rig.
    #[command(hide = true)]
    Suite {
        /// The plan that `test` wrote.
        plan: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo(args) => demo::main(&args),
        Task::Rig(args) => Ok(rig::main(&args)),
        Task::Test(args) => test::main(&args),
        Task::Fuzz(args) => fuzz::main(&args),
        Task::Soak(args) => soak::main(&args),
        Task::Boots(args) => boots::main(&args),
        Task::RecordBus(args) => record_bus::main(&args),
        Task::Coverage(args) => coverage::main(&args),
        Task::Sanitize(args) => sanitize::main(&args),
        Task::Mutants(args) => mutants::main(&args),
        Task::BenchPeers(args) => peers::main(&args),
        Task::BenchStartup(args) => startup::main(&args),
        Task::DeviceLines => device_lines::main(),
        Task::Lint => lint::main(),
        Task::Toolchain => toolchain::main(),
        Task::Msrv => msrv::main(),
        Task::Package(args) => package::main(&args),
        Task::PublicApi(args) => public_api::main(&args),
        Task::Prepare { refresh } => prepare(refresh),
        Task::Image(args) => image::main(args),
        Task::GuestImage { kernel } => {
            let guest = guest_image::build(kernel)?;
            println!("kernel {}\ninitrd {}", guest.kernel.display(), guest.initrd.display());
            Ok(ExitCode::SUCCESS)
        }
        Task::Suite { plan } => suite::run_plan(&plan),
    }
}

fn prepare(refresh: bool) -> Result<ExitCode> {
    if refresh {
        guest_image::kernels::forget_choices()?;
        emulator::forget_choice()?;
    }
    for kernel in guest_image::GuestKernel::ALL {
        guest_image::build(kernel)?;
    }
    if let host::HyperV::Absent(_) = host::probe() {
        rig::prepare()?;
    }
    Ok(ExitCode::SUCCESS)
}
