//! The machine configuration, from the options of `hvb run`.

use anyhow::{Context, Result, bail};
use vmm::{Config, SerialOutput};

use crate::cli::{HugePages, OnReset, RunArgs, Seccomp, Serial, Switch};
use crate::names;
use crate::size::ByteSize;

/// The machine that the options describe.
pub(crate) fn config(args: RunArgs) -> Result<Config> {
    let max_memory = args.max_memory.unwrap_or(args.memory);
    if max_memory < args.memory {
        bail!(
            "--max-memory {} is below --memory {}: raise it or leave it out",
            max_memory.argument(),
            args.memory.argument()
        );
    }
    whole_pages("--memory", args.memory, args.hugepages)?;
    whole_pages("--max-memory", max_memory, args.hugepages)?;
    Ok(Config {
        kernel: args.kernel,
        initrd: args.initrd,
        command_line: args.append,
        vcpus: u8::try_from(args.cpus).context("--cpus is too large")?,
        memory_bytes: args.memory.bytes(),
        max_memory_bytes: max_memory.bytes(),
        on_reset: match args.on_reset {
            OnReset::BootSize => vmm::OnReset::BootSize,
            OnReset::KeepSize => vmm::OnReset::KeepSize,
        },
        grace: args.grace,
        qmp: match (args.qmp, args.name) {
            (None, Some(name)) => Some(names::socket_of(&name)?),
            (qmp, _) => qmp,
        },
        serial: match args.serial {
            Serial::Stdio => SerialOutput::Stdio,
            Serial::File(path) => SerialOutput::File(path),
            Serial::None => SerialOutput::None,
        },
        record_bus: args.record_bus,
        status_reports: args.status_report,
        settle: args.settle,
        disks: args.disk,
        networks: args.net,
        huge_pages: match args.hugepages {
            HugePages::Off => vmm::HugePages::Off,
            HugePages::Thp => vmm::HugePages::Transparent,
            HugePages::Mib2 => vmm::HugePages::Pool2M,
            HugePages::Gib1 => vmm::HugePages::Pool1G,
        },
        free_page_reporting: match args.free_page_reporting {
            None => vmm::FreePageReporting::Auto,
            Some(Switch::On) => vmm::FreePageReporting::On,
            Some(Switch::Off) => vmm::FreePageReporting::Off,
        },
        seccomp: match args.seccomp {
            Seccomp::On => vmm::Seccomp::On,
            Seccomp::Log => vmm::Seccomp::Log,
            Seccomp::Off => vmm::Seccomp::Off,
        },
    })
}

/// Refuses a size that is not a multiple of the pool's page size.
fn whole_pages(option: &str, size: ByteSize, pages: HugePages) -> Result<()> {
    let (name, page) = match pages {
        HugePages::Off | HugePages::Thp => return Ok(()),
        HugePages::Mib2 => ("2M", 2 << 20),
        HugePages::Gib1 => ("1G", 1 << 30),
    };
    if size.bytes().is_multiple_of(page) {
        return Ok(());
    }
    let remedy = match size.next_multiple_of(page) {
        Some(next) => format!("give a size such as {}", next.argument()),
        None => "give less".to_owned(),
    };
    bail!(
        "{option} {} is not a multiple of the page size of --hugepages {name}: {remedy}",
        size.argument()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn configured(arguments: &str) -> Result<Config> {
        let words = ["hvb", "run", "--kernel", "k"].into_iter().chain(arguments.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(arguments) => config(*arguments),
            other => panic!("{other:?}"),
        }
    }

    fn refusal(arguments: &str) -> String {
        configured(arguments).unwrap_err().to_string()
    }

    #[test]
    fn a_guest_grows_only_if_asked_to() {
        let config = configured("--memory 512M").unwrap();
        assert_eq!((config.memory_bytes, config.max_memory_bytes), (512 << 20, 512 << 20));
        assert_eq!(config.on_reset, vmm::OnReset::BootSize);
        let config = configured("--memory 512M --max-memory 4G --on-reset keep-size").unwrap();
        assert_eq!((config.memory_bytes, config.max_memory_bytes), (512 << 20, 4 << 30));
        assert_eq!(config.on_reset, vmm::OnReset::KeepSize);
        assert_eq!(
            refusal("--memory 1G --max-memory 512M"),
            "--max-memory 512M is below --memory 1G: raise it or leave it out"
        );
    }

    #[test]
    fn a_machine_is_confined_unless_the_user_says_otherwise() {
        let seccomp = |arguments| configured(arguments).unwrap().seccomp;
        assert_eq!(seccomp(""), vmm::Seccomp::On);
        assert_eq!(seccomp("--seccomp on"), vmm::Seccomp::On);
        assert_eq!(seccomp("--seccomp log"), vmm::Seccomp::Log);
        assert_eq!(seccomp("--seccomp off"), vmm::Seccomp::Off);
    }

    #[test]
    fn free_pages_are_reported_where_that_is_possible_unless_the_user_says_otherwise() {
        let reporting = |arguments| configured(arguments).unwrap().free_page_reporting;
        assert_eq!(reporting(""), vmm::FreePageReporting::Auto);
        assert_eq!(reporting("--free-page-reporting on"), vmm::FreePageReporting::On);
        assert_eq!(reporting("--free-page-reporting off"), vmm::FreePageReporting::Off);
    }

    #[test]
    fn memory_is_whole_huge_pages() {
        assert_eq!(
            configured("--hugepages 2M --memory 514M").unwrap().huge_pages,
            vmm::HugePages::Pool2M
        );
        assert_eq!(configured("--hugepages 1G").unwrap().huge_pages, vmm::HugePages::Pool1G);
        assert_eq!(
            refusal("--hugepages 2M --memory 513M"),
            "--memory 513M is not a multiple of the page size of --hugepages 2M: give a size such as 514M"
        );
        assert_eq!(
            refusal("--hugepages 1G --max-memory 1536M"),
            "--max-memory 1536M is not a multiple of the page size of --hugepages 1G: give a size such as 2G"
        );
        let largest = "9223372036854771712";
        assert!(
            refusal(&format!("--hugepages 1G --max-memory {largest}")).ends_with(": give less")
        );
        assert!(configured("--hugepages thp --memory 516K").is_ok());
    }
}
