//! Sizes and options of `hvb`: a consistent machine, or an error for the user.

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::config::config;
use crate::definition::options_of;
use crate::size::{ByteSize, human};

/// The lines of the text are the arguments of `hvb`; the first one is also parsed as a size, and the
/// whole text as the definition of a machine.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(first) = text.lines().next() {
        size(first);
    }
    match options_of(text) {
        Ok(options) => {
            let words = ["hvb", "run"].into_iter().map(str::to_owned).chain(options);
            drop(Cli::try_parse_from(words));
        }
        Err(error) => assert!(!format!("{error:#}").is_empty()),
    }
    let words = std::iter::once("hvb").chain(text.lines());
    let command = match Cli::try_parse_from(words) {
        Ok(cli) => cli.command,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    match command {
        Command::Run(args) => match config(*args) {
            Ok(config) => check(&config),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        Command::Balloon(args) => assert!(args.size.bytes() > 0 && !args.timeout.is_zero()),
        Command::Info(_)
        | Command::Stop(_)
        | Command::List
        | Command::Balance(_)
        | Command::Doctor(_)
        | Command::Top(_)
        | Command::Generate(_) => {}
    }
}

fn size(text: &str) {
    match text.parse::<ByteSize>() {
        Ok(size) => {
            assert!(size.bytes() > 0 && i64::try_from(size.bytes()).is_ok());
            assert_eq!(size.argument().parse(), Ok(size), "{}", size.argument());
            assert_eq!(size.to_string(), human(size.bytes()));
            for unit in [4096, 2 << 20, 1 << 30] {
                let next = size.next_multiple_of(unit);
                assert!(next.is_none_or(|next| next >= size && next.bytes() % unit == 0));
            }
        }
        Err(error) => assert!(error.to_string().starts_with("a size")),
    }
}

fn check(config: &vmm::Config) {
    assert!((1..=vmm::Config::MAX_VCPUS).contains(&config.vcpus));
    assert!(config.memory_bytes > 0 && config.memory_bytes.is_multiple_of(4096));
    assert!(config.max_memory_bytes.is_multiple_of(4096));
    assert!(config.memory_bytes <= config.max_memory_bytes);
    assert!(i64::try_from(config.max_memory_bytes).is_ok());
}
