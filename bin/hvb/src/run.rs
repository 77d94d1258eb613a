//! `hvb run`: boots a kernel in a virtual machine.

use anyhow::{Context, Result, bail};
use vmm::{Config, SerialOutput, SettleTime};

use crate::cli::{HugePages, RunArgs, Serial, Settle};

/// Runs the machine until it ends.
pub(crate) fn run(args: RunArgs) -> Result<()> {
    Ok(vmm::run(&config(args)?)?)
}

fn config(args: RunArgs) -> Result<Config> {
    if let Some(max) = args.max_memory {
        if max.bytes() < args.memory.bytes() {
            bail!("--max-memory {max} is below --memory {}: raise it or leave it out", args.memory);
        }
        if max.bytes() > args.memory.bytes() {
            bail!(
                "--max-memory {max} is above --memory {}: adding memory to a running guest is not \
                 there yet; leave --max-memory out",
                args.memory
            );
        }
    }
    let huge_pages = match args.hugepages {
        HugePages::Off => vmm::HugePages::Off,
        HugePages::Thp => vmm::HugePages::Transparent,
        HugePages::Mib2 | HugePages::Gib1 => {
            bail!("--hugepages 2M and 1G are not there yet: use thp or off")
        }
    };
    Ok(Config {
        kernel: args.kernel,
        initrd: args.initrd,
        command_line: args.append,
        vcpus: u8::try_from(args.cpus).context("--cpus is too large")?,
        memory_bytes: args.memory.bytes(),
        qmp: args.qmp,
        serial: match args.serial {
            Serial::Stdio => SerialOutput::Stdio,
            Serial::File(path) => SerialOutput::File(path),
            Serial::None => SerialOutput::None,
        },
        status_reports: args.status_report,
        settle: match args.settle {
            Settle::Auto => SettleTime::Auto,
            Settle::Fixed(wait) => SettleTime::Fixed(wait),
        },
        huge_pages,
    })
}
