//! What the user reads: results on stdout, one line per failure on stderr, logs.

use crate::log::Log;
use anyhow::{Context, Result};
use clap::error::{ContextKind, ErrorKind};
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// The status of a command line that makes no sense.
const USAGE: u8 = 2;

/// Writes a line to stdout. Nobody reading it any more is no failure: the exit status still tells
/// how things went.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", printable(text)).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to stdout"),
    }
}

/// Tells of a failure: one line, cause after cause.
pub(crate) fn failure(error: &anyhow::Error) -> ExitCode {
    complain(&format!("{error:#}"));
    ExitCode::FAILURE
}

/// Tells of a command line that makes no sense, or gives the help asked for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // As for `line`.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(USAGE)
        }
        _ => {
            complain(&usage_text(error));
            ExitCode::from(USAGE)
        }
    }
}

/// Sends logs to stderr, as much as `HVB_LOG` says, until what it returns is dropped.
///
/// Where they cannot be written, for want of room on a disk or of a reader, they are lost and nothing
/// else is.
pub(crate) fn start_logging() -> Result<Log> {
    let filter = match std::env::var("HVB_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .with_context(|| format!("HVB_LOG={text}: give a level such as debug"))?,
        Err(_) => EnvFilter::new("warn"),
    };
    let log = Log::start(io::stderr()).context("cannot start the log's thread")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(log.lines())
        .with_ansi(io::stderr().is_terminal())
        // By default its own failures go to stderr too, by a call that panics where that fails.
        .log_internal_errors(false)
        .init();
    Ok(log)
}

/// The text without anything that would move a terminal's cursor: it may come from a server.
pub(crate) fn printable(text: &str) -> String {
    text.split(char::is_control).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn complain(text: &str) {
    // There is nobody left to tell if this fails.
    let _ = writeln!(io::stderr(), "hvb: {}", printable(text));
}

fn usage_text(error: &clap::Error) -> String {
    // Our own value parsers say all there is to say.
    if error.kind() == ErrorKind::ValueValidation
        && let (Some(argument), Some(reason)) = (error.get(ContextKind::InvalidArg), error.source())
    {
        return format!("{argument}: {reason}");
    }
    // What clap writes is a paragraph with the problem, perhaps tips, then usage and help.
    let text = error.render().to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or_default();
    let text = text.split("\n\nFor more information").next().unwrap_or_default();
    let text = text.trim_start_matches("error: ");
    let words: Vec<&str> = text.split_whitespace().collect();
    format!("{}; see hvb --help", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn text(arguments: &str) -> String {
        usage_text(&Cli::try_parse_from(arguments.split_whitespace()).unwrap_err())
    }

    #[test]
    fn usage_errors_are_one_line_that_names_the_thing() {
        assert_eq!(
            text("hvb run --kernel k --memory 12Q"),
            "--memory <SIZE>: invalid size '12Q': a size is a number with K, M, G or T, for example 512M or 4G"
        );
        assert_eq!(
            text("hvb run --kernel k --cpus 0"),
            "--cpus <N>: invalid number of vCPUs '0': a guest needs at least 1"
        );
        assert_eq!(
            text("hvb run"),
            "the following required arguments were not provided: --kernel <FILE>; see hvb --help"
        );
        assert!(text("hvb run --kernal k").contains("--kernal"));
        assert!(text("hvb blloon").contains("'balloon'"));
        assert!(!text("hvb run --hugepages 3M --kernel k").contains('\n'));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\nc\u{9b}d"), "a [2Jb c d");
    }
}
